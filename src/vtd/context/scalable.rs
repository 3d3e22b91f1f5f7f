//! Owns the entries of scalable mode above the PASID table (VT-d specification, sections 9.2, "Scalable-Mode Root Entry", 9.4,
//! "Scalable-Mode Context Entry", and 9.5, "Scalable-Mode PASID Directory Entry").
//!
//! ```text
//!   root, by bus         word 0   63 .. 12 context table of devices 0 to 15     11 .. 1 0                             0 P
//!                        word 1   63 .. 12 context table of devices 16 to 31    11 .. 1 0                             0 P
//!   context, by devfn    word 0   63 .. 12 PASID directory   11 .. 9 PDTS   8 .. 5 0   4 PRE   3 PASIDE   2 DTE   1 FPD   0 P
//!                        word 1   63 .. 21 0   20 RID_PRIV   19 .. 0 RID_PASID
//!                        word 2, word 3   0
//!   directory, by PASID 19 .. 6   63 .. 12 PASID table       11 .. 2 0                                     1 FPD      0 P
//! ```

use super::{ADDRESS, EntryError, FAULTS_DISABLED, PRESENT, address, bit, flag, pointer, reserved};
use crate::{
    PhysAddr,
    vtd::{Pasid, bits::field},
};

/// One of the two words of a bus in the root table: word 0 for devices 0 to 15, word 1 for devices 16 to 31.
///
/// ```
/// use framepool::{PhysAddr, vtd::context::ScalableRootEntry};
/// let entry = ScalableRootEntry { context_table: PhysAddr::new(0x1000) };
/// assert_eq!(entry.encode(), Ok(0x1001));
/// assert_eq!(ScalableRootEntry::decode(0x1001), Ok(Some(entry)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScalableRootEntry {
    /// The context table of half the bus: 128 entries of 32 bytes.
    pub context_table: PhysAddr,
}

impl ScalableRootEntry {
    /// The word.
    ///
    /// # Errors
    /// [`EntryError`]: the context table is misaligned or beyond 52 bits.
    pub fn encode(self) -> Result<u64, EntryError> {
        Ok(pointer(self.context_table)? | PRESENT)
    }

    /// The entry that the word is, or nothing if it is not present.
    ///
    /// # Errors
    /// [`EntryError`] names the reserved bits that are set.
    pub fn decode(word: u64) -> Result<Option<Self>, EntryError> {
        if word & PRESENT == 0 {
            return Ok(None);
        }
        reserved(0, word, ADDRESS | PRESENT)?;
        Ok(Some(Self { context_table: address(word) }))
    }
}

/// The fewest bits of a PASID that a directory tells apart (PDTS 0).
const PASID_BITS_LEAST: u8 = 13;

/// The entry of a device in a context table.
///
/// ```
/// use framepool::{PhysAddr, vtd::context::ScalableContextEntry};
/// // All requests without a PASID go by PASID 0; none with one are taken.
/// let entry = ScalableContextEntry::new(PhysAddr::new(0x1000), 15);
/// assert_eq!(entry.encode(), Ok([0x1401, 0, 0, 0]));
/// assert_eq!(ScalableContextEntry::decode([0x1401, 0, 0, 0]), Ok(Some(entry)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScalableContextEntry {
    /// The PASID directory.
    pub pasid_directory: PhysAddr,
    /// How many bits of a PASID the directory tells apart, 13 to 20: it has 2 to the power of this less 6 entries of 8 bytes. A
    /// frame of 4 KiB is enough for 15 (PDTS).
    pub pasid_bits: u8,
    /// The PASID by which requests without one are translated (RID_PASID).
    pub default_pasid: Pasid,
    /// Requests without a PASID have the rights of a supervisor (RID_PRIV).
    pub default_supervisor: bool,
    /// Requests may carry a PASID (PASIDE).
    pub pasids: bool,
    /// The device may have a TLB of its own, and ask for translations (DTE).
    pub device_tlb: bool,
    /// The device may ask for pages (PRE).
    pub page_requests: bool,
    /// Requests that cannot be translated are not reported (FPD).
    pub faults_disabled: bool,
}

impl ScalableContextEntry {
    /// An entry for a device that sends requests without a PASID, translated by PASID 0, with faults reported.
    pub const fn new(pasid_directory: PhysAddr, pasid_bits: u8) -> Self {
        Self {
            pasid_directory,
            pasid_bits,
            default_pasid: Pasid::ZERO,
            default_supervisor: false,
            pasids: false,
            device_tlb: false,
            page_requests: false,
            faults_disabled: false,
        }
    }

    /// The words, lowest first. Write word 0 last.
    ///
    /// # Errors
    /// [`EntryError`]: the directory is misaligned or beyond 52 bits, or of a size that does not exist.
    pub fn encode(self) -> Result<[u64; 4], EntryError> {
        let size = u64::from(self.pasid_bits)
            .checked_sub(PASID_BITS_LEAST.into())
            .filter(|&size| size < 8)
            .ok_or(EntryError::Value { field: "PDTS", value: self.pasid_bits.into() })?;
        let flags = flag(self.faults_disabled, FAULTS_DISABLED)
            | flag(self.device_tlb, 2)
            | flag(self.pasids, 3)
            | flag(self.page_requests, 4);
        let default = u64::from(self.default_pasid.get()) | flag(self.default_supervisor, 20);
        Ok([pointer(self.pasid_directory)? | size << 9 | flags | PRESENT, default, 0, 0])
    }

    /// The entry that the words are, or nothing if it is not present.
    ///
    /// # Errors
    /// [`EntryError`] names the reserved bits that are set.
    pub fn decode(words: [u64; 4]) -> Result<Option<Self>, EntryError> {
        let [first, second, third, fourth] = words;
        if first & PRESENT == 0 {
            return Ok(None);
        }
        reserved(0, first, ADDRESS | 0xE1F)?;
        reserved(1, second, 0x1F_FFFF)?;
        reserved(2, third, 0)?;
        reserved(3, fourth, 0)?;
        Ok(Some(Self {
            pasid_directory: address(first),
            pasid_bits: field(first, 9, 3) as u8 + PASID_BITS_LEAST,
            default_pasid: Pasid::from_low_bits(second),
            default_supervisor: bit(second, 20),
            pasids: bit(first, 3),
            device_tlb: bit(first, 2),
            page_requests: bit(first, 4),
            faults_disabled: bit(first, FAULTS_DISABLED),
        }))
    }
}

/// The entry of 64 PASIDs in the directory of a device.
///
/// ```
/// use framepool::{PhysAddr, vtd::context::PasidDirectoryEntry};
/// let entry = PasidDirectoryEntry { pasid_table: PhysAddr::new(0x1000), faults_disabled: false };
/// assert_eq!(entry.encode(), Ok(0x1001));
/// assert_eq!(PasidDirectoryEntry::decode(0x1001), Ok(Some(entry)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasidDirectoryEntry {
    /// The PASID table: 64 entries of 64 bytes.
    pub pasid_table: PhysAddr,
    /// Requests that cannot be translated are not reported (FPD).
    pub faults_disabled: bool,
}

impl PasidDirectoryEntry {
    /// The word.
    ///
    /// # Errors
    /// [`EntryError`]: the PASID table is misaligned or beyond 52 bits.
    pub fn encode(self) -> Result<u64, EntryError> {
        Ok(pointer(self.pasid_table)? | flag(self.faults_disabled, FAULTS_DISABLED) | PRESENT)
    }

    /// The entry that the word is, or nothing if it is not present.
    ///
    /// # Errors
    /// [`EntryError`] names the reserved bits that are set.
    pub fn decode(word: u64) -> Result<Option<Self>, EntryError> {
        if word & PRESENT == 0 {
            return Ok(None);
        }
        reserved(0, word, ADDRESS | PRESENT | 1 << FAULTS_DISABLED)?;
        Ok(Some(Self { pasid_table: address(word), faults_disabled: bit(word, FAULTS_DISABLED) }))
    }
}
