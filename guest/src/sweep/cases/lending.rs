//! Caches that their CPU holds: asked for, lent, and held again.

use super::{BASE, Case, ask, drain, give, on_other_cpu, take};
use crate::{
    ledger,
    sweep::{
        bounds::Operation,
        observation::observed,
        rig::{THREAD, pool},
    },
};
use framepool::Stats;

/// For how many operations of its CPU a cache is lent.
const LENT_FOR: usize = 256;

/// The cache has a frame and room for more, and another CPU asks for it.
fn prepare_asked() {
    drain();
    give(1);
    on_other_cpu(ask);
}

/// The same, and it is lent.
fn prepare_lent() {
    prepare_asked();
    take(1);
    give(1);
}

/// The same, and it comes back with the next operation.
fn prepare_last() {
    prepare_asked();
    for _ in 0..LENT_FOR / 2 {
        take(1);
        give(1);
    }
    give(1);
}

fn alloc() {
    if let Ok(frame) = observed(|| pool().alloc()) {
        THREAD.keep(frame);
    }
}

fn free() {
    let Some(frame) = THREAD.release(pool()) else { return ledger::violation(&"nothing to free") };
    observed(|| drop(frame));
}

fn is_hit(before: &Stats, after: &Stats) -> bool {
    after.cache_hits == before.cache_hits + 1
}

fn is_kept(before: &Stats, after: &Stats) -> bool {
    after.cached == before.cached + 1
}

pub const CASES: &[Case] = &[
    Case {
        name: "alloc: hit in a cache that is asked for",
        prepare: prepare_asked,
        run: alloc,
        reached: is_hit,
        ..BASE
    },
    Case {
        name: "alloc: hit in a cache that is lent",
        prepare: prepare_lent,
        run: alloc,
        reached: is_hit,
        ..BASE
    },
    Case {
        name: "alloc: hit in a cache that is held again",
        prepare: prepare_last,
        run: alloc,
        reached: is_hit,
        ..BASE
    },
    Case {
        name: "free: room in a cache that is asked for",
        operation: Operation::Free,
        prepare: prepare_asked,
        run: free,
        reached: is_kept,
        ..BASE
    },
    Case {
        name: "free: room in a cache that is lent",
        operation: Operation::Free,
        prepare: prepare_lent,
        run: free,
        reached: is_kept,
        ..BASE
    },
];
