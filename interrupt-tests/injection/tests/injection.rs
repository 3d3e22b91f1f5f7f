//! Interrupts every public operation before every access that it makes to shared memory, with every operation that an interrupt may
//! make there, in every state of a small pool. On any architecture.
//!
//! `FRAMEPOOL_INJECTION_PAIRS` (default 20) says how many pairs of nested interrupts are tried in each state; with
//! `FRAMEPOOL_INJECTION_OPERATION` only operations whose names contain its value are interrupted.

extern crate framepool_injected as framepool;

#[path = "../../src/interrupts/mod.rs"]
mod interrupts;

use framepool::injection::{Site, interrupted_at, recorded};
use interrupts::{
    landing::{Action, Call, Interrupter, Landing},
    operations::{self, Operation},
    sweep::{Depth, Sweep},
};
use std::{
    collections::HashSet,
    env,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

/// Interrupts calls before their accesses to shared memory.
struct Injection;

impl Interrupter for Injection {
    type Point = Site;

    const SECOND_WITHIN: usize = 25;

    const SEVERAL_DEPOTS: bool = true;

    fn record(&self, call: Call<'_, '_>) -> Vec<Site> {
        recorded(|| (call.function)(call.world, call.hand))
    }

    fn interrupt(&self, call: Call<'_, '_>, _: &[Site], landing: Landing<Site>, action: Action<'_>) -> bool {
        self.interrupt_step(call, landing.step, action)
    }

    fn interrupt_step(&self, call: Call<'_, '_>, step: usize, action: Action<'_>) -> bool {
        interrupted_at(step, || (call.function)(call.world, call.hand), action)
    }
}

/// What all sweeps came to.
#[derive(Default)]
struct Sum {
    reached: HashSet<Site>,
    runs: usize,
    pairs: usize,
    failures: Vec<String>,
}

#[test]
fn every_operation_may_be_interrupted_before_every_access() {
    let pairs = env::var("FRAMEPOOL_INJECTION_PAIRS").ok().and_then(|value| value.parse().ok()).unwrap_or(20);
    let depth = Depth { every: 1, passes: 2, pairs };
    let word = env::var("FRAMEPOOL_INJECTION_OPERATION").unwrap_or_default();
    let chosen = |operation: &&Operation| operation.role.is_interrupted() && operation.name.contains(&word);
    let operations: Vec<_> = operations::all().filter(chosen).collect();
    let (next, sum) = (AtomicUsize::new(0), Mutex::new(Sum::default()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(operation) = operations.get(next.fetch_add(1, SeqCst)) {
                    let mut sweep = Sweep::new(&Injection, operation, depth);
                    sweep.run(|_, _| ());
                    let mut sum = sum.lock().unwrap();
                    for tier in sweep.tiers.values() {
                        sum.reached.extend(&tier.reached);
                        sum.runs += tier.runs;
                    }
                    sum.pairs += sweep.pairs;
                    if !sweep.is_complete() {
                        sum.failures.push(format!("{}: an access was not interrupted", operation.name));
                    }
                    sum.failures.append(&mut sweep.failures);
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap();
    println!("{} accesses in the source, {} runs, {} pairs", sum.reached.len(), sum.runs, sum.pairs);
    assert!(sum.failures.is_empty(), "{} failures:\n{}", sum.failures.len(), sum.failures.join("\n"));
    assert!(sum.runs > 0 && sum.pairs > 0);
}
