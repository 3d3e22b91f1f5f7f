//! Pages joined into a large one.

use super::{
    BASE, Case,
    ranges::{DONE, FRESH, LARGE, PAGE, TARGET, check_empty, check_range, map_at, prepare_map},
};
use crate::{
    ledger,
    sweep::{actions::unmap, bounds::Operation, observation::observed, rig::domain},
};
use framepool::{PhysAddr, vtd::Iova};

/// Maps 2 MiB as 512 pages, in two halves.
fn prepare_halves() {
    prepare_map(FRESH, LARGE / 2);
    let target = PhysAddr::new(TARGET.as_u64() + LARGE / 2);
    ledger::demand(map_at(FRESH + LARGE / 2, target, LARGE / 2), &"a case could not be prepared: no mapping");
}

fn observe_join() {
    // SAFETY: the handler uses another range.
    let outcome = observed(|| unsafe { domain().join(Iova::new(FRESH), LARGE) });
    DONE.0.set(outcome.is_ok());
    if let Ok(invalidation) = outcome {
        // SAFETY: no hardware walks these tables.
        unsafe { invalidation.complete() };
    }
}

/// Demands that pages of `page_size` lead where the small ones did, and cleans up.
fn check_joined(length: u64, page_size: u64) {
    ledger::demand(DONE.0.get(), &"a join was refused");
    check_range(FRESH, TARGET, length, true);
    let found = domain().translate(Iova::new(FRESH)).map(|at| at.page_size);
    ledger::demand(found == Some(page_size), &"pages were joined that should not be, or not joined");
    unmap(domain(), FRESH, length);
    check_empty();
}

pub const CASES: &[Case] = &[
    Case {
        name: "join: a table of pages into one of 2 MiB",
        operation: Operation::Join,
        in_turn: true,
        prepare: prepare_halves,
        run: observe_join,
        check: || check_joined(LARGE, LARGE),
        reached: |before, after| after.in_use == before.in_use - 1,
        ..BASE
    },
    Case {
        name: "join: nothing, a page is missing",
        operation: Operation::Join,
        in_turn: true,
        prepare: || prepare_map(FRESH, LARGE / 2),
        run: observe_join,
        check: || check_joined(LARGE / 2, PAGE),
        reached: |before, after| after.in_use == before.in_use,
        ..BASE
    },
];
