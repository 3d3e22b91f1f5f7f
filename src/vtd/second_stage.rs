//! Owns the second-stage entry format, bit by bit (VT-d specification, "Second-Stage Paging Entries", section 9.8; "Second-Level
//! Translation", section 3.7 in revisions before 3.2).
//!
//! ```text
//!   63 | 62 | 61 ... 52 | 51 ........... 12 | 11  | 10 | 9 | 8 | 7  | 6 .. 2 | 1 | 0
//!   -  | 0  |     -     | target or table   | SNP | -  | D | A | PS |   0    | W | R
//! ```
//! There is no present bit: an entry is present if R or W is set. PS makes an entry of level 2 or 3 a leaf; in level 1 it has no
//! meaning and stays 0, above level 3 it is reserved. Entries that name a table are readable and writable; the leaf alone
//! carries the rights, since hardware takes what all levels allow. SNP is reserved unless the unit has snoop control. Hardware sets A in every
//! entry that it uses and D in leaves that it writes through, if the PASID entry says so (SSADE).

use super::{
    Invalidation, TableFrames,
    bits::ADDRESS,
    format::{Entry, Format, Permissions, Stage, sealed},
};
use crate::PhysAddr;

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
/// The highest level at which PS has a meaning: leaves of 1 GiB.
const LARGEST_LEAF_LEVEL: u32 = 3;

/// The second-stage format: what the hardware walks for requests without a PASID, and for guests.
#[derive(Clone, Copy, Debug)]
pub struct SecondStage;

#[inline(always)]
fn rights(permissions: Permissions) -> u64 {
    let read = if permissions.contains(Permissions::READ) { READ } else { 0 };
    let write = if permissions.contains(Permissions::WRITE) { WRITE } else { 0 };
    write | read
}

impl sealed::Sealed for SecondStage {}

impl Format for SecondStage {
    const INDEX_BITS: u32 = 9;
    const STAGE: Stage = Stage::Second;
    const PRESENT: u64 = READ | WRITE;
    const PAGE_SIZE: u64 = 1 << 7;
    const SNOOP: u64 = 1 << 11;
    const ACCESSED: u64 = 1 << 8;
    const DIRTY: u64 = 1 << 9;
    const TELLS_MAPS: bool = false;
    type Mapped<'d, A: TableFrames + 'd> = ();

    fn mapped<'d, A: TableFrames + 'd>(_: impl FnOnce() -> Invalidation<'d, A>) {}

    #[inline(always)]
    fn leaf(target: PhysAddr, permissions: Permissions, level: u32) -> u64 {
        let large = if level > 1 { Self::PAGE_SIZE } else { 0 };
        target.as_u64() & ADDRESS | large | rights(permissions)
    }

    #[inline(always)]
    fn with_permissions(leaf: u64, permissions: Permissions) -> u64 {
        leaf & !(READ | WRITE) | rights(permissions)
    }

    #[inline(always)]
    fn table(table: PhysAddr) -> u64 {
        table.as_u64() & ADDRESS | WRITE | READ
    }

    #[inline(always)]
    fn decode(entry: u64, level: u32) -> Entry {
        if entry & Self::PRESENT == 0 {
            return Entry::Empty;
        }
        let address = PhysAddr::new(entry & ADDRESS);
        if level > LARGEST_LEAF_LEVEL || level > 1 && entry & Self::PAGE_SIZE == 0 {
            return Entry::Table(address);
        }
        let mut permissions = Permissions::empty();
        permissions.set(Permissions::READ, entry & READ != 0);
        permissions.set(Permissions::WRITE, entry & WRITE != 0);
        Entry::Leaf { target: address, permissions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_bits_of_the_specification() {
        let target = PhysAddr::new(0x1_2340_0000);
        let rights = |bits| Permissions::from_bits_truncate(bits);
        assert_eq!(SecondStage::leaf(target, rights(1), 1), 0x1_2340_0001);
        assert_eq!(SecondStage::leaf(target, rights(2), 1), 0x1_2340_0002);
        assert_eq!(SecondStage::leaf(target, rights(3), 2), 0x1_2340_0083);
        assert_eq!(SecondStage::leaf(PhysAddr::new(1 << 30), rights(3), 3), 0x4000_0083);
        assert_eq!(SecondStage::table(target), 0x1_2340_0003);
    }

    #[test]
    fn decoding_is_the_inverse_and_ignores_what_hardware_ignores() {
        let target = PhysAddr::new(0x000F_FFFF_C000_0000);
        for level in 1..=3 {
            for bits in 1..=3 {
                let permissions = Permissions::from_bits_truncate(bits);
                let entry = SecondStage::leaf(target, permissions, level);
                let ignored = 1 << 63 | 0x3FF << 52 | 1 << 10 | 3 << 8;
                assert_eq!(SecondStage::decode(entry | ignored, level), Entry::Leaf { target, permissions });
            }
        }
        for (level, below) in [(2, 4096), (3, 2 << 20)] {
            let leaf = SecondStage::leaf(PhysAddr::new(1 << 30), Permissions::READ, level)
                | SecondStage::SNOOP
                | 3 << 8;
            let part = SecondStage::part(leaf, level, 5);
            let kept = SecondStage::SNOOP | 3 << 8 | 1;
            assert_eq!(part, ((1 << 30) + 5 * below) | kept | u64::from(level == 3) << 7);
        }
        let other = SecondStage::with_permissions(1 << 30 | 3 << 8 | 0x881, Permissions::WRITE);
        assert_eq!(other, 1 << 30 | 3 << 8 | 0x882, "nothing but the rights");
        assert_eq!(SecondStage::decode(SecondStage::table(target), 4), Entry::Table(target));
        assert_eq!(SecondStage::decode(!(READ | WRITE), 2), Entry::Empty, "no right, nothing present");
    }
}
