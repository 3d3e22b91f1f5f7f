//! Tier 4: the hard reserve, for Critical callers; asks nobody.
//!
//! Only Critical callers take from here, and only when everything else is empty (R7). While the reserve lacks frames the
//! next frame that is freed, by anybody, goes into it and not into a cache, where an ordinary
//! caller could take it (INV-5). How many it lacks stands in the word that every free reads (`raw/wanted.rs`).
//!
//! | event | order |
//! |---|---|
//! | Take | one more is missing, if fewer than all were: a claim; takes a frame out of a cell, which is vacant then |
//! | Put | sees that one is missing; puts the frame into a vacant cell; one fewer is missing |
//! | Withdraw | the end of a Put when none is missing any more: takes a frame out of a cell again, for the caches |
//!
//! # Why a frame that counts is there
//! Let A be the Takes that have claimed and not taken yet, and P the Puts that have put and neither counted nor withdrawn. Each of
//! the steps above leaves
//! ```text
//! frames in cells = (target − missing) + A + P
//! ```
//! as it is. So the cells hold at least what the word says, and one more for each claim: a Take that has claimed finds
//! its frame, whoever is stopped wherever. A Withdraw is one of P and finds one too, its own or another. The claim
//! acquires what the counts before it released, hence sees their frames in the cells.
//!
//! # What is promised
//! A frame whose free has returned is in the reserve if one was missing when the free began and other frees did not fill the reserve
//! meanwhile; a free that is stopped in the middle keeps its own frame out and no other. So a Critical caller who gives back
//! what it took finds it again, or another in its place, whatever ordinary callers do and wherever they are stopped.
//!
//! # Cells
//! There are as many as the target and [`SPARE`] more for each CPU, for the Puts and Takes in progress. When they are not enough,
//! more operations than that are stopped in the middle, as may happen in user space; then a frame goes the way of all others,
//! and the worker, who is rung, brings one from the stock.

use crate::raw::{
    cells::Cells,
    magazine::{FrameNumber, Kind},
    stack::TaggedStack,
    wanted::Wanted,
};
use crossbeam_utils::CachePadded;

/// Cells beyond the target for each CPU: a thread, a soft and a hard interrupt, and an NMI, each with one operation in progress.
pub(crate) const SPARE: usize = 4;

/// The frames kept for the path that frees memory.
#[derive(Debug)]
pub(crate) struct Reserve {
    cells: Cells,
    filled: CachePadded<TaggedStack>,
    target: u32,
}

/// What a Put could not keep.
#[derive(Debug)]
pub(crate) enum NotKept {
    /// None is missing: the frame, or another in its place, and what is known about it.
    Full(Kind, FrameNumber),
    /// One is missing, and every cell is in the hands of an operation: the frame.
    NoCell(FrameNumber),
}

impl Reserve {
    /// An empty reserve that shall hold `target` frames, over cells of its own, and lacks them all.
    pub(crate) fn new(cells: Cells, target: u32) -> Self {
        Self { filled: CachePadded::new(cells.owner()), cells, target }
    }

    /// How many frames it should hold.
    pub(crate) fn target(&self) -> u32 {
        self.target
    }

    /// Shows `visit` the frames in the reserve, see [`Cells::frames`].
    pub(crate) fn census(&self, cells: &Cells, visit: impl FnMut((FrameNumber, Kind))) {
        cells.frames(&self.filled).for_each(visit);
    }

    /// Takes a frame, which is missing then. Lock-free.
    pub(crate) fn take(&self, wanted: &Wanted) -> Option<(FrameNumber, Kind)> {
        if wanted.claim_below(self.target) { self.cells.take(&self.filled) } else { None }
    }

    /// Puts a frame in, unless nothing is missing. Lock-free.
    // INV-1: who finds nothing to withdraw has nothing left in hand: its own frame is in a cell, or with whoever took it from there.
    pub(crate) fn put(&self, wanted: &Wanted, kind: Kind, frame: FrameNumber) -> Result<(), NotKept> {
        if wanted.missing() == 0 {
            return Err(NotKept::Full(kind, frame));
        }
        self.cells.put(&self.filled, kind, frame).map_err(NotKept::NoCell)?;
        if wanted.fill_missing() {
            return Ok(());
        }
        match self.cells.take(&self.filled) {
            Some((frame, kind)) => Err(NotKept::Full(kind, frame)),
            None => Ok(()),
        }
    }
}
