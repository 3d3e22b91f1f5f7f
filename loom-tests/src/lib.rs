//! Shared harness of the models, and how a model is checked.
#![cfg(loom)]
#![allow(missing_docs, reason = "a harness for the models beside it")]

mod harness;
pub mod tables;

pub use harness::*;

/// No bound: every interleaving there is.
pub const UNBOUNDED: usize = usize::MAX;

/// Checks `body` in every interleaving with at most `preemptions` preemptions, `LOOM_MAX_PREEMPTIONS` going before. A model's own bound is
/// the highest that ends in a second or so, or a few if a lower one would show little; `loom-tests/full` tries higher ones.
pub fn model(preemptions: usize, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or((preemptions != UNBOUNDED).then_some(preemptions));
    builder.max_branches = 200_000;
    let bound = builder.preemption_bound;
    let executions = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (counted, start) = (std::sync::Arc::clone(&executions), std::time::Instant::now());
    builder.check(move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        body();
    });
    let executions = executions.load(std::sync::atomic::Ordering::Relaxed);
    eprintln!("model: preemptions {bound:?}, executions {executions}, {:.1?}", start.elapsed());
}
