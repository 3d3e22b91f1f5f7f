//! Owns the table frames of which hardware has let go, until the last walker that may be inside has left too; then they go back
//! to the allocator (INV-10).
//!
//! Frames of tables that no walk in progress can reach go back at once, and never wait here. The others wait in two
//! generations: *young* frames are added from any context; *old* ones wait under one stamp (`walkers.rs`). Whoever adds frames, or
//! asks, tries for the turn: it returns the old generation if its stamp has passed, and stamps the young as the next. A context
//! that finds the turn taken leaves its frames young: the next one to come returns them.
//!
//! # The bound
//! While walks are stopped in the middle, what waits grows by the tables that are unmapped meanwhile for addresses that one of them looks
//! up, and for no others; a walk of the crowd, which has no slot to say where it is, counts for all addresses. It shrinks to nothing
//! with the first call after they have left. So the number is not bounded by the walks alone, but it is counted (V7).

use super::{
    TableFrames,
    frame_list::{Chain, FrameList, SharedList},
    page_block::PageBlock,
    walkers::{Stamp, Walkers},
};
use crate::{PhysAddr, raw::turn::Turn, sync::counter};

/// Frames on their way back.
pub(crate) struct Retired {
    young: SharedList,
    old: Turn<Generation>,
    waiting: counter::Shared,
    most: counter::Shared,
}

/// Frames that were retired before one stamp.
struct Generation {
    chain: Chain,
    stamp: Option<Stamp>,
}

impl Retired {
    pub(crate) fn new() -> Self {
        let old = Turn::new(Generation { chain: Chain::EMPTY, stamp: None });
        Self { young: SharedList::new(), old, waiting: counter::Shared::new(), most: counter::Shared::new() }
    }

    /// How many frames wait.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.get()
    }

    /// The most that have waited at a time.
    pub(crate) fn most_waiting(&self) -> u64 {
        self.most.get()
    }

    /// Takes over frames of tables for addresses of `blocks`, of which hardware has let go: they go back at once if nobody can be
    /// inside. Lock-free, any context but an NMI.
    pub(crate) fn add<A: TableFrames>(
        &self,
        frames: &A,
        walkers: &Walkers,
        mut list: FrameList,
        mut blocks: impl Iterator<Item = PageBlock>,
    ) {
        let stamp = walkers.stamp();
        if blocks.all(|block| walkers.passed(stamp, block, None)) {
            while let Some(frame) = list.pop(frames) {
                Self::give_back(frames, frame);
            }
            return;
        }
        self.waiting.add(list.count());
        self.most.raise_to(self.waiting.get());
        self.young.push(frames, list);
    }

    /// Returns the frames that nobody can be inside of any more. Any context but an NMI; bound: a free for each frame that waits.
    pub(crate) fn settle<A: TableFrames>(&self, frames: &A, walkers: &Walkers) {
        self.old.try_with(|old| {
            // Twice: the old generation, and the young one right behind it.
            for _ in 0..2 {
                if old.stamp.is_some_and(|stamp| !walkers.passed(stamp, PageBlock::ALL, None)) {
                    return;
                }
                while let Some(frame) = old.chain.pop(frames) {
                    self.waiting.subtract(1);
                    Self::give_back(frames, frame);
                }
                old.chain = self.young.take_all();
                old.stamp = (!old.chain.is_empty()).then(|| walkers.stamp());
                if old.stamp.is_none() {
                    return;
                }
            }
        });
    }

    #[allow(unsafe_code, reason = "only what nothing reaches any more goes back")]
    fn give_back<A: TableFrames>(frames: &A, frame: PhysAddr) {
        // SAFETY: the frame came from this allocator and was a table of this domain; who added it has said that hardware has let
        // go of it, and a stamp that came after that has passed, so no walker is inside.
        unsafe { frames.free(frame) };
    }
}
