//! Owns the split of a large leaf into a table of smaller ones that say the same, in one exchange: no translation is ever missing.

use super::{
    Format, Invalidation, TableFrames,
    frame_list::FrameList,
    table::Table,
    tables::Tables,
    walk::Place,
    width::{Span, size},
};
use crate::PhysAddr;
use core::iter;

/// How many tables it takes to split a leaf at `level` so that `part` of it can go, or say something else.
pub(crate) fn tables_to_split<F: Format>(level: u32, part: Span) -> u64 {
    let size = size(level, F::INDEX_BITS);
    if level == 1 || part.length() == size {
        return 0;
    }
    let below = size >> F::INDEX_BITS;
    let head = part.first(below);
    let mut tables = 1 + tables_to_split::<F>(level - 1, head);
    let last = Span { start: part.end - 1, end: part.end }.around(below);
    if last.start >= head.end {
        tables += tables_to_split::<F>(level - 1, Span { start: last.start, end: part.end });
    }
    tables
}

/// Replaces the leaf `found` by a table of `advance`, unless it is that leaf no longer: then somebody breaks the contract.
///
/// A retry means that hardware has set an accessed or a dirty bit, which it does once each: the parts get it too.
pub(crate) fn split<F: Format, A: TableFrames>(
    tables: &Tables<A>,
    advance: &mut FrameList,
    invalidation: &mut Invalidation<'_, A>,
    place: &Place<'_>,
    mut found: u64,
) -> Option<PhysAddr> {
    let below = advance.pop(&tables.frames)?;
    let parts = Table::at::<F, A>(&tables.frames, below).all();
    let leaf = F::decode(found, place.level);
    loop {
        parts.fill((0..1 << F::INDEX_BITS).map(|index| F::part(found, place.level, index)));
        match tables.link::<F>(place, found, below) {
            Ok(()) => break,
            Err(now) if F::decode(now, place.level) == leaf => found = now,
            Err(_) => {
                // The frame goes back with the rest, cleared.
                parts.fill(iter::repeat(0));
                advance.push(&tables.frames, below);
                return None;
            }
        }
    }
    // Hardware may hold the large leaf until it is told about all of it.
    invalidation.cover_table(place.part.around(size(place.level, F::INDEX_BITS)));
    Some(below)
}
