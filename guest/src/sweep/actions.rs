//! What a handler does in the middle of an operation: with the same pool, the same domain, on the same CPU.

use super::{
    bounds::{Operation, measured},
    cases,
    quota::{self, quota},
    rig::{Domain, HANDLER, UNMASKABLE, domain, maintain, pool, reservation},
};
use crate::{
    hand::{Hand, PoolFrame},
    host::CpuLocal,
    ledger,
};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use framepool::{
    PhysAddr, Request,
    vtd::{Iova, Permissions},
};

/// An action, and how many runs of it there are for each instruction.
pub struct Planned {
    pub name: &'static str,
    pub action: fn(),
    pub runs: u32,
}

/// What an interrupt does to a pool and a domain, and what a thread does that preempts the one that was interrupted.
pub const ON_INTERRUPT: [Planned; 7] = [
    Planned { name: "take", action: take, runs: 1 },
    Planned { name: "give", action: give, runs: 1 },
    Planned { name: "turn over", action: turn_over, runs: 1 },
    Planned { name: "churn", action: churn, runs: 3 },
    Planned { name: "remap", action: remap, runs: 1 },
    Planned { name: "replace table", action: replace_table, runs: 1 },
    Planned { name: "refill if rung", action: refill_if_rung, runs: 1 },
];

/// What an NMI does: no builder.
pub const ON_NMI: [Planned; 3] = [
    Planned { name: "take", action: nmi_take, runs: 1 },
    Planned { name: "give", action: nmi_give, runs: 1 },
    Planned { name: "turn over", action: nmi_turn_over, runs: 1 },
];

/// Changes of direction in one [`churn`].
const CHURN_LENGTH: u32 = 12;

fn alloc(hand: &Hand, request: Request) {
    if let Ok(frame) = measured(Operation::Alloc, || pool().alloc_with(request)) {
        hand.keep(frame);
    }
}

fn free(hand: &Hand) {
    if let Some(frame) = hand.release(pool()) {
        measured(Operation::Free, || drop(frame));
    }
}

/// More comes out than goes in: whoever was interrupted finds less than it saw.
fn take() {
    for _ in 0..3 {
        alloc(&HANDLER, Request::ORDINARY);
    }
    charge(&quota::HANDLER);
    charge(&quota::HANDLER);
}

/// More goes in than comes out.
fn give() {
    for _ in 0..3 {
        free(&HANDLER);
    }
    discharge(&quota::HANDLER);
}

/// Draws from the reservation of whoever was interrupted, if it has one.
fn draw(hand: &Hand) {
    if let Some(reservation) = reservation()
        && let Some(frame) = measured(Operation::Draw, || reservation.draw())
    {
        hand.keep(frame);
    }
}

/// Takes from the quota of whoever was interrupted, if it has one.
fn charge(hand: &Hand) {
    if let Some(quota) = quota()
        && let Ok(frame) = measured(Operation::QuotaAlloc, || quota.alloc())
    {
        quota::keep(hand, frame);
    }
}

fn discharge(hand: &Hand) {
    if let Some(frame) = quota::release(hand) {
        measured(Operation::QuotaFree, || drop(frame));
    }
}

/// As much in as out, singly and in bulk: the same frames and magazines come back to the same places, in another order.
fn turn_over() {
    draw(&HANDLER);
    charge(&quota::HANDLER);
    discharge(&quota::HANDLER);
    alloc(&HANDLER, Request::ORDINARY);
    alloc(&HANDLER, Request::ORDINARY);
    free(&HANDLER);
    free(&HANDLER);
    let mut frames = [const { None }; 3];
    let _ = measured(Operation::AllocBulk, || pool().alloc_bulk(Request::ORDINARY, &mut frames));
    measured(Operation::FreeBulk, || pool().free_bulk(&mut frames));
    if let Ok(frame) = measured(Operation::AllocZeroed, || pool().alloc_zeroed()) {
        ledger::demand(is_zero(&frame), &"INV-9: a frame handed out as zeroed is not zero");
        // SAFETY: nobody has written to it.
        measured(Operation::FreeZeroed, || unsafe { frame.free_zeroed() });
    }
    if let Ok(reservation) = measured(Operation::Reserve, || pool().reserve(3)) {
        measured(Operation::DropReservation, || drop(reservation));
    }
    measured(Operation::Stats, || pool().stats());
    cases::look_at_place();
    cases::turn_ids_over();
}

/// Where the handler maps a page: beside the ranges of the cases, under the same tables.
pub const REMAPPED: u64 = (1 << 30) + (2 << 20);
/// Where it maps a whole table of pages.
const REPLACED: u64 = REMAPPED + (2 << 20);

/// Whether every byte of a frame is zero.
pub fn is_zero(frame: &PoolFrame) -> bool {
    // SAFETY: the frame is its owner's, who lets us look.
    let words = unsafe { core::slice::from_raw_parts(frame.as_ptr().cast::<u64>().as_ptr(), 512) };
    words.iter().all(|&word| word == 0)
}

static CHURN: AtomicU32 = AtomicU32::new(1);

/// A walk of allocations and frees that is another one each time: magazines go down and come up again in every order, so that a
/// stack's head is often what it was while the rest is not.
fn churn() {
    for _ in 0..CHURN_LENGTH {
        // A linear congruential generator (Knuth 3.2.1) of which the upper bits are used.
        let next = CHURN.load(Relaxed).wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        CHURN.store(next, Relaxed);
        let count = 1 + (next >> 28) % 5;
        for _ in 0..count {
            if next >> 27 & 1 == 0 {
                alloc(&HANDLER, Request::ORDINARY);
            } else {
                free(&HANDLER);
            }
        }
    }
}

/// Maps a page and unmaps it.
fn remap() {
    map_and_unmap(REMAPPED, PhysAddr::new(0), 4096);
}

/// Maps a whole table of pages and unmaps it, so that the table is detached and its frame comes back at once.
fn replace_table() {
    map_and_unmap(REPLACED, PhysAddr::new(4096), 2 << 20);
}

fn map_and_unmap(iova: u64, target: PhysAddr, length: u64) {
    // SAFETY: no device walks this domain, and nobody else uses this range.
    let mapped = measured(Operation::Map, || unsafe {
        domain().map(Iova::new(iova), target, length, Permissions::all())
    });
    if mapped.is_ok() {
        unmap(domain(), iova, length);
    }
}

/// Unmaps what is mapped, and gives the tables back at once.
pub fn unmap(domain: &'static Domain, iova: u64, length: u64) {
    match measured(Operation::Unmap, || domain.unmap(Iova::new(iova), length)) {
        // SAFETY: no hardware walks these tables.
        Ok(invalidation) => measured(Operation::Complete, || unsafe { invalidation.complete() }),
        Err(_) => ledger::violation(&"what was mapped could not be unmapped"),
    }
}

/// The scheduler switches to the refill thread, if the doorbell has made it runnable and the other thread may be preempted.
fn refill_if_rung() {
    if CpuLocal::may_preempt() && pool().platform().take_refill_wanted() {
        maintain();
    }
}

fn nmi_take() {
    alloc(&UNMASKABLE, Request::CRITICAL);
    alloc(&UNMASKABLE, Request::ORDINARY);
}

fn nmi_give() {
    free(&UNMASKABLE);
    free(&UNMASKABLE);
}

fn nmi_turn_over() {
    draw(&UNMASKABLE);
    charge(&quota::UNMASKABLE);
    discharge(&quota::UNMASKABLE);
    alloc(&UNMASKABLE, Request::ORDINARY);
    free(&UNMASKABLE);
}
