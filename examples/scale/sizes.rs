//! How large a magazine should be: simulated, and measured with two threads of this machine.

use crate::{
    Arguments,
    workload::{Run, Workload},
};
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use framepool::{AnonymousMemory, Builder};
use std::{
    error::Error,
    hint,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

/// Frames in a magazine: one less than a power of two wastes no memory.
const SIZES: [u32; 5] = [63, 127, 255, 511, 1023];
/// CPUs for which the sizes are compared.
const CPUS: [usize; 4] = [2, 4, 8, 64];
/// Frames that a thread takes before it gives them back.
const BATCH: usize = 1024;
/// How long the threads run for a figure, of how many of which the median counts.
const RUN: Duration = Duration::from_millis(60);
const REPEATS: usize = 9;

fn table_with(first: [&str; 2]) -> Table {
    let mut table = Table::new();
    let sizes = SIZES.map(|size| format!("{size} frames"));
    table.load_preset(ASCII_MARKDOWN).set_header(first.map(str::to_owned).into_iter().chain(sizes));
    table
}

/// Nanoseconds a pair on one node, for each size.
pub(crate) fn simulated(arguments: &Arguments) -> Result<Table, Box<dyn Error>> {
    let mut table = table_with(["workload", "CPUs"]);
    for workload in [Workload::Batch, Workload::ProducerConsumer, Workload::Walk] {
        for cpus in CPUS.into_iter().filter(|&cpus| cpus <= arguments.most_cpus) {
            let mut row = vec![workload.name().to_owned(), cpus.to_string()];
            for magazine_size in SIZES {
                let run = Run {
                    workload,
                    layout: arguments.layout(cpus, 1),
                    magazine_size,
                    depots: cpus.div_ceil(arguments.cpus_for_each_depot),
                };
                row.push(format!("{:.1}", run.measure()?.pair(cpus)));
            }
            table.add_row(row);
        }
    }
    Ok(table)
}

/// Nanoseconds a pair of threads of this machine that take and give batches, for each size: the medians of runs that alternate.
pub(crate) fn measured() -> Result<Table, Box<dyn Error>> {
    let mut table = table_with(["threads", "workload"]);
    for threads in [1, 2] {
        let mut figures = SIZES.map(|_| Vec::new());
        for _ in 0..REPEATS {
            for (size, figures) in SIZES.into_iter().zip(&mut figures) {
                figures.push(batches(threads, size)?);
            }
        }
        let medians = figures.map(|mut figures| {
            figures.sort_by(f64::total_cmp);
            format!("{:.1}", figures[REPEATS / 2])
        });
        table.add_row([threads.to_string(), "batch".into()].into_iter().chain(medians));
    }
    Ok(table)
}

/// Nanoseconds a pair.
fn batches(threads: usize, magazine_size: u32) -> Result<f64, Box<dyn Error>> {
    let frames = 8 * BATCH * threads;
    let pool = Builder::new(frames as u32)
        .initial(frames as u32)
        .magazine_size(magazine_size)
        .start(AnonymousMemory::new(frames as u32)?)?;
    let start = Barrier::new(threads);
    let run = || {
        let mut held = Vec::with_capacity(BATCH);
        let mut batches = 0;
        start.wait();
        let began = Instant::now();
        while began.elapsed() < RUN {
            held.extend((0..BATCH).map_while(|_| pool.alloc().ok()));
            hint::black_box(&mut held).clear();
            batches += 1;
        }
        began.elapsed().as_nanos() as f64 / (batches * BATCH) as f64
    };
    let times: Vec<f64> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let exhausted = pool.stats().exhausted;
    if times.len() < threads || exhausted > 0 {
        return Err(
            format!("{threads} threads, magazines of {magazine_size}: ran out {exhausted} times").into()
        );
    }
    Ok(times.iter().sum::<f64>() / times.len() as f64)
}
