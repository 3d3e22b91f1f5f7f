//! Allocation and return of several frames in one call.

use super::{BASE, BULK, Case, DEPOT, NO_FALLBACK, take};
use crate::{
    hand::PoolFrame,
    ledger,
    sweep::{
        bounds::Operation,
        observation::observed,
        rig::{THREAD, pool},
    },
};
use framepool::Request;

fn alloc_bulk_of(exact: bool) {
    let mut frames: [Option<PoolFrame>; BULK] = [const { None }; BULK];
    let _ = observed(|| {
        if exact {
            pool().alloc_bulk_exact(Request::ORDINARY, &mut frames)
        } else {
            pool().alloc_bulk(Request::ORDINARY, &mut frames).map(drop)
        }
    });
    let count = frames.iter().flatten().count();
    ledger::demand(!exact || count == 0 || count == BULK, &"all or nothing, said the caller");
    frames.into_iter().flatten().for_each(|frame| THREAD.keep(frame));
}

fn free_bulk() {
    let mut frames = [const { None }; BULK];
    frames.fill_with(|| THREAD.release(pool()));
    observed(|| pool().free_bulk(&mut frames));
    ledger::demand(frames.iter().all(Option::is_none), &"a bulk free left something");
}

pub const CASES: &[Case] = &[
    Case {
        name: "alloc_bulk: from slot and depot",
        operation: Operation::AllocBulk,
        prepare: || take(1),
        run: || alloc_bulk_of(false),
        reached: |before, after| after.in_use == before.in_use + BULK as u64,
        ..BASE
    },
    Case {
        name: "alloc_bulk_exact: too few, nothing stays out",
        operation: Operation::AllocBulk,
        setup: NO_FALLBACK,
        prepare: || take(DEPOT - 3),
        run: || alloc_bulk_of(true),
        reached: |before, after| after.in_use == before.in_use && after.exhausted > before.exhausted,
        ..BASE
    },
    Case {
        name: "free_bulk: to slot and depot",
        operation: Operation::FreeBulk,
        prepare: || take(BULK),
        run: free_bulk,
        reached: |before, after| after.in_use == before.in_use - BULK as u64,
        ..BASE
    },
    Case {
        name: "alloc_bulk in a handler",
        operation: Operation::AllocBulk,
        prepare: || take(1),
        run: || alloc_bulk_of(false),
        in_handler: true,
        reached: |before, after| after.collisions >= before.collisions + 2,
        ..BASE
    },
    Case {
        name: "free_bulk in a handler",
        operation: Operation::FreeBulk,
        prepare: || take(BULK),
        run: free_bulk,
        in_handler: true,
        reached: |before, after| after.collisions >= before.collisions + 2,
        ..BASE
    },
];
