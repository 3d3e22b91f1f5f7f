//! Whole pools and domains with three or four threads, each of which does what it chooses, in schedules that shuttle chooses: what is too large for
//! loom, on the same hosts and sources, each use of a frame watched.
//!
//! Half of the schedules are uniform at random; the others let the thread of the highest priority run, and lower it at a few points (Burckhardt,
//! Kothari, Musuvathi, Nagarakatte: A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs, ASPLOS 2010). Shuttle takes every access for
//! sequentially consistent: orderings are loom's business. A model that fails prints its schedule, which `shuttle::replay` repeats.
//!
//! `FRAMEPOOL_SCHEDULES` is how many of each kind a model gets (default 2000), `FRAMEPOOL_SEED` where the choice begins (default 1).
#![allow(missing_docs, unreachable_pub, reason = "models, and a harness that is written for loom's")]

extern crate framepool_scheduled as framepool;
// What both offer they call the same.
extern crate shuttle as loom;

#[allow(dead_code, reason = "the models need more of it")]
#[path = "../../../loom-tests/src/harness.rs"]
mod harness;
mod place;
mod pool;
mod quota;
mod tables;
#[allow(dead_code, reason = "as above")]
#[path = "../../../loom-tests/src/tables.rs"]
mod tiny;
mod waiting;

use shuttle::{
    Config, MaxSteps, Runner,
    rand::{Rng, thread_rng},
    scheduler::{PctScheduler, RandomScheduler, Scheduler},
};
use std::time::Instant;

/// How often a thread loses its priority, at most.
const CHANGES: usize = 4;
/// More accesses than any schedule has that comes to its end.
const STEPS: usize = 200_000;

fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Runs `body` in schedules of both kinds.
fn model(name: &str, body: fn()) {
    let (schedules, seed) =
        (environment("FRAMEPOOL_SCHEDULES", 2000) as usize, environment("FRAMEPOOL_SEED", 1));
    let mut config = Config::new();
    config.stack_size = 1 << 18;
    config.silence_warnings = true;
    config.max_steps = MaxSteps::FailAfter(STEPS);
    let start = Instant::now();
    let run = |scheduler: Box<dyn Scheduler + Send>| Runner::new(scheduler, config.clone()).run(body);
    let run = run(Box::new(RandomScheduler::new_from_seed(seed, schedules)))
        + run(Box::new(PctScheduler::new_from_seed(seed, CHANGES, schedules)));
    assert_eq!(run, 2 * schedules);
    eprintln!("{name}: {run} schedules, {:.1?}", start.elapsed());
}

/// A choice, which belongs to the schedule.
fn choose(below: u32) -> u32 {
    thread_rng().gen_range(0..below)
}
