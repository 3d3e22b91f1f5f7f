//! Owns the answer to where each page of a map goes: on from one address, or as a list says.

use super::width::{PAGE, Span};
use crate::PhysAddr;

/// Where the pages of a range go.
pub(crate) trait Targets: Copy {
    /// Whether each page goes right behind the one before.
    const IN_A_ROW: bool;

    /// Where the page at `iova` goes.
    fn at(&self, iova: u64) -> PhysAddr;

    /// Whether `part`, which is aligned to its length, goes to one piece of memory that is aligned so too.
    fn is_aligned_piece(&self, part: Span) -> bool;
}

/// To one piece of memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// The difference from an IOVA to its target.
    pub(crate) distance: u64,
}

impl Targets for Piece {
    const IN_A_ROW: bool = true;

    #[inline(always)]
    fn at(&self, iova: u64) -> PhysAddr {
        PhysAddr::new(iova.wrapping_add(self.distance))
    }

    #[inline(always)]
    fn is_aligned_piece(&self, part: Span) -> bool {
        self.distance & (part.length() - 1) == 0
    }
}

/// Each page to one of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scattered<'p> {
    /// The range's first address.
    pub(crate) start: u64,
    pub(crate) pages: &'p [PhysAddr],
}

impl Scattered<'_> {
    /// The pages from `iova` on.
    fn from(&self, iova: u64) -> &[PhysAddr] {
        self.pages.get(((iova - self.start) / PAGE) as usize..).unwrap_or_default()
    }
}

impl Targets for Scattered<'_> {
    const IN_A_ROW: bool = false;

    #[inline(always)]
    fn at(&self, iova: u64) -> PhysAddr {
        // The range is as long as the list.
        self.from(iova).first().copied().unwrap_or_default()
    }

    /// Bound: the pages of `part`.
    fn is_aligned_piece(&self, part: Span) -> bool {
        let first = self.at(part.start);
        let pages = self.from(part.start).iter().take((part.length() / PAGE) as usize);
        first.is_aligned(part.length())
            && pages.zip(0..).all(|(page, number)| page.as_u64() == first.as_u64() + number * PAGE)
    }
}
