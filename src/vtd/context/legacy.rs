//! Owns the entries of legacy mode (VT-d specification, sections 9.1, "Root Entry", and 9.3, "Context Entry").
//!
//! ```text
//!   root, by bus         word 0   63 .. 12 context table        11 .. 1 0                                        0 P
//!                        word 1   0
//!   context, by devfn    word 0   63 .. 12 second-stage root    11 .. 4 0    3 .. 2 TT    1 FPD                  0 P
//!                        word 1   63 .. 24 0    23 .. 8 domain id    7 0     6 .. 3 -     2 .. 0 AW
//! ```

use super::{
    ADDRESS, EntryError, FAULTS_DISABLED, PRESENT, address, bit, flag, levels_of, pointer, reserved,
    width_field,
};
use crate::{
    PhysAddr,
    vtd::{DomainId, Levels, SecondStageDomain, TableFrames, bits::field},
};

/// The entry of a bus in the root table.
///
/// ```
/// use framepool::{PhysAddr, vtd::RootEntry};
/// let entry = RootEntry { context_table: PhysAddr::new(0x1000) };
/// assert_eq!(entry.encode(), Ok([0x1001, 0]));
/// assert_eq!(RootEntry::decode([0x1001, 0]), Ok(Some(entry)));
/// assert_eq!(RootEntry::decode([0, 0]), Ok(None), "not present");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootEntry {
    /// The context table of the bus: 256 entries of 16 bytes.
    pub context_table: PhysAddr,
}

impl RootEntry {
    /// The words, lowest first. Write word 1 first.
    ///
    /// # Errors
    /// [`EntryError`]: the context table is misaligned or beyond 52 bits.
    pub fn encode(self) -> Result<[u64; 2], EntryError> {
        Ok([pointer(self.context_table)? | PRESENT, 0])
    }

    /// The entry that the words are, or nothing if it is not present.
    ///
    /// # Errors
    /// [`EntryError`] names the reserved bits that are set.
    pub fn decode(words: [u64; 2]) -> Result<Option<Self>, EntryError> {
        let [low, high] = words;
        if low & PRESENT == 0 {
            return Ok(None);
        }
        reserved(0, low, ADDRESS | PRESENT)?;
        reserved(1, high, 0)?;
        Ok(Some(Self { context_table: address(low) }))
    }
}

/// What is done with the requests of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextTranslation {
    /// They are translated by the tables of a domain (TT 00 and 01).
    SecondStage {
        /// The domain's root table.
        root: PhysAddr,
        /// The domain's levels.
        levels: Levels,
        /// The device may have a TLB of its own, and ask for translations (TT 01; the unit must have
        /// [`Capabilities::device_tlb`](crate::vtd::Capabilities::device_tlb)).
        device_tlb: bool,
    },
    /// They are not translated (TT 10; the unit must have [`Capabilities::pass_through`](crate::vtd::Capabilities::pass_through)).
    PassThrough {
        /// The most levels that the unit walks.
        most_levels: Levels,
    },
}

impl ContextTranslation {
    /// Translation by the tables of `domain`, for a device without a TLB of its own.
    pub fn by<A: TableFrames>(domain: &SecondStageDomain<A>) -> Self {
        Self::SecondStage { root: domain.root(), levels: domain.levels(), device_tlb: false }
    }
}

/// The entry of a device in a context table.
///
/// ```
/// use framepool::{PhysAddr, vtd::{ContextEntry, ContextTranslation, DomainId, Levels}};
/// let root = PhysAddr::new(0x1234_5000);
/// let translation = ContextTranslation::SecondStage { root, levels: Levels::Four, device_tlb: false };
/// let entry = ContextEntry::new(translation, DomainId::new(7).unwrap());
/// assert_eq!(entry.encode(), Ok([0x1234_5001, 0x702]));
/// assert_eq!(ContextEntry::decode([0x1234_5001, 0x702]), Ok(Some(entry)));
/// assert!(ContextEntry::decode([0x1234_5011, 0x702]).is_err(), "bit 4 is reserved");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextEntry {
    /// What is done with the requests.
    pub translation: ContextTranslation,
    /// With what is cached of them is tagged.
    pub domain_id: DomainId,
    /// Requests that cannot be translated are not reported (FPD).
    pub faults_disabled: bool,
}

impl ContextEntry {
    /// An entry that reports faults.
    pub const fn new(translation: ContextTranslation, domain_id: DomainId) -> Self {
        Self { translation, domain_id, faults_disabled: false }
    }

    /// The words, lowest first. Write word 1 first.
    ///
    /// # Errors
    /// [`EntryError`]: the root table is misaligned or beyond 52 bits.
    pub fn encode(self) -> Result<[u64; 2], EntryError> {
        let (translation, root, levels) = match self.translation {
            ContextTranslation::SecondStage { root, levels, device_tlb } => {
                (u64::from(device_tlb), pointer(root)?, levels)
            }
            ContextTranslation::PassThrough { most_levels } => (2, 0, most_levels),
        };
        Ok([
            root | translation << 2 | flag(self.faults_disabled, FAULTS_DISABLED) | PRESENT,
            u64::from(self.domain_id.get()) << 8 | width_field(levels),
        ])
    }

    /// The entry that the words are, or nothing if it is not present.
    ///
    /// # Errors
    /// [`EntryError`] names what is reserved: bits, a translation type, a width, or domain id 0.
    pub fn decode(words: [u64; 2]) -> Result<Option<Self>, EntryError> {
        const IGNORED: u64 = 0x78;
        let [low, high] = words;
        if low & PRESENT == 0 {
            return Ok(None);
        }
        reserved(0, low, ADDRESS | 0xF)?;
        reserved(1, high, 0xFF_FF07 | IGNORED)?;
        let levels = levels_of(field(high, 0, 3))?;
        let translation = match field(low, 2, 2) {
            tables @ (0 | 1) => {
                ContextTranslation::SecondStage { root: address(low), levels, device_tlb: tables == 1 }
            }
            2 => ContextTranslation::PassThrough { most_levels: levels },
            value => return Err(EntryError::Value { field: "TT", value }),
        };
        let id = field(high, 8, 16);
        let domain_id = DomainId::new(id as u16).ok_or(EntryError::Value { field: "DID", value: id })?;
        Ok(Some(Self { translation, domain_id, faults_disabled: bit(low, FAULTS_DISABLED) }))
    }
}
