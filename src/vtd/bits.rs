//! Owns the taking apart of words into fields, as the tables of the specification give them.

use crate::PhysAddr;

/// The part of an entry that is an address: 4 KiB aligned, 52 bits.
pub(crate) const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// The field of `count` bits from `low` on.
pub(crate) const fn field(word: u64, low: u32, count: u32) -> u64 {
    word >> low & ((1 << count) - 1)
}

/// Whether the bit `number` is set.
pub(crate) const fn bit(word: u64, number: u32) -> bool {
    word >> number & 1 != 0
}

/// The bit `number` if `set`, else 0.
pub(crate) const fn flag(set: bool, number: u32) -> u64 {
    (set as u64) << number
}

/// The address in an entry.
pub(crate) const fn address(word: u64) -> PhysAddr {
    PhysAddr::new(word & ADDRESS)
}
