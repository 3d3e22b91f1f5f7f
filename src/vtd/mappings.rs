//! Looking: single translations, merged mappings, and runs of leaves. Walks that read and change nothing.

use super::{
    TableFrames,
    domain::Domain,
    format::{Entry, Format, Permissions},
    frame_list::is_of_detached,
    table::Run,
    walk::{Place, Step, Visitor},
    width::{Iova, PAGE, Span, size},
};
use crate::{
    PhysAddr,
    sync::atomic::{Ordering, fence},
};
use core::{fmt, marker::PhantomData};

/// Where one address goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The physical address of the very byte.
    pub target: PhysAddr,
    /// What the device may do.
    pub permissions: Permissions,
    /// The size of the leaf, in bytes.
    pub page_size: u64,
}

/// A range that maps to one piece of physical memory with the same rights, by leaves of any size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The first address.
    pub iova: Iova,
    /// Where it goes.
    pub target: PhysAddr,
    /// The length in bytes.
    pub length: u64,
    /// What the device may do.
    pub permissions: Permissions,
}

impl Mapping {
    /// This mapping and the next as one, if they are.
    fn with(self, next: Self) -> Option<Self> {
        let follows = self.iova.as_u64() + self.length == next.iova.as_u64()
            && self.target.as_u64() + self.length == next.target.as_u64()
            && self.permissions == next.permissions;
        follows.then_some(Self { length: self.length + next.length, ..self })
    }
}

/// Whether a walk that found a table detached at `stale` must be repeated, `before` being where the walk before it did.
///
/// The next walk does not find that table, which the caller's walk keeps from being used again (INV-10). If it does, nobody has detached it:
/// somebody else has written over it, and what is there is no mapping.
#[cold]
fn look_again(stale: Option<usize>, before: &mut Option<usize>) -> bool {
    // Ordering: Acquire, with the Release of the link in the table: it was written after the table had been unlinked.
    fence(Ordering::Acquire);
    stale != core::mem::replace(before, stale)
}

/// A walk that hands each leaf to a closure, which may end it with an `S`.
struct Leaves<F, S, L> {
    leaf: L,
    /// Where the walk has first found that a table was detached under it: what it said may hold still, in another table.
    stale: Option<usize>,
    marker: PhantomData<(F, S)>,
}

impl<F: Format, S, L: FnMut(Mapping, u64) -> Result<(), S>> Leaves<F, S, L> {
    fn new(leaf: L) -> Self {
        Self { leaf, stale: None, marker: PhantomData }
    }

    /// `entry` was found at the start of `run`.
    fn found_empty(&mut self, entry: u64, run: Run<'_>) {
        if is_of_detached(entry) {
            self.stale.get_or_insert(run.address());
        }
    }
}

impl<F: Format, S, L: FnMut(Mapping, u64) -> Result<(), S>> Visitor for Leaves<F, S, L> {
    type Stop = S;

    fn entry(&mut self, place: Place<'_>) -> Result<Step, S> {
        let entry = place.table.load(place.index);
        match F::decode(entry, place.level) {
            Entry::Table(below) => Ok(Step::Descend(below)),
            Entry::Empty => {
                self.found_empty(entry, place.table.run(place.index, 1));
                Ok(Step::Skip)
            }
            Entry::Leaf { target, permissions } => {
                let size = size(place.level, F::INDEX_BITS);
                let target = PhysAddr::new(target.as_u64() | place.part.start & (size - 1));
                let (iova, length) = (Iova::new(place.part.start), place.part.length());
                (self.leaf)(Mapping { iova, target, length, permissions }, size).map(|()| Step::Skip)
            }
        }
    }

    fn leaves(&mut self, run: Run<'_>, part: Span) -> Result<(), S> {
        for (page, entry) in (0..).zip(run.values()) {
            self.found_empty(entry, run);
            if let Entry::Leaf { target, permissions } = F::decode(entry, 1) {
                let iova = Iova::new(part.start + page * PAGE);
                (self.leaf)(Mapping { iova, target, length: PAGE, permissions }, PAGE)?;
            }
        }
        Ok(())
    }
}

impl<F: Format, A: TableFrames> Domain<F, A> {
    /// Where `iova` goes, if it is mapped.
    ///
    /// From thread and interrupt context, not from an NMI, whatever is unmapped meanwhile. One entry a level; a retry means that
    /// another context has detached a table meanwhile.
    /// At most 560 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// # let domain = SecondStageDomain::new(DomainConfig::new(Levels::Four), &*pool)?;
    /// // SAFETY: no device walks this domain.
    /// unsafe { domain.map(Iova::new(0x1000), PhysAddr::new(0x7000), 0x1000, Permissions::READ)? };
    /// let at = domain.translate(Iova::new(0x1234)).unwrap();
    /// assert_eq!((at.target, at.permissions, at.page_size), (PhysAddr::new(0x7234), Permissions::READ, 0x1000));
    /// assert_eq!(domain.translate(Iova::new(0x2000)), None);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn translate(&self, iova: Iova) -> Option<Translation> {
        let within = iova.as_u64() & (PAGE - 1);
        let span = Span { start: iova.as_u64() - within, end: (iova.as_u64() - within).checked_add(PAGE)? };
        if span.end > self.aperture().end {
            return None;
        }
        let found = |page: Mapping, page_size| {
            let target = PhysAddr::new(page.target.as_u64() + within);
            Err(Translation { target, permissions: page.permissions, page_size })
        };
        let _walk = self.tables().enter::<F>(span);
        let mut stale = None;
        loop {
            let mut leaves = Leaves::<F, _, _>::new(found);
            let at = self.walk(span, &mut leaves).err();
            if at.is_some() || leaves.stale.is_none() || !look_again(leaves.stale, &mut stale) {
                return at;
            }
        }
    }

    /// All mappings in ascending order, neighbours that belong together merged.
    ///
    /// From thread and interrupt context, not from an NMI, whatever is unmapped meanwhile. The iterator holds nothing between two
    /// steps: each walks from the root to the mapping that it returns, and sees what is mapped then; bounded by the leaves of that
    /// mapping and the tables before it.
    /// At most 263,900 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// # let domain = SecondStageDomain::new(DomainConfig::new(Levels::Four), &*pool)?;
    /// for page in [0x1000, 0x2000, 0x5000] {
    ///     // SAFETY: no device walks this domain.
    ///     unsafe { domain.map(Iova::new(page), PhysAddr::new(page), 0x1000, Permissions::READ)? };
    /// }
    /// let ranges: Vec<_> = domain.mappings().map(|mapping| (mapping.iova.as_u64(), mapping.length)).collect();
    /// assert_eq!(ranges, [(0x1000, 0x2000), (0x5000, 0x1000)]);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn mappings(&self) -> Mappings<'_, F, A> {
        Mappings { domain: self, rest: self.aperture() }
    }

    /// The leaves in ascending order, those of one size that lie in a row in one table and belong together as one: what a picture of
    /// the tables is made of.
    ///
    /// Contexts and steps as for [`mappings`](Self::mappings).
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// # let config = DomainConfig { page_sizes: PageSizes::SIZE_2M, ..DomainConfig::new(Levels::Four) };
    /// # let domain = SecondStageDomain::new(config, &*pool)?;
    /// // SAFETY: no device walks this domain.
    /// unsafe { domain.map(Iova::new(0), PhysAddr::new(0), 0x40_3000, Permissions::READ)? };
    /// let runs: Vec<_> = domain.leaf_runs().map(|run| (run.leaves(), run.page_size)).collect();
    /// assert_eq!(runs, [(2, 0x20_0000), (3, 0x1000)]);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn leaf_runs(&self) -> LeafRuns<'_, F, A> {
        LeafRuns { domain: self, rest: self.aperture() }
    }

    /// The first leaf in `rest` and those behind it with which `grow` makes one of it; `begin` makes it of the first. Sizes are in
    /// bytes.
    fn first_leaves<T: Copy>(
        &self,
        rest: Span,
        begin: impl Fn(Mapping, u64) -> T,
        grow: impl Fn(T, Mapping, u64) -> Option<T>,
    ) -> Option<T> {
        let _walk = self.tables().enter::<F>(rest);
        let mut stale = None;
        loop {
            let mut gathered = None;
            let mut leaves = Leaves::<F, (), _>::new(|leaf, size| {
                gathered = Some(match gathered {
                    None => begin(leaf, size),
                    Some(so_far) => grow(so_far, leaf, size).ok_or(())?,
                });
                Ok(())
            });
            // What ends the walk is the first leaf that does not follow.
            let _ = self.walk(rest, &mut leaves);
            if leaves.stale.is_none() || !look_again(leaves.stale, &mut stale) {
                return gathered;
            }
        }
    }
}

/// An iterator over the merged mappings of a domain.
pub struct Mappings<'d, F: Format, A: TableFrames> {
    domain: &'d Domain<F, A>,
    rest: Span,
}

impl<F: Format, A: TableFrames> Iterator for Mappings<'_, F, A> {
    type Item = Mapping;

    fn next(&mut self) -> Option<Mapping> {
        if self.rest.start >= self.rest.end {
            return None;
        }
        let merged =
            self.domain.first_leaves(self.rest, |leaf, _| leaf, |mapping, leaf, _| mapping.with(leaf));
        self.rest.start = merged.map_or(self.rest.end, |mapping| mapping.iova.as_u64() + mapping.length);
        merged
    }
}

impl<F: Format, A: TableFrames> fmt::Debug for Mappings<'_, F, A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Mappings").field("rest", &self.rest).finish_non_exhaustive()
    }
}

/// Leaves of one size in a row in one table, with the same rights, whose targets are in a row too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafRun {
    /// What they map, together.
    pub mapping: Mapping,
    /// The size of each, in bytes.
    pub page_size: u64,
}

impl LeafRun {
    /// How many there are.
    pub const fn leaves(&self) -> u64 {
        self.mapping.length.div_ceil(self.page_size)
    }
}

/// An iterator over the runs of leaves of a domain.
pub struct LeafRuns<'d, F: Format, A: TableFrames> {
    domain: &'d Domain<F, A>,
    rest: Span,
}

impl<F: Format, A: TableFrames> Iterator for LeafRuns<'_, F, A> {
    type Item = LeafRun;

    fn next(&mut self) -> Option<LeafRun> {
        if self.rest.start >= self.rest.end {
            return None;
        }
        let begin = |mapping, page_size| LeafRun { mapping, page_size };
        let grow = |run: LeafRun, leaf: Mapping, page_size| {
            let is_in_next_table = leaf.iova.as_u64() & ((page_size << F::INDEX_BITS) - 1) == 0;
            let mapping =
                run.mapping.with(leaf).filter(|_| run.page_size == page_size && !is_in_next_table)?;
            Some(LeafRun { mapping, page_size })
        };
        let run = self.domain.first_leaves(self.rest, begin, grow);
        self.rest.start = run.map_or(self.rest.end, |run| run.mapping.iova.as_u64() + run.mapping.length);
        run
    }
}

impl<F: Format, A: TableFrames> fmt::Debug for LeafRuns<'_, F, A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("LeafRuns").field("rest", &self.rest).finish_non_exhaustive()
    }
}
