//! Mapping: a walk that looks, then a walk that writes.
//!
//! The first finds out that nothing in the range is mapped and how many tables are missing, to the frame. These are
//! taken before the second writes anything, so it cannot fail (INV-11). Between both, mappers of other ranges may link tables on
//! our way: then ours are left over. They cannot unlink one, since a table is detached only by an unmap of all that it
//! covers, and that includes part of our range, which nobody else touches, or when it is empty, and those that the first walk
//! goes through are kept (`reclaim.rs`); so more are never needed. A range whose leaf table is there already needs no walk (`direct.rs`).

use super::{
    MapError, TableFrames,
    advance::{Advance, Missing},
    domain::{Domain, DomainConfig},
    error::AdvanceError,
    format::{Entry, Format, Permissions, named_table},
    table::{Run, Table},
    tables::Tables,
    targets::{Piece, Targets},
    walk::{Place, Step, Visitor, index},
    width::{Iova, PAGE, PageSizes, Span, size},
};
use crate::PhysAddr;
use core::marker::PhantomData;

impl<F: Format, A: TableFrames> Domain<F, A> {
    /// The range of `length` bytes from `iova` on, if it can be mapped with `permissions`.
    #[inline(always)]
    pub(crate) fn span_to_map(
        &self,
        iova: Iova,
        length: u64,
        permissions: Permissions,
    ) -> Result<Span, MapError> {
        let span = self.limits().span(iova, length)?;
        F::STAGE.check_permissions(permissions)?;
        Ok(span)
    }

    /// What is asked for, if it can be.
    #[inline(always)]
    pub(crate) fn wish_to_map(
        &self,
        iova: Iova,
        target: PhysAddr,
        length: u64,
        permissions: Permissions,
    ) -> Result<(Span, Wish<Piece>), MapError> {
        let span = self.span_to_map(iova, length, permissions)?;
        self.limits().check_target(target, length)?;
        let targets = Piece { distance: target.as_u64().wrapping_sub(iova.as_u64()) };
        Ok((span, Wish::new::<F>(targets, permissions, &self.config())))
    }

    /// Maps `span` as wished, with frames from `take`, which is asked for all that it can need, or none.
    #[inline(always)]
    pub(crate) fn carry_out<T: Targets>(
        &self,
        span: Span,
        wish: Wish<T>,
        take: impl FnOnce(Missing) -> Result<Advance, AdvanceError>,
    ) -> Result<F::Mapped<'_, A>, MapError> {
        let tables = self.tables();
        let _walk = tables.enter::<F>(span);
        let largest = match self.leaf_run(span) {
            Some(run) => {
                empty::<F>(run, span)?;
                run.fill(wish.leaves::<F>(span));
                tables.flush(run);
                PAGE
            }
            None => self.build(span, wish, take)?,
        };
        Ok(self.mapped(span, largest))
    }

    /// Maps `span`, whatever it takes; the bytes of the largest leaf. The caller has entered.
    #[inline(never)]
    fn build<T: Targets>(
        &self,
        span: Span,
        wish: Wish<T>,
        take: impl FnOnce(Missing) -> Result<Advance, AdvanceError>,
    ) -> Result<u64, MapError> {
        let tables = self.tables();
        let mut survey = Survey::<F, T>::new(wish);
        self.walk(span, &mut survey)?;
        let advance = take(survey.missing)?;
        let mut writing = Writing::<F, A, T> {
            tables,
            wish,
            advance,
            tables_only: false,
            largest: PAGE,
            format: PhantomData,
        };
        let outcome = self.walk(span, &mut writing);
        self.give_back(writing.advance);
        outcome.map(|()| writing.largest)
    }
}

/// What is to be mapped: where a range of IOVA goes, and with which rights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish<T> {
    targets: T,
    permissions: Permissions,
    page_sizes: PageSizes,
    /// Bits of every leaf besides target, rights and size.
    attributes: u64,
}

impl<T: Targets> Wish<T> {
    pub(crate) fn new<F: Format>(targets: T, permissions: Permissions, config: &DomainConfig) -> Self {
        Self {
            targets,
            permissions,
            page_sizes: config.page_sizes,
            attributes: if config.force_snoop { F::SNOOP } else { 0 },
        }
    }

    /// The leaf at `level` for `iova`.
    #[inline(always)]
    fn leaf<F: Format>(&self, iova: u64, level: u32) -> u64 {
        F::leaf(self.targets.at(iova), self.permissions, level) | self.attributes
    }

    /// The leaves at level 1 for `part`.
    #[inline(always)]
    fn leaves<F: Format>(&self, part: Span) -> impl Iterator<Item = u64> {
        let first = self.leaf::<F>(part.start, 1);
        (0..part.length() / PAGE).map(move |page| match T::IN_A_ROW {
            // All else in the leaf is the same: the target ends below the bits above it, which was checked.
            true => first + page * PAGE,
            false => self.leaf::<F>(part.start + page * PAGE, 1),
        })
    }

    /// Whether one leaf at `level` can map all of `part`.
    fn fits<F: Format>(&self, level: u32, part: Span) -> bool {
        let size = size(level, F::INDEX_BITS);
        self.page_sizes.allow(level) && part.length() == size && self.targets.is_aligned_piece(part)
    }

    /// Adds the tables that have to be made below an empty entry at `level` to map `part`.
    fn add_tables_below<F: Format>(&self, level: u32, part: Span, missing: &mut Missing) {
        if self.fits::<F>(level, part) {
            return;
        }
        if level == 2 && part.length() == size(level, F::INDEX_BITS) {
            missing.whole += 1;
            return;
        }
        missing.zeroed += 1;
        let (below, mut rest) = (level - 1, part);
        while below > 1 && rest.start < rest.end {
            let part = rest.first(size(below, F::INDEX_BITS));
            self.add_tables_below::<F>(below, part, missing);
            rest.start = part.end;
        }
    }
}

/// The walk that looks.
pub(crate) struct Survey<F, T> {
    wish: Wish<T>,
    /// Tables that have to be made.
    pub(crate) missing: Missing,
    format: PhantomData<F>,
}

impl<F: Format, T: Targets> Survey<F, T> {
    pub(crate) fn new(wish: Wish<T>) -> Self {
        Self { wish, missing: Missing::default(), format: PhantomData }
    }
}

impl<F: Format, T: Targets> Visitor for Survey<F, T> {
    type Stop = MapError;

    fn entry(&mut self, place: Place<'_>) -> Result<Step, MapError> {
        let found = place.keep();
        if let Some(below) = named_table::<F>(found, place.level) {
            return Ok(Step::Descend(below));
        }
        if F::decode(found, place.level) != Entry::Empty {
            return Err(MapError::AlreadyMapped { iova: Iova::new(place.part.start) });
        }
        self.wish.add_tables_below::<F>(place.level, place.part, &mut self.missing);
        Ok(Step::Skip)
    }

    fn leaves(&mut self, run: Run<'_>, part: Span) -> Result<(), MapError> {
        empty::<F>(run, part)
    }
}

/// Refuses a run of entries for `part` in which there is one that is not empty.
#[inline(always)]
fn empty<F: Format>(run: Run<'_>, part: Span) -> Result<(), MapError> {
    match run.first_with(F::PRESENT) {
        Some(position) => {
            Err(MapError::AlreadyMapped { iova: Iova::new(part.start + position as u64 * PAGE) })
        }
        None => Ok(()),
    }
}

/// The walk that writes, with all frames that it can need.
pub(crate) struct Writing<'d, F, A: TableFrames, T> {
    pub(crate) tables: &'d Tables<A>,
    pub(crate) wish: Wish<T>,
    pub(crate) advance: Advance,
    /// Tables are linked, and no leaf is written.
    pub(crate) tables_only: bool,
    /// The bytes of the largest leaf that was written.
    pub(crate) largest: u64,
    pub(crate) format: PhantomData<F>,
}

/// A table that nobody else has seen, made for an entry.
struct Made {
    frame: PhysAddr,
    /// It was not zeroed before.
    is_whole: bool,
}

impl<F: Format, A: TableFrames, T: Targets> Writing<'_, F, A, T> {
    /// The table for `place`. One of the last level has its leaves already: nobody sees it before they are all there, so they can be
    /// written as memory is.
    fn make(&mut self, place: &Place<'_>) -> Option<Made> {
        let frames = &self.tables.frames;
        let is_last = place.level == 2 && !self.tables_only;
        let whole = if is_last && place.is_whole::<F>() { self.advance.any.pop(frames) } else { None };
        let made = match whole {
            Some(frame) => Made { frame, is_whole: true },
            None => Made { frame: self.advance.zeroed.pop(frames)?, is_whole: false },
        };
        if is_last {
            self.leaves_of(&made, place.part).fill_unseen(self.wish.leaves::<F>(place.part));
        }
        Some(made)
    }

    /// Lays a table down that was not needed.
    fn unmake(&mut self, made: Made, place: &Place<'_>) {
        if made.is_whole {
            return self.advance.any.push(&self.tables.frames, made.frame);
        }
        if place.level == 2 {
            self.leaves_of(&made, place.part).clear();
        }
        self.advance.zeroed.push(&self.tables.frames, made.frame);
    }

    fn leaves_of(&self, made: &Made, part: Span) -> Run<'_> {
        let pages = (part.length() / PAGE) as usize;
        Table::at::<F, A>(&self.tables.frames, made.frame).run(index::<F>(part.start, 1), pages)
    }
}

impl<F: Format, A: TableFrames, T: Targets> Visitor for Writing<'_, F, A, T> {
    /// Only a caller that breaks the contract of `map` gets here.
    type Stop = MapError;

    fn entry(&mut self, place: Place<'_>) -> Result<Step, MapError> {
        let found = self.tables.restore::<F>(&place, place.table.load(place.index));
        let conflict = MapError::AlreadyMapped { iova: Iova::new(place.part.start) };
        match F::decode(found, place.level) {
            Entry::Table(below) => {
                self.tables.confirm(&place, found);
                return Ok(Step::Descend(below));
            }
            Entry::Leaf { .. } => return Err(conflict),
            Entry::Empty => {}
        }
        if self.wish.fits::<F>(place.level, place.part) {
            place.table.store(place.index, self.wish.leaf::<F>(place.part.start, place.level));
            self.tables.flush_entry(&place);
            self.largest = self.largest.max(place.part.length());
            return Ok(Step::Skip);
        }
        let made = self.make(&place).ok_or(conflict)?;
        match self.tables.link::<F>(&place, found, made.frame) {
            Ok(()) if place.level == 2 => Ok(Step::Skip),
            Ok(()) => Ok(Step::Descend(made.frame)),
            // Another mapper was faster: its table serves us as well, and ours is left over.
            Err(winner) => {
                self.unmake(made, &place);
                match F::decode(winner, place.level) {
                    Entry::Table(below) => {
                        self.tables.confirm(&place, winner);
                        Ok(Step::Descend(below))
                    }
                    Entry::Empty | Entry::Leaf { .. } => Err(conflict),
                }
            }
        }
    }

    fn leaves(&mut self, run: Run<'_>, part: Span) -> Result<(), MapError> {
        run.fill(self.wish.leaves::<F>(part));
        self.tables.flush(run);
        Ok(())
    }
}
