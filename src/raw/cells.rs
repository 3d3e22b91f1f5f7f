//! Owns single frames in cells: the reserve's, and those that accounts keep for themselves. All cells of a pool are one array, the
//! reserve's the first part of it; which frames are whose says the stack on which a cell is.
//!
//! Single frames, not magazines: whoever is interrupted in here holds one frame, and hides no other from the interrupt.
//!
//! A cell is on the stack of the vacant ones, on one owner's stack, or in the hands of one operation. Each owner argues that it never
//! has more frames than it was promised cells, those in the hands of its operations included; so an owner that puts a frame finds a
//! vacant cell.

use super::{
    arena::Carved,
    magazine::{FrameNumber, Kind},
    stack::TaggedStack,
};
use crate::sync::atomic::{AtomicU64, Ordering};
use core::ops::Range;
use crossbeam_utils::CachePadded;

/// The bit of a cell's content that says that the frame is known to be zero.
const CLEAN: u64 = 1 << FrameNumber::BITS;

/// Cells that are vacant for the same owners.
#[derive(Debug)]
pub struct Cells {
    vacant: CachePadded<TaggedStack>,
    contents: Carved<AtomicU64>,
}

impl Cells {
    /// The vacant cells `cells` of `contents`, over `vacant`, an empty stack with a link for each of `contents`.
    pub fn new(vacant: TaggedStack, contents: Carved<AtomicU64>, cells: Range<u32>) -> Self {
        cells.for_each(|cell| vacant.push(cell));
        Self { vacant: CachePadded::new(vacant), contents }
    }

    /// The stack of a new owner, who has nothing yet.
    pub fn owner(&self) -> TaggedStack {
        self.vacant.sibling()
    }

    /// Takes a frame of the owner's, and what is known about it. Lock-free.
    pub fn take(&self, owner: &TaggedStack) -> Option<(FrameNumber, Kind)> {
        let cell = owner.pop()?;
        // Ordering: Relaxed; the Acquire of the pop made the cell's content visible, and the cell is ours alone.
        let content = self.contents.get(cell as usize)?.load(Ordering::Relaxed);
        self.vacant.push(cell);
        Some(taken_up(content))
    }

    /// The frames of the owner, and what is known about them, for the census: meaningless while somebody uses the stack.
    pub(crate) fn frames(&self, owner: &TaggedStack) -> impl Iterator<Item = (FrameNumber, Kind)> {
        owner.indices().filter_map(|cell| {
            // Ordering: Relaxed; as in `take`.
            Some(taken_up(self.contents.get(cell as usize)?.load(Ordering::Relaxed)))
        })
    }

    /// Puts a frame into a vacant cell of the owner's; it comes back if there is none. Lock-free.
    pub fn put(&self, owner: &TaggedStack, kind: Kind, frame: FrameNumber) -> Result<(), FrameNumber> {
        let Some(cell) = self.vacant.pop() else { return Err(frame) };
        if let Some(content) = self.contents.get(cell as usize) {
            let clean = if kind == Kind::Clean { CLEAN } else { 0 };
            // Ordering: Relaxed; published with the cell by the Release of the push below.
            content.store(u64::from(frame) | clean, Ordering::Relaxed);
        }
        owner.push(cell);
        Ok(())
    }
}

/// The frame that is the content of a cell, and what is known about it.
const fn taken_up(content: u64) -> (FrameNumber, Kind) {
    (content as FrameNumber, if content & CLEAN == 0 { Kind::Dirty } else { Kind::Clean })
}
