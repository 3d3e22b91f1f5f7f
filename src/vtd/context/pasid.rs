//! Owns the entries of the PASID table (VT-d specification, section 9.6, "Scalable-Mode PASID Table Entry").
//!
//! ```text
//!   word 0   63 .. 12 second-stage root   11 .. 10 0   9 SSADE   8 .. 6 PGTT   5 -   4 .. 2 AW     1 FPD    0 P
//!   word 1   31 .. 25 -                   24 PGSNP     23 PWSNP  22 .. 16 0    15 .. 0 domain id
//!   word 2   63 .. 12 first-stage root    11 .. 5 -    4 WPE     3 .. 2 FSPM   1 -                          0 SRE
//!   word 3 to word 7   0
//! ```
//! What is marked "-" belongs to features that this crate leaves off (requests to execute, memory types, the extended accessed flag).
//! Such bits are refused like reserved ones.

use super::{
    ADDRESS, EntryError, FAULTS_DISABLED, PRESENT, address, bit, flag, levels_of, pointer, reserved,
    width_field,
};
use crate::{
    PhysAddr,
    vtd::{Domain, DomainId, FirstStage, Format, Levels, SecondStage, TableFrames, bits::field},
};

/// The first-stage tables of a process or a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstStageRoot {
    /// The root table.
    pub root: PhysAddr,
    /// 4 or 5 levels (FSPM).
    pub levels: Levels,
    /// Requests may have the rights of a supervisor (SRE); the unit must support that.
    pub supervisor_requests: bool,
    /// Such requests heed RW (WPE).
    pub write_protect: bool,
}

/// The second-stage tables of a guest or a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecondStageRoot {
    /// The root table.
    pub root: PhysAddr,
    /// The levels (AW).
    pub levels: Levels,
    /// Hardware sets A and D in the entries (SSADE); the unit must have
    /// [`Capabilities::second_stage_accessed_dirty`](crate::vtd::Capabilities::second_stage_accessed_dirty).
    pub accessed_dirty: bool,
}

/// What is done with the requests of a PASID (PGTT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasidTranslation {
    /// They are translated by first-stage tables (001).
    FirstStage(FirstStageRoot),
    /// They are translated by second-stage tables (010).
    SecondStage(SecondStageRoot),
    /// They are translated by first-stage tables, whose addresses are translated by second-stage tables (011).
    Nested(FirstStageRoot, SecondStageRoot),
    /// They are not translated (100).
    PassThrough {
        /// The most levels that the unit walks in the second stage.
        most_levels: Levels,
    },
}

/// The entry of a PASID.
///
/// ```
/// use framepool::{PhysAddr, vtd::{DomainId, Levels, context::*}};
/// let tables = SecondStageRoot { root: PhysAddr::new(0x5000), levels: Levels::Four, accessed_dirty: false };
/// let entry = PasidEntry::new(PasidTranslation::SecondStage(tables), DomainId::new(7).unwrap());
/// assert_eq!(entry.encode(), Ok([0x5089, 7, 0, 0, 0, 0, 0, 0]));
/// assert_eq!(PasidEntry::decode([0x5089, 7, 0, 0, 0, 0, 0, 0]), Ok(Some(entry)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasidEntry {
    /// What is done with the requests.
    pub translation: PasidTranslation,
    /// With what is cached of them is tagged.
    pub domain_id: DomainId,
    /// Hardware snoops when it walks the tables (PWSNP); the unit must have it, and a domain that is not flushed needs it: see
    /// [`Capabilities::snoops_walks`](crate::vtd::Capabilities::snoops_walks).
    pub snooped_walks: bool,
    /// Every access to a page is snooped, whatever the device says (PGSNP); the unit must have
    /// [`Capabilities::snoop_control`](crate::vtd::Capabilities::snoop_control).
    pub force_snoop: bool,
    /// Requests that cannot be translated are not reported (FPD).
    pub faults_disabled: bool,
}

impl PasidEntry {
    /// An entry that reports faults and snoops nothing.
    pub const fn new(translation: PasidTranslation, domain_id: DomainId) -> Self {
        Self { translation, domain_id, snooped_walks: false, force_snoop: false, faults_disabled: false }
    }

    /// An entry that translates by the tables of a first-stage domain, snooped if that does not flush its lines.
    pub fn first_stage<A: TableFrames>(domain: &Domain<FirstStage, A>, domain_id: DomainId) -> Self {
        let (root, levels) = (domain.root(), domain.levels());
        let tables = FirstStageRoot { root, levels, supervisor_requests: false, write_protect: false };
        Self::of(domain, PasidTranslation::FirstStage(tables), domain_id)
    }

    /// An entry that translates by the tables of a second-stage domain, snooped if that does not flush its lines, with the bits that the
    /// domain is to read.
    pub fn second_stage<A: TableFrames>(domain: &Domain<SecondStage, A>, domain_id: DomainId) -> Self {
        let tables = SecondStageRoot {
            root: domain.root(),
            levels: domain.levels(),
            accessed_dirty: domain.config().accessed_dirty,
        };
        Self::of(domain, PasidTranslation::SecondStage(tables), domain_id)
    }

    fn of<F: Format, A: TableFrames>(
        domain: &Domain<F, A>,
        translation: PasidTranslation,
        domain_id: DomainId,
    ) -> Self {
        Self { snooped_walks: domain.config().hardware.coherent, ..Self::new(translation, domain_id) }
    }

    /// The words, lowest first. Write word 0 last.
    ///
    /// # Errors
    /// [`EntryError`]: a root table is misaligned or beyond 52 bits, or first-stage tables have three levels.
    pub fn encode(self) -> Result<[u64; 8], EntryError> {
        let (kind, second, first) = match self.translation {
            // Hardware ignores AW here; it is what other software writes.
            PasidTranslation::FirstStage(tables) => (1, width_field(tables.levels) << 2, tables.encode()?),
            PasidTranslation::SecondStage(tables) => (2, tables.encode()?, 0),
            PasidTranslation::Nested(first, second) => (3, second.encode()?, first.encode()?),
            PasidTranslation::PassThrough { most_levels } => (4, width_field(most_levels) << 2, 0),
        };
        let flags = flag(self.snooped_walks, 23) | flag(self.force_snoop, 24);
        let present = flag(self.faults_disabled, FAULTS_DISABLED) | PRESENT;
        Ok([second | kind << 6 | present, u64::from(self.domain_id.get()) | flags, first, 0, 0, 0, 0, 0])
    }

    /// The entry that the words are, or nothing if it is not present.
    ///
    /// # Errors
    /// [`EntryError`] names what is reserved, or not used here: bits, a translation type, a paging mode, a width, or domain id 0.
    pub fn decode(words: [u64; 8]) -> Result<Option<Self>, EntryError> {
        let [second, tag, first, rest @ ..] = words;
        if second & PRESENT == 0 {
            return Ok(None);
        }
        reserved(0, second, ADDRESS | 0x3DF)?;
        reserved(1, tag, 0x180_FFFF)?;
        reserved(2, first, ADDRESS | 0x1D)?;
        for (word, bits) in (3..).zip(rest) {
            reserved(word, bits, 0)?;
        }
        let translation = match field(second, 6, 3) {
            1 => PasidTranslation::FirstStage(FirstStageRoot::decode(first)?),
            2 => PasidTranslation::SecondStage(SecondStageRoot::decode(second)?),
            3 => PasidTranslation::Nested(FirstStageRoot::decode(first)?, SecondStageRoot::decode(second)?),
            4 => PasidTranslation::PassThrough { most_levels: levels_of(field(second, 2, 3))? },
            value => return Err(EntryError::Value { field: "PGTT", value }),
        };
        let id = field(tag, 0, 16);
        let domain_id = DomainId::new(id as u16).ok_or(EntryError::Value { field: "DID", value: id })?;
        Ok(Some(Self {
            translation,
            domain_id,
            snooped_walks: bit(tag, 23),
            force_snoop: bit(tag, 24),
            faults_disabled: bit(second, FAULTS_DISABLED),
        }))
    }
}

impl FirstStageRoot {
    /// What stands in word 2.
    fn encode(self) -> Result<u64, EntryError> {
        let mode = match self.levels {
            Levels::Four => 0,
            Levels::Five => 1,
            Levels::Three => return Err(EntryError::Value { field: "levels of the first stage", value: 3 }),
        };
        let flags = flag(self.supervisor_requests, 0) | flag(self.write_protect, 4);
        Ok(pointer(self.root)? | mode << 2 | flags)
    }

    fn decode(word: u64) -> Result<Self, EntryError> {
        let levels = match field(word, 2, 2) {
            0 => Levels::Four,
            1 => Levels::Five,
            value => return Err(EntryError::Value { field: "FSPM", value }),
        };
        let (supervisor_requests, write_protect) = (bit(word, 0), bit(word, 4));
        Ok(Self { root: address(word), levels, supervisor_requests, write_protect })
    }
}

impl SecondStageRoot {
    /// What stands in word 0.
    fn encode(self) -> Result<u64, EntryError> {
        Ok(pointer(self.root)? | width_field(self.levels) << 2 | flag(self.accessed_dirty, 9))
    }

    fn decode(word: u64) -> Result<Self, EntryError> {
        let levels = levels_of(field(word, 2, 3))?;
        Ok(Self { root: address(word), levels, accessed_dirty: bit(word, 9) })
    }
}
