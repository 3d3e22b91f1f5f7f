//! Mapping: a walk that looks, then a walk that writes.
//!
//! The first finds out that nothing in the range is mapped and how many tables are missing, to the frame. These are
//! taken before the second writes anything, so it cannot fail (INV-11). Between both, mappers of other ranges may link tables on
//! our way: then ours are left over. They cannot unlink one, since a table is detached only by an unmap of all that it
//! covers, and that includes part of our range, which nobody else touches, or when it is empty, and those that the first walk
//! goes through are kept (`reclaim.rs`); so more are never needed.

use super::{
    MapError, TableFrames,
    domain::{Domain, DomainConfig},
    error::AdvanceError,
    format::{Entry, Format, Permissions, named_table},
    frame_list::FrameList,
    table::Run,
    tables::Tables,
    targets::{Piece, Targets},
    walk::{Place, Step, Visitor},
    width::{INTERRUPTS, Iova, PAGE, PageSizes, Span, size},
};
use crate::PhysAddr;
use core::marker::PhantomData;

impl DomainConfig {
    /// The range of `length` bytes from `iova` on, if it can be mapped with `permissions`.
    pub(crate) fn check_map<F: Format>(
        &self,
        iova: Iova,
        length: u64,
        permissions: Permissions,
    ) -> Result<Span, MapError> {
        let span = self.span(iova, length)?;
        F::STAGE.check_permissions(permissions)?;
        Ok(span)
    }

    /// Refuses physical ranges that no leaf may name.
    pub(crate) fn check_target(&self, target: PhysAddr, length: u64) -> Result<(), MapError> {
        let width = self.host_address_width;
        if !target.is_aligned(PAGE) {
            return Err(MapError::TargetMisaligned { target });
        }
        let Some(end) = target.as_u64().checked_add(length).filter(|&end| end <= 1 << width) else {
            return Err(MapError::TargetBeyondWidth { target, length, width });
        };
        if (Span { start: target.as_u64(), end }).meets(INTERRUPTS) {
            return Err(MapError::InterruptTarget { target, length });
        }
        Ok(())
    }
}

impl<F: Format, A: TableFrames> Domain<F, A> {
    /// What is asked for, if it can be.
    pub(crate) fn wish_to_map(
        &self,
        iova: Iova,
        target: PhysAddr,
        length: u64,
        permissions: Permissions,
    ) -> Result<(Span, Wish<Piece>), MapError> {
        let config = self.config();
        let span = config.check_map::<F>(iova, length, permissions)?;
        config.check_target(target, length)?;
        let targets = Piece { distance: target.as_u64().wrapping_sub(iova.as_u64()) };
        Ok((span, Wish::new::<F>(targets, permissions, &config)))
    }

    /// Maps `span` as wished, with frames from `take`, which is asked for all that it can need, or none.
    #[inline(always)]
    pub(crate) fn carry_out<T: Targets>(
        &self,
        span: Span,
        wish: Wish<T>,
        take: impl FnOnce(u64) -> Result<FrameList, AdvanceError>,
    ) -> Result<F::Mapped<'_, A>, MapError> {
        let tables = self.tables();
        let _walk = tables.enter(span);
        let mut survey = Survey::<F, T>::new(wish);
        self.walk(span, &mut survey)?;
        let advance = take(survey.missing)?;
        let mut writing = Writing::<F, A, T> { tables, wish, advance, largest: PAGE, format: PhantomData };
        let outcome = self.walk(span, &mut writing);
        tables.give_back(writing.advance);
        outcome.map(|()| self.mapped(span, writing.largest))
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

    /// Whether one leaf at `level` can map all of `part`.
    fn fits<F: Format>(&self, level: u32, part: Span) -> bool {
        let size = size(level, F::INDEX_BITS);
        self.page_sizes.allow(level) && part.length() == size && self.targets.is_aligned_piece(part)
    }

    /// How many tables have to be made below an empty entry at `level` to map `part`.
    fn tables_below<F: Format>(&self, level: u32, part: Span) -> u64 {
        if self.fits::<F>(level, part) {
            return 0;
        }
        let (below, mut rest, mut tables) = (level - 1, part, 1);
        while below > 1 && rest.start < rest.end {
            let part = rest.first(size(below, F::INDEX_BITS));
            tables += self.tables_below::<F>(below, part);
            rest.start = part.end;
        }
        tables
    }
}

/// The walk that looks.
pub(crate) struct Survey<F, T> {
    wish: Wish<T>,
    /// Tables that have to be made.
    pub(crate) missing: u64,
    format: PhantomData<F>,
}

impl<F: Format, T: Targets> Survey<F, T> {
    pub(crate) fn new(wish: Wish<T>) -> Self {
        Self { wish, missing: 0, format: PhantomData }
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
        self.missing += self.wish.tables_below::<F>(place.level, place.part);
        Ok(Step::Skip)
    }

    fn leaves(&mut self, run: Run<'_>, part: Span) -> Result<(), MapError> {
        match run.position(|entry| F::decode(entry, 1) != Entry::Empty) {
            Some(position) => {
                Err(MapError::AlreadyMapped { iova: Iova::new(part.start + position as u64 * PAGE) })
            }
            None => Ok(()),
        }
    }
}

/// The walk that writes, with all frames that it can need.
pub(crate) struct Writing<'d, F, A: TableFrames, T> {
    pub(crate) tables: &'d Tables<A>,
    pub(crate) wish: Wish<T>,
    pub(crate) advance: FrameList,
    /// The bytes of the largest leaf that was written.
    pub(crate) largest: u64,
    pub(crate) format: PhantomData<F>,
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
        let below = self.advance.pop(&self.tables.frames).ok_or(conflict)?;
        match self.tables.link::<F>(&place, found, below) {
            Ok(()) => Ok(Step::Descend(below)),
            // Another mapper was faster: its table serves us as well, and ours is left over.
            Err(winner) => {
                self.advance.push(&self.tables.frames, below);
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
        let pages = (0..part.length() / PAGE).map(|page| part.start + page * PAGE);
        run.fill(pages.map(|iova| self.wish.leaf::<F>(iova, 1)));
        self.tables.flush(run);
        Ok(())
    }
}
