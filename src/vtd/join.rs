//! Joining small leaves back into a large one, where a whole table of them says what one leaf can say.
//!
//! # A table that is still in use
//! A table that an unmap detaches leads to nothing that anybody may use; a joined one still does. Hardware that has cached the way to it goes
//! on translating by it, and setting bits in it, until the invalidation is complete; readers of ours do until they are through. So
//! nothing in it may change that a translation needs, and it cannot be linked to others as `frame_list.rs` does it, through entry 0. Its chain
//! runs through bits that hardware ignores, ten in each of the first five leaves, until hardware has let go:
//!
//! ```text
//! bits 61 .. 52 of entries 4, 3, 2, 1, 0:  number of the next frame, and a 1; all 0 if there is none
//! ```
//! From then on only readers can be inside. They know a table that was detached by the link in entry 0, and look again from the root
//! (`mappings.rs`).
//!
//! # Accessed and dirty bits
//! Bits that hardware sets in the old table after it was read here are seen by nobody. The large leaf therefore counts as accessed, and as
//! dirty if it is writable or one of the leaves was: never less than what the device has done.

use super::{
    Domain, Entry, Format, Invalidation, Iova, Permissions, RangeError, TableFrames,
    format::KEPT,
    frame_list::FrameList,
    table::{Run, Table},
    tables::Tables,
    walk::{Place, Step, Visitor},
    width::{PAGE_SHIFT, Span, size},
};
use crate::PhysAddr;
use core::{convert::Infallible, marker::PhantomData};

/// The first of the bits of a leaf that are the chain's, and how many.
const CHAIN_SHIFT: u32 = 52;
const CHAIN_BITS: u32 = 10;
const CHAIN: u64 = ((1 << CHAIN_BITS) - 1) << CHAIN_SHIFT;
/// The leaves that the chain takes: 40 bits of a frame number, and one.
const CHAIN_LEAVES: usize = 5;

/// Tables in whose place there are large leaves, and which hardware may still use.
#[must_use]
#[derive(Debug, Default)]
pub(crate) struct JoinedTables {
    first: Option<PhysAddr>,
    count: u64,
    /// How many leaves of each the chain takes.
    leaves: usize,
}

impl JoinedTables {
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn push<F: Format, A: TableFrames>(&mut self, frames: &A, table: PhysAddr) {
        self.leaves = CHAIN_LEAVES.min(1 << F::INDEX_BITS);
        self.put(frames, table);
    }

    fn put<A: TableFrames>(&mut self, frames: &A, table: PhysAddr) {
        let next = self.first.map_or(0, |next| next.as_u64() >> PAGE_SHIFT << 1 | 1);
        let leaves = Table::start_of(frames, table, self.leaves);
        for leaf in 0..self.leaves {
            let bits = next >> (CHAIN_BITS * leaf as u32) & ((1 << CHAIN_BITS) - 1);
            leaves.mark(leaf, bits << CHAIN_SHIFT);
        }
        self.first = Some(table);
        self.count += 1;
    }

    fn pop<A: TableFrames>(&mut self, frames: &A) -> Option<PhysAddr> {
        let table = self.first?;
        let leaves = Table::start_of(frames, table, self.leaves);
        let next = (0..self.leaves).rev().fold(0, |next, leaf| {
            next << CHAIN_BITS | leaves.load(leaf) >> CHAIN_SHIFT & ((1 << CHAIN_BITS) - 1)
        });
        self.first = (next & 1 != 0).then(|| PhysAddr::new(next >> 1 << PAGE_SHIFT));
        self.count -= 1;
        Some(table)
    }

    /// Adds the tables of `other`. Bound: their number.
    pub(crate) fn append<A: TableFrames>(&mut self, frames: &A, mut other: Self) {
        self.leaves = self.leaves.max(other.leaves);
        while let Some(table) = other.pop(frames) {
            // What the bits said before.
            Table::start_of(frames, table, self.leaves).all().update(|leaf| leaf & !CHAIN);
            self.put(frames, table);
        }
    }

    /// Hardware has let go of them: they are frames like others.
    pub(crate) fn into_list<A: TableFrames>(mut self, frames: &A) -> FrameList {
        let mut list = FrameList::new();
        while let Some(table) = self.pop(frames) {
            list.push(frames, table);
        }
        list
    }
}

/// The walk that joins leaves into those of one level.
struct Joining<'w, 'd, F, A: TableFrames> {
    tables: &'d Tables<A>,
    level: u32,
    /// Whether hardware sets accessed and dirty bits.
    notes: bool,
    invalidation: &'w mut Invalidation<'d, A>,
    format: PhantomData<F>,
}

impl<F: Format, A: TableFrames> Joining<'_, '_, F, A> {
    /// The leaf that says what all of the table `below` says, if there is one.
    fn one_leaf(&self, below: PhysAddr) -> Option<u64> {
        let noted = F::ACCESSED | F::DIRTY;
        let parts = Table::at::<F, A>(&self.tables.frames, below);
        let first = parts.load(0);
        let Entry::Leaf { target, permissions } = F::decode(first, self.level - 1) else { return None };
        if !target.is_aligned(size(self.level, F::INDEX_BITS)) {
            return None;
        }
        let leaf = first & !noted | F::PAGE_SIZE;
        let mut bits = 0;
        for (part, index) in parts.all().values().zip(0..) {
            if part & !noted != F::part(leaf, self.level, index) {
                return None;
            }
            bits |= part & noted;
        }
        if self.notes {
            bits |= F::ACCESSED;
            if permissions.contains(Permissions::WRITE) {
                bits |= F::DIRTY;
            }
        }
        Some(leaf | bits)
    }
}

impl<F: Format, A: TableFrames> Visitor for Joining<'_, '_, F, A> {
    type Stop = Infallible;

    fn entry(&mut self, place: Place<'_>) -> Result<Step, Infallible> {
        let mut found = place.table.load(place.index);
        while let Entry::Table(below) = F::decode(found, place.level) {
            if place.level > self.level {
                return Ok(Step::Descend(below));
            }
            // What was built beforehand stays.
            if found & KEPT != 0 || !place.is_whole::<F>() {
                break;
            }
            let Some(leaf) = self.one_leaf(below) else { break };
            // A retry means that hardware has set a bit.
            match place.table.replace(place.index, found, leaf) {
                Ok(()) => {
                    self.tables.flush_entry(&place);
                    self.tables.unlinked(1);
                    self.invalidation.cover_table(place.part);
                    self.invalidation.join::<F>(below);
                    break;
                }
                Err(now) => found = now,
            }
        }
        Ok(Step::Skip)
    }

    fn leaves(&mut self, _run: Run<'_>, _part: Span) -> Result<(), Infallible> {
        Ok(())
    }
}

impl<F: Format, A: TableFrames> Domain<F, A> {
    /// Puts one large leaf in the place of each table of the `length` bytes from `iova` on that is full of leaves in a row: 2 MiB for 512 pages,
    /// then 1 GiB for 512 of those, as far as hardware has them; tables that were [built beforehand](Self::preallocate) stay. What is mapped stays as it is, at every moment. The table frames come
    /// back through the invalidation.
    ///
    /// A map of all at once gives large leaves by itself; this is for what was mapped, or [protected](Self::protect), piece by piece.
    /// Where hardware notes accesses, a joined leaf counts as accessed, and if it is writable as dirty: see
    /// [`take_dirty`](Self::take_dirty), which must not be asked again for the range before the invalidation is complete.
    ///
    /// From thread and interrupt context, not from an NMI. Never sleeps, takes no frames. Bounded by the entries of the tables in the range; a
    /// retry means that hardware has set a bit.
    /// At most 9,000 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`RangeError`]; that nothing can be joined is none.
    ///
    /// # Safety
    /// Nobody maps, unmaps or protects a page of this range at the same time: what was unmapped meanwhile could be mapped again.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// # let config = DomainConfig { page_sizes: PageSizes::SIZE_2M, ..DomainConfig::new(Levels::Four) };
    /// # let domain = SecondStageDomain::new(config, &*pool)?;
    /// for start in [0, 0x10_0000] {
    ///     // SAFETY: no device walks this domain.
    ///     unsafe { domain.map(Iova::new(start), PhysAddr::new(start), 0x10_0000, Permissions::READ)? };
    /// }
    /// // SAFETY: nobody else uses it.
    /// let invalidation = unsafe { domain.join(Iova::new(0), 0x20_0000)? };
    /// assert_eq!(invalidation.table_frames(), 1);
    /// // SAFETY: no device walks this domain.
    /// unsafe { invalidation.complete() };
    /// assert_eq!(domain.translate(Iova::new(0x1234)).unwrap().page_size, 0x20_0000);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[allow(unsafe_code, reason = "states duties that only the caller can keep")]
    pub unsafe fn join(&self, iova: Iova, length: u64) -> Result<Invalidation<'_, A>, RangeError> {
        let span = self.limits().span(iova, length)?;
        let tables = self.tables();
        let _walk = tables.enter::<F>(span);
        let mut invalidation = Invalidation::none(tables);
        for level in (2..=3).filter(|&level| self.config().page_sizes.allow(level)) {
            let mut joining = Joining::<F, A> {
                tables,
                level,
                notes: self.notes_accesses(),
                invalidation: &mut invalidation,
                format: PhantomData,
            };
            match self.walk(span, &mut joining) {
                Ok(()) => {}
                Err(never) => match never {},
            }
        }
        Ok(invalidation)
    }
}
