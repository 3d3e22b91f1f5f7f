//! Those who wait for a frame: served by the refill thread. The lock of those who may wait is held meanwhile, so no thread comes in between.

use super::{BASE, Case, NO_FALLBACK, drain, give, take};
use crate::{
    hand::PoolFrame,
    host::{CpuLocal, Kernel, PhysicalMemory},
    ledger,
    machine::place::Place,
    sweep::{
        bounds::Operation,
        observation::observed,
        rig::{THREAD, pool, wait},
    },
};
use core::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
};
use framepool::{AllocError, AllocFuture};

type Waiter = AllocFuture<'static, &'static PhysicalMemory, Kernel>;
static WAITER: Place<Waiter> = Place::new();

fn arrive() {
    // SAFETY: the last one was taken out with its case.
    unsafe { WAITER.put(pool().alloc_async()) };
    wait();
}

fn poll() -> Poll<Result<PoolFrame, AllocError>> {
    // SAFETY: `arrive` put it there; nobody else uses it, and it stays where it is until `leave`.
    let waiter = unsafe { Pin::new_unchecked(WAITER.get_mut()) };
    waiter.poll(&mut Context::from_waker(Waker::noop()))
}

fn leave() {
    // SAFETY: as for `poll`; it is dropped where it is, and not used again.
    unsafe { core::ptr::drop_in_place(WAITER.get_mut()) };
}

pub const CASES: &[Case] = &[
    Case {
        name: "serve_waiters: nobody waits",
        operation: Operation::ServeWaiters,
        prepare: || take(1),
        run: || {
            let _ = CpuLocal::without_preemption(|| observed(|| pool().serve_waiters()));
        },
        ..BASE
    },
    Case {
        name: "serve_waiters: a frame that came back goes to who waits",
        operation: Operation::ServeWaiters,
        setup: NO_FALLBACK,
        prepare: || {
            drain();
            arrive();
            ledger::demand(poll().is_pending(), &"a case could not be prepared: a frame was left");
            give(1);
        },
        run: || {
            let _ = CpuLocal::without_preemption(|| observed(|| pool().serve_waiters()));
            match poll() {
                Poll::Ready(Ok(frame)) => THREAD.keep(frame),
                _ => ledger::violation(&"INV-7: a frame came back, and who waits for it did not get it"),
            }
            leave();
        },
        ..BASE
    },
    Case {
        name: "alloc_async: a frame at once",
        operation: Operation::AllocAsync,
        prepare: || {
            take(1);
            arrive();
        },
        run: || {
            if let Poll::Ready(Ok(frame)) = CpuLocal::without_preemption(|| observed(poll)) {
                THREAD.keep(frame);
            }
            leave();
        },
        reached: |before, after| after.cache_hits == before.cache_hits + 1,
        ..BASE
    },
    Case {
        name: "alloc_async: none, and it waits",
        operation: Operation::AllocAsync,
        setup: NO_FALLBACK,
        prepare: || {
            drain();
            arrive();
        },
        run: || {
            if let Poll::Ready(Ok(frame)) = CpuLocal::without_preemption(|| observed(poll)) {
                THREAD.keep(frame);
            }
            leave();
            // A frame that was on its way to who has given up goes back.
            let _ = pool().serve_waiters();
        },
        reached: |before, after| after.in_use == before.in_use,
        ..BASE
    },
];
