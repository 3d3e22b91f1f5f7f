//! `docs/performance.md`, its plots, and the measured part of `docs/comparison.md`.

use super::{
    Outcome,
    ratios::floors,
    results::{Results, is_rival},
};
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use plotters::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::Path,
    process::Command,
};

/// What the floors are.
const FLOORS: &str = "\
Some limits were set on another machine. These ratios say what is out of reach on this one; [limits.md](limits.md) goes through them. `floor-rseq` is a stack in one restartable \
sequence with nothing but what the kernel's interface asks for. `floor-claim` is a stack of this CPU's own, found by the CPU's number, \
whose length is exchanged for a mark and stored back. `floor-stores` are the entries of a table as atomic stores in a row. \
`floor-guarded-walk` is one exchange, so that a table is not taken away from under the walk, a load for each level, a look at the \
entries, and these stores.";

/// The percentiles of single calls.
fn latency_table(results: &Results) -> Table {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN);
    table.set_header(["implementation", "beside", "call", "50 %", "99 %", "99.9 %", "99.99 %", "99.999 %"]);
    for row in &results.latency {
        for call in ["alloc", "free"] {
            let mut cells: Vec<_> = ["implementation", "load"]
                .map(|field| row[field].as_str().unwrap_or_default().to_owned())
                .into();
            cells.push(call.to_owned());
            let percentiles = row[call].as_array().into_iter().flatten();
            cells.extend(percentiles.map(|value| format!("{:.0}", value.as_f64().unwrap_or(f64::NAN))));
            table.add_row(cells);
        }
    }
    table
}

fn survivors_table(results: &Results) -> Table {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN).set_header([
        "implementation",
        "ends",
        "signals",
        "inside a call",
        "frames twice",
    ]);
    for row in &results.survivors {
        let count = |field: &str| row["counts"][field].as_u64().map_or("-".into(), |count| count.to_string());
        let name = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
        table.add_row([
            name("implementation"),
            name("outcome"),
            count("signals"),
            count("inside"),
            count("duplicates"),
        ]);
    }
    table
}

fn memory_table(results: &Results) -> Table {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN).set_header(["frames", "bytes a frame", "made in ms"]);
    for row in &results.memory {
        let [frames, bytes, seconds] =
            ["frames", "bytes", "seconds"].map(|field| row[field].as_f64().unwrap_or(f64::NAN));
        table.add_row([
            format!("{frames}"),
            format!("{:.2}", bytes / frames),
            format!("{:.2}", seconds * 1e3),
        ]);
    }
    table
}

/// Medians of a workload as bars, the fastest first, on a logarithmic scale.
fn plot(path: &Path, workload: &str, medians: &BTreeMap<String, f64>) -> Outcome<()> {
    let mut bars: Vec<_> = medians.iter().collect();
    bars.sort_by(|one, other| one.1.total_cmp(other.1));
    let most = bars.last().map_or(1.0, |bar| *bar.1).max(1.0);
    let least = bars.first().map_or(1.0, |bar| *bar.1).min(most / 2.0) / 2.0;
    let (left, bar, top) = (190, 24, 44);
    let (width, height) = (760, top + bar * bars.len() as i32 + 16);
    let area = SVGBackend::new(path, (width as u32, height as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let text = ("sans-serif", 14).into_font();
    area.draw(&Text::new(format!("{workload}: median ns (log scale)"), (12, 14), text.clone()))?;
    for (index, (name, &median)) in bars.into_iter().enumerate() {
        let y = top + bar * index as i32;
        let length = ((median / least).ln() / (most / least).ln() * f64::from(width - left - 90)) as i32;
        let color = if name.starts_with("framepool") {
            RGBColor(31, 119, 180)
        } else if is_rival(name) {
            RGBColor(170, 170, 170)
        } else {
            RGBColor(44, 160, 44)
        };
        area.draw(&Text::new(name.clone(), (12, y + 4), text.clone()))?;
        area.draw(&Rectangle::new([(left, y), (left + length.max(1), y + bar - 6)], color.filled()))?;
        area.draw(&Text::new(format!("{median:.1}"), (left + length + 6, y + 4), text.clone()))?;
    }
    area.present()?;
    Ok(())
}

/// What measured.
fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let information = read("/proc/cpuinfo");
    let model = information.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let release = read("/proc/sys/kernel/osrelease");
    let rustc =
        Command::new("rustc").arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    format!(
        "{} × {}, Linux {}, {}; load average when this was written: {}",
        std::thread::available_parallelism().map_or(0, usize::from),
        model.trim_start_matches(['\t', ' ', ':']),
        release.trim(),
        String::from_utf8_lossy(&rustc).trim(),
        read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
    )
}

pub(crate) fn write_document(directory: &Path, results: &Results, ratios: &Table) -> Outcome<()> {
    let plots = directory.join("performance");
    fs::create_dir_all(&plots)?;
    let mut text = String::new();
    let quick = "one quick run (`FRAMEPOOL_BENCH=quick`): medians of twenty samples";
    let run = if results.quick { quick } else { "one run" };
    writeln!(
        text,
        "# Performance\n\nWritten by a command from the results of {run}; how is in `benches/`. Machines with\nmore CPUs \
         than this one are simulated: [scale.md](scale.md).\n"
    )?;
    writeln!(text, "Machine: {}.\n\n## Ratios\n\n{ratios}\n", machine())?;
    writeln!(text, "## How low a limit can be\n\n{FLOORS}\n\n{}\n", floors(results))?;
    writeln!(text, "## Medians, ns a pair of take and give, or a call of the builder\n")?;
    for (workload, medians) in &results.medians {
        let mut table = Table::new();
        table.load_preset(ASCII_MARKDOWN).set_header(["implementation", "median"]);
        let mut sorted: Vec<_> = medians.iter().collect();
        sorted.sort_by(|one, other| one.1.total_cmp(other.1));
        for (implementation, median) in sorted {
            table.add_row([implementation.clone(), format!("{median:.2}")]);
        }
        plot(&plots.join(format!("{workload}.svg")), workload, medians)?;
        writeln!(text, "### `{workload}`\n\n![{workload}](performance/{workload}.svg)\n\n{table}\n")?;
    }
    writeln!(
        text,
        "## Single calls, ns\n\nThe clock's own time is in. Another CPU uses the same pool meanwhile, or the worker refills and trims.\n"
    )?;
    writeln!(text, "{}\n\n## Who survives a storm of signals\n", latency_table(results))?;
    writeln!(
        text,
        "A signal each 50 µs for three seconds, whose handler takes and gives frames of the pool that it interrupts, unbalanced. One that \
         passes has not been proved right.\n"
    )?;
    writeln!(text, "{}\n\n## Bookkeeping\n\n{}", survivors_table(results), memory_table(results))?;
    fs::write(directory.join("performance.md"), text)?;
    Ok(())
}

/// Each peer beside framepool, as multiples of its time.
pub(crate) fn peers_table(results: &Results) -> Table {
    const WORKLOADS: [&str; 5] =
        ["hot_pair", "batch_1024_random", "two_threads_pair", "two_threads_batch", "producer_consumer"];
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN).set_header(["implementation"].into_iter().chain(WORKLOADS));
    let measured = WORKLOADS.iter().filter_map(|workload| results.medians.get(*workload));
    let names: BTreeSet<_> = measured.flat_map(BTreeMap::keys).filter(|name| is_rival(name)).collect();
    for name in names {
        let times = WORKLOADS.map(|workload| {
            let both = results.of(workload, name).zip(results.of(workload, "framepool-rseq"));
            both.map_or("-".into(), |(rival, ours)| format!("{:.1}", rival / ours))
        });
        table.add_row([name.clone()].into_iter().chain(times));
    }
    table
}

/// Puts `table` between the marks of the document that compares pools, if it is there.
pub(crate) fn write_comparison(directory: &Path, table: &Table) -> Outcome<()> {
    const MARKS: [&str; 2] = ["<!-- measured: begin -->\n", "<!-- measured: end -->"];
    let path = directory.join("comparison.md");
    let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
    let Some((before, rest)) = text.split_once(MARKS[0]) else { return Ok(()) };
    let Some((_, after)) = rest.split_once(MARKS[1]) else { return Ok(()) };
    let words = "Times what framepool with restartable sequences takes, in the run of [performance.md](performance.md), which has the machine \
                 and the medians:";
    fs::write(path, format!("{before}{}{words}\n\n{table}\n{}{after}", MARKS[0], MARKS[1]))?;
    Ok(())
}
