//! The ratios that are to stay below a limit, and those of the floors, which say how low a limit can be.

use super::results::Results;
use comfy_table::{Table, presets::ASCII_MARKDOWN};

/// A ratio that is to stay below a limit.
pub(crate) struct Row {
    what: String,
    ratio: Option<f64>,
    limit: f64,
}

/// The ratios that must hold.
pub(crate) fn rows(results: &Results) -> Vec<Row> {
    let row = |(workload, implementation): (&str, &str), (other, against): (&str, &str), limit| Row {
        what: if workload == other {
            format!("`{workload}` {implementation} / {against}")
        } else {
            format!("`{workload}` / `{other}`, {implementation}")
        },
        ratio: results
            .of(workload, implementation)
            .zip(results.of(other, against))
            .map(|(one, other)| one / other),
        limit,
    };
    let against_rival = |workload: &str, limit| {
        let rival = results.best_rival(workload);
        Row {
            what: format!(
                "`{workload}` framepool-rseq / best rival ({})",
                rival.map_or("none", |rival| rival.0)
            ),
            ratio: results.of(workload, "framepool-rseq").zip(rival).map(|(ours, rival)| ours / rival.1),
            limit,
        }
    };
    let mut rows = vec![
        row(("hot_pair", "framepool-rseq"), ("hot_pair", "floor-vec"), 1.5),
        row(("hot_pair", "framepool-pinned"), ("hot_pair", "floor-vec"), 1.4),
        row(("hot_pair", "framepool-claim"), ("hot_pair", "floor-two-xchg"), 1.25),
        row(("batch_1024_random", "framepool-pinned"), ("batch_1024_random", "floor-vec"), 2.2),
        row(("batch_1024_random", "framepool-rseq"), ("batch_1024_random", "floor-vec"), 2.5),
        row(("two_threads_batch", "framepool-rseq"), ("batch_1024_random", "framepool-rseq"), 1.3),
        row(("two_threads_batch", "framepool-pinned"), ("batch_1024_random", "framepool-pinned"), 1.3),
        row(("sixteen_threads_batch", "framepool-rseq"), ("batch_1024_random", "framepool-rseq"), 1.5),
        against_rival("producer_consumer", 1.0),
    ];
    for workload in [
        "hot_pair",
        "batch_1024_fifo",
        "batch_1024_random",
        "bulk_64",
        "two_threads_pair",
        "two_threads_batch",
        "sixteen_threads_batch",
    ] {
        rows.push(against_rival(workload, 0.7));
    }
    rows.push(row(("zeroed_pair", "framepool-rseq"), ("hot_pair", "framepool-rseq"), 1.15));
    rows.extend([
        row(("map_256x4k", "framepool"), ("map_256x4k", "floor-stores"), 1.5),
        row(("unmap_256x4k", "framepool"), ("unmap_256x4k", "floor-stores"), 1.5),
        row(("map_1g_by_4k", "framepool"), ("map_1g_by_4k", "floor-memset"), 1.6),
        tables_against_rival(results, "map_unmap_4k", 1.5),
        tables_against_rival(results, "map_256x4k", 0.25),
        tables_against_rival(results, "unmap_256x4k", 0.25),
        tables_against_rival(results, "map_1g_by_4k", 0.1),
        bytes_for_each_frame(results),
        row(("mix_strict", "framepool"), ("mix_strict", "x86_64"), 0.3),
        tail(results),
    ]);
    rows
}

fn tables_against_rival(results: &Results, workload: &str, limit: f64) -> Row {
    let rival = results.best_rival(workload);
    Row {
        what: format!("`{workload}` framepool / best rival ({})", rival.map_or("none", |rival| rival.0)),
        ratio: results.of(workload, "framepool").zip(rival).map(|(ours, rival)| ours / rival.1),
        limit,
    }
}

/// Bytes of bookkeeping, not a ratio.
fn bytes_for_each_frame(results: &Results) -> Row {
    let measured = results.memory.iter().find(|row| row["frames"] == 1_000_000);
    let ratio = measured.and_then(|row| Some(row["bytes"].as_f64()? / row["frames"].as_f64()?));
    Row { what: "bytes of bookkeeping a frame, 10⁶ frames".into(), ratio, limit: 12.0 }
}

/// What the slowest of a thousand calls takes, against the floor.
fn tail(results: &Results) -> Row {
    let of = |name: &str| {
        let row = results.latency.iter().find(|row| row["implementation"] == name && row["load"] == "load");
        row.and_then(|row| row["alloc"][2].as_f64())
    };
    let ratio = of("framepool-rseq").zip(of("floor-vec")).map(|(ours, floor)| ours / floor);
    Row { what: "alloc at 99.9 % under load, framepool-rseq / floor-vec".into(), ratio, limit: 3.0 }
}

/// What an implementation cannot beat whatever it does, and how far framepool is from it.
const FLOORS: [(&str, &str, &str); 14] = [
    ("hot_pair", "floor-rseq", "floor-vec"),
    ("hot_pair", "framepool-rseq", "floor-rseq"),
    ("hot_pair", "floor-claim", "floor-two-xchg"),
    ("hot_pair", "framepool-claim", "floor-claim"),
    ("batch_1024_random", "floor-rseq", "floor-vec"),
    ("batch_1024_random", "framepool-rseq", "floor-rseq"),
    ("map_1g_by_4k", "floor-stores", "floor-memset"),
    ("map_256x4k", "floor-guarded-walk", "floor-stores"),
    ("map_256x4k", "framepool", "floor-guarded-walk"),
    ("unmap_256x4k", "floor-guarded-walk", "floor-stores"),
    ("unmap_256x4k", "framepool", "floor-guarded-walk"),
    ("map_unmap_4k", "framepool", "floor-guarded-walk"),
    ("mix_strict", "floor-guarded-walk", "x86_64"),
    ("mix_strict", "framepool", "floor-guarded-walk"),
];

/// The floors against each other, and framepool against the nearest.
pub(crate) fn floors(results: &Results) -> Table {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN).set_header(["what", "measured"]);
    for (workload, one, other) in FLOORS {
        let both = results.of(workload, one).zip(results.of(workload, other));
        let ratio = both.map_or("not measured".into(), |(one, other)| format!("{:.2}", one / other));
        table.add_row([format!("`{workload}` {one} / {other}"), ratio]);
    }
    if let Some((name, rival)) = results.best_rival("map_unmap_4k") {
        let floor = results.of("map_unmap_4k", "floor-guarded-walk");
        let ratio = floor.map_or("not measured".into(), |floor| format!("{:.2}", floor / rival));
        table.add_row([format!("`map_unmap_4k` floor-guarded-walk / best rival ({name})"), ratio]);
    }
    table
}

pub(crate) fn table_of(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN).set_header(["what", "measured", "at most", "holds"]);
    for Row { what, ratio, limit } in rows {
        let (measured, holds) = match ratio {
            Some(ratio) => (format!("{ratio:.2}"), if ratio <= limit { "yes" } else { "NO" }),
            None => ("not measured".into(), "-"),
        };
        table.add_row([what.clone(), measured, limit.to_string(), holds.into()]);
    }
    table
}
