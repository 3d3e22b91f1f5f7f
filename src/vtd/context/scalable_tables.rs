//! Owns the root table, the context tables, the PASID directories and the PASID tables of one unit in scalable mode. Asks the
//! allocator for frames.

use super::{
    AttachError, EntryError, Feature,
    change::EntryChange,
    detached::{ClosedTables, Detached},
    pasid::{FirstStageRoot, PasidEntry, PasidTranslation, SecondStageRoot},
    scalable::ScalableContextEntry,
    store::Store,
};
use crate::{
    PhysAddr,
    vtd::{Capabilities, Pasid, SourceId, Stage, TableFrames, TranslationMode},
};
use core::fmt;

/// The words of a context entry.
const CONTEXT: usize = 4;
/// The words of a PASID table entry.
const PASID: usize = 8;
/// Root words link context tables, context entries link directories, directory words link PASID tables.
const LINKS: &[usize] = &[1, CONTEXT, 1];
/// How many bits of a PASID a directory of one frame tells apart: 512 words of 64 PASIDs each.
const PASID_BITS: u8 = 15;

/// What a device may do, besides sending requests without a PASID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DeviceConfig {
    /// The PASID by which requests without one are translated.
    pub default_pasid: Pasid,
    /// Requests may carry a PASID.
    pub pasids: bool,
    /// The device may have a TLB of its own.
    pub device_tlb: bool,
    /// The device may ask for pages.
    pub page_requests: bool,
}

/// The tables by which a unit in scalable mode finds the domain of a device, or of one of its PASIDs.
///
/// A device is attached first; then its PASIDs are, each to a domain. Of PASIDs, 15 bits are used: a directory is one frame.
///
/// Every call takes `&self`, and needs no lock: of two that race for a place, one is refused. Dropping it leaks its frames,
/// reported through [`TableFrames::leaked`], since hardware may still read them; see [`close`](Self::close).
///
/// ```
/// # #[cfg(feature = "std")] {
/// # use framepool::{AnonymousMemory, Builder, vtd::*, vtd::context::*};
/// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
/// // A unit that snoops, with both stages in scalable mode.
/// let unit = Capabilities::from_registers(0x00d2_008c_222f_0606, 0x0001_c800_00f0_0f4b);
/// let config = DomainConfig::from_capabilities::<FirstStage>(Levels::Four, TranslationMode::Scalable, 48, &[unit])?;
/// let domain = FirstStageDomain::new(config, &*pool)?;
/// let tables = ScalableTables::new(unit, 48, &*pool)?;
/// let device = SourceId::new(0, 4, 0).unwrap();
/// let entry = PasidEntry::first_stage(&domain, DomainId::FIRST);
/// tables.attach_device(device, DeviceConfig::default())?;
/// // SAFETY: the domain lives until the PASID is detached, below; nobody else attaches or detaches the device.
/// unsafe { tables.attach(device, Pasid::ZERO, entry)? };
/// // ... tables.root() to RTADDR_REG with TTM 01, translation on; later:
/// // SAFETY: nobody else attaches or detaches the device.
/// let detached = unsafe { tables.detach(device, Pasid::ZERO)? };
/// // SAFETY: no unit reads these tables.
/// unsafe { detached.complete() };
/// // SAFETY: as above.
/// unsafe { (tables.close().complete(), domain.close().complete()) };
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ScalableTables<A: TableFrames> {
    store: Store<A>,
    root: PhysAddr,
    unit: Capabilities,
}

impl<A: TableFrames> ScalableTables<A> {
    /// Tables for `unit` in which no device has an entry. `host_address_width` is what the DMAR table says.
    ///
    /// From thread and interrupt context, not from an NMI. Constant time; one frame.
    ///
    /// # Errors
    /// [`AttachError::Unsupported`] if the unit has no scalable mode, [`AttachError::OutOfFrames`],
    /// [`AttachError::TableBeyondWidth`], or [`AttachError::NoFlush`] if the unit does not snoop and the allocator does not flush.
    pub fn new(unit: Capabilities, host_address_width: u8, frames: A) -> Result<Self, AttachError> {
        require(unit.scalable_mode(), Feature::Mode(TranslationMode::Scalable))?;
        let store = Store::new(frames, unit.snoops_tables(), host_address_width)?;
        let root = store.make()?;
        Ok(Self { store, root, unit })
    }

    /// Gives the device `source` an entry, and a directory in which no PASID is attached. All or nothing.
    ///
    /// From thread and interrupt context, not from an NMI. Constant time; one frame, two if it is the first device of its half of
    /// the bus.
    /// At most 6,100 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`AttachError`] names what is wrong, or what the unit does not have; the tables are then what they were.
    pub fn attach_device(&self, source: SourceId, config: DeviceConfig) -> Result<EntryChange, AttachError> {
        require(!config.pasids || self.unit.pasid_bits().is_some(), Feature::Pasids)?;
        let zero = config.default_pasid == Pasid::ZERO;
        require(zero || self.unit.default_pasids(), Feature::DefaultPasid)?;
        require(!config.device_tlb || self.unit.device_tlb(), Feature::DeviceTlb)?;
        require(!config.page_requests || self.unit.page_requests(), Feature::PageRequests)?;
        check_pasid(config.default_pasid)?;
        let (half, device) = place(source);
        let found = self.store.follow(self.root, half);
        if found.is_some_and(|table| !self.store.is_free(table, device)) {
            return Err(AttachError::Occupied { source });
        }
        let directory = self.store.make()?;
        let entered = self.enter_device(source, config, directory, found);
        entered.inspect_err(|_| self.store.unmake(directory))?;
        Ok(EntryChange::device_attached(source, self.unit))
    }

    /// Writes the entry of a device into the context table `found`, or into a new one.
    fn enter_device(
        &self,
        source: SourceId,
        config: DeviceConfig,
        directory: PhysAddr,
        found: Option<PhysAddr>,
    ) -> Result<(), AttachError> {
        let entry = ScalableContextEntry {
            default_pasid: config.default_pasid,
            pasids: config.pasids,
            device_tlb: config.device_tlb,
            page_requests: config.page_requests,
            ..ScalableContextEntry::new(directory, PASID_BITS)
        };
        let words = entry.encode()?;
        let (half, device) = place(source);
        let table = match found {
            Some(table) => table,
            None => self.store.link(self.root, half, self.store.make()?),
        };
        if self.store.enter(table, device, words) { Ok(()) } else { Err(AttachError::Occupied { source }) }
    }

    /// Takes the entry of the device `source` away, with all its PASIDs.
    ///
    /// From thread and interrupt context, not from an NMI. Constant time.
    /// At most 8,400 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`AttachError::NotAttached`], or [`AttachError::Entry`] if somebody else has written to the tables; nothing has changed.
    ///
    /// # Safety
    /// Until [`Detached::complete`], nobody attaches, detaches or completes a PASID of the device.
    #[allow(unsafe_code, reason = "frames are given back that another call could be writing to")]
    pub unsafe fn detach_device(&self, source: SourceId) -> Result<Detached<'_, A>, AttachError> {
        let not_attached = AttachError::NotAttached { source };
        self.device(source)?.ok_or(not_attached)?;
        let (half, device) = place(source);
        let table = self.store.below(self.root, half).ok_or(not_attached)?;
        let words = self.store.remove(table, device).ok_or(not_attached)?;
        let entry = ScalableContextEntry::decode(words)?.ok_or(not_attached)?;
        let change = EntryChange::device_detached(source, self.unit);
        Ok(Detached::new(&self.store, (table, device, CONTEXT), Some(entry.pasid_directory), change))
    }

    /// Gives the PASID `pasid` of the device `source` an entry. All or nothing.
    ///
    /// From thread and interrupt context, not from an NMI. Constant time; one frame if it is the first PASID of its 64.
    /// At most 3,900 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`AttachError`] names what is wrong, or what the unit does not have; the tables are then what they were.
    ///
    /// # Safety
    /// * Until [`Detached::complete`], the tables that the entry names are those of domains of these formats and levels, and all that
    ///   they map is the PASID's; one that passes through may reach all memory.
    /// * Nobody detaches the device at the same time.
    #[allow(unsafe_code, reason = "lets a device reach memory")]
    pub unsafe fn attach(
        &self,
        source: SourceId,
        pasid: Pasid,
        entry: PasidEntry,
    ) -> Result<EntryChange, AttachError> {
        let bits = self.unit.pasid_bits().unwrap_or(PASID_BITS);
        require(u64::from(pasid.get()) >> bits == 0, Feature::Pasids)?;
        self.check(entry)?;
        let words = entry.encode()?;
        let occupied = AttachError::PasidOccupied { source, pasid };
        let directory = self.directory(source)?;
        let (group, place) = place_of(pasid)?;
        let table = match self.store.follow(directory, group) {
            Some(table) if self.store.is_free(table, place) => table,
            Some(_) => return Err(occupied),
            None => self.store.link(directory, group, self.store.make()?),
        };
        if !self.store.enter(table, place, words) {
            return Err(occupied);
        }
        Ok(EntryChange::pasid_attached(pasid, entry, self.unit))
    }

    /// Takes the entry of the PASID `pasid` of the device `source` away. Its place is free for another when that is complete.
    ///
    /// From thread and interrupt context, not from an NMI. Constant time.
    /// At most 1,800 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`AttachError::PasidNotAttached`] or [`AttachError::NotAttached`], or [`AttachError::Entry`] if somebody else has written to the
    /// tables; nothing has changed.
    ///
    /// # Safety
    /// Until [`Detached::complete`], nobody detaches the device.
    #[allow(unsafe_code, reason = "writes to a frame that another call could be giving back")]
    pub unsafe fn detach(&self, source: SourceId, pasid: Pasid) -> Result<Detached<'_, A>, AttachError> {
        let not_attached = AttachError::PasidNotAttached { source, pasid };
        let directory = self.directory(source)?;
        let (group, place) = place_of(pasid)?;
        let table = self.store.below(directory, group).ok_or(not_attached)?;
        PasidEntry::decode(self.store.read(table, place))?.ok_or(not_attached)?;
        let words = self.store.remove(table, place).ok_or(not_attached)?;
        let entry = PasidEntry::decode(words)?.ok_or(not_attached)?;
        let change = EntryChange::pasid_detached(pasid, entry, self.unit);
        Ok(Detached::new(&self.store, (table, place, PASID), None, change))
    }

    /// The entry of the device `source`, if it has one.
    ///
    /// Any context but an NMI; constant time.
    ///
    /// # Errors
    /// [`EntryError`]: somebody else has written to the tables.
    pub fn device(&self, source: SourceId) -> Result<Option<ScalableContextEntry>, EntryError> {
        let (half, device) = place(source);
        let Some(table) = self.store.below(self.root, half) else { return Ok(None) };
        ScalableContextEntry::decode(self.store.read(table, device))
    }

    /// The entry of the PASID `pasid` of the device `source`, if it has one.
    ///
    /// Any context but an NMI; constant time.
    ///
    /// # Errors
    /// As for [`detach`](Self::detach).
    ///
    /// # Safety
    /// Nobody completes the detaching of the device at the same time.
    #[allow(unsafe_code, reason = "reads a frame that another call could be giving back")]
    pub unsafe fn entry(&self, source: SourceId, pasid: Pasid) -> Result<Option<PasidEntry>, AttachError> {
        let directory = self.directory(source)?;
        let (group, place) = place_of(pasid)?;
        let Some(table) = self.store.below(directory, group) else { return Ok(None) };
        Ok(PasidEntry::decode(self.store.read(table, place))?)
    }

    /// The root table, for RTADDR_REG with TTM 01.
    pub fn root(&self) -> PhysAddr {
        self.root
    }

    /// How many frames the tables take, the root included.
    pub fn table_frames(&self) -> u64 {
        self.store.live()
    }

    /// The allocator of the frames.
    pub fn allocator(&self) -> &A {
        self.store.frames()
    }

    /// Takes the tables apart: they wait until hardware has let go of them.
    ///
    /// Any context; constant time.
    pub fn close(self) -> ClosedTables<A> {
        ClosedTables::new(self.store, self.root, LINKS)
    }

    /// The PASID directory of the device `source`.
    fn directory(&self, source: SourceId) -> Result<PhysAddr, AttachError> {
        let entry = self.device(source)?.ok_or(AttachError::NotAttached { source })?;
        Ok(entry.pasid_directory)
    }

    /// Refuses what the unit would refuse.
    fn check(&self, entry: PasidEntry) -> Result<(), AttachError> {
        let unit = self.unit;
        require(u32::from(entry.domain_id.get()) < unit.domain_ids(), Feature::DomainId(entry.domain_id))?;
        require(!entry.force_snoop || unit.snoop_control(), Feature::SnoopControl)?;
        let snoops_walks = unit.snoops_walks(TranslationMode::Scalable);
        require(!entry.snooped_walks || snoops_walks, Feature::SnoopedWalks)?;
        match entry.translation {
            PasidTranslation::FirstStage(first) => self.check_first(first),
            PasidTranslation::SecondStage(second) => self.check_second(second),
            PasidTranslation::Nested(first, second) => {
                require(unit.nesting(), Feature::Nesting)?;
                self.check_first(first)?;
                self.check_second(second)
            }
            PasidTranslation::PassThrough { most_levels } => {
                require(unit.pass_through(), Feature::PassThrough)?;
                require(unit.most_levels(Stage::Second) == Some(most_levels), Feature::Levels(most_levels))
            }
        }
    }

    fn check_first(&self, tables: FirstStageRoot) -> Result<(), AttachError> {
        require(self.unit.has_first_stage(), Feature::FirstStage)?;
        require(self.unit.takes(Stage::First, tables.levels), Feature::Levels(tables.levels))?;
        let supervisor = tables.supervisor_requests || tables.write_protect;
        require(!supervisor || self.unit.supervisor_requests(), Feature::SupervisorRequests)?;
        self.store.check(tables.root)
    }

    fn check_second(&self, tables: SecondStageRoot) -> Result<(), AttachError> {
        require(self.unit.has_second_stage(TranslationMode::Scalable), Feature::SecondStage)?;
        require(self.unit.takes(Stage::Second, tables.levels), Feature::Levels(tables.levels))?;
        require(!tables.accessed_dirty || self.unit.second_stage_accessed_dirty(), Feature::AccessedDirty)?;
        self.store.check(tables.root)
    }
}

fn require(has: bool, feature: Feature) -> Result<(), AttachError> {
    if has { Ok(()) } else { Err(AttachError::Unsupported(feature)) }
}

fn check_pasid(pasid: Pasid) -> Result<(), AttachError> {
    if pasid.get() >> PASID_BITS == 0 { Ok(()) } else { Err(AttachError::PasidBeyondDirectory { pasid }) }
}

/// Where the entry of a device is: the word in the root table, and the first word in the context table.
fn place(source: SourceId) -> (usize, usize) {
    let (half, device) = (source.devfn() >> 7, source.devfn() & 0x7F);
    (usize::from(source.bus()) * 2 + usize::from(half), usize::from(device) * CONTEXT)
}

/// Where the entry of a PASID is: the word in the directory, and the first word in the PASID table.
fn place_of(pasid: Pasid) -> Result<(usize, usize), AttachError> {
    check_pasid(pasid)?;
    let number = pasid.get() as usize;
    Ok((number >> 6, (number & 63) * PASID))
}

impl<A: TableFrames> fmt::Debug for ScalableTables<A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ScalableTables")
            .field("root", &self.root)
            .field("table_frames", &self.table_frames())
            .finish_non_exhaustive()
    }
}
