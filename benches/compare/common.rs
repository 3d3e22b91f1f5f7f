//! What the benchmarks share: implementations of a pool of frames, and workloads that treat them all alike.

#![allow(dead_code, unreachable_pub, reason = "shared source: each benchmark uses a part")]

pub mod bare_sequence;
pub mod claimed_stacks;
pub mod implementations;
pub mod table_floors;
pub mod tables;
pub mod workloads;

use criterion::Criterion;
use std::{fs, path::Path, time::Duration};

/// Frames of every pool.
pub const FRAMES: u32 = 1 << 16;

/// Criterion, with `FRAMEPOOL_BENCH=quick` for a look in minutes instead of a measurement.
pub fn criterion() -> Criterion {
    let quick = std::env::var("FRAMEPOOL_BENCH").is_ok_and(|value| value == "quick");
    leave("run", &serde_json::json!([{ "quick": quick }]));
    let criterion = if quick {
        let (warm_up, measurement) = (Duration::from_millis(100), Duration::from_millis(400));
        Criterion::default().warm_up_time(warm_up).measurement_time(measurement).sample_size(20)
    } else {
        Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(4))
    };
    criterion.without_plots().configure_from_args()
}

/// Leaves what a benchmark has measured where the table of all results is made from.
pub fn leave(name: &str, results: &serde_json::Value) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("performance");
    fs::create_dir_all(&directory).expect("a directory for the results");
    fs::write(directory.join(name).with_extension("json"), results.to_string())
        .expect("the results are written");
}
