//! Unmapping: a walk that looks, then a walk that takes entries out.
//!
//! The first finds out that all of the range is mapped and how many tables it takes to split the large leaves of which only a
//! part goes; these are taken before the second changes anything (INV-11). A table that lies in the range as a whole is
//! taken out by its entry, and what is below it then belongs to this unmap alone (INV-10). One that was built beforehand, to be kept,
//! is emptied instead (`preallocate.rs`). A range that is part of one leaf table needs no walk (`direct.rs`).

use super::{
    Domain, TableFrames, UnmapError,
    format::{Entry, Format, KEPT, named_table},
    frame_list::FrameList,
    invalidation::Invalidation,
    split::{split, tables_to_split},
    table::{Run, Table},
    tables::Tables,
    walk::{Place, Step, Visitor},
    width::{Iova, PAGE, Span},
};
use crate::PhysAddr;
use core::marker::PhantomData;

impl<F: Format, A: TableFrames> Domain<F, A> {
    /// Removes the mapping of `span`, whatever it takes. The caller has entered.
    #[inline(never)]
    pub(crate) fn remove(&self, span: Span) -> Result<Invalidation<'_, A>, UnmapError> {
        let tables = self.tables();
        let mut survey = Survey::<F> { missing: 0, format: PhantomData };
        self.walk(span, &mut survey)?;
        let advance = self.advance(survey.missing)?;
        let mut invalidation = Invalidation::of(tables, span);
        let mut removing =
            Removing::<F, A> { tables, advance, invalidation: &mut invalidation, format: PhantomData };
        let outcome = self.walk(span, &mut removing);
        tables.give_back(removing.advance);
        outcome.map(|()| invalidation)
    }
}

/// The walk that looks.
struct Survey<F> {
    /// Tables that it takes to split leaves.
    missing: u64,
    format: PhantomData<F>,
}

impl<F: Format> Visitor for Survey<F> {
    type Stop = UnmapError;

    fn entry(&mut self, place: Place<'_>) -> Result<Step, UnmapError> {
        match F::decode(place.table.load(place.index), place.level) {
            Entry::Table(below) => Ok(Step::Descend(below)),
            Entry::Empty => Err(UnmapError::NotMapped { iova: Iova::new(place.part.start) }),
            Entry::Leaf { .. } => {
                self.missing += tables_to_split::<F>(place.level, place.part);
                Ok(Step::Skip)
            }
        }
    }

    fn leaves(&mut self, run: Run<'_>, part: Span) -> Result<(), UnmapError> {
        mapped::<F>(run, part)
    }
}

/// Refuses a run of entries for `part` in which there is an empty one.
#[inline(always)]
pub(crate) fn mapped<F: Format>(run: Run<'_>, part: Span) -> Result<(), UnmapError> {
    match run.first_without(F::PRESENT) {
        Some(position) => Err(UnmapError::NotMapped { iova: Iova::new(part.start + position as u64 * PAGE) }),
        None => Ok(()),
    }
}

/// The walk that takes entries out, with all frames that it can need.
struct Removing<'w, 'd, F, A: TableFrames> {
    tables: &'d Tables<A>,
    advance: FrameList,
    invalidation: &'w mut Invalidation<'d, A>,
    format: PhantomData<F>,
}

impl<F: Format, A: TableFrames> Removing<'_, '_, F, A> {
    /// An entry was taken out, and is ours with all below it.
    fn removed(&mut self, place: &Place<'_>, entry: Entry) {
        self.tables.flush_entry(place);
        self.invalidation.changed(place.part.length());
        if let Entry::Table(below) = entry {
            self.invalidation.cover_table(place.part);
            let detached = collect::<F, A>(&self.tables.frames, below, place.level - 1);
            self.tables.unlinked(detached.count());
            self.invalidation.take_frames(detached);
        }
    }
}

impl<F: Format, A: TableFrames> Visitor for Removing<'_, '_, F, A> {
    type Stop = UnmapError;

    fn entry(&mut self, place: Place<'_>) -> Result<Step, UnmapError> {
        let mut found = place.table.load(place.index);
        loop {
            let entry = F::decode(found, place.level);
            match entry {
                Entry::Empty => return Ok(Step::Skip),
                Entry::Table(below) if found & KEPT != 0 || !place.is_whole::<F>() => {
                    return Ok(Step::Descend(below));
                }
                Entry::Leaf { .. } if !place.is_whole::<F>() => {
                    let below =
                        split::<F, A>(self.tables, &mut self.advance, self.invalidation, &place, found);
                    return Ok(below.map_or(Step::Skip, Step::Descend));
                }
                Entry::Table(_) | Entry::Leaf { .. } => {}
            }
            // A retry means that hardware has set a bit, or that somebody else has changed the entry.
            match place.table.remove(place.index, found) {
                Ok(()) => {
                    self.removed(&place, entry);
                    return Ok(Step::Skip);
                }
                Err(now) => found = now,
            }
        }
    }

    fn leaves(&mut self, run: Run<'_>, _part: Span) -> Result<(), UnmapError> {
        run.clear();
        self.tables.flush(run);
        Ok(())
    }
}

/// All tables from `frame` of `level` down, which the caller owns. Recurses once a level.
///
/// Each is taken out, since somebody who walked by may be taking one out at the same time: one of both gets it.
pub(crate) fn collect<F: Format, A: TableFrames>(frames: &A, frame: PhysAddr, level: u32) -> FrameList {
    let mut list = FrameList::new();
    if level > 1 {
        let table = Table::at::<F, A>(frames, frame);
        for index in 0..1 << F::INDEX_BITS {
            let mut found = table.load(index);
            while let Some(below) = named_table::<F>(found, level) {
                match table.remove(index, found) {
                    Ok(()) => {
                        list.append(frames, collect::<F, A>(frames, below, level - 1));
                        break;
                    }
                    Err(now) => found = now,
                }
            }
        }
    }
    list.push(frames, frame);
    list
}
