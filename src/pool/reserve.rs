//! Tier 4: the frames below `min`, for the Critical class alone; what it gave out it gets back first.
//!
//! While the reserve lacks frames, the next frame that is freed, by whomever, goes into it and not into a cache, where an ordinary
//! caller could take it (INV-5). How many it lacks stands in the word that every free reads (`raw/wanted.rs`).
//!
//! | event | order |
//! |---|---|
//! | Take | takes a frame out of a cell, which is vacant then; one more is missing |
//! | Put | one fewer is missing, if one was: a ticket; puts the frame into a vacant cell |
//!
//! Cells are vacant before they are missed, so there are at least as many vacant cells as missing frames and tickets
//! together: a ticket always finds a cell. When nothing is in progress, the reserve's frames and the missing ones add up to `min`.

use crate::raw::{
    cells::Cells,
    magazine::{FrameNumber, Kind},
    stack::TaggedStack,
    wanted::Wanted,
};
use crossbeam_utils::CachePadded;

/// The frames kept for the path that frees memory.
#[derive(Debug)]
pub(crate) struct Reserve {
    filled: CachePadded<TaggedStack>,
    target: u32,
}

impl Reserve {
    /// An empty reserve that shall hold `target` frames, for which there are `cells`, and lacks them all.
    pub(crate) fn new(cells: &Cells, target: u32) -> Self {
        Self { filled: CachePadded::new(cells.owner()), target }
    }

    /// How many frames it should hold.
    pub(crate) fn target(&self) -> u32 {
        self.target
    }

    /// Takes a frame, which is missing then. Lock-free.
    pub(crate) fn take(&self, cells: &Cells, wanted: &Wanted) -> Option<(FrameNumber, Kind)> {
        let taken = cells.take(&self.filled)?;
        wanted.add_missing();
        Some(taken)
    }

    /// Puts a frame in, or gives it back when nothing is missing. Lock-free.
    pub(crate) fn put(
        &self,
        cells: &Cells,
        wanted: &Wanted,
        kind: Kind,
        frame: FrameNumber,
    ) -> Result<(), FrameNumber> {
        if wanted.fill_missing() { cells.put(&self.filled, kind, frame) } else { Err(frame) }
    }
}
