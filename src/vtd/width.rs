//! Owns the arithmetic of addresses, levels and page sizes; knows neither entries nor memory.

use core::{fmt, ops::Range};

/// The size of a table and of the smallest page, in bytes.
pub(crate) const PAGE: u64 = 4096;
pub(crate) const PAGE_SHIFT: u32 = PAGE.trailing_zeros();

/// The addresses whose writes are interrupts, in bytes (VT-d specification, section 3.14, "Handling Requests to Interrupt Address Range").
///
/// *As a target:* a translation that leads there is undefined or blocked, in small leaves as in large ones, and a large leaf over it can
/// make all that it covers unusable. Every map refuses it.
///
/// *As an IOVA:* a request without a PASID is not translated there, whatever is mapped; one with a PASID is, as everywhere. So a mapping
/// may lie over it, and does no harm; but whoever hands out IOVA leaves it out, as a [`DmaWindow`](super::DmaWindow) does: what a device
/// writes there arrives as an interrupt.
///
/// ```
/// assert!(framepool::vtd::INTERRUPT_RANGE.contains(&0xFEE0_1000));
/// ```
pub const INTERRUPT_RANGE: Range<u64> = 0xFEE0_0000..0xFEF0_0000;

/// The same.
pub(crate) const INTERRUPTS: Span = Span { start: INTERRUPT_RANGE.start, end: INTERRUPT_RANGE.end };

/// An address as the device sends it, in bytes.
///
/// ```
/// use framepool::vtd::Iova;
/// assert_eq!(Iova::new(0x1000).as_u64(), 4096);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Iova(u64);

impl Iova {
    /// The address `address`, in bytes.
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// This address in bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for Iova {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Iova({:#x})", self.0)
    }
}

impl fmt::Display for Iova {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:#x}", self.0)
    }
}

/// How many levels of tables a domain has (VT-d specification, CAP_REG.SAGAW and the AW field of the context entry).
///
/// ```
/// use framepool::vtd::Levels;
/// assert_eq!((Levels::Four.count(), Levels::Four.address_width()), (4, 48));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Levels {
    /// 39 bits of address.
    Three,
    /// 48 bits of address.
    Four,
    /// 57 bits of address.
    Five,
}

impl Levels {
    /// The number of levels.
    pub const fn count(self) -> u32 {
        match self {
            Self::Three => 3,
            Self::Four => 4,
            Self::Five => 5,
        }
    }

    /// How many bits of address that many levels translate.
    pub const fn address_width(self) -> u8 {
        (PAGE_SHIFT + 9 * self.count()) as u8
    }
}

bitflags::bitflags! {
    /// The sizes of large leaves that the hardware takes (CAP_REG.SLLPS); leaves of 4 KiB always work.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PageSizes: u8 {
        /// 2 MiB, at level 2.
        const SIZE_2M = 1 << 0;
        /// 1 GiB, at level 3.
        const SIZE_1G = 1 << 1;
    }
}

impl PageSizes {
    /// Whether a leaf may stand at `level`.
    pub(crate) const fn allow(self, level: u32) -> bool {
        match level {
            1 => true,
            2 => self.contains(Self::SIZE_2M),
            3 => self.contains(Self::SIZE_1G),
            _ => false,
        }
    }
}

/// The bits of an address below an entry at `level`, with tables of 2^`index_bits` entries.
pub(crate) const fn shift(level: u32, index_bits: u32) -> u32 {
    PAGE_SHIFT + index_bits * (level - 1)
}

/// How many bytes an entry at `level` covers.
pub(crate) const fn size(level: u32, index_bits: u32) -> u64 {
    1 << shift(level, index_bits)
}

/// A range of IOVA, never empty, within the address width: `end` is not in it and does not overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Span {
    pub(crate) const fn length(self) -> u64 {
        self.end - self.start
    }

    /// Whether the two have an address in common.
    pub(crate) const fn meets(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// What of this range is before `hole`, and what is behind it; either may have no addresses.
    pub(crate) const fn without(self, hole: Self) -> (Self, Self) {
        let end = if self.end < hole.start { self.end } else { hole.start };
        let start = if self.start > hole.end { self.start } else { hole.end };
        let before = Self { start: self.start, end: if end > self.start { end } else { self.start } };
        (before, Self { start, end: if self.end > start { self.end } else { start } })
    }

    /// The part of this range that the first entry of `size` bytes covers.
    pub(crate) const fn first(self, size: u64) -> Self {
        let boundary = (self.start | (size - 1)) + 1;
        Self { start: self.start, end: if boundary < self.end { boundary } else { self.end } }
    }

    /// The whole entry of `size` bytes around the start of this range.
    pub(crate) const fn around(self, size: u64) -> Self {
        let start = self.start & !(size - 1);
        Self { start, end: start + size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_sizes_are_those_of_the_specification() {
        assert_eq!([Levels::Three, Levels::Four, Levels::Five].map(Levels::address_width), [39, 48, 57]);
        assert_eq!([1, 2, 3, 4, 5].map(|level| shift(level, 9)), [12, 21, 30, 39, 48]);
        assert!(!PageSizes::all().allow(4) && !PageSizes::empty().allow(2) && PageSizes::empty().allow(1));
    }

    #[test]
    fn a_range_falls_into_entries() {
        let span = Span { start: 0x1F_F000, end: 0x40_1000 };
        assert_eq!(span.first(0x20_0000), Span { start: 0x1F_F000, end: 0x20_0000 });
        assert_eq!(span.first(1 << 30), span);
        assert_eq!(span.around(0x20_0000), Span { start: 0, end: 0x20_0000 });
    }
}
