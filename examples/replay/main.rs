//! Replays DMA traces of real Linux drivers against the VT-d builder over a framepool, and checks every call.
//!
//! One domain for each device; the map and unmap calls of each CPU on a thread of its own, some of them from inside signal
//! handlers that interrupt the others; table frames on demand from the pool. After each call every page that it named is compared
//! with the trace, and now and then all mappings of all domains with an ordered map.
//!
//! ```sh
//! cargo run --release --example replay                          # all recorded traces
//! cargo run --release --example replay -- --trace FILE --json   # another one; one JSON object on the last line
//! ```

#![allow(unreachable_pub, reason = "a program: nothing of it is reachable from elsewhere")]

use clap::Parser;
use driver::{Counts, Replay};
use framepool::{
    AnonymousMemory, Builder, Stats, Watermarks, WorkedPool,
    vtd::{
        CachingMode, Domain, DomainConfig, FirstStage, Format, Levels, ModelUnit, PageSizes, Permissions,
        SecondStage, Stage, TableFrames,
    },
};
use picture::Sample;
use plan::Plan;
use report::Outcome;
use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::Ordering::SeqCst,
    thread,
    time::{Duration, Instant},
};
use trace::{Operation, TraceError};
use unit::{Behind, Kind};
use view::View;

mod driver;
mod interrupts;
mod picture;
mod plan;
mod report;
mod trace;
mod unit;
mod view;

const RECORDED: [&str; 3] = ["nvme4k_strict.txt.zst", "mix_strict.txt.zst", "net_lazy.txt.zst"];
/// How often the pool is looked at for the picture.
const SAMPLING: Duration = Duration::from_micros(500);
/// Exit codes: something differed from the model; a trace is malformed.
const DIFFERENT: u8 = 1;
const MALFORMED: u8 = 2;

/// Replays DMA traces of Linux drivers on a framepool, every call checked against a model.
#[derive(Parser)]
struct Arguments {
    /// A trace to replay, plain or zstd; all recorded ones if not given.
    #[arg(long, value_name = "FILE")]
    trace: Vec<PathBuf>,
    /// Print one JSON object on the last line of standard output.
    #[arg(long)]
    json: bool,
    /// Show the tiers of the pool while the replay runs; where there is no terminal, the view halfway goes beside the picture, as text.
    #[arg(long)]
    live: bool,
    /// Where the pictures go, one SVG for each trace.
    #[arg(long, value_name = "DIRECTORY", default_value = "target/replay")]
    pictures: PathBuf,
    /// Levels of tables.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(4..=5))]
    levels: u8,
    /// No leaves of 2 MiB and 1 GiB.
    #[arg(long)]
    small_pages: bool,
    /// A strict model unit behind the tables, which remembers all that it may and reports every stale use, with a device that accesses
    /// every page. Without interrupts.
    #[arg(long, value_enum, conflicts_with = "small_pages")]
    unit: Option<Kind>,
    /// Frames that the pool may own.
    #[arg(long, default_value_t = 4096)]
    capacity: u32,
    /// The watermarks min, low, high and max, in frames.
    #[arg(long, value_name = "MIN,LOW,HIGH,MAX", value_parser = watermarks, default_value = "4,8,24,48")]
    watermarks: Watermarks,
    /// Microseconds between two interrupts on each CPU; 0 for none.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 40)]
    interrupts: u64,
}

fn watermarks(text: &str) -> Result<Watermarks, String> {
    let numbers: Vec<u32> = text
        .split(',')
        .map(|number| number.parse().map_err(|error| format!("{number}: {error}")))
        .collect::<Result<_, _>>()?;
    match numbers[..] {
        [min, low, high, max] => Ok(Watermarks { min, low, high, max }),
        _ => Err("give four numbers".into()),
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    if arguments.trace.is_empty() {
        let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/traces");
        arguments.trace = RECORDED.map(|name| recorded.join(name)).into();
    }
    match run(&arguments) {
        Ok(outcomes) => {
            println!("{}", report::table(&outcomes));
            for outcome in outcomes.iter().filter(|outcome| outcome.is_different()) {
                let line = outcome.first_mismatch.unwrap_or(0);
                let stale = outcome.stale_uses.unwrap_or(0);
                eprintln!(
                    "{}: {} mismatches, the first at line {line}, and {stale} stale uses",
                    outcome.name, outcome.mismatches
                );
            }
            let different = outcomes.iter().any(Outcome::is_different);
            if arguments.json {
                println!("{}", report::json(&outcomes));
            }
            if different { DIFFERENT.into() } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            eprintln!("{error}");
            if error.is::<Malformed>() { MALFORMED.into() } else { ExitCode::FAILURE }
        }
    }
}

/// A trace file that cannot be replayed.
#[derive(Debug)]
struct Malformed {
    path: PathBuf,
    error: TraceError,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: {}", self.path.display(), self.error)
    }
}

impl Error for Malformed {}

fn run(arguments: &Arguments) -> Result<Vec<Outcome>, Box<dyn Error>> {
    let mut outcomes = Vec::new();
    for path in &arguments.trace {
        let plan = trace::read(path)
            .map(|events| readable(arguments, events))
            .and_then(Plan::new)
            .map_err(|error| Malformed { path: path.clone(), error })?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.trim_end_matches(".zst").trim_end_matches(".txt").to_owned();
        let (outcome, Seen { samples, view }) = replay(arguments, &name, &plan)?;
        let picture = arguments.pictures.join(format!("{name}.svg"));
        picture::draw(
            &picture,
            &format!("framepool under the replay of {name}"),
            &samples,
            arguments.watermarks,
        )?;
        eprintln!("{name}: the pool over time is in {}", picture.display());
        if let Some(view) = view {
            fs::write(picture.with_extension("txt"), view + "\n")?;
        }
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// The events; what the first stage maps can be read.
fn readable(arguments: &Arguments, mut events: Vec<trace::Event>) -> Vec<trace::Event> {
    if arguments.unit.is_some_and(|unit| unit.stage() == Stage::First) {
        for event in &mut events {
            if let Operation::Map { permissions, .. } = &mut event.operation {
                permissions.insert(Permissions::READ);
            }
        }
    }
    events
}

/// Replays one trace on a pool of its own.
fn replay(arguments: &Arguments, name: &str, plan: &Plan) -> Result<(Outcome, Seen), Box<dyn Error>> {
    let builder = Builder::new(arguments.capacity).watermarks(arguments.watermarks).magazine_size(4);
    let pool = builder.start(AnonymousMemory::new(arguments.capacity)?)?;
    let levels = if arguments.levels == 4 { Levels::Four } else { Levels::Five };
    let mut outcome = Outcome::planned(name.to_owned(), plan);
    let counts = Counts::default();
    let interval = (arguments.interrupts > 0).then(|| Duration::from_micros(arguments.interrupts));
    let view = View::new(name, outcome.events, arguments.live, arguments.watermarks);
    let run = Run { plan, pool: &pool, counts: &counts, interval, view: &view };
    let seen = match arguments.unit {
        None => {
            let page_sizes = if arguments.small_pages { PageSizes::empty() } else { PageSizes::all() };
            let config = DomainConfig { page_sizes, ..DomainConfig::new(levels) };
            run.on::<SecondStage, _>(config, &*pool, &Behind::new(None), &mut outcome)?
        }
        Some(kind) if kind.stage() == Stage::First => {
            behind_unit::<FirstStage>(kind.config::<FirstStage>(levels)?, name, &run, &mut outcome)?
        }
        Some(kind) => {
            behind_unit::<SecondStage>(kind.config::<SecondStage>(levels)?, name, &run, &mut outcome)?
        }
    };
    outcome.stats = at_rest(&pool);
    // Every event was settled, and every frame is back.
    let lost = outcome.stats.in_use + (outcome.events - counts.settled.load(SeqCst));
    outcome.signals = counts.signals.load(SeqCst);
    outcome.inside = counts.inside.load(SeqCst);
    outcome.by_handlers = counts.by_handlers.load(SeqCst);
    outcome.refused = counts.refused.load(SeqCst);
    outcome.pages_checked = counts.pages_checked.load(SeqCst);
    outcome.mismatches = counts.mismatches.load(SeqCst) + lost;
    outcome.first_mismatch = Some(counts.first_mismatch.load(SeqCst)).filter(|&line| line > 0);
    outcome.table_frames_peak = counts.table_frames_peak.load(SeqCst);
    pool.close().map_err(|error| error.to_string())?;
    Ok((outcome, seen))
}

/// The statistics when every frame is back and the worker has none in its hands, which count as out; after two seconds whatever
/// they are.
fn at_rest(pool: &WorkedPool<AnonymousMemory>) -> Stats {
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        let stats = pool.stats();
        if stats.in_use == 0 || Instant::now() > end {
            return stats;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Replays one trace with the strict unit behind the tables, without interrupts.
fn behind_unit<F: Format + Sync + Send>(
    config: DomainConfig,
    name: &str,
    run: &Run<'_>,
    outcome: &mut Outcome,
) -> Result<Seen, Box<dyn Error>> {
    let unit = ModelUnit::new(&**run.pool, config.hardware);
    let run = Run { interval: None, ..*run };
    let seen = run.on::<CachingMode<F>, _>(config, &unit, &Behind::new(Some(&unit)), outcome)?;
    outcome.stale_uses = Some(unit.found());
    for violation in unit.take_violations().iter().take(3) {
        eprintln!("{name}: {violation}");
    }
    Ok(seen)
}

/// What was seen of a replay.
struct Seen {
    samples: Vec<Sample>,
    /// The view halfway, where there is no terminal.
    view: Option<String>,
}

/// A replay of one trace.
#[derive(Clone, Copy)]
struct Run<'r> {
    plan: &'r Plan,
    pool: &'r WorkedPool<AnonymousMemory>,
    counts: &'r Counts,
    interval: Option<Duration>,
    view: &'r View,
}

impl Run<'_> {
    /// Replays in domains over `frames`.
    fn on<F: Format + Sync + Send, A: TableFrames + Copy + Sync + Send>(
        &self,
        config: DomainConfig,
        frames: A,
        behind: &Behind<'_, driver::Frames<'_>>,
        outcome: &mut Outcome,
    ) -> Result<Seen, Box<dyn Error>> {
        let mut domains: Vec<Domain<F, A>> = Vec::new();
        for number in 0..self.plan.domains {
            let config = DomainConfig { domain_id: Some(unit::id_of(number)), ..config };
            let domain = Domain::new(config, frames)?;
            if let Some(model) = behind.unit {
                model.attach(unit::id_of(number), &domain);
            }
            domains.push(domain);
        }
        let replay = Replay::new(self.plan, &domains, behind, self.counts);
        let start = Instant::now();
        let seen = thread::scope(|scope| {
            let worker = scope.spawn(|| replay.run(self.interval));
            self.watch(outcome.events, start, || worker.is_finished())
        });
        outcome.time = start.elapsed();
        if let Some(model) = behind.unit {
            model.check();
            (0..self.plan.domains).for_each(|number| model.detach(unit::id_of(number)));
            model.submit(&unit::FORGET_ALL);
        }
        for domain in domains {
            // SAFETY: there is no hardware but the unit, which has forgotten everything.
            unsafe { domain.close().complete() };
        }
        Ok(seen)
    }

    /// Looks at the pool, and shows it, until the replay is over.
    fn watch(&self, events: u64, start: Instant, is_over: impl Fn() -> bool) -> Seen {
        let mut seen = Seen { samples: Vec::new(), view: None };
        loop {
            let over = is_over();
            let (settled, stats) = (self.counts.settled.load(SeqCst), self.pool.stats());
            seen.samples.push(Sample { at: start.elapsed(), stats });
            self.view.show(settled, &stats);
            if seen.view.is_none() && settled >= events / 2 {
                seen.view = self.view.text();
            }
            if over {
                self.view.finish();
                return seen;
            }
            thread::sleep(SAMPLING);
        }
    }
}
