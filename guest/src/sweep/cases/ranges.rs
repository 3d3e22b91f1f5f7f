//! Owns the ranges of addresses in which the builder's cases map, and what they demand of them.

use crate::{
    ledger,
    sweep::{actions::unmap, observation::observed, rig::domain},
};
use core::cell::Cell;
use framepool::{
    PhysAddr,
    vtd::{Iova, Permissions},
};

/// Where the cases map: page 0 of a table that exists when they begin, next to the handler's range.
pub const MAPPED: u64 = 1 << 30;
/// A range without tables, under the same table as the handler's.
pub const FRESH: u64 = 2 << 30;
pub const PAGE: u64 = 4096;
pub const LARGE: u64 = 2 << 20;
pub const TARGET: PhysAddr = PhysAddr::new(0x4000_0000);
pub const SHIFTED: PhysAddr = PhysAddr::new(0x4000_1000);

pub fn map_at(iova: u64, target: PhysAddr, length: u64) -> bool {
    // SAFETY: no device walks this domain; the handler uses another range.
    unsafe { domain().map(Iova::new(iova), target, length, Permissions::all()).is_ok() }
}

pub fn prepare_map(iova: u64, length: u64) {
    ledger::demand(map_at(iova, TARGET, length), &"a case could not be prepared: no mapping");
}

/// Maps 2 MiB as 512 pages, since the target is not aligned for one.
pub fn prepare_table() {
    ledger::demand(map_at(FRESH, SHIFTED, LARGE), &"a case could not be prepared: no mapping");
}

/// Whether the observed call of the builder said that it succeeded.
pub struct Flag(pub Cell<bool>);
// SAFETY: only the one CPU touches it, and never a handler that interrupts who does.
unsafe impl Sync for Flag {}
pub static DONE: Flag = Flag(Cell::new(false));

pub fn observe_map(iova: u64, length: u64) {
    DONE.0.set(observed(|| map_at(iova, TARGET, length)));
}

pub fn observe_unmap(iova: u64, length: u64) {
    let outcome = observed(|| domain().unmap(Iova::new(iova), length));
    DONE.0.set(outcome.is_ok());
    if let Ok(invalidation) = outcome {
        // SAFETY: no hardware walks these tables.
        unsafe { invalidation.complete() };
    }
}

/// Demands that all of the range is mapped to `target`, or none of it.
pub fn check_range(iova: u64, target: PhysAddr, length: u64, mapped: bool) {
    for at in [0, length / 2, length - 1] {
        let found = domain().translate(Iova::new(iova + at)).map(|at| at.target);
        let expected = mapped.then_some(PhysAddr::new(target.as_u64() + at));
        ledger::demand(found == expected, &"INV-11: a call to the builder was done in part");
    }
}

/// Demands that the observed map did all or nothing, and cleans up.
pub fn check_map(iova: u64, length: u64) {
    check_range(iova, TARGET, length, DONE.0.get());
    if DONE.0.get() {
        unmap(domain(), iova, length);
    }
    check_empty();
}

/// Demands that nothing is mapped any more.
pub fn check_empty() {
    ledger::demand(domain().mappings().count() == 0, &"something is mapped that nobody mapped");
}
