//! Tier 4: the frames below `min`, for the Critical class alone; what it gave out it gets back first.
//!
//! Single frames in cells, not magazines: a Critical caller that is interrupted in here holds one frame, and hides no
//! other from the interrupt.
//!
//! # The word that every free reads
//! `missing` is how many frames the reserve lacks. While it is not zero, the next frame that is freed, by whomever, goes
//! into the reserve and not into a cache, where an ordinary caller could take it (INV-5). It changes only when the reserve
//! is used, so it is read from a cache line that every CPU shares.
//!
//! | event | order |
//! |---|---|
//! | Take | pop a filled cell, push it as vacant, `missing` + 1 |
//! | Put | `missing` − 1 if it is not zero: a ticket; pop a vacant cell, push it as filled |
//!
//! Cells are vacant before they are missed, so there are at least as many vacant cells as `missing` and all tickets
//! together: a ticket always finds a cell. When nothing is in progress, filled cells and `missing` add up to `min`.

use crate::{
    raw::{arena::Carved, magazine::FrameNumber, stack::TaggedStack},
    sync::atomic::{AtomicU32, Ordering},
};
use crossbeam_utils::CachePadded;

/// The frames kept for the path that frees memory.
#[derive(Debug)]
pub(crate) struct Reserve {
    missing: CachePadded<AtomicU32>,
    filled: CachePadded<TaggedStack>,
    vacant: CachePadded<TaggedStack>,
    cells: Carved<AtomicU32>,
}

impl Reserve {
    /// An empty reserve with a cell and a link for each frame that it shall hold.
    pub(crate) fn new(links: &Carved<AtomicU32>, cells: Carved<AtomicU32>) -> Self {
        let vacant = TaggedStack::new(links.share());
        let count = cells.len() as u32;
        for cell in 0..count {
            vacant.push(cell);
        }
        Self {
            missing: CachePadded::new(AtomicU32::new(count)),
            filled: CachePadded::new(TaggedStack::new(links.share())),
            vacant: CachePadded::new(vacant),
            cells,
        }
    }

    /// How many frames the reserve lacks.
    #[inline(always)]
    pub(crate) fn missing(&self) -> u32 {
        // Ordering: Relaxed; whoever got a frame from here sees the count that came with it or a later one, because
        // it received the frame after that (coherence), and `put` decides by a read-modify-write.
        self.missing.load(Ordering::Relaxed)
    }

    /// How many frames it should hold.
    pub(crate) fn target(&self) -> u32 {
        self.cells.len() as u32
    }

    /// Takes a frame. Lock-free.
    pub(crate) fn take(&self) -> Option<FrameNumber> {
        let cell = self.filled.pop()?;
        // Ordering: Relaxed; the Acquire of the pop made the cell's content visible, and the cell is ours alone.
        let frame = self.cells.get(cell as usize)?.load(Ordering::Relaxed);
        self.vacant.push(cell);
        // Ordering: Release, after the push of the vacant cell, to the Acquire of `put`: a ticket finds a cell.
        self.missing.fetch_add(1, Ordering::Release);
        Some(frame)
    }

    /// Puts a frame in, or gives it back when nothing is missing. Lock-free.
    pub(crate) fn put(&self, frame: FrameNumber) -> Result<(), FrameNumber> {
        // Ordering: Acquire pairs with the Release in `take`, so that the vacant cell behind the ticket is seen. Relaxed
        // on failure: nothing is missing and nothing is read.
        let ticket =
            self.missing.fetch_update(Ordering::Acquire, Ordering::Relaxed, |missing| missing.checked_sub(1));
        if ticket.is_err() {
            return Err(frame);
        }
        let Some(cell) = self.vacant.pop() else { return Err(frame) };
        if let Some(content) = self.cells.get(cell as usize) {
            // Ordering: Relaxed; published with the cell by the Release of the push below.
            content.store(frame, Ordering::Relaxed);
        }
        self.filled.push(cell);
        Ok(())
    }
}
