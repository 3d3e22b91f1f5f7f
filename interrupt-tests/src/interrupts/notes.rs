//! The operations of the builder that take what hardware has noted in the leaves: which pages it has used, and which it has written.

use super::{
    operations::{Of, Operation, Role},
    tables::{DONE, PAGE, Range, WRONG, can_take, check},
    world::{Hand, World},
};
use framepool::{FrameSource, PhysAddr, vtd::*};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Hardware has used what a leaf maps (A), and has written there (D).
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
/// Words of a bitmap for one table.
const WORDS: usize = 512 / u64::BITS as usize;
/// The pages that the device uses, and the bitmap that says so.
const USED: [u64; 2] = [1, 511];
const EXPECTED: [u64; WORDS] = [1 << 1, 0, 0, 0, 0, 0, 0, 1 << 63];

/// These operations.
pub static NOTES: &[Operation] = &[
    Operation::new("take_accessed of a table", Role::Any, take::<ACCESSED>)
        .needs(used::<ACCESSED>)
        .settled_by(check)
        .of(Of::Tables),
    Operation::new("take_dirty of a table", Role::Any, take::<DIRTY>)
        .needs(used::<DIRTY>)
        .settled_by(check)
        .of(Of::Tables),
];

/// A device has used two pages of the context's table.
fn used<const NOTE: u64>(world: &World<'_>, hand: &Hand) -> bool {
    let start = Range::Table.iova(hand.level);
    can_take(world, hand) && USED.iter().all(|page| world.note_in_leaf(start + page * PAGE, NOTE))
}

extern "C" fn take<const NOTE: u64>(world: &World<'_>, hand: &Hand) {
    let Some(space) = &world.space else { return };
    let (iova, length) = (Iova::new(Range::Table.iova(hand.level)), Range::Table.length());
    let mut bitmap = [0; WORDS];
    let taken = if NOTE == DIRTY {
        space.domain.take_dirty(iova, length, &mut bitmap)
    } else {
        space.domain.take_accessed(iova, length, &mut bitmap)
    };
    let told = taken.is_ok_and(|invalidation| {
        let told = !invalidation.is_empty();
        // SAFETY: no hardware walks these tables.
        unsafe { invalidation.complete() };
        told
    });
    hand.outcome.store(if told && bitmap == EXPECTED { DONE } else { WRONG }, SeqCst);
}

impl World<'_> {
    /// Sets bits in the leaf that maps `iova` by a small page, as hardware does; whether there is one.
    fn note_in_leaf(&self, iova: u64, note: u64) -> bool {
        let Some(space) = &self.space else { return false };
        let mut table = space.domain.root();
        for level in (1..=space.domain.levels().count()).rev() {
            let index = iova >> (12 + 9 * (level - 1)) & 511;
            let words = self.supply().pointer(table).cast::<AtomicU64>();
            // SAFETY: a frame has 512 words, and it is mapped.
            let entry = unsafe { words.add(index as usize).as_ref() };
            if level == 1 {
                return entry.fetch_or(note, SeqCst) & 3 != 0;
            }
            table = PhysAddr::new(entry.load(SeqCst) & 0x000F_FFFF_FFFF_F000);
        }
        false
    }
}
