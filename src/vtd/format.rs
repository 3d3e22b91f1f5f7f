//! Owns what every entry format has in common, so that one walk serves them all.

use crate::PhysAddr;

bitflags::bitflags! {
    /// What a device may do with a page.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Permissions: u8 {
        /// The device may read.
        const READ = 1 << 0;
        /// The device may write.
        const WRITE = 1 << 1;
    }
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing is mapped.
    Empty,
    /// A page, of the size of its level.
    Leaf {
        /// Where the page starts.
        target: PhysAddr,
        /// What the device may do.
        permissions: Permissions,
    },
    /// The table of the level below.
    Table(PhysAddr),
}

/// A format of page-table entries: pure functions between meanings and words of 64 bits.
///
/// An empty entry is zero in every format. Sealed: the walk relies on what a format says.
pub trait Format: sealed::Sealed + 'static {
    /// A table has 2 to this power entries.
    #[doc(hidden)]
    const INDEX_BITS: u32;

    /// The entry for a page at `level`.
    #[doc(hidden)]
    fn leaf(target: PhysAddr, permissions: Permissions, level: u32) -> u64;

    /// The entry for the table `table` of the level below.
    #[doc(hidden)]
    fn table(table: PhysAddr) -> u64;

    /// What an entry at `level` says.
    #[doc(hidden)]
    fn decode(entry: u64, level: u32) -> Entry;
}

pub(crate) mod sealed {
    pub trait Sealed {}
}
