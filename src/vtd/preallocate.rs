//! Owns the tables that are built before anything is mapped (V8), and stay whatever is unmapped, so that a map in their range needs none.
//!
//! Such a table has KEPT in its entry, beside the states of `reclaim.rs`: an unmap of all that it covers clears its entries rather than
//! taking it out, and no reclaim parts it. Both change the entry by compare-exchange against the value in which they found KEPT clear.
//!
//! The walk that looks and the walk that writes are those of a map by pages of 4 KiB, but for the pages. So it takes every frame
//! beforehand too (INV-11), and holds its own against maps, unmaps and reclaims beside it as a map does.

use super::{
    Domain, Iova, MapError, Permissions, RangeError, TableFrames,
    domain::DomainConfig,
    format::{Entry, Format, KEPT},
    map,
    table::{Run, Table},
    tables::Tables,
    targets::Piece,
    walk::{Place, Step, Visitor},
    width::{PAGE, PageSizes, Span},
};
use crate::PhysAddr;
use core::{convert::Infallible, marker::PhantomData};

impl<F: Format, A: TableFrames> Domain<F, A> {
    /// Builds all tables for the addresses of the range, down to those of pages of 4 KiB, and keeps them: from then on a `map` in the range
    /// takes no frame, and so cannot fail for lack of one. [`DomainConfig::tables_to_preallocate`] says how many there are. All or nothing.
    /// Pages of 4 KiB may be mapped in the range already.
    ///
    /// What is mapped there is mapped by pages of 4 KiB, since a large leaf would have no table below it when a part of it is unmapped.
    /// Neither `unmap` nor [`reclaim`](Self::reclaim) returns the tables until they are [released](Self::release).
    ///
    /// Contexts, progress, bound and what comes back as for [`map`](Self::map). As there, nobody may map or unmap in the range at the same
    /// time: otherwise tables may be missing, or be lost until the domain's end, but nothing worse happens.
    /// At most 8,000 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`MapError`]: the range is wrong, a large leaf lies in it, or frames are lacking; the tables are then bit for bit what they were
    /// (INV-11).
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// # let domain = SecondStageDomain::new(DomainConfig::new(Levels::Four), &*pool)?;
    /// let (iova, length) = (Iova::new(0x8000_0000), 16 << 20);
    /// domain.preallocate(iova, length)?;
    /// assert_eq!(domain.table_frames(), domain.config().tables_to_preallocate(iova, length)?);
    /// // SAFETY: no device walks this domain.
    /// unsafe { domain.map(iova, PhysAddr::new(0), length, Permissions::READ)? };
    /// // SAFETY: as above.
    /// unsafe { domain.unmap(iova, length)?.complete() };
    /// assert_eq!(domain.table_frames(), 3 + 8, "they are all there still");
    /// # unsafe { domain.close().complete() };
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn preallocate(&self, iova: Iova, length: u64) -> Result<F::Mapped<'_, A>, MapError> {
        let span = self.limits().span(iova, length)?;
        let config = self.config().with_small_pages();
        let wish = map::Wish::new::<F>(Piece { distance: 0 }, Permissions::READ, &config);
        let _walk = self.tables().enter::<F>(span);
        let mut survey = Survey::<F>(map::Survey::new(wish));
        self.walk(span, &mut survey)?;
        let advance = self.advance(survey.0.missing.total())?.into();
        let tables = self.tables();
        let mut building = Building::<F, A>(map::Writing {
            tables,
            wish,
            advance,
            tables_only: true,
            largest: PAGE,
            format: PhantomData,
        });
        let outcome = self.walk(span, &mut building);
        self.give_back(building.0.advance);
        outcome.map(|()| self.mapped(span, PAGE))
    }

    /// Lets go of the tables for the addresses of the range that were [preallocated](Self::preallocate): an `unmap` of all that they
    /// cover, or a [`reclaim`](Self::reclaim), returns them from now on. Nothing else changes. Those above the last level that another
    /// such range needs stay; of the last level, those on the borders go for both.
    ///
    /// From thread and interrupt context, not from an NMI. Never waits. Bounded by the tables for the range.
    /// At most 3,200 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`RangeError`].
    pub fn release(&self, iova: Iova, length: u64) -> Result<(), RangeError> {
        let span = self.limits().span(iova, length)?;
        let tables = self.tables();
        let _walk = tables.enter::<F>(span);
        // From below: a table that names one that is to be kept is to be kept itself.
        for level in 2..=self.levels().count() {
            let Ok(()) = self.walk(span, &mut Releasing::<F, A> { tables, level, format: PhantomData });
        }
        Ok(())
    }
}

impl DomainConfig {
    /// How many table frames a domain has in which nothing but this range was [preallocated](Domain::preallocate), the root included:
    /// exactly. Whatever is mapped in the range, they stay as many.
    ///
    /// # Errors
    /// [`RangeError`], as `map` itself.
    ///
    /// ```
    /// use framepool::vtd::*;
    /// let config = DomainConfig { page_sizes: PageSizes::all(), ..DomainConfig::new(Levels::Four) };
    /// // A root, and for each GiB one table of level 2 and 512 below it, all under one of level 3.
    /// assert_eq!(config.tables_to_preallocate(Iova::new(0), 4 << 30), Ok(1 + 1 + 4 + 4 * 512));
    /// ```
    pub const fn tables_to_preallocate(&self, iova: Iova, length: u64) -> Result<u64, RangeError> {
        self.with_small_pages().tables_for(iova, PhysAddr::new(0), length)
    }

    const fn with_small_pages(&self) -> Self {
        Self { page_sizes: PageSizes::empty(), ..*self }
    }
}

/// The walk that looks.
struct Survey<F>(map::Survey<F, Piece>);

impl<F: Format> Visitor for Survey<F> {
    type Stop = MapError;

    fn entry(&mut self, place: Place<'_>) -> Result<Step, MapError> {
        self.0.entry(place)
    }

    fn leaves(&mut self, _run: Run<'_>, _part: Span) -> Result<(), MapError> {
        Ok(())
    }
}

/// The walk that links tables and keeps them, with all frames that it can need.
struct Building<'d, F, A: TableFrames>(map::Writing<'d, F, A, Piece>);

impl<F: Format, A: TableFrames> Visitor for Building<'_, F, A> {
    type Stop = MapError;

    fn entry(&mut self, place: Place<'_>) -> Result<Step, MapError> {
        let step = self.0.entry(place)?;
        change::<F>(&place, |entry| entry | KEPT);
        Ok(step)
    }

    fn leaves(&mut self, _run: Run<'_>, _part: Span) -> Result<(), MapError> {
        Ok(())
    }
}

/// The walk that lets go of the tables that entries of one level name.
struct Releasing<'d, F, A: TableFrames> {
    tables: &'d Tables<A>,
    level: u32,
    format: PhantomData<F>,
}

impl<F: Format, A: TableFrames> Visitor for Releasing<'_, F, A> {
    type Stop = Infallible;

    fn entry(&mut self, place: Place<'_>) -> Result<Step, Infallible> {
        let Entry::Table(below) = F::decode(place.table.load(place.index), place.level) else {
            return Ok(Step::Skip);
        };
        if place.level > self.level {
            return Ok(Step::Descend(below));
        }
        let kept = Table::at::<F, A>(&self.tables.frames, below).all().first_with(KEPT);
        if kept.is_none() {
            change::<F>(&place, |entry| entry & !KEPT);
        }
        Ok(Step::Skip)
    }

    fn leaves(&mut self, _run: Run<'_>, _part: Span) -> Result<(), Infallible> {
        Ok(())
    }
}

/// Changes software's bits in an entry that names a table. Hardware ignores them, so nothing is flushed. A retry means that another
/// context, or hardware, has changed the entry.
fn change<F: Format>(place: &Place<'_>, bits: impl Fn(u64) -> u64) {
    let mut found = place.table.load(place.index);
    while matches!(F::decode(found, place.level), Entry::Table(_)) && bits(found) != found {
        match place.table.install(place.index, found, bits(found)) {
            Ok(()) => return,
            Err(now) => found = now,
        }
    }
}
