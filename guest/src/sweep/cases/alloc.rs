//! Allocation of one frame, on every tier.

use super::{BASE, Case, DEPOT, NO_FALLBACK, ODD, drain, give, stock_other_cpu, take};
use crate::{
    ledger,
    sweep::{
        actions::is_zero,
        bounds::Operation,
        observation::observed,
        rig::{MARKS, ORDINARY, Setup, THREAD, maintain, pool},
    },
};
use framepool::{AllocError, Request};

fn alloc_as(request: Request) {
    match observed(|| pool().alloc_with(request)) {
        Ok(frame) => THREAD.keep(frame),
        Err(AllocError::Closed) => ledger::violation(&"nobody closes the pool"),
        Err(_) => {}
    }
}

fn alloc() {
    alloc_as(Request::ORDINARY);
}

fn alloc_zeroed() {
    if let Ok(frame) = observed(|| pool().alloc_zeroed()) {
        ledger::demand(is_zero(&frame), &"INV-9: a frame handed out as zeroed is not zero");
        THREAD.keep(frame);
    }
}

/// One frame in the depot, in a partial magazine.
const PARTIAL: Setup = Setup { initial: MARKS.min + 1, ..ORDINARY };

pub const CASES: &[Case] = &[
    Case {
        name: "alloc: hit in the loaded magazine",
        prepare: || take(1),
        run: alloc,
        reached: |before, after| after.cache_hits == before.cache_hits + 1,
        ..BASE
    },
    Case {
        name: "alloc: hit after the magazines change places",
        prepare: || {
            take(4);
            give(3);
            take(1);
        },
        run: alloc,
        reached: |before, after| after.cache_hits == before.cache_hits + 1,
        ..BASE
    },
    Case {
        name: "alloc: full magazine from the depot",
        run: alloc,
        reached: |before, after| after.depot_hits == before.depot_hits + 1 && after.rings == before.rings,
        ..BASE
    },
    Case {
        name: "alloc: full magazine from the depot, ringing",
        prepare: || {
            // The root table has rung for zeros; from here on the doorbell is silent.
            maintain();
            pool().platform().take_refill_wanted();
            take(DEPOT - (MARKS.low - MARKS.min) as usize);
        },
        run: alloc,
        reached: |before, after| after.depot_hits == before.depot_hits + 1 && after.rings == before.rings + 1,
        ..BASE
    },
    Case {
        name: "alloc: partial magazine from the depot",
        setup: PARTIAL,
        run: alloc,
        reached: |before, after| after.depot_hits == before.depot_hits + 1 && after.stock == before.stock - 1,
        ..BASE
    },
    Case {
        name: "alloc: stolen from another CPU",
        prepare: stock_other_cpu,
        run: alloc,
        reached: |before, after| after.steals == before.steals + 1,
        ..BASE
    },
    Case {
        name: "alloc: from the reserve",
        prepare: drain,
        run: || alloc_as(Request::CRITICAL),
        critical: true,
        reached: |before, after| after.reserve_hits == before.reserve_hits + 1,
        ..BASE
    },
    Case {
        name: "alloc: from the host at once",
        prepare: drain,
        run: alloc,
        reached: |before, after| after.fallback_taken == before.fallback_taken + 1,
        ..BASE
    },
    Case {
        name: "alloc: nothing left but the reserve",
        setup: NO_FALLBACK,
        prepare: drain,
        run: alloc,
        reached: |before, after| after.exhausted == before.exhausted + 1,
        ..BASE
    },
    Case {
        name: "alloc_zeroed: from the clean side",
        operation: Operation::AllocZeroed,
        prepare: maintain,
        run: alloc_zeroed,
        reached: |before, after| after.zeroed_hits == before.zeroed_hits + 1,
        ..BASE
    },
    Case {
        name: "alloc_zeroed: cleared here",
        operation: Operation::AllocZeroed,
        run: alloc_zeroed,
        reached: |before, after| after.cleared_inline == before.cleared_inline + 1,
        ..BASE
    },
    Case {
        name: "alloc in a handler: one frame of a full magazine",
        prepare: || take(1),
        run: alloc,
        in_handler: true,
        reached: |before, after| {
            after.collisions > before.collisions && after.depot_hits == before.depot_hits + 1
        },
        ..BASE
    },
    Case {
        name: "alloc in a handler: the last frame of a magazine",
        setup: ODD,
        prepare: || take(1),
        run: alloc,
        in_handler: true,
        reached: |before, after| {
            after.collisions > before.collisions && after.depot_hits == before.depot_hits + 1
        },
        ..BASE
    },
    Case {
        name: "alloc in a handler: stolen from another CPU",
        prepare: || {
            stock_other_cpu();
            give(1);
        },
        run: alloc,
        in_handler: true,
        reached: |before, after| after.collisions > before.collisions && after.steals == before.steals + 1,
        ..BASE
    },
    Case {
        name: "alloc in a handler: from the host at once",
        prepare: || take(DEPOT - 1),
        run: alloc,
        in_handler: true,
        reached: |before, after| {
            after.collisions > before.collisions && after.fallback_taken == before.fallback_taken + 1
        },
        ..BASE
    },
];
