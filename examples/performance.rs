//! Reads what `cargo bench` has measured, prints the ratios beside their limits, and writes `docs/performance.md` with a plot for each
//! workload. Nothing that was not measured is filled in: a row without results says so.
#![deny(missing_docs)]

use clap::Parser;
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use plotters::prelude::*;
use serde_json::Value;
use std::{
    collections::BTreeMap,
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
    /// Where criterion has left its results.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/criterion"))]
    results: PathBuf,
    /// The directory for `performance.md` and its plots; without it the table is only printed.
    #[arg(long)]
    write: Option<PathBuf>,
}

/// Nobody's rivals: framepool's own, and the floors.
fn is_rival(implementation: &str) -> bool {
    !implementation.starts_with("framepool") && !implementation.starts_with("floor")
}

/// Medians in nanoseconds for each pair of take and give, by workload and implementation.
struct Results(BTreeMap<String, BTreeMap<String, f64>>);

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
    fn read(directory: &Path) -> Outcome<Self> {
        let mut results = Self(BTreeMap::new());
        results.add(directory)?;
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
                self.0.entry(workload).or_default().insert(implementation, median / pairs);
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
        self.0.get(workload)?.get(implementation).copied()
    }

    /// The fastest rival of a workload.
    fn best_rival(&self, workload: &str) -> Option<(&str, f64)> {
        let rivals = self.0.get(workload)?.iter().filter(|(name, _)| is_rival(name));
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
    rows
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
    area.draw(&Text::new(format!("{workload}: median ns a pair (log scale)"), (12, 14), text.clone()))?;
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
    writeln!(
        text,
        "# Performance\n\nWritten by a command from the results of one run; how is in `benches/`.\n"
    )?;
    writeln!(
        text,
        "Machine: {}.\n\n## Ratios\n\n{ratios}\n\n## Medians, ns a pair of take and give\n",
        machine()
    )?;
    for (workload, medians) in &results.0 {
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
    fs::write(directory.join("performance.md"), text)?;
    Ok(())
}

fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    let results = Results::read(&arguments.results)?;
    let ratios = table_of(&rows(&results));
    println!("{ratios}");
    if let Some(directory) = arguments.write {
        write_document(&directory, &results, &ratios)?;
    }
    Ok(())
}
