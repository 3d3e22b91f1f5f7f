//! What hardware has noted in the leaves, taken beside handlers that map under the same tables.

use super::{
    BASE, Case,
    ranges::{DONE, MAPPED, PAGE, TARGET, check_empty, check_range, prepare_map},
};
use crate::{
    ledger,
    sweep::{actions::unmap, bounds::Operation, observation::observed, rig::domain},
};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use framepool::vtd::Iova;

/// Pages, and those of them to which a device has written.
const PAGES: u64 = 4;
const WRITTEN: u64 = 0b1010;
/// Hardware has written to what a leaf maps (D).
const DIRTY: u64 = 1 << 9;

/// Sets a bit in the leaf of a page, as hardware does.
fn note(iova: u64) {
    let mut table = domain().root().as_u64();
    for level in (0..domain().levels().count()).rev() {
        let index = iova >> (12 + 9 * level) & 511;
        // SAFETY: a table, whose words are atomics, in memory that is mapped at its own address.
        let entry = unsafe { &*(table as *const AtomicU64).add(index as usize) };
        if level == 0 {
            entry.fetch_or(DIRTY, Relaxed);
        }
        table = entry.load(Relaxed) & 0x000F_FFFF_FFFF_F000;
    }
}

pub const CASES: &[Case] = &[Case {
    name: "take_dirty: two of four pages",
    operation: Operation::TakeDirty,
    prepare: || {
        prepare_map(MAPPED, PAGES * PAGE);
        (0..PAGES).filter(|page| WRITTEN >> page & 1 != 0).for_each(|page| note(MAPPED + page * PAGE));
    },
    run: || {
        let mut bitmap = [0];
        let outcome = observed(|| domain().take_dirty(Iova::new(MAPPED), PAGES * PAGE, &mut bitmap));
        DONE.0.set(outcome.is_ok() && bitmap == [WRITTEN]);
        if let Ok(invalidation) = outcome {
            // SAFETY: no hardware walks these tables.
            unsafe { invalidation.complete() };
        }
    },
    check: || {
        ledger::demand(DONE.0.get(), &"what hardware has noted was not taken as it was");
        check_range(MAPPED, TARGET, PAGES * PAGE, true);
        unmap(domain(), MAPPED, PAGES * PAGE);
        check_empty();
    },
    ..BASE
}];
