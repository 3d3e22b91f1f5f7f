//! The document: what was simulated, and what came of it.

use crate::{
    Arguments,
    report::{self, Series},
    workload::Workload,
};
use comfy_table::Table;
use std::{error::Error, fmt::Write, fs, path::Path};

const INTRODUCTION: &str = "\
# Scale beyond this machine

Written by `cargo run --release --example scale -- --write docs`. The real pool on simulated CPUs, in virtual time: every access to shared memory that
the crate makes goes through one file (`src/sync.rs`), and in a build of its own each one is told to a model of a cache-coherent machine, which
makes its CPU wait for as long as the line takes to come. Nothing of the pool is modelled; operations interleave at each line that travels, and an
exchange fails where another CPU was faster.";

const DEPOTS: &str = "\
With one depot for all CPUs, the head of a stack is what all want as soon as frames go through the depot, and beyond some number of CPUs that do nothing else
the pool does less the more there are. A depot for each node only moves that point. With a depot for each few CPUs (`Builder::depots`) no line is wanted by
more CPUs than share a depot, whatever their number, and those whose own is empty look into different others; the time of a pair stays what it is with few
CPUs. The worker moves no magazines between depots: it is one CPU, and all others would look at the depot into which it has just put one. What a batch
of 1,024 frames needs lies in the CPU's own two magazines, so it loads no depot at all.";

const MODEL: &str = "\
A line is with one CPU that may write it, or with any number that read it. Requests for one line are served one after the other, in the order in
which they come; half-way through, the line leaves those who had it. CPUs do nothing but what the workload says, without a pause, so the
figures are the worst case: an owner who uses a frame between taking and giving it loads the depot less by as much. Slots are claimed; restartable
sequences touch the same lines, and spare the CPU the locked instructions, which here cost no more than others.

What the model does not know: caches that are too small, prefetching (the entries of a magazine that comes from another CPU travel one line
after the other), links between nodes that are full, and hardware that prefers the CPU that is near. Where many CPUs want one line, an exchange of a
stack's head nearly always fails the first time, because the link of the top has to travel between the head's reading and its exchange. Real machines
are less strict about the order of requests and do better there; where it begins is what counts.";

/// The row with the highest throughput.
fn peak(series: &Series) -> Option<String> {
    let (cpus, best) =
        series.points.iter().max_by(|one, other| one.1.throughput().total_cmp(&other.1.throughput()))?;
    let last = series.points.last()?;
    let held = last.1.throughput() / best.throughput();
    let busiest =
        |measured: &crate::machine::Measured| 100.0 * measured.busiest as f64 / measured.time as f64;
    Some(format!(
        "| {} | {cpus} | {:.0} | {:.0} % | {} | {:.0} % |",
        series.name,
        best.throughput(),
        busiest(best),
        last.0,
        100.0 * held,
    ))
}

pub(crate) fn write(
    directory: &Path,
    arguments: &Arguments,
    all: &[(Workload, Vec<Series>)],
    [simulated, measured]: [&Table; 2],
) -> Result<(), Box<dyn Error>> {
    let plots = directory.join("performance");
    fs::create_dir_all(&plots)?;
    let mut text = format!("{INTRODUCTION}\n\n## The machine\n\n{MODEL}\n\n");
    writeln!(text, "| an access | ns |\n|---|---|\n| to a line that the CPU has | {} |", arguments.own)?;
    writeln!(text, "| to one that is with another CPU of the node | {} |", arguments.near)?;
    writeln!(text, "| to one that is on another node | {} |\n", arguments.far)?;
    writeln!(
        text,
        "Magazines of {} frames. What the columns of the tables mean:\n",
        arguments.magazine_size
    )?;
    writeln!(
        text,
        "| column | |\n|---|---|\n\
         | ns a pair | time of one CPU for one frame taken and given |\n\
         | million pairs/s | of all CPUs together |\n\
         | depot: queued, travel | part of the CPUs' time that they wait behind others for the depot's lines, and that these travel |\n\
         | entries, rest | part of the time for the entries of magazines, and for all other lines |\n\
         | lines a pair | lines that travel |\n\
         | busiest line | part of the time in which the busiest line of all travels; with 100 % nothing more goes through it |\n\
         | wanted in | where in the source it was last wanted |\n"
    )?;
    writeln!(text, "## Depots\n\n{DEPOTS}\n")?;
    for (workload, series) in all {
        let name = workload.name();
        writeln!(
            text,
            "## `{name}`\n\n{}\n\n![{name}](performance/scale_{name}.svg)\n",
            workload.description()
        )?;
        report::plot(&plots.join(format!("scale_{name}.svg")), *workload, series)?;
        writeln!(
            text,
            "| | most pairs/s with CPUs | millions | busiest line then | with CPUs | of the most are left |"
        )?;
        writeln!(text, "|---|---|---|---|---|---|")?;
        series.iter().filter_map(peak).try_for_each(|row| writeln!(text, "{row}"))?;
        for series in series {
            writeln!(text, "\n{}:\n\n{}", series.name, report::table(series))?;
        }
        writeln!(text)?;
    }
    writeln!(
        text,
        "## The size of a magazine\n\nSimulated, one node, a depot for {} CPUs, ns a pair:\n\n{simulated}\n",
        arguments.cpus_for_each_depot
    )?;
    writeln!(
        text,
        "Measured on the machine of [performance.md](performance.md), ns a pair, medians of runs that alternate:\n\n{measured}"
    )?;
    fs::write(directory.join("scale.md"), text)?;
    Ok(())
}
