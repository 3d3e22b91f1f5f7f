//! Changing rights: a walk that looks, then a walk that changes leaves where they stand.
//!
//! As for an unmap, the first walk finds out that all of the range is mapped and how many tables it takes to split the large leaves of
//! which only a part changes; these are taken before the second changes anything (INV-11). A leaf is exchanged for one with the same target,
//! so no translation is ever missing, and by a compare-exchange, so that no accessed or dirty bit that hardware sets meanwhile is lost.

use super::{
    Domain, Entry, Format, Invalidation, Iova, Permissions, ProtectError, TableFrames,
    frame_list::FrameList,
    split::{split, tables_to_split},
    table::Run,
    tables::Tables,
    walk::{Place, Step, Visitor},
    width::{PAGE, Span},
};
use core::marker::PhantomData;

/// The walk that looks.
struct Survey<F> {
    permissions: Permissions,
    /// Tables that it takes to split leaves.
    missing: u64,
    format: PhantomData<F>,
}

impl<F: Format> Visitor for Survey<F> {
    type Stop = ProtectError;

    fn entry(&mut self, place: Place<'_>) -> Result<Step, ProtectError> {
        match F::decode(place.table.load(place.index), place.level) {
            Entry::Table(below) => return Ok(Step::Descend(below)),
            Entry::Empty => return Err(ProtectError::NotMapped { iova: Iova::new(place.part.start) }),
            Entry::Leaf { permissions, .. } if permissions == self.permissions => {}
            Entry::Leaf { .. } => self.missing += tables_to_split::<F>(place.level, place.part),
        }
        Ok(Step::Skip)
    }

    fn leaves(&mut self, run: Run<'_>, part: Span) -> Result<(), ProtectError> {
        match run.first_without(F::PRESENT) {
            Some(position) => {
                Err(ProtectError::NotMapped { iova: Iova::new(part.start + position as u64 * PAGE) })
            }
            None => Ok(()),
        }
    }
}

/// The walk that changes leaves, with all frames that it can need.
struct Changing<'w, 'd, F, A: TableFrames> {
    tables: &'d Tables<A>,
    permissions: Permissions,
    advance: FrameList,
    invalidation: &'w mut Invalidation<'d, A>,
    format: PhantomData<F>,
}

impl<F: Format, A: TableFrames> Changing<'_, '_, F, A> {
    /// Gives the leaves of `run`, which map `part`, the rights.
    fn permit(&mut self, run: Run<'_>, part: Span, level: u32) {
        let permitted = |entry| match F::decode(entry, level) {
            // What is not there any more stays so.
            Entry::Leaf { permissions, .. } if permissions != self.permissions => {
                F::with_permissions(entry, self.permissions)
            }
            _ => entry,
        };
        if let Some(changed) = run.update(permitted) {
            self.tables.flush(run);
            let size = part.length() / run.length().max(1) as u64;
            let (start, end) = (changed.start as u64 * size, changed.end as u64 * size);
            self.invalidation.change(Span { start: part.start + start, end: part.start + end }, size);
        }
    }
}

impl<F: Format, A: TableFrames> Visitor for Changing<'_, '_, F, A> {
    /// Nothing does.
    type Stop = ProtectError;

    fn entry(&mut self, place: Place<'_>) -> Result<Step, ProtectError> {
        let found = place.table.load(place.index);
        match F::decode(found, place.level) {
            Entry::Table(below) => return Ok(Step::Descend(below)),
            // Only a caller that breaks the contract gets here.
            Entry::Empty => {}
            Entry::Leaf { permissions, .. } if permissions == self.permissions => {}
            Entry::Leaf { .. } if place.is_whole::<F>() => {
                self.permit(place.table.run(place.index, 1), place.part, place.level);
            }
            Entry::Leaf { .. } => {
                let below = split::<F, A>(self.tables, &mut self.advance, self.invalidation, &place, found);
                return Ok(below.map_or(Step::Skip, Step::Descend));
            }
        }
        Ok(Step::Skip)
    }

    fn leaves(&mut self, run: Run<'_>, part: Span) -> Result<(), ProtectError> {
        self.permit(run, part, 1);
        Ok(())
    }
}

impl<F: Format, A: TableFrames> Domain<F, A> {
    /// Lets the device do with the `length` bytes from `iova` on what `permissions` say, no more and no less, without a moment in which a
    /// translation is missing. A large leaf of which only a part changes is split. All or nothing.
    ///
    /// Accessed and dirty bits stay, also those that hardware sets meanwhile; a page of the first stage that becomes writable counts as
    /// dirty, as one that is mapped so. The invalidation names the pages whose rights have changed, whether they shrank or grew: hardware may
    /// go on refusing what it remembers as refused ("partial permission increases", VT-d specification, section 6.5). A device may still do
    /// what it could before until the invalidation is complete.
    ///
    /// From thread and interrupt context, not from an NMI. Never sleeps. Bounded by the pages and the tables touched; a retry
    /// means that hardware has set a bit.
    /// At most 8,200 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`ProtectError`] names what is wrong; the tables are then bit for bit what they were (INV-11).
    ///
    /// # Safety
    /// As for [`map`](Self::map): the physical range is valid for what the device may do now, and nobody maps, unmaps or protects a page of
    /// this range at the same time.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// # let config = DomainConfig { page_sizes: PageSizes::SIZE_2M, ..DomainConfig::new(Levels::Four) };
    /// # let domain = SecondStageDomain::new(config, &*pool)?;
    /// // SAFETY: no device walks this domain.
    /// unsafe { domain.map(Iova::new(0), PhysAddr::new(0), 0x20_0000, Permissions::all())? };
    /// // SAFETY: as above.
    /// let invalidation = unsafe { domain.protect(Iova::new(0x1000), 0x2000, Permissions::READ)? };
    /// assert_eq!(invalidation.ranges().next().unwrap().length, 0x20_0000, "hardware may hold the large leaf");
    /// // SAFETY: as above.
    /// unsafe { invalidation.complete() };
    /// assert_eq!(domain.mappings().count(), 3);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[allow(unsafe_code, reason = "states duties that only the caller can keep")]
    pub unsafe fn protect(
        &self,
        iova: Iova,
        length: u64,
        permissions: Permissions,
    ) -> Result<Invalidation<'_, A>, ProtectError> {
        let span = self.limits().span(iova, length)?;
        F::STAGE.check_permissions(permissions)?;
        let tables = self.tables();
        let _walk = tables.enter::<F>(span);
        let mut survey = Survey::<F> { permissions, missing: 0, format: PhantomData };
        self.walk(span, &mut survey)?;
        let advance = self.advance(survey.missing)?;
        let mut invalidation = Invalidation::none(tables);
        let mut changing = Changing::<F, A> {
            tables,
            permissions,
            advance,
            invalidation: &mut invalidation,
            format: PhantomData,
        };
        let outcome = self.walk(span, &mut changing);
        tables.give_back(changing.advance);
        outcome.map(|()| invalidation)
    }
}
