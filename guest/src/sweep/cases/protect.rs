//! Rights of what is mapped, changed where it stands.

use super::{
    BASE, Case, DEPOT, NO_FALLBACK,
    ranges::{DONE, FRESH, LARGE, MAPPED, PAGE, TARGET, check_empty, check_range, prepare_map},
    take,
};
use crate::{
    ledger,
    sweep::{actions::unmap, bounds::Operation, observation::observed, rig::domain},
};
use framepool::vtd::{Iova, Permissions};

fn observe_protect(iova: u64, length: u64) {
    // SAFETY: no device walks this domain; the handler uses another range.
    let outcome = observed(|| unsafe { domain().protect(Iova::new(iova), length, Permissions::READ) });
    DONE.0.set(outcome.is_ok());
    if let Ok(invalidation) = outcome {
        // SAFETY: as above.
        unsafe { invalidation.complete() };
    }
}

/// Demands that the page at `iova` is mapped as before, and may be written or not.
fn check_page(iova: u64, writable: bool) {
    let expected = if writable { Permissions::all() } else { Permissions::READ };
    let found = domain().translate(Iova::new(iova)).map(|at| at.permissions);
    ledger::demand(found == Some(expected), &"INV-11: rights were changed in part");
}

/// Demands that of a page of 2 MiB at [`FRESH`] only the fourth small page has lost a right, or none, and cleans up.
fn check_large() {
    check_range(FRESH, TARGET, LARGE, true);
    check_page(FRESH + 2 * PAGE, true);
    check_page(FRESH + 3 * PAGE, !DONE.0.get());
    check_page(FRESH + 4 * PAGE, true);
    unmap(domain(), FRESH, LARGE);
    check_empty();
}

pub const CASES: &[Case] = &[
    Case {
        name: "protect: a row of pages",
        operation: Operation::Protect,
        prepare: || prepare_map(MAPPED, 4 * PAGE),
        run: || observe_protect(MAPPED + PAGE, 2 * PAGE),
        check: || {
            ledger::demand(DONE.0.get(), &"rights that need no frame could not be changed");
            check_range(MAPPED, TARGET, 4 * PAGE, true);
            for page in 0..4 {
                check_page(MAPPED + page * PAGE, page == 0 || page == 3);
            }
            unmap(domain(), MAPPED, 4 * PAGE);
            check_empty();
        },
        reached: |before, after| after.in_use == before.in_use,
        ..BASE
    },
    Case {
        name: "protect: part of a page of 2 MiB",
        operation: Operation::Protect,
        prepare: || prepare_map(FRESH, LARGE),
        run: || observe_protect(FRESH + 3 * PAGE, PAGE),
        check: check_large,
        reached: |before, after| after.in_use == before.in_use + 1,
        ..BASE
    },
    Case {
        name: "protect: refused, too few frames",
        operation: Operation::Protect,
        setup: NO_FALLBACK,
        prepare: || {
            prepare_map(FRESH, LARGE);
            // One is the table that leads to the page.
            take(DEPOT - 1);
        },
        run: || observe_protect(FRESH + 3 * PAGE, PAGE),
        check: check_large,
        reached: |before, after| after.in_use == before.in_use,
        ..BASE
    },
];
