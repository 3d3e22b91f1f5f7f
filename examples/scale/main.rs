//! How the pool does on machines that are not here: the real pool on 1 to 1,024 simulated CPUs, in virtual time, with the cost of a
//! cache line that moves. The same on every machine.
//!
//! `cargo run --release --example scale -- --write docs` writes `docs/scale.md` and its plots; without `--write` the tables are only
//! printed. `machine.rs` and `line.rs` say what is simulated.

mod document;
mod line;
mod machine;
mod report;
mod sizes;
mod workload;

use clap::Parser;
use line::{Layout, NANOSECOND, Time};
use report::Series;
use std::{error::Error, path::PathBuf};
use workload::{Run, Workload};

/// Runs the pool on simulated machines.
#[derive(Clone, Parser)]
struct Arguments {
    /// Only this workload.
    #[arg(long)]
    workload: Option<Workload>,
    /// The most CPUs: 1, 2, 4 and so on are simulated.
    #[arg(long, default_value_t = 1024)]
    most_cpus: usize,
    /// Nodes of the larger machine.
    #[arg(long, default_value_t = 8)]
    nodes: usize,
    /// Frames in a magazine.
    #[arg(long, default_value_t = 1023)]
    magazine_size: u32,
    /// CPUs that share a depot, where there are several.
    #[arg(long, default_value_t = 8)]
    cpus_for_each_depot: usize,
    /// Nanoseconds for an access to a line that the CPU has.
    #[arg(long, default_value_t = 0.5)]
    own: f64,
    /// Nanoseconds that a line takes from another CPU of the node.
    #[arg(long, default_value_t = 110.0)]
    near: f64,
    /// Nanoseconds that a line takes from another node.
    #[arg(long, default_value_t = 250.0)]
    far: f64,
    /// The directory for `scale.md` and its plots.
    #[arg(long)]
    write: Option<PathBuf>,
}

/// How many depots the pool has.
#[derive(Clone, Copy)]
enum Depots {
    One,
    OneANode,
    OneForSome,
}

impl Arguments {
    fn layout(&self, cpus: usize, nodes: usize) -> Layout {
        let picoseconds = |nanoseconds: f64| (nanoseconds * NANOSECOND as f64).round() as Time;
        let [own, near, far] = [self.own, self.near, self.far].map(picoseconds);
        Layout { cpus, nodes, own, near, far }
    }

    /// 1, 2, 4 and so on, from `least` on.
    fn cpus(&self, least: usize) -> impl Iterator<Item = usize> {
        let most = self.most_cpus;
        std::iter::successors(Some(1), |cpus| Some(cpus * 2))
            .skip_while(move |&cpus| cpus < least)
            .take_while(move |&cpus| cpus <= most)
    }

    /// Runs a workload on machines of `nodes` nodes.
    fn series(&self, workload: Workload, nodes: usize, depots: Depots) -> Result<Series, Box<dyn Error>> {
        let nodes_word = if nodes == 1 { "node" } else { "nodes" };
        let name = match depots {
            Depots::One => format!("{nodes} {nodes_word}, one depot"),
            Depots::OneANode => format!("{nodes} {nodes_word}, a depot each"),
            Depots::OneForSome => {
                format!("{nodes} {nodes_word}, a depot for {} CPUs", self.cpus_for_each_depot)
            }
        };
        let mut points = Vec::new();
        for cpus in self.cpus(workload.least_cpus()) {
            let run = Run {
                workload,
                layout: self.layout(cpus, nodes),
                magazine_size: self.magazine_size,
                depots: match depots {
                    Depots::One => 1,
                    Depots::OneANode => nodes.min(cpus),
                    Depots::OneForSome => cpus.div_ceil(self.cpus_for_each_depot),
                },
            };
            points.push((cpus, run.measure()?));
        }
        Ok(Series { name, points })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let chosen = |workload: &Workload| arguments.workload.is_none_or(|only| only == *workload);
    let mut all = Vec::new();
    for workload in Workload::ALL.into_iter().filter(chosen) {
        let mut of_workload = Vec::new();
        for (nodes, depots) in [
            (1, Depots::One),
            (1, Depots::OneForSome),
            (arguments.nodes, Depots::One),
            (arguments.nodes, Depots::OneANode),
            (arguments.nodes, Depots::OneForSome),
        ] {
            let series = arguments.series(workload, nodes, depots)?;
            println!("{workload:?}, {}\n{}\n", series.name, report::table(&series));
            of_workload.push(series);
        }
        all.push((workload, of_workload));
    }
    let sizes = sizes::simulated(&arguments)?;
    println!("{sizes}\n");
    let measured = sizes::measured()?;
    println!("{measured}");
    if let Some(directory) = &arguments.write {
        document::write(directory, &arguments, &all, [&sizes, &measured])?;
    }
    Ok(())
}
