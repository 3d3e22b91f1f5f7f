//! Tables that have become empty, looked for and taken back beside handlers that map through them.

use super::{
    BASE, Case,
    ranges::{LARGE, PAGE, check_empty, prepare_map},
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
use framepool::vtd::Iova;

/// Leaves the two tables by which the handler maps a page behind, empty.
fn prepare_empty() {
    prepare_map(REMAPPED, PAGE);
    unmap(domain(), REMAPPED, PAGE);
}

pub const CASES: &[Case] = &[
    Case {
        name: "reclaim: two empty tables that the handler uses too",
        operation: Operation::Reclaim,
        in_turn: true,
        prepare: prepare_empty,
        run: || match observed(|| domain().reclaim(Iova::new(REMAPPED), LARGE)) {
            // SAFETY: no hardware walks these tables.
            Ok(invalidation) => unsafe { invalidation.complete() },
            Err(_) => ledger::violation(&"nobody else reclaims"),
        },
        check: check_empty,
        reached: |before, after| after.in_use == before.in_use - 2,
        ..BASE
    },
    Case {
        name: "complete: two empty tables that the handler uses too",
        operation: Operation::Complete,
        prepare: prepare_empty,
        run: || match domain().reclaim(Iova::new(REMAPPED), LARGE) {
            // SAFETY: no hardware walks these tables.
            Ok(invalidation) => observed(|| unsafe { invalidation.complete() }),
            Err(_) => ledger::violation(&"nobody else reclaims"),
        },
        check: check_empty,
        reached: |before, after| after.in_use == before.in_use - 2,
        ..BASE
    },
    Case {
        name: "reclaim: a table that is in use stays",
        operation: Operation::Reclaim,
        in_turn: true,
        prepare: || prepare_map(REMAPPED + PAGE, PAGE),
        run: || match observed(|| domain().reclaim(Iova::new(REMAPPED), LARGE)) {
            // SAFETY: no hardware walks these tables.
            Ok(invalidation) => unsafe { invalidation.complete() },
            Err(_) => ledger::violation(&"nobody else reclaims"),
        },
        check: || {
            unmap(domain(), REMAPPED + PAGE, PAGE);
            check_empty();
        },
        reached: |before, after| after.in_use == before.in_use,
        ..BASE
    },
];
