//! Reads what `cargo bench` has measured, prints the ratios beside their limits, and writes `docs/performance.md` with a plot for each
//! workload. Nothing that was not measured is filled in: a row without results says so.
#![deny(missing_docs)]

mod document;
mod ratios;
mod results;

use clap::Parser;
use document::{peers_table, write_comparison, write_document};
use ratios::{floors, rows, table_of};
use results::Results;
use std::{error::Error, path::PathBuf};

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

fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    let results = Results::read(&arguments.target)?;
    let ratios = table_of(&rows(&results));
    println!("{ratios}\n\n{}", floors(&results));
    if let Some(directory) = arguments.write {
        write_document(&directory, &results, &ratios)?;
        write_comparison(&directory, &peers_table(&results))?;
    }
    Ok(())
}
