//! Tables built before anything is mapped, and let go of.

use super::{
    BASE, Case, DEPOT, NO_FALLBACK,
    ranges::{DONE, FRESH, LARGE, PAGE, check_empty, prepare_map},
    take,
};
use crate::{
    ledger,
    sweep::{actions::unmap, bounds::Operation, observation::observed, rig::domain},
};
use framepool::vtd::Iova;

fn preallocate() -> bool {
    domain().preallocate(Iova::new(FRESH), LARGE).is_ok()
}

/// Demands that the tables of the range stay whatever is unmapped, or are not there, and lets go of them.
fn check_kept() {
    let tables = domain().table_frames();
    if DONE.0.get() {
        prepare_map(FRESH, PAGE);
        unmap(domain(), FRESH, PAGE);
        ledger::demand(
            domain().table_frames() == tables,
            &"a map took a frame where tables were built before",
        );
        reclaim();
        ledger::demand(domain().table_frames() == tables, &"a table that is to be kept was taken out");
    }
    ledger::demand(domain().release(Iova::new(FRESH), LARGE).is_ok(), &"tables cannot be let go of");
    check_empty();
}

/// Takes the empty tables of the range back.
fn reclaim() {
    match domain().reclaim(Iova::new(FRESH), LARGE) {
        // SAFETY: no hardware walks these tables.
        Ok(invalidation) => unsafe { invalidation.complete() },
        Err(_) => ledger::violation(&"nobody else reclaims"),
    }
}

pub const CASES: &[Case] = &[
    Case {
        name: "preallocate: two tables",
        operation: Operation::Preallocate,
        run: || DONE.0.set(observed(preallocate)),
        check: check_kept,
        reached: |before, after| after.in_use == before.in_use + 2,
        ..BASE
    },
    Case {
        name: "preallocate: refused, too few frames",
        operation: Operation::Preallocate,
        setup: NO_FALLBACK,
        prepare: || take(DEPOT - 1),
        run: || DONE.0.set(observed(preallocate)),
        check: check_kept,
        reached: |before, after| after.in_use == before.in_use,
        ..BASE
    },
    Case {
        name: "release: two tables",
        operation: Operation::Release,
        prepare: || ledger::demand(preallocate(), &"a case could not be prepared: no tables"),
        run: || DONE.0.set(observed(|| domain().release(Iova::new(FRESH), LARGE).is_ok())),
        check: || {
            ledger::demand(DONE.0.get(), &"tables cannot be let go of");
            let tables = domain().table_frames();
            reclaim();
            ledger::demand(domain().table_frames() == tables - 2, &"a table that nobody needs is kept");
            check_empty();
        },
        ..BASE
    },
];
