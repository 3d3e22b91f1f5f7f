//! Owns what an unmap leaves to be done: the ranges that hardware must be told to forget, and the table frames that it may still
//! be walking. Only the word that this is done gives the frames back (INV-10).

use super::{
    TableFrames,
    frame_list::FrameList,
    tables::Tables,
    width::{Iova, Span},
};
use core::{fmt, mem};

/// How many ranges are kept apart; with more of them the whole domain is invalidated, which is cheaper by then.
const RANGES: usize = 8;

/// A range of IOVA that hardware may have cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IovaRange {
    /// The first address.
    pub start: Iova,
    /// The length in bytes, a multiple of 4 KiB.
    pub length: u64,
}

/// What hardware must forget before the unmapped pages and the table frames in here may be used again.
///
/// Order of a caller (VT-d specification, section 6.5): flush the changed lines if the unit does not snoop, submit
/// invalidations for [`ranges`](Self::ranges) (or the whole domain), wait for their completion on every unit that the domain is
/// attached to, then [`complete`](Self::complete).
///
/// Dropping it instead leaks the table frames on purpose and reports it through [`TableFrames::leaked`]: a frame that hardware
/// may still walk must not be used again.
#[must_use = "hardware must be told, and the table frames come back only through `complete`"]
pub struct Invalidation<'d, A: TableFrames> {
    tables: &'d Tables<A>,
    ranges: [Option<Span>; RANGES],
    whole_domain: bool,
    leaf_only: bool,
    detached: FrameList,
}

impl<'d, A: TableFrames> Invalidation<'d, A> {
    pub(crate) fn of(tables: &'d Tables<A>, span: Span) -> Self {
        let mut ranges = [None; RANGES];
        if let Some(first) = ranges.first_mut() {
            *first = Some(span);
        }
        Self { tables, ranges, whole_domain: false, leaf_only: true, detached: FrameList::new() }
    }

    /// Adds `span`, in which entries that name tables changed.
    pub(crate) fn cover_tables(&mut self, span: Span) {
        self.leaf_only = false;
        self.cover(span);
    }

    fn cover(&mut self, span: Span) {
        for range in &mut self.ranges {
            match range {
                Some(known) if known.start <= span.end && span.start <= known.end => {
                    *known = Span { start: known.start.min(span.start), end: known.end.max(span.end) };
                    return;
                }
                Some(_) => {}
                None => {
                    *range = Some(span);
                    return;
                }
            }
        }
        self.whole_domain = true;
    }

    pub(crate) fn take_frames(&mut self, detached: FrameList) {
        self.detached.append(&self.tables.frames, detached);
    }

    /// Whether all of the domain must be invalidated, because there were too many ranges to keep apart.
    pub fn is_whole_domain(&self) -> bool {
        self.whole_domain
    }

    /// The ranges to invalidate, in no order; meaningless when the whole domain must be.
    pub fn ranges(&self) -> impl Iterator<Item = IovaRange> + '_ {
        self.ranges
            .iter()
            .flatten()
            .map(|span| IovaRange { start: Iova::new(span.start), length: span.length() })
    }

    /// Whether only entries of pages changed, none that names a table: the invalidation hint (IH) of a page-selective
    /// invalidation may then be 1.
    pub fn leaf_only(&self) -> bool {
        self.leaf_only
    }

    /// How many table frames wait in here.
    pub fn table_frames(&self) -> u64 {
        self.detached.count()
    }

    /// Takes over what `other` leaves to be done, for one invalidation instead of two. From the contexts of `unmap`; constant
    /// time.
    ///
    /// # Errors
    /// `other` comes back if it is of another domain.
    #[allow(clippy::result_large_err, reason = "the value itself comes back, and there is no heap to box it")]
    pub fn merge(&mut self, mut other: Self) -> Result<(), Self> {
        if !core::ptr::eq(self.tables, other.tables) {
            return Err(other);
        }
        for span in other.ranges.into_iter().flatten() {
            self.cover(span);
        }
        self.whole_domain |= other.whole_domain;
        self.leaf_only &= other.leaf_only;
        let detached = mem::replace(&mut other.detached, FrameList::new());
        self.take_frames(detached);
        Ok(())
    }

    /// Gives the table frames back: the invalidation is complete. Frames that another call may be reading at this moment come back
    /// with a later completion, or with [`maintain`](super::Domain::maintain).
    ///
    /// From thread and interrupt context, not from an NMI; the bound is a free for each table frame that waits.
    ///
    /// # Safety
    /// Every unit that the domain is attached to has confirmed that it has forgotten the ranges (or the whole domain), non-leaf
    /// entries included unless [`leaf_only`](Self::leaf_only); nothing walks the detached tables any more.
    pub unsafe fn complete(mut self) {
        let detached = mem::replace(&mut self.detached, FrameList::new());
        self.tables.retire(detached);
    }
}

impl<A: TableFrames> Drop for Invalidation<'_, A> {
    fn drop(&mut self) {
        if self.detached.count() > 0 {
            self.tables.frames.leaked(self.detached.count());
        }
    }
}

impl<A: TableFrames> fmt::Debug for Invalidation<'_, A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Invalidation")
            .field("ranges", &self.ranges)
            .field("whole_domain", &self.whole_domain)
            .field("leaf_only", &self.leaf_only)
            .field("table_frames", &self.detached.count())
            .finish()
    }
}
