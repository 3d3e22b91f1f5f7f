//! Reads what `cargo bench` has measured, prints the ratios beside their limits, and writes `docs/performance.md` with a plot for each
//! workload. Nothing that was not measured is filled in: a row without results says so.
#![deny(missing_docs)]

use clap::Parser;
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use plotters::prelude::*;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Turns the results of `cargo bench` into a table of ratios and a document.
#[derive(Parser)]
struct Arguments {
    /// Cargo's target directory, in which the benchmarks have left their results.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target"))]
    target: PathBuf,
    /// The directory for `performance.md` and its plots; without it the table is only printed.
    #[arg(long)]
    write: Option<PathBuf>,
}

/// Nobody's rivals: framepool's own, and the floors.
fn is_rival(implementation: &str) -> bool {
    !implementation.starts_with("framepool") && !implementation.starts_with("floor")
}

/// What was measured.
struct Results {
    /// Medians in nanoseconds, for each pair of take and give or for each call, by workload and implementation.
    medians: BTreeMap<String, BTreeMap<String, f64>>,
    latency: Vec<Value>,
    survivors: Vec<Value>,
    memory: Vec<Value>,
    /// The medians are of a few samples.
    quick: bool,
}

/// Pairs in an iteration of a workload.
fn pairs(workload: &str) -> f64 {
    match workload {
        "bulk_64" => 64.0,
        "pass_4096" => 4096.0,
        batch if batch.contains("batch") => 1024.0,
        _ => 1.0,
    }
}

impl Results {
    fn read(target: &Path) -> Outcome<Self> {
        let left = |name: &str| -> Vec<Value> {
            let text = fs::read(target.join("tmp/performance").join(name).with_extension("json"));
            text.ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
        };
        let medians = BTreeMap::new();
        let quick = left("run").first().is_some_and(|run| run["quick"] == true);
        let [latency, survivors, memory] = ["latency", "survivors", "memory"].map(left);
        let mut results = Self { medians, latency, survivors, memory, quick };
        results.add(&target.join("criterion"))?;
        Ok(results)
    }

    /// Adds every result under `directory`.
    fn add(&mut self, directory: &Path) -> Outcome<()> {
        if directory.ends_with("new") {
            let json =
                |name| -> Outcome<Value> { Ok(serde_json::from_slice(&fs::read(directory.join(name))?)?) };
            let (names, estimates) = (json("benchmark.json")?, json("estimates.json")?);
            let name = |field: &str| names[field].as_str().map(str::to_owned);
            let median = estimates["median"]["point_estimate"].as_f64();
            if let (Some(workload), Some(implementation), Some(median)) =
                (name("function_id"), name("value_str"), median)
            {
                let pairs = pairs(&workload);
                self.medians.entry(workload).or_default().insert(implementation, median / pairs);
            }
            return Ok(());
        }
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                self.add(&path)?;
            }
        }
        Ok(())
    }

    fn of(&self, workload: &str, implementation: &str) -> Option<f64> {
        self.medians.get(workload)?.get(implementation).copied()
    }

    /// The fastest rival of a workload.
    fn best_rival(&self, workload: &str) -> Option<(&str, f64)> {
        let rivals = self.medians.get(workload)?.iter().filter(|(name, _)| is_rival(name));
        rivals.map(|(name, &median)| (name.as_str(), median)).min_by(|one, other| one.1.total_cmp(&other.1))
    }
}

/// A ratio that is to stay below a limit.
struct Row {
    what: String,
    ratio: Option<f64>,
    limit: f64,
}

/// The ratios that must hold.
fn rows(results: &Results) -> Vec<Row> {
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

fn table_of(rows: &[Row]) -> Table {
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

fn write_document(directory: &Path, results: &Results, ratios: &Table) -> Outcome<()> {
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
    writeln!(
        text,
        "Machine: {}.\n\n## Ratios\n\n{ratios}\n\n## Medians, ns a pair of take and give, or a call of the builder\n",
        machine()
    )?;
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
fn peers_table(results: &Results) -> Table {
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
fn write_comparison(directory: &Path, table: &Table) -> Outcome<()> {
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

fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    let results = Results::read(&arguments.target)?;
    let ratios = table_of(&rows(&results));
    println!("{ratios}");
    if let Some(directory) = arguments.write {
        write_document(&directory, &results, &ratios)?;
        write_comparison(&directory, &peers_table(&results))?;
    }
    Ok(())
}
