//! The operations of the builder that change what is there: rights, tables for later, tables that became empty; and a walk in a
//! table that is taken away under it.

use super::{
    operations::{Of, Operation, Role, churn},
    tables::{
        COVERED, DONE, NO_FRAMES, PAGE, RANGES, Range, WRONG, can_unmap, check, complete, has_space, note,
        unmap_part,
    },
    world::{Hand, World},
};
use framepool::vtd::*;
use std::sync::atomic::Ordering::SeqCst;

const fn change(name: &'static str, role: Role, call: extern "C" fn(&World<'_>, &Hand)) -> Operation {
    Operation::new(name, role, call).needs(has_space).settled_by(check).of(Of::Tables)
}

/// These operations.
pub static CHANGES: &[Operation] = &[
    change("protect a page", Role::Any, protect::<0>).needs(can_unmap::<0>),
    change("protect part of a large leaf", Role::Any, protect::<3>).needs(can_unmap::<3>),
    change("preallocate, release", Role::Any, preallocate),
    change("reclaim", Role::Any, reclaim),
    change("translate another's page", Role::Interrupted, translate_elsewhere),
    change("unmap a table, use its frames", Role::Interrupting, unmap_and_use)
        .critical()
        .needs(can_unmap::<2>)
        .settled_by(|world, hand| {
            note(world, hand, |space| space.set_mapped(hand.level, Range::Table, false));
        }),
];

/// Takes the right to write from the first page of a range.
extern "C" fn protect<const RANGE: usize>(world: &World<'_>, hand: &Hand) {
    let Some(space) = &world.space else { return };
    let iova = Iova::new(RANGES[RANGE].iova(hand.level));
    // SAFETY: no device walks these tables, and each context has addresses of its own.
    let outcome = match unsafe { space.domain.protect(iova, PAGE, Permissions::READ) } {
        Ok(invalidation) => {
            // SAFETY: no hardware walks these tables.
            unsafe { invalidation.complete() };
            DONE
        }
        Err(ProtectError::OutOfFrames { .. }) => NO_FRAMES,
        Err(_) => WRONG,
    };
    hand.outcome.store(outcome, SeqCst);
}

extern "C" fn preallocate(world: &World<'_>, hand: &Hand) {
    let Some(space) = &world.space else { return };
    let (iova, length) = (Iova::new(Range::Table.iova(hand.level)), Range::Table.length());
    let outcome = match space.domain.preallocate(iova, length) {
        Ok(()) if space.domain.release(iova, length).is_ok() => DONE,
        Err(MapError::OutOfFrames { .. }) => NO_FRAMES,
        _ => WRONG,
    };
    hand.outcome.store(outcome, SeqCst);
}

/// All tables that are empty; another reclaim may be under way.
extern "C" fn reclaim(world: &World<'_>, hand: &Hand) {
    let Some(space) = &world.space else { return };
    let outcome = match space.domain.reclaim(Iova::new(0), COVERED) {
        Ok(invalidation) => {
            // SAFETY: no hardware walks these tables.
            unsafe { invalidation.complete() };
            DONE
        }
        Err(ReclaimError::InProgress) => DONE,
        Err(_) => WRONG,
    };
    hand.outcome.store(outcome, SeqCst);
}

/// Looks up a page that the first interrupt may have mapped: it is there as it should be, or not at all.
extern "C" fn translate_elsewhere(world: &World<'_>, hand: &Hand) {
    let Some(space) = &world.space else { return };
    let iova = Range::Table.iova(1) + PAGE;
    let found = space.domain.translate(Iova::new(iova)).map(|translation| translation.target);
    let right = found.is_none_or(|target| target.as_u64() == Range::Table.target(iova));
    hand.outcome.store(if right { DONE } else { WRONG }, SeqCst);
}

/// Unmaps a table, says that hardware has let go of it, and fills every frame that can be had.
extern "C" fn unmap_and_use(world: &World<'_>, hand: &Hand) {
    unmap_part(world, hand, Range::Table, Range::Table.length());
    if hand.outcome.load(SeqCst) == DONE {
        complete(world, hand);
    }
    churn(world, hand);
}
