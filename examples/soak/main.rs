//! A soak: everything that a process may do with a pool, in every context, at random and for as long as one likes, every frame accounted for.
//!
//! `cargo run --release --example soak -- --seconds 600` (the default). Threads are interrupted by two timers each and by signals that others send, whose
//! handlers nest; they are moved between CPUs; others wait for frames, shrink the pool, drain caches, and let the source fail.
//! The first violation of an invariant ends it. At the end every frame must be somewhere, once.
#![allow(unreachable_pub, reason = "modules of one program, and a harness that tests share")]

#[path = "../../tests/common/mod.rs"]
mod common;
mod disturb;
mod work;
#[path = "../../tests/common/world.rs"]
mod world;

use clap::Parser;
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use common::{
    Scripted,
    storm::{Harness, Random, THREADS, Timers},
};
use framepool::{
    Builder, FallbackPolicy, LinuxPlatform, Watermarks,
    vtd::{DomainConfig, Levels, SecondStageDomain},
};
use std::{
    process::ExitCode,
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};
use world::*;

type Host = LinuxPlatform;

/// How much the process may grow from its first half to its second: less than the frames themselves.
const GROWTH_MOST: u64 = 512 << 10;

/// Everything at random, in every context, every frame accounted for.
#[derive(Parser)]
struct Arguments {
    /// How long it goes on.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Own the caches by claim, although restartable sequences are there.
    #[arg(long)]
    claiming: bool,
    /// Only build this program.
    #[arg(long)]
    no_run: bool,
}

/// What must stay at zero.
fn violations() -> [(&'static str, u64); 4] {
    [
        ("frames with two owners", DOUBLED.load(SeqCst)),
        ("stale translations", STALE.load(SeqCst)),
        ("zeroed frames that were not", work::NOT_ZERO.load(SeqCst)),
        ("operations that failed and must not", WRONG.load(SeqCst)),
    ]
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    status.split(' ').nth(1).and_then(|pages| pages.parse().ok()).map_or(0, |pages: u64| pages * 4096)
}

/// What the observer has seen at most.
#[derive(Default)]
struct Highest {
    in_use: u64,
    owned: u64,
    waiters: u64,
    charged: u32,
    tables: u64,
    /// In the first half of the time and in the second.
    resident: [u64; 2],
}

/// Looks at what must hold at any moment, until the time is over or something does not.
fn observe(end: Duration) -> (Highest, Result<(), String>) {
    let (start, mut highest, mut said) = (Instant::now(), Highest::default(), 0);
    // The first moments do not count for the growth: threads start, and memory is touched for the first time.
    let settled = end / 20;
    loop {
        let elapsed = start.elapsed();
        if elapsed >= end {
            return (highest, Ok(()));
        }
        let stats = pool().stats();
        highest.in_use = highest.in_use.max(stats.in_use);
        highest.owned = highest.owned.max(stats.owned);
        highest.waiters = highest.waiters.max(stats.waiters);
        highest.charged = highest.charged.max(work::most_charged());
        highest.tables = highest.tables.max(domain().table_frames());
        if elapsed > settled {
            let half = &mut highest.resident[usize::from(elapsed > (end + settled) / 2)];
            *half = (*half).max(resident());
        }
        let wrong = violations().into_iter().find(|(_, count)| *count > 0);
        let wrong = wrong.map(|(what, count)| format!("{what}: {count}"));
        let limits = [
            (stats.owned > stats.capacity, "the pool owns more than it may"),
            (highest.charged > work::LIMIT, "a quota has passed its limit"),
        ];
        let wrong =
            wrong.or_else(|| limits.iter().find(|(broken, _)| *broken).map(|(_, what)| (*what).into()));
        if let Some(wrong) = wrong {
            return (highest, Err(format!("after {elapsed:?}: {wrong}\n{stats}")));
        }
        if elapsed.as_secs() / 60 > said {
            said = elapsed.as_secs() / 60;
            eprintln!("{said} min: {} frames taken, {} maps", ALLOCATED.load(SeqCst), MAPS.load(SeqCst));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// What must hold when everybody is gone: every frame is somewhere, once.
fn finish(highest: &Highest) -> Result<(), String> {
    check_and_unmap_all();
    work::take_shares_back();
    let stats = at_rest();
    let tables = domain().table_frames();
    let [before, after] = highest.resident;
    let out = kept_from_source();
    let lost = stats.in_use.abs_diff(tables);
    let conditions = [
        (lost == 0, format!("INV-1: {lost} frames were lost")),
        (outside() == tables, format!("INV-1: {} frames are accounted for outside, {tables} are", outside())),
        (
            stats.owned == stats.in_use + stats.cached + stats.stock + stats.overflow + stats.promised,
            format!("INV-4\n{stats}"),
        ),
        (out == tables, format!("INV-1: {out} frames would not go back to the source, {tables} are out")),
        (after <= before + GROWTH_MOST, format!("the process grew from {before} to {after} bytes")),
    ];
    let violations = violations().into_iter().map(|(what, count)| (count == 0, format!("{what}: {count}")));
    match conditions.into_iter().chain(violations).find(|(holds, _)| !holds) {
        Some((_, wrong)) => Err(wrong),
        None => Ok(()),
    }
}

fn summarise(harness: &Harness, highest: &Highest, owner: &str, time: Duration) {
    let (counts, stats) = (harness.counts(), pool().stats());
    let rate = |count: u64| format!("{:.0}", count as f64 / time.as_secs_f64());
    let load = |counter: &AtomicU64| counter.load(SeqCst);
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN).set_header(["what", "how often", "a second"]);
    let counted = [
        ("signals delivered to the threads", counts.signals),
        ("- inside an operation", counts.inside),
        ("- in another handler", counts.nested),
        ("- sent by another thread", load(&disturb::SENT_SIGNALS)),
        ("frames taken", load(&ALLOCATED)),
        ("- refused", load(&REFUSED)),
        ("- drawn from reservations", load(&work::DRAWN)),
        ("- charged to quotas", load(&work::CHARGED)),
        ("callers that waited and were served", load(&disturb::SERVED)),
        ("- that gave up", load(&disturb::TIMED_OUT)),
        ("maps", load(&MAPS)),
        ("unmaps", load(&UNMAPS)),
        ("translations", load(&work::TRANSLATED)),
        ("tables reclaimed", load(&work::RECLAIMED)),
        ("threads moved to another CPU", load(&disturb::MOVED)),
        ("pool shrunk", load(&disturb::SHRUNK)),
        ("caches drained", load(&disturb::DRAINED)),
        ("all gates shut", load(&disturb::VACATED)),
        ("source began to fail", load(&disturb::FAILING)),
        ("- failures that the pool counted", stats.source_failures),
        ("caches found in use", stats.collisions),
        ("frames stolen from caches", stats.steals),
    ];
    for (what, count) in counted {
        table.add_row([what.to_owned(), count.to_string(), rate(count)]);
    }
    let [before, after] = highest.resident;
    println!("soak: {} s, {THREADS} threads, caches owned by {owner}\n{table}", time.as_secs());
    println!(
        "highest: {} frames in use of {} owned, {} waiting, {} charged to a quota, {} tables",
        highest.in_use, highest.owned, highest.waiters, highest.charged, highest.tables
    );
    println!("resident: {before} bytes at most in the first half, {after} in the second");
    for (what, count) in violations() {
        println!("{what}: {count}");
    }
    println!("frames lost: {}", pool().stats().in_use.abs_diff(domain().table_frames()));
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.no_run {
        return ExitCode::SUCCESS;
    }
    let end = Duration::from_secs(arguments.seconds.max(2));
    // A hang is a violation too: whoever waits for ever keeps it from its end.
    nix::unistd::alarm::set(end.as_secs() as u32 + 60);
    let platform = if arguments.claiming { LinuxPlatform::claiming() } else { LinuxPlatform::new() };
    let owner = if platform.uses_restartable_sequences() { "restartable sequences" } else { "claim" };
    let marks = Watermarks { min: 8, low: 40, high: 128, max: 192 };
    let builder = Builder::new(CAPACITY).watermarks(marks).magazine_size(8).reservations(32).idle_passes(2);
    let builder = builder.guarantees(THREADS as u32 * work::GUARANTEE).fallback(FallbackPolicy::Always);
    begin(
        || builder.start_on(platform, Scripted::new(CAPACITY)).expect("the pool can be built"),
        || SecondStageDomain::new(DomainConfig::new(Levels::Four), Tables).expect("there is a root table"),
    );
    work::share_out();

    let harness = Harness::install(work::handler);
    let (stop, barrier) = (AtomicBool::new(false), Barrier::new(THREADS + 1));
    let (highest, outcome) = thread::scope(|scope| {
        for thread in 0..THREADS {
            let (harness, barrier, stop) = (&harness, &barrier, &stop);
            scope.spawn(move || {
                let (mut random, mut held) = (Random::new(thread as u64 + 1), Vec::with_capacity(work::HELD));
                barrier.wait();
                let timers = Timers::start(thread);
                disturb::enlist(thread);
                while !stop.load(SeqCst) {
                    work::work(harness, thread, &mut random, &mut held);
                }
                drop(timers);
                work::clear(harness, thread, held);
            });
        }
        barrier.wait();
        let calm = &AtomicBool::new(false);
        let seen = thread::scope(|scope| {
            scope.spawn(|| disturb::move_and_signal(calm));
            scope.spawn(|| disturb::steward(calm));
            (0..3).for_each(|number| drop(scope.spawn(move || disturb::wait(number + 20, calm))));
            let seen = observe(end);
            calm.store(true, SeqCst);
            seen
        });
        stop.store(true, SeqCst);
        seen
    });
    let outcome = outcome.and_then(|()| finish(&highest));
    summarise(&harness, &highest, owner, end);
    match outcome {
        Ok(()) => {
            println!("soak: passed");
            ExitCode::SUCCESS
        }
        Err(wrong) => {
            println!("soak: FAILED {wrong}");
            ExitCode::FAILURE
        }
    }
}
