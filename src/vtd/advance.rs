//! Owns the frames that a change takes before it writes anything, so that it cannot fail later (INV-11): asks the allocator, all or
//! nothing.
//!
//! A table of which entries stay empty must be zeroed. One that a map writes as a whole before it links it need not be: whatever its frame
//! has held is overwritten, and nobody clears two megabytes to map a gigabyte.

use super::{Domain, Format, TableFrames, TooFewFrames, error::AdvanceError, frame_list::FrameList};
use crate::PhysAddr;

/// How many frames are missing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Missing {
    /// For tables of which a part stays empty.
    pub(crate) zeroed: u64,
    /// For tables of the last level that are written as a whole.
    pub(crate) whole: u64,
}

impl Missing {
    pub(crate) const fn total(self) -> u64 {
        self.zeroed + self.whole
    }
}

/// The frames of one map. What is left must be [given back](Domain::give_back).
#[must_use]
#[derive(Debug)]
pub(crate) struct Advance {
    pub(crate) zeroed: FrameList,
    /// Of any content.
    pub(crate) any: FrameList,
}

impl From<FrameList> for Advance {
    fn from(zeroed: FrameList) -> Self {
        Self { zeroed, any: FrameList::new() }
    }
}

impl<F: Format, A: TableFrames> Domain<F, A> {
    /// Takes `count` zeroed frames, or none.
    pub(crate) fn advance(&self, count: u64) -> Result<FrameList, AdvanceError> {
        if count == 0 {
            return Ok(FrameList::new());
        }
        self.gather(|each| self.tables().frames.allocate_all(count, each))
    }

    /// Takes all that are missing, or none.
    pub(crate) fn advance_all(&self, missing: Missing) -> Result<Advance, AdvanceError> {
        let zeroed = self.advance(missing.zeroed).map_err(|error| match error {
            AdvanceError::OutOfFrames { missing: zeroed } => {
                AdvanceError::OutOfFrames { missing: zeroed.saturating_add(missing.whole) }
            }
            AdvanceError::FrameBeyondWidth { .. } => error,
        })?;
        if missing.whole == 0 {
            return Ok(zeroed.into());
        }
        match self.gather(|each| self.tables().frames.allocate_any(missing.whole, each)) {
            Ok(any) => Ok(Advance { zeroed, any }),
            Err(error) => {
                self.tables().give_back(zeroed);
                Err(error)
            }
        }
    }

    /// Gives back what was not needed.
    pub(crate) fn give_back(&self, unused: Advance) {
        self.tables().give_back(unused.zeroed);
        self.tables().give_back_any(unused.any);
    }

    /// Gathers the frames that `take` hands out, if hardware can address them all.
    pub(crate) fn gather(
        &self,
        take: impl FnOnce(&mut dyn FnMut(PhysAddr)) -> Result<(), TooFewFrames>,
    ) -> Result<FrameList, AdvanceError> {
        let frames = &self.tables().frames;
        let width = self.config().host_address_width;
        let mut list = FrameList::new();
        let mut beyond = None;
        take(&mut |frame| {
            if frame.as_u64() >> width != 0 {
                beyond = Some(frame);
            }
            list.push(frames, frame);
        })?;
        if let Some(frame) = beyond {
            self.tables().give_back_any(list);
            return Err(AdvanceError::FrameBeyondWidth { frame });
        }
        Ok(list)
    }
}
