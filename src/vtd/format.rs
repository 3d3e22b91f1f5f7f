//! Owns what every entry format has in common, so that one walk serves them all.

use super::{
    Invalidation, MapOutcome, TableFrames,
    bits::ADDRESS,
    error::PermissionsError,
    width::{PAGE, shift},
};
use crate::PhysAddr;

/// Which of the two translations of VT-d the tables are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Addresses of a process, as the processor has them; in scalable mode only (VT-d specification, section 3.6).
    First,
    /// Addresses of a guest or of a device (section 3.7).
    Second,
}

impl Stage {
    /// How many of the address bits that the levels translate are the sign, which a domain leaves 0.
    pub(crate) const fn sign_bits(self) -> u8 {
        match self {
            Self::First => 1,
            Self::Second => 0,
        }
    }

    /// Refuses rights that no leaf can give.
    #[inline(always)]
    pub(crate) fn check_permissions(self, permissions: Permissions) -> Result<(), PermissionsError> {
        match self {
            _ if permissions.is_empty() => Err(PermissionsError::None),
            Self::First if !permissions.contains(Permissions::READ) => Err(PermissionsError::WriteOnly),
            Self::First | Self::Second => Ok(()),
        }
    }
}

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

/// Software's bit in an entry that names a table: its line was flushed after it was written (`tables.rs`). Hardware ignores bits
/// 52 to 61 of every entry of both formats.
pub(crate) const FLUSHED: u64 = 1 << 52;

/// Software's bit in an entry that names a table: the table was found empty (`reclaim.rs`).
pub(crate) const IDLE: u64 = 1 << 53;

/// Software's bit in an entry that names a table: the table stays although nothing is mapped in it (`preallocate.rs`).
pub(crate) const KEPT: u64 = 1 << 54;

/// Software's bit in an entry that hardware sees as not present: it still names a table, which was parted (`reclaim.rs`).
const PARTED: u64 = 1 << 4;

/// The entry, not present in any format, that names the parted table `table`.
pub(crate) const fn parting(table: PhysAddr) -> u64 {
    table.as_u64() | PARTED
}

/// The parted table that `entry`, which is not present, names.
pub(crate) const fn parted(entry: u64) -> Option<PhysAddr> {
    if entry & (PAGE - 1) == PARTED { Some(PhysAddr::new(entry & ADDRESS)) } else { None }
}

/// The table that `entry` of `level` names, whether hardware sees it or not.
pub(crate) fn named_table<F: Format>(entry: u64, level: u32) -> Option<PhysAddr> {
    match F::decode(entry, level) {
        Entry::Table(table) => Some(table),
        Entry::Empty => parted(entry),
        Entry::Leaf { .. } => None,
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

    /// The translation that hardware does with the tables.
    const STAGE: Stage;

    /// An entry is present if any of these bits is set.
    #[doc(hidden)]
    const PRESENT: u64;

    /// The bit that makes an entry above level 1 a leaf.
    #[doc(hidden)]
    const PAGE_SIZE: u64;

    /// The bit of a leaf that makes hardware snoop the processor's caches when the page is accessed, 0 if there is none.
    #[doc(hidden)]
    const SNOOP: u64;

    /// The bit of an entry that hardware sets when it uses the entry (A).
    #[doc(hidden)]
    const ACCESSED: u64;

    /// The bit of a leaf that hardware sets when it writes through the leaf (D).
    #[doc(hidden)]
    const DIRTY: u64;

    /// Whether units are told of new mappings too.
    #[doc(hidden)]
    const TELLS_MAPS: bool;

    /// What [`map`](super::Domain::map) leaves to be done: nothing, or with [`CachingMode`](super::CachingMode) an
    /// [`Invalidation`].
    type Mapped<'d, A: TableFrames + 'd>: MapOutcome<'d, A>;

    /// What a map leaves to be done.
    #[doc(hidden)]
    fn mapped<'d, A: TableFrames + 'd>(
        invalidation: impl FnOnce() -> Invalidation<'d, A>,
    ) -> Self::Mapped<'d, A>;

    /// The entry for a page at `level`.
    #[doc(hidden)]
    fn leaf(target: PhysAddr, permissions: Permissions, level: u32) -> u64;

    /// The leaf `leaf` with other rights, and all else as it is.
    #[doc(hidden)]
    fn with_permissions(leaf: u64, permissions: Permissions) -> u64;

    /// The entry for the table `table` of the level below.
    #[doc(hidden)]
    fn table(table: PhysAddr) -> u64;

    /// The entry one level below that maps part `index` of the large leaf `leaf` at `level`, with all its other bits.
    ///
    /// The leaf's address ends in zeros where the index goes, unless somebody else has written it.
    #[doc(hidden)]
    #[inline(always)]
    fn part(leaf: u64, level: u32, index: u64) -> u64 {
        let large = if level == 2 { Self::PAGE_SIZE } else { 0 };
        leaf & !large | index << shift(level - 1, Self::INDEX_BITS)
    }

    /// What an entry at `level` says.
    #[doc(hidden)]
    fn decode(entry: u64, level: u32) -> Entry;
}

pub(crate) mod sealed {
    /// Implemented here only.
    pub trait Sealed {}
}
