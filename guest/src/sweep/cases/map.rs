//! Mapping of ranges and of lists of pages.

use super::{
    BASE, Case, DEPOT, NO_FALLBACK,
    ranges::{
        DONE, FRESH, LARGE, MAPPED, PAGE, TARGET, check_empty, check_map, check_range, observe_map,
        prepare_map,
    },
    take,
};
use crate::{
    ledger,
    sweep::{
        actions::{REMAPPED, unmap},
        bounds::Operation,
        observation::observed,
        rig::domain,
    },
};
use framepool::{
    PhysAddr,
    vtd::{Iova, Permissions},
};

/// Pages of a list, no two of them in a row.
const SCATTERED: [PhysAddr; 4] = [
    PhysAddr::new(0x4000_5000),
    PhysAddr::new(0x4000_1000),
    PhysAddr::new(0x4000_3000),
    PhysAddr::new(0x4000_0000),
];
/// Bytes of the list.
const LISTED: u64 = SCATTERED.len() as u64 * PAGE;

fn observe_map_pages(iova: u64) {
    // SAFETY: no device walks this domain; the handler uses another range.
    let outcome =
        observed(|| unsafe { domain().map_pages(Iova::new(iova), &SCATTERED, Permissions::all()) }.is_ok());
    DONE.0.set(outcome);
}

/// Demands that the whole list is mapped, or nothing, and cleans up.
fn check_map_pages(iova: u64) {
    for (at, page) in (iova..).step_by(PAGE as usize).zip(SCATTERED) {
        check_range(at, page, PAGE, DONE.0.get());
    }
    if DONE.0.get() {
        unmap(domain(), iova, LISTED);
    }
}

pub const CASES: &[Case] = &[
    Case {
        name: "map: one page in a table that is there",
        operation: Operation::Map,
        prepare: || prepare_map(MAPPED + PAGE, PAGE),
        run: || observe_map(MAPPED, PAGE),
        check: || {
            unmap(domain(), MAPPED + PAGE, PAGE);
            check_map(MAPPED, PAGE);
        },
        ..BASE
    },
    Case {
        name: "map: a row of pages, three tables missing",
        operation: Operation::Map,
        run: || observe_map(FRESH + LARGE - 2 * PAGE, 4 * PAGE),
        check: || check_map(FRESH + LARGE - 2 * PAGE, 4 * PAGE),
        reached: |before, after| after.in_use == before.in_use + 3,
        ..BASE
    },
    Case {
        name: "map: one page, beside a table that the handler links too",
        operation: Operation::Map,
        run: || observe_map(REMAPPED + PAGE, PAGE),
        check: || check_map(REMAPPED + PAGE, PAGE),
        reached: |before, after| after.in_use == before.in_use + 2,
        ..BASE
    },
    Case {
        name: "map: a page of 2 MiB",
        operation: Operation::Map,
        run: || observe_map(FRESH, LARGE),
        check: || check_map(FRESH, LARGE),
        reached: |before, after| after.in_use == before.in_use + 1,
        ..BASE
    },
    Case {
        name: "map: refused, too few frames",
        operation: Operation::Map,
        setup: NO_FALLBACK,
        prepare: || take(DEPOT - 1),
        run: || observe_map(MAPPED, PAGE),
        check: || check_map(MAPPED, PAGE),
        reached: |before, after| after.in_use == before.in_use,
        ..BASE
    },
    Case {
        name: "map: refused, already mapped",
        operation: Operation::Map,
        prepare: || prepare_map(MAPPED + PAGE, PAGE),
        run: || observe_map(MAPPED, 2 * PAGE),
        check: || {
            ledger::demand(!DONE.0.get(), &"what is mapped was mapped again");
            check_range(MAPPED, TARGET, PAGE, false);
            unmap(domain(), MAPPED + PAGE, PAGE);
            check_empty();
        },
        reached: |before, after| after.in_use == before.in_use,
        ..BASE
    },
    Case {
        name: "map_pages: a list, in a table that is there",
        operation: Operation::MapPages,
        prepare: || prepare_map(MAPPED + LISTED, PAGE),
        run: || observe_map_pages(MAPPED),
        check: || {
            check_map_pages(MAPPED);
            unmap(domain(), MAPPED + LISTED, PAGE);
            check_empty();
        },
        reached: |before, after| after.in_use == before.in_use,
        ..BASE
    },
    Case {
        name: "map_pages: a list, three tables missing",
        operation: Operation::MapPages,
        run: || observe_map_pages(FRESH + LARGE - 2 * PAGE),
        check: || {
            check_map_pages(FRESH + LARGE - 2 * PAGE);
            check_empty();
        },
        reached: |before, after| after.in_use == before.in_use + 3,
        ..BASE
    },
];
