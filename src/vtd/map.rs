//! Mapping: a walk that looks, then a walk that writes.
//!
//! The first finds out that nothing in the range is mapped and how many tables are missing, to the frame. These are
//! taken before the second writes anything, so it cannot fail (INV-11). Between both, mappers of other ranges may link tables on
//! our way: then ours are left over. They cannot unlink one, since a table is detached only by an unmap of all that it
//! covers, and that includes part of our range, which nobody else touches; so more are never needed.

use super::{
    MapError, TableFrames,
    domain::DomainConfig,
    format::{Entry, Format, Permissions},
    frame_list::FrameList,
    table::Run,
    tables::Tables,
    walk::{Place, Step, Visitor},
    width::{Iova, PAGE, PageSizes, Span, size},
};
use crate::PhysAddr;
use core::marker::PhantomData;

/// What is to be mapped: where a range of IOVA goes, and with which rights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    /// The difference from an IOVA to its target.
    distance: u64,
    permissions: Permissions,
    page_sizes: PageSizes,
    /// Bits of every leaf besides target, rights and size.
    attributes: u64,
}

impl Wish {
    pub(crate) fn new<F: Format>(
        iova: Iova,
        target: PhysAddr,
        permissions: Permissions,
        config: &DomainConfig,
    ) -> Self {
        Self {
            distance: target.as_u64().wrapping_sub(iova.as_u64()),
            permissions,
            page_sizes: config.page_sizes,
            attributes: if config.force_snoop { F::SNOOP } else { 0 },
        }
    }

    /// The leaf at `level` for `iova`.
    #[inline(always)]
    fn leaf<F: Format>(&self, iova: u64, level: u32) -> u64 {
        F::leaf(self.target(iova), self.permissions, level) | self.attributes
    }

    fn target(&self, iova: u64) -> PhysAddr {
        PhysAddr::new(iova.wrapping_add(self.distance))
    }

    /// Whether one leaf at `level` can map all of `part`.
    fn fits<F: Format>(&self, level: u32, part: Span) -> bool {
        let size = size(level, F::INDEX_BITS);
        self.page_sizes.allow(level) && part.length() == size && self.distance & (size - 1) == 0
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
pub(crate) struct Survey<F> {
    wish: Wish,
    /// Tables that have to be made.
    pub(crate) missing: u64,
    format: PhantomData<F>,
}

impl<F: Format> Survey<F> {
    pub(crate) fn new(wish: Wish) -> Self {
        Self { wish, missing: 0, format: PhantomData }
    }
}

impl<F: Format> Visitor for Survey<F> {
    type Stop = MapError;

    fn entry(&mut self, place: Place<'_>) -> Result<Step, MapError> {
        match F::decode(place.table.load(place.index), place.level) {
            Entry::Table(below) => Ok(Step::Descend(below)),
            Entry::Leaf { .. } => Err(MapError::AlreadyMapped { iova: Iova::new(place.part.start) }),
            Entry::Empty => {
                self.missing += self.wish.tables_below::<F>(place.level, place.part);
                Ok(Step::Skip)
            }
        }
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
pub(crate) struct Writing<'d, F, A: TableFrames> {
    pub(crate) tables: &'d Tables<A>,
    pub(crate) wish: Wish,
    pub(crate) advance: FrameList,
    /// The bytes of the largest leaf that was written.
    pub(crate) largest: u64,
    pub(crate) format: PhantomData<F>,
}

impl<F: Format, A: TableFrames> Visitor for Writing<'_, F, A> {
    /// Only a caller that breaks the contract of `map` gets here.
    type Stop = MapError;

    fn entry(&mut self, place: Place<'_>) -> Result<Step, MapError> {
        let found = place.table.load(place.index);
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
        let first = self.wish.leaf::<F>(part.start, 1);
        run.fill((0..part.length() / PAGE).map(|page| first + page * PAGE));
        self.tables.flush(run);
        Ok(())
    }
}
