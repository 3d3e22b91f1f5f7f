//! Owns the first-stage entry format, bit by bit: that of the processor's own tables (VT-d specification, "First-Stage Paging
//! Entries", section 9.7).
//!
//! ```text
//!   63 | 62 ... 52 | 51 ........... 12 | 11 .. 8 | 7  | 6 | 5 | 4 | 3 | 2  | 1  | 0
//!   XD |     -     | target or table   |    -    | PS | D | A | 0 | 0 | US | RW | P
//! ```
//! What is present can be read, so there is no page that is only writable. US is set everywhere, since devices send requests with
//! the rights of a user unless they ask otherwise. PS makes an entry of level 2 or 3 a leaf; in level 1 it selects a memory type and
//! stays 0. XD stays 0: only requests to execute heed it, and it is reserved where a PASID entry does not enable it.
//!
//! Hardware sets A in every entry that it uses and D in every leaf that it writes through, by an atomic access that needs
//! coherent memory. A, and D in writable leaves, are therefore set from the start; they say something only after
//! software has cleared them.
//!
//! Addresses are sign-extended. A domain maps the half without the sign, so its width is one bit less than the levels translate.

use super::{
    Invalidation, TableFrames,
    bits::{ADDRESS, address},
    format::{Entry, Format, Permissions, Stage, sealed},
};
use crate::PhysAddr;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// The highest level at which PS has a meaning: leaves of 1 GiB.
const LARGEST_LEAF_LEVEL: u32 = 3;

/// The first-stage format: what the hardware walks in scalable mode for requests of a process, or of a device whose PASID entry says
/// so.
#[derive(Clone, Copy, Debug)]
pub struct FirstStage;

impl sealed::Sealed for FirstStage {}

impl Format for FirstStage {
    const INDEX_BITS: u32 = 9;
    const STAGE: Stage = Stage::First;
    const PRESENT: u64 = PRESENT;
    const PAGE_SIZE: u64 = 1 << 7;
    const SNOOP: u64 = 0;
    const ACCESSED: u64 = ACCESSED;
    const DIRTY: u64 = DIRTY;
    const TELLS_MAPS: bool = false;
    type Mapped<'d, A: TableFrames + 'd> = ();

    fn mapped<'d, A: TableFrames + 'd>(_: impl FnOnce() -> Invalidation<'d, A>) {}

    #[inline(always)]
    fn leaf(target: PhysAddr, permissions: Permissions, level: u32) -> u64 {
        let write = if permissions.contains(Permissions::WRITE) { WRITE | DIRTY } else { 0 };
        let large = if level > 1 { Self::PAGE_SIZE } else { 0 };
        target.as_u64() & ADDRESS | large | write | ACCESSED | USER | PRESENT
    }

    /// What becomes writable is dirty from the start, as in [`leaf`](Self::leaf).
    #[inline(always)]
    fn with_permissions(leaf: u64, permissions: Permissions) -> u64 {
        match permissions.contains(Permissions::WRITE) {
            true if leaf & WRITE == 0 => leaf | WRITE | DIRTY,
            true => leaf,
            false => leaf & !WRITE,
        }
    }

    #[inline(always)]
    fn table(table: PhysAddr) -> u64 {
        table.as_u64() & ADDRESS | ACCESSED | USER | WRITE | PRESENT
    }

    #[inline(always)]
    fn decode(entry: u64, level: u32) -> Entry {
        if entry & PRESENT == 0 {
            return Entry::Empty;
        }
        if level > LARGEST_LEAF_LEVEL || level > 1 && entry & Self::PAGE_SIZE == 0 {
            return Entry::Table(address(entry));
        }
        let mut permissions = Permissions::READ;
        permissions.set(Permissions::WRITE, entry & WRITE != 0);
        Entry::Leaf { target: address(entry), permissions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_bits_of_the_specification() {
        let target = PhysAddr::new(0x1_2340_0000);
        assert_eq!(FirstStage::leaf(target, Permissions::READ, 1), 0x1_2340_0025);
        assert_eq!(FirstStage::leaf(target, Permissions::all(), 1), 0x1_2340_0067);
        assert_eq!(FirstStage::leaf(target, Permissions::READ, 2), 0x1_2340_00A5);
        assert_eq!(FirstStage::leaf(PhysAddr::new(1 << 30), Permissions::all(), 3), 0x4000_00E7);
        assert_eq!(FirstStage::table(target), 0x1_2340_0027);
    }

    #[test]
    fn decoding_is_the_inverse_and_ignores_what_hardware_ignores() {
        let target = PhysAddr::new(0x000F_FFFF_C000_0000);
        for level in 1..=3 {
            for permissions in [Permissions::READ, Permissions::all()] {
                let entry = FirstStage::leaf(target, permissions, level);
                let ignored = 0xFFF << 52 | 0xF << 8;
                assert_eq!(FirstStage::decode(entry | ignored, level), Entry::Leaf { target, permissions });
                // The processor clears and sets these.
                let used = entry & !(ACCESSED | DIRTY);
                assert_eq!(FirstStage::decode(used, level), Entry::Leaf { target, permissions });
            }
        }
        let leaf = FirstStage::leaf(target, Permissions::all(), 2) & !(ACCESSED | DIRTY);
        let shrunk = FirstStage::with_permissions(leaf, Permissions::READ);
        assert_eq!(shrunk, leaf & !WRITE);
        assert_eq!(FirstStage::with_permissions(leaf, Permissions::all()), leaf, "nothing has changed");
        assert_eq!(FirstStage::with_permissions(shrunk, Permissions::all()), leaf | DIRTY);
        assert_eq!(FirstStage::decode(FirstStage::table(target), 4), Entry::Table(target));
        assert_eq!(FirstStage::decode(!PRESENT, 2), Entry::Empty);
    }

    #[test]
    fn a_part_of_a_leaf_says_what_the_leaf_said() {
        for (level, below) in [(2, 4096), (3, 2 << 20)] {
            let leaf = FirstStage::leaf(PhysAddr::new(1 << 30), Permissions::READ, level);
            let expected =
                FirstStage::leaf(PhysAddr::new((1 << 30) + 511 * below), Permissions::READ, level - 1);
            assert_eq!(FirstStage::part(leaf, level, 511), expected);
            assert_eq!(FirstStage::part(leaf & !ACCESSED, level, 511), expected & !ACCESSED);
        }
    }
}
