//! The operations of the builder for what is mapped in pieces: a list of pages that lie anywhere, and a table of leaves that one large
//! leaf can replace.

use super::{
    operations::{Of, Operation, Role},
    tables::{DONE, NO_FRAMES, PAGE, Range, WRONG, can_map, can_unmap, check, note_map},
    world::{Hand, Violation, World},
};
use framepool::{PhysAddr, vtd::*};
use std::sync::atomic::Ordering::SeqCst;

const SCATTERED: usize = Range::Scattered as usize;
const PIECES: usize = Range::Pieces as usize;

/// These operations.
pub static PIECEWISE: &[Operation] = &[
    Operation::new("map_pages of 3", Role::Any, map_pages)
        .needs(can_map::<SCATTERED>)
        .settled_by(note_map::<SCATTERED>)
        .of(Of::Tables),
    Operation::new("join", Role::Any, join).needs(can_unmap::<PIECES>).settled_by(check_join).of(Of::Tables),
];

/// The pages of a list, on both sides of the border between two tables.
extern "C" fn map_pages(world: &World<'_>, hand: &Hand) {
    let Some(space) = &world.space else { return };
    let start = Range::Scattered.iova(hand.level);
    let pages = [0, 1, 2].map(|page| PhysAddr::new(Range::Scattered.target(start + page * PAGE)));
    // SAFETY: no device walks these tables, and each context has addresses of its own.
    let outcome = match unsafe { space.domain.map_pages(Iova::new(start), &pages, Permissions::all()) } {
        Ok(()) => DONE,
        Err(MapError::OutOfFrames { .. }) => NO_FRAMES,
        Err(_) => WRONG,
    };
    hand.outcome.store(outcome, SeqCst);
}

/// Maps the two halves of a table, one after the other, so that they can be joined.
pub fn map_pieces(world: &World<'_>, level: usize) {
    let Some(space) = &world.space else { return };
    let half = Range::Pieces.length() / 2;
    for iova in [0, half].map(|distance| Range::Pieces.iova(level) + distance) {
        let target = PhysAddr::new(Range::Pieces.target(iova));
        // SAFETY: no device walks these tables, and each context has addresses of its own.
        unsafe { space.domain.map(Iova::new(iova), target, half, Permissions::all()) }.unwrap();
    }
    space.set_mapped(level, Range::Pieces, true);
}

/// What is mapped stays; the table waits for its invalidation.
extern "C" fn join(world: &World<'_>, hand: &Hand) {
    let Some(space) = &world.space else { return };
    let (iova, length) = (Iova::new(Range::Pieces.iova(hand.level)), Range::Pieces.length());
    // SAFETY: each context has addresses of its own.
    let outcome = match unsafe { space.domain.join(iova, length) } {
        Ok(invalidation) => {
            space.wait(hand.level, invalidation);
            DONE
        }
        Err(_) => WRONG,
    };
    hand.outcome.store(outcome, SeqCst);
}

/// One leaf maps what the pieces did.
fn check_join(world: &World<'_>, hand: &Hand) {
    check(world, hand);
    let iova = Iova::new(Range::Pieces.iova(hand.level));
    let found = world.space.as_ref().and_then(|space| space.domain.translate(iova));
    if found.is_none_or(|translation| translation.page_size != Range::Pieces.length()) {
        world.report(Violation::Outcome);
    }
}
