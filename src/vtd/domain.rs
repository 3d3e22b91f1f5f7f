//! Owns an address space: its root table, its shape, and the checks at its door. Asks the allocator for table frames.

use super::{
    ClosedDomain, DomainError, DomainId, DomainStats, Hardware, Invalidation, MapError, TableFrames,
    UnmapError,
    direct::ShortWay,
    first_stage::FirstStage,
    format::{Format, Permissions, Stage},
    limits::Limits,
    second_stage::SecondStage,
    table::Table,
    tables::Tables,
    unmap,
    walk::walk,
    walkers,
    width::{Iova, Levels, PageSizes, Span},
};
use crate::PhysAddr;
use core::{fmt, marker::PhantomData};

/// The least address width: one bit above a page.
const WIDTH_LEAST: u8 = 13;
/// The widest physical address that an entry can hold.
const HOST_WIDTH_MOST: u8 = 52;

/// The shape of a domain.
///
/// ```
/// use framepool::vtd::*;
/// // By hand; `DomainConfig::from_capabilities` asks the units.
/// let config = DomainConfig { page_sizes: PageSizes::SIZE_2M, address_width: 39, ..DomainConfig::new(Levels::Four) };
/// assert_eq!(config.host_address_width, 52);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainConfig {
    /// How many levels of tables (CAP_REG.SAGAW says which the hardware takes).
    pub levels: Levels,
    /// Which large leaves the hardware takes (CAP_REG.SLLPS).
    pub page_sizes: PageSizes,
    /// How many bits an IOVA has: what the levels translate, or less if the hardware has less (CAP_REG.MGAW).
    pub address_width: u8,
    /// How many bits a physical address has (the DMAR table's host address width).
    pub host_address_width: u8,
    /// Every access of the device is snooped by the processor's caches, whatever the device says (SNP in every leaf); needs
    /// [`Hardware::snoop_control`].
    pub force_snoop: bool,
    /// Hardware notes in the leaves of the second stage what it reads and writes
    /// ([`Domain::take_dirty`](super::Domain::take_dirty)); needs [`Hardware::accessed_dirty`], and hardware that snoops. The domain's
    /// PASID entries must say so too, as [`PasidEntry::second_stage`](super::context::PasidEntry::second_stage) does. In the first stage
    /// it always does.
    pub accessed_dirty: bool,
    /// What the units in front of the domain demand and offer.
    pub hardware: Hardware,
    /// The tag of the domain in the caches of the units ([`DomainIds`](super::DomainIds) hands them out): what its context and PASID
    /// entries say, and what invalidations name. Without it an invalidation makes hardware forget everything of every domain.
    pub domain_id: Option<DomainId>,
    /// How many calls are expected to be in progress at the same time, in threads and in interrupts, up to 16. More are served
    /// too; table frames that were unmapped meanwhile come back later then.
    pub concurrent_calls: u8,
}

impl DomainConfig {
    /// A second-stage domain of `levels` levels, with leaves of 4 KiB, all the address bits that the levels translate, and 52 bits of
    /// physical address, for hardware that snoops its tables. [`from_capabilities`](Self::from_capabilities) asks the units.
    pub const fn new(levels: Levels) -> Self {
        Self {
            levels,
            page_sizes: PageSizes::empty(),
            address_width: levels.address_width(),
            host_address_width: HOST_WIDTH_MOST,
            force_snoop: false,
            accessed_dirty: false,
            hardware: Hardware::SNOOPING,
            domain_id: None,
            concurrent_calls: walkers::SLOTS as u8,
        }
    }

    /// The same for a first-stage domain, of 4 or 5 levels: one bit of address less, since the highest is the sign.
    pub const fn first_stage(levels: Levels) -> Self {
        let address_width = levels.address_width() - Stage::First.sign_bits();
        Self { address_width, ..Self::new(levels) }
    }

    /// What no call may go beyond.
    pub(crate) const fn limits(&self) -> Limits {
        Limits::of(self)
    }
}

/// An address space of one or more devices, in tables of the format `F` made of frames from `A`.
///
/// Every call takes `&self`. Concurrent calls for disjoint ranges, from several CPUs and from interrupts, need no lock: what
/// they share is tables above their ranges, which are linked by compare-exchange and never unlinked under anybody.
///
/// Dropping a domain leaks its tables, reported through [`TableFrames::leaked`], since hardware may still walk them; see
/// [`close`](Self::close).
///
/// ```
/// # #[cfg(feature = "std")] {
/// use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
/// let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
/// let domain = SecondStageDomain::new(DomainConfig::new(Levels::Four), &*pool)?;
/// let (iova, target) = (Iova::new(0x10_0000), PhysAddr::new(0x7000));
/// // SAFETY: no device walks this domain, so any physical range will do.
/// unsafe { domain.map(iova, target, 0x1000, Permissions::READ)? };
/// assert_eq!(domain.translate(iova).map(|at| at.target), Some(target));
/// let invalidation = domain.unmap(iova, 0x1000)?;
/// // ... every unit forgets what the invalidation says; then:
/// // SAFETY: as above.
/// unsafe { invalidation.complete() };
/// // SAFETY: as above.
/// unsafe { domain.close().complete() };
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Domain<F: Format, A: TableFrames> {
    tables: Tables<A>,
    root: PhysAddr,
    config: DomainConfig,
    limits: Limits,
    way: ShortWay,
    format: PhantomData<F>,
}

/// A domain in the first-stage format.
pub type FirstStageDomain<A> = Domain<FirstStage, A>;

/// A domain in the second-stage format.
pub type SecondStageDomain<A> = Domain<SecondStage, A>;

impl<F: Format, A: TableFrames> Domain<F, A> {
    /// An address space in which nothing is mapped.
    ///
    /// From thread and interrupt context, not from an NMI. Never sleeps; constant time, and one frame.
    ///
    /// # Errors
    /// [`DomainError`] names the levels or the width that are wrong, says that the hardware cannot force snooping or does not snoop its
    /// tables and the allocator does not flush them, or that there is no frame for the root table.
    pub fn new(config: DomainConfig, frames: A) -> Result<Self, DomainError> {
        if F::STAGE == Stage::First && config.levels == Levels::Three {
            return Err(DomainError::TooFewLevels { levels: config.levels });
        }
        let most = config.levels.address_width() - F::STAGE.sign_bits();
        if config.address_width < WIDTH_LEAST || config.address_width > most {
            return Err(DomainError::AddressWidth { width: config.address_width, most });
        }
        if config.host_address_width < WIDTH_LEAST || config.host_address_width > HOST_WIDTH_MOST {
            return Err(DomainError::HostAddressWidth { width: config.host_address_width });
        }
        if config.force_snoop && !(config.hardware.snoop_control && F::SNOOP != 0) {
            return Err(DomainError::NoSnoopControl);
        }
        if config.accessed_dirty && !(config.hardware.accessed_dirty && config.hardware.coherent) {
            return Err(DomainError::NoAccessedDirty);
        }
        if !config.hardware.coherent && !frames.can_flush() {
            return Err(DomainError::NoFlush);
        }
        if (config.hardware.caching_mode || config.hardware.write_buffer_flush) && !F::TELLS_MAPS {
            return Err(DomainError::MapsUntold);
        }
        let tables = Tables::new(frames, &config);
        let (limits, way) = (config.limits(), ShortWay::of::<F>(&config));
        let mut domain = Self { tables, root: PhysAddr::new(0), config, limits, way, format: PhantomData };
        let mut first = domain.advance(1)?;
        domain.root = first.pop(&domain.tables.frames).ok_or(DomainError::OutOfFrames)?;
        domain.tables.flush(Table::at::<F, A>(&domain.tables.frames, domain.root).all());
        domain.tables.linked(1);
        Ok(domain)
    }

    /// Maps `length` bytes from `iova` on to physical memory from `target` on, with the largest leaves that alignment and
    /// hardware allow. All or nothing. The physical range may not meet the [interrupt range](super::INTERRUPT_RANGE). Returns nothing, or with [`CachingMode`](super::CachingMode) what the units must be told.
    ///
    /// From thread and interrupt context, not from an NMI. Never sleeps. Bounded by the tables touched, for each of which
    /// another mapper may make one exchange be lost.
    /// At most 11,700 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`MapError`] names what is wrong; the tables are then bit for bit what they were (INV-11).
    ///
    /// # Safety
    /// * The physical range stays valid for what the device may do with it, until the range is unmapped and its invalidation
    ///   complete.
    /// * Nobody maps or unmaps a page of this range at the same time. If somebody does, translations may be wrong, but no table
    ///   frame gets two owners.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// # let domain = SecondStageDomain::new(DomainConfig::new(Levels::Four), &*pool)?;
    /// let (iova, target) = (Iova::new(0x10_0000), PhysAddr::new(0x7000));
    /// // SAFETY: no device walks this domain.
    /// unsafe { domain.map(iova, target, 0x3000, Permissions::all())? };
    /// // SAFETY: as above. Nothing is mapped twice:
    /// let again = unsafe { domain.map(Iova::new(0xF_F000), target, 0x3000, Permissions::all()) };
    /// assert_eq!(again, Err(MapError::AlreadyMapped { iova }));
    /// assert_eq!(domain.translate(Iova::new(0xF_F000)), None, "and nothing half");
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline(always)]
    pub unsafe fn map(
        &self,
        iova: Iova,
        target: PhysAddr,
        length: u64,
        permissions: Permissions,
    ) -> Result<F::Mapped<'_, A>, MapError> {
        let (span, wish) = self.wish_to_map(iova, target, length, permissions)?;
        self.carry_out(span, wish, |missing| self.advance_all(missing))
    }

    /// Removes the mapping of `length` bytes from `iova` on. A large leaf that lies partly in the range is split, without a
    /// moment in which the rest is missing.
    ///
    /// From thread and interrupt context, not from an NMI. Never sleeps. Bounded by the tables touched and detached.
    /// At most 8,300 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`UnmapError`] names what is wrong; the tables are then bit for bit what they were (INV-11).
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// # let domain = SecondStageDomain::new(DomainConfig::new(Levels::Three), &*pool)?;
    /// assert_eq!(domain.unmap(Iova::new(0), 4096).err(), Some(UnmapError::NotMapped { iova: Iova::new(0) }));
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline(always)]
    pub fn unmap(&self, iova: Iova, length: u64) -> Result<Invalidation<'_, A>, UnmapError> {
        let span = self.limits.span(iova, length)?;
        let _walk = self.tables.enter::<F>(span);
        match self.leaf_run(span) {
            Some(run) => {
                unmap::mapped::<F>(run, span)?;
                run.clear();
                self.tables.flush(run);
                Ok(Invalidation::of(&self.tables, span))
            }
            // Not in the place of the result: whose address is known to a call has to be in memory, on the short way too.
            None => {
                let removed = self.remove(span)?;
                Ok(removed)
            }
        }
    }

    /// The physical address of the root table, for the context entry.
    pub fn root(&self) -> PhysAddr {
        self.root
    }

    /// The shape, as made.
    pub fn config(&self) -> DomainConfig {
        self.config
    }

    /// How many levels of tables the domain has.
    pub fn levels(&self) -> Levels {
        self.config.levels
    }

    /// How many table frames the domain uses, the root included; those in an [`Invalidation`] of an unmap do not count, those of a
    /// [`reclaim`](Self::reclaim) do until it is complete.
    ///
    /// Any context; one load.
    pub fn table_frames(&self) -> u64 {
        self.tables.live()
    }

    /// How many table frames of completed invalidations wait for calls that may still be reading them.
    ///
    /// Any context; one load.
    pub fn retired_frames(&self) -> u64 {
        self.tables.waiting()
    }

    /// What the domain counts. From the contexts of `maintain`; constant time.
    pub fn stats(&self) -> DomainStats {
        self.tables.stats()
    }

    /// Gives back the table frames of completed invalidations that no call in progress can be reading any more, and says how many
    /// still wait. Completing an invalidation does the same; this is for a host that has nothing else to complete.
    ///
    /// From thread and interrupt context, not from an NMI. Never waits; bounded by the frames that are retired.
    /// At most 100 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    pub fn maintain(&self) -> u64 {
        self.tables.settle();
        self.tables.waiting()
    }

    /// Whether hardware notes in the leaves what it reads and writes. Where it does not snoop, it finds the bits of the first stage set.
    pub(crate) fn notes_accesses(&self) -> bool {
        match F::STAGE {
            Stage::First => self.config.hardware.coherent,
            Stage::Second => self.config.accessed_dirty,
        }
    }

    /// The allocator of the table frames.
    pub fn allocator(&self) -> &A {
        &self.tables.frames
    }

    /// Takes the domain apart: all its tables wait until hardware has let go of them.
    ///
    /// Thread context; bounded by the tables.
    pub fn close(self) -> ClosedDomain<A> {
        let list = unmap::collect::<F, A>(&self.tables.frames, self.root, self.config.levels.count());
        ClosedDomain::new(self.tables, list)
    }

    pub(crate) fn tables(&self) -> &Tables<A> {
        &self.tables
    }

    /// Walks over `span` from the root. The caller has entered.
    pub(crate) fn walk<V: super::walk::Visitor>(&self, span: Span, visitor: &mut V) -> Result<(), V::Stop> {
        walk::<F, A, V>(&self.tables.frames, self.root, self.config.levels.count(), span, visitor)
    }

    /// What no call may go beyond.
    #[inline(always)]
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What the short way to the last level looks for.
    #[inline(always)]
    pub(crate) fn short_way(&self) -> &ShortWay {
        &self.way
    }

    /// All addresses of the domain.
    pub(crate) fn aperture(&self) -> Span {
        self.limits.aperture()
    }

    /// What is left to be done now that `span` is mapped, in leaves of up to `largest` bytes.
    pub(crate) fn mapped(&self, span: Span, largest: u64) -> F::Mapped<'_, A> {
        F::mapped(|| Invalidation::of_map(&self.tables, span, largest))
    }
}

impl<F: Format, A: TableFrames> fmt::Debug for Domain<F, A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Domain")
            .field("config", &self.config)
            .field("root", &self.root)
            .field("table_frames", &self.table_frames())
            .finish_non_exhaustive()
    }
}
