//! Owns the root table and the context tables of one unit in legacy mode. Asks the allocator for frames.

use super::{
    AttachError, EntryError, Feature,
    change::EntryChange,
    detached::{ClosedTables, Detached},
    legacy::{ContextEntry, ContextTranslation},
    store::Store,
};
use crate::{
    PhysAddr,
    vtd::{Capabilities, SourceId, Stage, TableFrames},
};
use core::fmt;

/// The words of an entry, in both tables.
const ENTRY: usize = 2;
/// Root entries link context tables, every second word.
const LINKS: &[usize] = &[ENTRY];

/// The tables by which a unit in legacy mode finds the domain of a device.
///
/// Every call takes `&self`, and needs no lock: of two that race for a device, one is refused. Dropping it leaks its frames,
/// reported through [`TableFrames::leaked`], since hardware may still read them; see [`close`](Self::close).
///
/// ```
/// # #[cfg(feature = "std")] {
/// # use framepool::{AnonymousMemory, Builder, vtd::*};
/// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
/// // A unit that snoops; others want frames that flush.
/// let unit = Capabilities::from_registers(0x00d2_008c_222f_0606, 0x00f0_0f4b);
/// let config = DomainConfig::from_capabilities::<SecondStage>(Levels::Four, TranslationMode::Legacy, 48, &[unit])?;
/// let domain = SecondStageDomain::new(config, &*pool)?;
/// let tables = context::LegacyTables::new(unit, 48, &*pool)?;
/// let device = SourceId::new(0, 4, 0).unwrap();
/// let entry = ContextEntry::new(ContextTranslation::by(&domain), DomainId::FIRST);
/// // SAFETY: the domain lives until the device is detached, below.
/// let change = unsafe { tables.attach(device, entry)? };
/// assert_eq!(change.steps().count(), 0, "what was not present was not cached");
/// // ... tables.root() to RTADDR_REG, translation on; later:
/// let detached = tables.detach(device)?;
/// assert_eq!(detached.change().steps().count(), 2, "the entry, then what was found by it");
/// // SAFETY: no unit reads these tables.
/// unsafe { detached.complete() };
/// // SAFETY: as above.
/// unsafe { (tables.close().complete(), domain.close().complete()) };
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct LegacyTables<A: TableFrames> {
    store: Store<A>,
    root: PhysAddr,
    unit: Capabilities,
}

impl<A: TableFrames> LegacyTables<A> {
    /// Tables for `unit` in which no device has an entry. `host_address_width` is what the DMAR table says.
    ///
    /// From thread and interrupt context, not from an NMI. Constant time; one frame.
    ///
    /// # Errors
    /// [`AttachError::OutOfFrames`], [`AttachError::TableBeyondWidth`], or [`AttachError::NoFlush`] if the unit does not snoop and the
    /// allocator does not flush.
    pub fn new(unit: Capabilities, host_address_width: u8, frames: A) -> Result<Self, AttachError> {
        let store = Store::new(frames, unit.snoops_tables(), host_address_width)?;
        let root = store.make()?;
        Ok(Self { store, root, unit })
    }

    /// Gives the device `source` an entry. All or nothing.
    ///
    /// From thread and interrupt context, not from an NMI. Constant time; one frame if it is the first device of its bus.
    /// At most 3,200 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`AttachError`] names what is wrong, or what the unit does not have; the tables are then what they were.
    ///
    /// # Safety
    /// Until [`Detached::complete`], the tables that the entry names are those of a domain of the second-stage format and of those
    /// levels, and all that they map is the device's; a device that passes through may reach all memory.
    #[allow(unsafe_code, reason = "lets a device reach memory")]
    pub unsafe fn attach(&self, source: SourceId, entry: ContextEntry) -> Result<EntryChange, AttachError> {
        self.check(entry)?;
        let words = entry.encode()?;
        let occupied = AttachError::Occupied { source };
        let (bus, device) = place(source);
        let table = match self.store.follow(self.root, bus) {
            Some(table) if self.store.is_free(table, device) => table,
            Some(_) => return Err(occupied),
            None => self.store.link(self.root, bus, self.store.make()?),
        };
        if !self.store.enter(table, device, words) {
            return Err(occupied);
        }
        Ok(EntryChange::attached(source, entry, self.unit))
    }

    /// Takes the entry of the device `source` away. Its place is free for another when that is complete.
    ///
    /// From thread and interrupt context, not from an NMI. Constant time.
    /// At most 470 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`AttachError::NotAttached`], or [`AttachError::Entry`] if somebody else has written to the tables; nothing has changed.
    pub fn detach(&self, source: SourceId) -> Result<Detached<'_, A>, AttachError> {
        let not_attached = AttachError::NotAttached { source };
        self.entry(source)?.ok_or(not_attached)?;
        let (bus, device) = place(source);
        let table = self.store.below(self.root, bus).ok_or(not_attached)?;
        let words = self.store.remove(table, device).ok_or(not_attached)?;
        let entry = ContextEntry::decode(words)?.ok_or(not_attached)?;
        let change = EntryChange::detached(source, entry, self.unit);
        Ok(Detached::new(&self.store, (table, device, ENTRY), None, change))
    }

    /// The entry of the device `source`, if it has one.
    ///
    /// Any context but an NMI; constant time.
    ///
    /// # Errors
    /// [`EntryError`]: somebody else has written to the tables.
    pub fn entry(&self, source: SourceId) -> Result<Option<ContextEntry>, EntryError> {
        let (bus, device) = place(source);
        let Some(table) = self.store.below(self.root, bus) else { return Ok(None) };
        ContextEntry::decode(self.store.read(table, device))
    }

    /// All devices that have an entry, in ascending order.
    ///
    /// Any context but an NMI. Bounded by the 65,536 source ids that there are; a step, by those up to the next device.
    pub fn entries(&self) -> impl Iterator<Item = (SourceId, Result<ContextEntry, EntryError>)> + '_ {
        (0..=u16::MAX)
            .map(SourceId::from_bits)
            .filter_map(|source| Some((source, self.entry(source).transpose()?)))
    }

    /// The root table, for RTADDR_REG with TTM 00.
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

    /// Refuses what the unit would refuse.
    fn check(&self, entry: ContextEntry) -> Result<(), AttachError> {
        let unit = self.unit;
        let feature = match entry.translation {
            _ if u32::from(entry.domain_id.get()) >= unit.domain_ids() => {
                Some(Feature::DomainId(entry.domain_id))
            }
            ContextTranslation::SecondStage { levels, .. } if !unit.takes(Stage::Second, levels) => {
                Some(Feature::Levels(levels))
            }
            ContextTranslation::SecondStage { device_tlb: true, .. } if !unit.device_tlb() => {
                Some(Feature::DeviceTlb)
            }
            ContextTranslation::PassThrough { .. } if !unit.pass_through() => Some(Feature::PassThrough),
            ContextTranslation::PassThrough { most_levels }
                if unit.most_levels(Stage::Second) != Some(most_levels) =>
            {
                Some(Feature::Levels(most_levels))
            }
            ContextTranslation::SecondStage { root, .. } => {
                self.store.check(root)?;
                None
            }
            ContextTranslation::PassThrough { .. } => None,
        };
        feature.map_or(Ok(()), |feature| Err(AttachError::Unsupported(feature)))
    }
}

/// Where the entry of a device is: the word in the root table, and the word in the context table.
fn place(source: SourceId) -> (usize, usize) {
    (usize::from(source.bus()) * ENTRY, usize::from(source.devfn()) * ENTRY)
}

impl<A: TableFrames> fmt::Debug for LegacyTables<A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("LegacyTables")
            .field("root", &self.root)
            .field("table_frames", &self.table_frames())
            .finish_non_exhaustive()
    }
}
