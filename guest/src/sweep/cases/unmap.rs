//! Unmapping, and what comes back when hardware has confirmed it.

use super::{
    BASE, Case,
    ranges::{
        DONE, FRESH, LARGE, MAPPED, PAGE, TARGET, check_empty, check_range, observe_unmap, prepare_map,
        prepare_table,
    },
};
use crate::{
    ledger,
    sweep::{actions::unmap, bounds::Operation, observation::observed, rig::domain},
};
use framepool::vtd::Iova;

pub const CASES: &[Case] = &[
    Case {
        name: "unmap: one page",
        operation: Operation::Unmap,
        prepare: || prepare_map(MAPPED, 2 * PAGE),
        run: || observe_unmap(MAPPED, PAGE),
        check: || {
            check_range(MAPPED, TARGET, PAGE, false);
            unmap(domain(), MAPPED + PAGE, PAGE);
            check_empty();
        },
        ..BASE
    },
    Case {
        name: "unmap: a table and all in it",
        operation: Operation::Unmap,
        prepare: prepare_table,
        run: || observe_unmap(FRESH, LARGE),
        check: || {
            ledger::demand(DONE.0.get(), &"what was mapped could not be unmapped");
            check_empty();
        },
        reached: |before, after| after.in_use == before.in_use - 1,
        ..BASE
    },
    Case {
        name: "unmap: part of a page of 2 MiB",
        operation: Operation::Unmap,
        prepare: || prepare_map(FRESH, LARGE),
        run: || observe_unmap(FRESH + 3 * PAGE, PAGE),
        check: || {
            if DONE.0.get() {
                check_range(FRESH, TARGET, 3 * PAGE, true);
                check_range(FRESH + 3 * PAGE, TARGET, PAGE, false);
                unmap(domain(), FRESH, 3 * PAGE);
                unmap(domain(), FRESH + 4 * PAGE, LARGE - 4 * PAGE);
            } else {
                check_range(FRESH, TARGET, LARGE, true);
                unmap(domain(), FRESH, LARGE);
            }
            check_empty();
        },
        reached: |before, after| after.in_use == before.in_use + 1,
        ..BASE
    },
    Case {
        name: "complete: a table frame comes back",
        operation: Operation::Complete,
        prepare: prepare_table,
        run: || {
            let Ok(invalidation) = domain().unmap(Iova::new(FRESH), LARGE) else {
                return ledger::violation(&"what was mapped could not be unmapped");
            };
            // SAFETY: no hardware walks these tables.
            observed(|| unsafe { invalidation.complete() });
        },
        check: check_empty,
        reached: |before, after| after.in_use == before.in_use - 1,
        ..BASE
    },
];
