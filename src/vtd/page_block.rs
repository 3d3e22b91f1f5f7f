//! Owns the arithmetic of page-selective invalidation: hardware forgets naturally aligned blocks of 2^AM pages, up to a largest
//! AM, so a range has to be cut into such blocks, or widened to one (VT-d specification, sections 6.5.2.3 and 11.4.8.2).
//!
//! A large leaf is cached as one, so the block that names it must not be smaller: AM is 9 or more for 2 MiB, 18 or more for
//! 1 GiB. Naturally aligned blocks either contain each other or have nothing in common. The cut takes the largest block that
//! starts where the one before has ended and stays in the range; hence it never cuts a leaf that lies in the range as a whole,
//! unless the largest AM is less than the leaf's own. [`Selection::of`] invalidates the whole domain then.

use super::{
    invalidation::IovaRange,
    width::{Iova, PAGE},
};

const PAGE_SHIFT: u32 = PAGE.trailing_zeros();
/// 2 to this power of pages are all addresses.
const MASK_MOST: u8 = (u64::BITS - PAGE_SHIFT) as u8;

/// A naturally aligned block of 2 to the power of `mask` pages.
///
/// ```
/// use framepool::vtd::{Iova, PageBlock};
/// let block = PageBlock::new(Iova::new(0x20_0000), 9).unwrap();
/// assert!(block.contains(Iova::new(0x3F_FFFF)) && !block.contains(Iova::new(0x40_0000)));
/// assert_eq!(PageBlock::new(Iova::new(0x10_0000), 9), None, "not aligned to 2 MiB");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageBlock {
    start: Iova,
    mask: u8,
}

impl PageBlock {
    /// All addresses.
    pub const ALL: Self = Self { start: Iova::new(0), mask: MASK_MOST };

    /// The block of 2 to the power of `mask` pages (0 to 52) at `start`; nothing if that is not a multiple of its size.
    pub const fn new(start: Iova, mask: u8) -> Option<Self> {
        let whole = Self::around(start, mask);
        if mask <= MASK_MOST && whole.start.as_u64() == start.as_u64() { Some(whole) } else { None }
    }

    /// The block of 2 to the power of `mask` pages in which `address` lies.
    const fn around(address: Iova, mask: u8) -> Self {
        Self { start: Iova::new(address.as_u64() & !Self::last_offset(mask)), mask }
    }

    /// The least block with all addresses from `first` to `last` and no fewer than the 2^`mask` pages that a leaf table translates: tables are
    /// what a walk is asked about, and most walks are in one of them, which costs no search for the highest bit.
    #[inline(always)]
    pub(crate) const fn reaching(first: u64, last: u64, mask: u8) -> Self {
        if first ^ last <= Self::last_offset(mask) {
            return Self::around(Iova::new(first), mask);
        }
        Self::covering(IovaRange { start: Iova::new(first), length: (last - first).wrapping_add(1) })
    }

    /// The smallest block that contains all of `range`, which is not empty and does not wrap around. It can be much larger: two
    /// pages on both sides of a gibibyte's border take two gibibytes at least.
    pub const fn covering(range: IovaRange) -> Self {
        let (first, last) =
            (range.start.as_u64(), range.start.as_u64().wrapping_add(range.length.wrapping_sub(1)));
        let differing = (first ^ last) >> PAGE_SHIFT;
        Self::around(range.start, (u64::BITS - differing.leading_zeros()) as u8)
    }

    /// The first address.
    pub const fn start(self) -> Iova {
        self.start
    }

    /// The address mask (AM): how many low bits of the page number hardware ignores.
    pub const fn mask(self) -> u8 {
        self.mask
    }

    /// Whether `address` is in the block.
    pub const fn contains(self, address: Iova) -> bool {
        (address.as_u64() ^ self.start.as_u64()) & !Self::last_offset(self.mask) == 0
    }

    /// The address of the last byte.
    pub const fn last(self) -> Iova {
        Iova::new(self.start.as_u64() | Self::last_offset(self.mask))
    }

    /// Whether both have an address in common: aligned blocks do if one contains the other.
    pub(crate) const fn meets(self, other: Self) -> bool {
        self.contains(other.start) || other.contains(self.start)
    }

    /// The block in one word: its start is a multiple of a page, so there is room for the mask.
    pub(crate) const fn to_word(self) -> u64 {
        self.start.as_u64() | self.mask as u64
    }

    /// The block of a word that [`to_word`](Self::to_word) gave.
    pub(crate) const fn from_word(word: u64) -> Self {
        Self { start: Iova::new(word & !(PAGE - 1)), mask: (word & (PAGE - 1)) as u8 }
    }

    /// The offset of the last byte of a block.
    const fn last_offset(mask: u8) -> u64 {
        if mask >= MASK_MOST { u64::MAX } else { (PAGE << mask) - 1 }
    }
}

/// The fewest blocks that cover a range exactly, in ascending order.
///
/// Any context; constant time for a step, and at most two blocks of each size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// The first page that is left.
    page: u64,
    /// The first page behind the range.
    end: u64,
    largest: u8,
}

impl Blocks {
    /// The blocks of `range`, a multiple of 4 KiB that does not wrap around, none of them with an address mask above `largest`.
    pub const fn new(range: IovaRange, largest: u8) -> Self {
        let page = range.start.as_u64() >> PAGE_SHIFT;
        Self { page, end: page + (range.length >> PAGE_SHIFT), largest }
    }
}

impl Iterator for Blocks {
    type Item = PageBlock;

    fn next(&mut self) -> Option<PageBlock> {
        let left = self.end.checked_sub(self.page)?.checked_ilog2()?;
        // Page number 0 is aligned to everything.
        let mask = self.page.trailing_zeros().min(left).min(self.largest.into());
        let start = Iova::new(self.page << PAGE_SHIFT);
        self.page += 1 << mask;
        Some(PageBlock { start, mask: mask as u8 })
    }
}

/// How to make hardware forget a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// By these blocks.
    Pages(Blocks),
    /// By all of the domain.
    Domain,
}

impl Selection {
    /// The cheapest way to make hardware forget `range`: its blocks, if they are no more than `most`; the one block around it, if
    /// hardware can do that; or the whole domain.
    ///
    /// `page_selective` is the unit's largest address mask, if it has page-selective invalidation
    /// ([`Capabilities::page_selective`](super::Capabilities::page_selective)). `leaf` is the address mask of the largest leaf in
    /// the range: 0, 9 or 18. Leaves lie in the range as a whole.
    ///
    /// Constant time for a given `most`, any context.
    ///
    /// ```
    /// use framepool::vtd::{Iova, IovaRange, PageBlock, Selection};
    /// let range = IovaRange { start: Iova::new(0x1000), length: 0x3000 };
    /// let Selection::Pages(blocks) = Selection::of(range, Some(9), 0, 4) else { panic!() };
    /// assert_eq!(blocks.map(PageBlock::mask).collect::<Vec<_>>(), [0, 1]);
    /// let Selection::Pages(mut blocks) = Selection::of(range, Some(9), 0, 1) else { panic!() };
    /// assert_eq!(blocks.next(), PageBlock::new(Iova::new(0), 2), "one that covers more");
    /// assert_eq!(Selection::of(range, None, 0, 4), Selection::Domain);
    /// ```
    pub fn of(range: IovaRange, page_selective: Option<u8>, leaf: u8, most: usize) -> Self {
        let Some(largest) = page_selective.filter(|&largest| largest >= leaf) else {
            return Self::Domain;
        };
        let blocks = Blocks::new(range, largest);
        if blocks.clone().take(most.saturating_add(1)).count() <= most {
            return Self::Pages(blocks);
        }
        let around = PageBlock::covering(range);
        if around.mask <= largest && most > 0 {
            let page = around.start.as_u64() >> PAGE_SHIFT;
            return Self::Pages(Blocks { page, end: page + (1 << around.mask), largest });
        }
        Self::Domain
    }
}
