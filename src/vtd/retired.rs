//! Owns the table frames of which hardware has let go, until the last walker that may be inside has left too; then they go back
//! to the allocator (INV-10).
//!
//! Two generations: *young* frames are added from any context; *old* ones wait under one stamp (`walkers.rs`). Whoever adds frames, or
//! asks, tries for the turn: it returns the old generation if its stamp has passed, and stamps the young as the next. In a quiet domain
//! both happens at once, and frames are back when `complete` returns. A context that finds the turn taken leaves its frames young:
//! the next one to come returns them.

use super::{
    TableFrames,
    frame_list::{Chain, FrameList, SharedList},
    walkers::{Stamp, Walkers},
};
use crate::{raw::turn::Turn, sync::counter};

/// Frames on their way back.
pub(crate) struct Retired {
    young: SharedList,
    old: Turn<Generation>,
    waiting: counter::Shared,
}

/// Frames that were retired before one stamp.
struct Generation {
    chain: Chain,
    stamp: Option<Stamp>,
}

impl Retired {
    pub(crate) fn new() -> Self {
        let old = Turn::new(Generation { chain: Chain::EMPTY, stamp: None });
        Self { young: SharedList::new(), old, waiting: counter::Shared::new() }
    }

    /// How many frames wait.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.get()
    }

    /// Adds frames of which hardware has let go. Lock-free, any context but an NMI.
    pub(crate) fn add<A: TableFrames>(&self, frames: &A, list: FrameList) {
        self.waiting.add(list.count());
        self.young.push(frames, list);
    }

    /// Returns the frames that nobody can be inside of any more. Any context but an NMI; bound: a free for each frame that waits.
    #[allow(unsafe_code, reason = "only what nothing reaches any more goes back")]
    pub(crate) fn settle<A: TableFrames>(&self, frames: &A, walkers: &Walkers) {
        self.old.try_with(|old| {
            // Twice: the old generation, and the young one right behind it.
            for _ in 0..2 {
                if old.stamp.is_some_and(|stamp| !walkers.passed(stamp, None)) {
                    return;
                }
                while let Some(frame) = old.chain.pop(frames) {
                    self.waiting.subtract(1);
                    // SAFETY: the frame came from this allocator and was a table of this domain; who added it has said that
                    // hardware has let go of it, and the stamp that came after that has passed, so no walker is inside.
                    unsafe { frames.free(frame) };
                }
                old.chain = self.young.take_all();
                old.stamp = (!old.chain.is_empty()).then(|| walkers.stamp());
                if old.stamp.is_none() {
                    return;
                }
            }
        });
    }
}
