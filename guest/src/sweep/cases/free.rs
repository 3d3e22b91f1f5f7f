//! Return of one frame, to every tier.

use super::{BASE, Case, DEPOT, ODD, drain, give, take};
use crate::{
    hand::PoolFrame,
    ledger,
    sweep::{
        bounds::Operation,
        observation::observed,
        rig::{MAGAZINE, MARKS, THREAD, maintain, pool},
    },
};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use framepool::{PhysAddr, Request};

/// A frame of zeros that its owner has not touched, or 0.
static UNTOUCHED: AtomicU64 = AtomicU64::new(0);

fn free() {
    let Some(frame) = THREAD.release(pool()) else { return ledger::violation(&"nothing to free") };
    observed(|| drop(frame));
}

pub const CASES: &[Case] = &[
    Case {
        name: "free_zeroed",
        operation: Operation::FreeZeroed,
        prepare: || match pool().alloc_zeroed() {
            Ok(frame) => UNTOUCHED.store(frame.into_raw().as_u64(), Relaxed),
            Err(_) => ledger::violation(&"a case could not be prepared: no frame"),
        },
        run: || {
            let frame = PhysAddr::new(UNTOUCHED.swap(0, Relaxed));
            // SAFETY: `prepare` laid it down, and nobody has written to it.
            observed(|| unsafe { PoolFrame::from_raw(pool(), frame).free_zeroed() });
        },
        reached: |before, after| after.in_use == before.in_use - 1,
        ..BASE
    },
    Case {
        name: "free: room in the loaded magazine",
        operation: Operation::Free,
        prepare: || take(1),
        run: free,
        reached: |before, after| after.cached == before.cached + 1,
        ..BASE
    },
    Case {
        name: "free: room after the magazines change places",
        operation: Operation::Free,
        prepare: || {
            take(4);
            give(2);
        },
        run: free,
        reached: |before, after| after.cached == before.cached + 1,
        ..BASE
    },
    Case {
        name: "free: full magazine to the depot",
        operation: Operation::Free,
        prepare: || {
            take(4 * MAGAZINE);
            give(2 * MAGAZINE);
        },
        run: free,
        reached: |before, after| after.stock == before.stock + MAGAZINE as u64,
        ..BASE
    },
    Case {
        name: "free: full magazine to the depot, ringing above max",
        operation: Operation::Free,
        prepare: || {
            // Frames from the host come on top, so that the stock can grow above `max`; the refill thread answers in between.
            take(DEPOT + 13);
            give(DEPOT);
            maintain();
            pool().platform().take_refill_wanted();
            let most = u64::from(MARKS.max);
            while THREAD.count() > 1
                && (pool().stats().stock < most || pool().stats().cached < 2 * MAGAZINE as u64)
            {
                give(1);
            }
        },
        run: free,
        reached: |before, after| after.rings == before.rings + 1,
        ..BASE
    },
    Case {
        name: "free: into the reserve",
        operation: Operation::Free,
        critical: true,
        prepare: || {
            drain();
            let _ = THREAD.take(pool(), Request::CRITICAL, 1);
        },
        run: free,
        reached: |before, after| after.reserve == before.reserve + 1,
        ..BASE
    },
    Case {
        name: "free in a handler: into an empty magazine",
        operation: Operation::Free,
        prepare: || take(1),
        run: free,
        in_handler: true,
        reached: |before, after| after.collisions > before.collisions && after.stock == before.stock + 1,
        ..BASE
    },
    Case {
        name: "free in a handler: into a partial magazine",
        operation: Operation::Free,
        setup: ODD,
        prepare: || take(1),
        run: free,
        in_handler: true,
        reached: |before, after| after.collisions > before.collisions && after.stock == before.stock + 1,
        ..BASE
    },
];
