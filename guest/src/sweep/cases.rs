//! Owns the list of the operations under observation, each brought to the tier that it is to take, and what their preparations share.

mod accessed;
mod alloc;
mod bulk;
mod context;
mod free;
mod ids;
mod join;
#[cfg(not(feature = "claim"))]
mod lending;
mod maintenance;
mod map;
mod mappings;
mod pasid;
mod place;
mod preallocate;
mod protect;
mod quota;
mod ranges;
mod reclaim;
mod reservation;
mod unmap;
mod waiters;
mod window;

use super::{
    bounds::Operation,
    rig::{MAGAZINE, MARKS, ORDINARY, Setup, THREAD, pool},
};
use crate::{
    host::{CACHES_ARE_HELD, CpuLocal},
    ledger,
};
use framepool::{FallbackPolicy, Request, Stats};

pub use ids::turn_over as turn_ids_over;
pub use place::look as look_at_place;

/// All cases, those of each file in a row.
pub const CASES: &[&[Case]] = &[
    alloc::CASES,
    free::CASES,
    bulk::CASES,
    reservation::CASES,
    quota::CASES,
    maintenance::CASES,
    #[cfg(not(feature = "claim"))]
    lending::CASES,
    waiters::CASES,
    place::CASES,
    map::CASES,
    protect::CASES,
    join::CASES,
    unmap::CASES,
    reclaim::CASES,
    preallocate::CASES,
    mappings::CASES,
    accessed::CASES,
    window::CASES,
    context::CASES,
    pasid::CASES,
    ids::CASES,
];

/// One operation on one way through the pool or the builder.
pub struct Case {
    pub name: &'static str,
    pub operation: Operation,
    pub setup: Setup,
    /// Brings pool and domain to where the operation takes the way that the name says.
    pub prepare: fn(),
    /// Observes the operation.
    pub run: fn(),
    /// Demands what must hold after it, whatever came in between.
    pub check: fn(),
    /// Frames that are in structures of the case after it.
    pub others: fn() -> u64,
    /// Whether an undisturbed run took the way that the name says, by the statistics before and after it.
    pub reached: fn(&Stats, &Stats) -> bool,
    /// Whether the operation may take from the reserve.
    pub critical: bool,
    /// Whether the operation runs in the handler of an interrupt that landed inside an `alloc` of the same CPU.
    pub in_handler: bool,
    /// Whether the handler's actions take turns from one instruction to the next, rather than that each comes at each: where loops over
    /// whole tables make an operation long, which gives most of its addresses all of them.
    pub in_turn: bool,
}

const BASE: Case = Case {
    name: "",
    operation: Operation::Alloc,
    setup: ORDINARY,
    prepare: || {},
    run: || {},
    check: || {},
    others: || 0,
    reached: |_, _| true,
    critical: false,
    in_handler: false,
    in_turn: false,
};

/// Frames of the depot when a case begins.
const DEPOT: usize = (ORDINARY.initial - MARKS.min) as usize;

fn take(count: usize) {
    if THREAD.take(pool(), Request::ORDINARY, count) != Ok(count) {
        ledger::violation(&"a case could not be prepared: too few frames");
    }
}

fn give(count: usize) {
    THREAD.give(pool(), count);
}

/// Leaves the depot empty, and the slot of the CPU.
fn drain() {
    take(DEPOT);
}

/// As if on the other CPU.
fn on_other_cpu(work: impl FnOnce()) {
    CpuLocal::set_number(1);
    work();
    CpuLocal::set_number(0);
}

/// Leaves the other CPU's cache full, from which frames can be taken, and everything else empty.
fn stock_other_cpu() {
    drain();
    on_other_cpu(|| give(2 * MAGAZINE));
    if CACHES_ARE_HELD {
        ask();
        on_other_cpu(|| {
            take(1);
            give(1);
        });
    }
}

/// Asks for the caches of other CPUs: an allocation that finds frames nowhere else. A cache that is held is lent by the next operation of its
/// CPU.
fn ask() {
    let refused = pool().alloc_with(Request::ORDINARY.without_fallback()).is_err();
    ledger::demand(refused, &"a frame was taken from a cache that is held");
}

/// One magazine of the depot is partial.
const ODD: Setup = Setup { initial: ORDINARY.initial + 1, ..ORDINARY };
const NO_FALLBACK: Setup = Setup { fallback: FallbackPolicy::Never, ..ORDINARY };

/// Frames of one call.
const BULK: usize = 5;
