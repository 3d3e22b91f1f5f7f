//! Owns the tables of a domain that was taken apart, until hardware has let go of them.

use super::{TableFrames, frame_list::FrameList, tables::Tables};
use core::fmt;

/// The tables of a domain that was closed. Dropping it leaks them, reported through [`TableFrames::leaked`].
#[must_use = "the table frames come back only through `complete`"]
pub struct ClosedDomain<A: TableFrames> {
    tables: Tables<A>,
    list: FrameList,
}

impl<A: TableFrames> ClosedDomain<A> {
    pub(crate) fn new(tables: Tables<A>, list: FrameList) -> Self {
        Self { tables, list }
    }

    /// How many table frames wait in here, the root included.
    pub fn table_frames(&self) -> u64 {
        self.list.count()
    }

    /// Gives all table frames back. Contexts and bound as for [`Invalidation::complete`](super::Invalidation::complete).
    ///
    /// # Safety
    /// No context or PASID entry names the domain's root any more, and every unit has confirmed a domain-wide invalidation since
    /// then.
    pub unsafe fn complete(mut self) {
        self.tables.unlinked(self.list.count());
        while let Some(frame) = self.list.pop(&self.tables.frames) {
            // SAFETY: the frame came from this allocator and was a table of this domain, which the caller says hardware does not
            // walk any more; nobody else can, since the domain is gone.
            unsafe { self.tables.frames.free(frame) };
        }
    }
}

impl<A: TableFrames> fmt::Debug for ClosedDomain<A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ClosedDomain")
            .field("table_frames", &self.list.count())
            .finish_non_exhaustive()
    }
}
