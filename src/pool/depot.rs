//! Tier 2: the shared stock of whole magazines; whoever finds it empty steals from other CPUs.
//!
//! Three stacks, by what is in a magazine: full, partial (one frame at least, room for one at least), empty. Partial
//! magazines come from refills and thefts that do not fill one, and from callers that may not enter their CPU's slot at
//! this moment (an interrupt that landed inside): they are served one frame at a time from here.
//!
//! The fill level counts what the full and the partial stack hold. It is raised before a magazine is pushed and lowered
//! after one is popped (`raw/level.rs`), so the calls that move magazines and those that count are apart.
//!
//! # Why a free finds a magazine
//! With nothing on the empty and the partial stack, every magazine that is neither in a slot nor in the hands of an
//! operation or a reservation is full. There are as many magazines as all frames fill, two a slot, [`IN_PROGRESS`] for each slot,
//! and one for each reservation that the pool was built for (only the first of a reservation's magazines is not full); the
//! frame that is being freed is in none of them, so at least as many operations are in progress as these. A CPU that
//! interrupts itself less deeply than that never gets there; user space with many preempted threads may, and then the
//! overflow takes the frame.

use crate::{
    raw::{
        arena::Carved,
        level::{FillLevel, Ring},
        magazine::{FrameNumber, Magazine, Magazines},
        stack::TaggedStack,
    },
    sync::{
        atomic::{AtomicU32, Ordering},
        counter,
    },
};
use crossbeam_utils::CachePadded;

/// Magazines kept for operations in progress, for each slot: a thread, a soft and a hard interrupt, and an NMI, each of
/// which holds at most one.
pub(crate) const IN_PROGRESS: usize = 4;

/// The shared stock.
#[derive(Debug)]
pub(crate) struct Depot {
    full: CachePadded<TaggedStack>,
    partial: CachePadded<TaggedStack>,
    empty: CachePadded<TaggedStack>,
    level: CachePadded<FillLevel>,
    /// How full each magazine on the partial stack is; written before the push, read after the pop.
    lengths: Carved<AtomicU32>,
    size: u32,
    /// All frames ever drawn from the stock: the demand, as the worker sees it.
    drawn: counter::Shared,
}

impl Depot {
    /// A depot without magazines, over one link and one length for each.
    pub(crate) fn new(
        links: &Carved<AtomicU32>,
        lengths: Carved<AtomicU32>,
        size: u32,
        level: FillLevel,
    ) -> Self {
        let stack = || CachePadded::new(TaggedStack::new(links.share()));
        let (full, partial, empty) = (stack(), stack(), stack());
        Self {
            full,
            partial,
            empty,
            level: CachePadded::new(level),
            lengths,
            size,
            drawn: counter::Shared::new(),
        }
    }

    pub(crate) fn level(&self) -> &FillLevel {
        &self.level
    }

    /// All frames ever drawn from the stock.
    pub(crate) fn drawn(&self) -> u64 {
        self.drawn.get()
    }

    /// Puts a magazine on the stack where it belongs. Does not count.
    pub(crate) fn put(&self, magazine: Magazine) {
        let (index, length) = magazine.into_parts();
        if length == 0 {
            self.empty.push(index);
        } else if length >= self.size {
            self.full.push(index);
        } else {
            if let Some(slot) = self.lengths.get(index as usize) {
                // Ordering: Relaxed; published with the index by the Release of the push, to the Acquire of the pop.
                slot.store(length, Ordering::Relaxed);
            }
            self.partial.push(index);
        }
    }

    /// A full magazine. Does not count.
    pub(crate) fn take_full(&self) -> Option<Magazine> {
        self.full.pop().map(|index| magazine(index, self.size))
    }

    fn pop_partial(&self) -> Option<Magazine> {
        let index = self.partial.pop()?;
        // Ordering: Relaxed; the Acquire of the pop made it visible.
        Some(magazine(index, self.lengths.get(index as usize)?.load(Ordering::Relaxed)))
    }

    /// A magazine with frames: a full one, or else a partial one. Does not count.
    pub(crate) fn take_stocked(&self) -> Option<Magazine> {
        self.take_full().or_else(|| self.pop_partial())
    }

    /// A magazine with room: an empty one, or else a partial one. Does not count.
    pub(crate) fn take_vacant(&self) -> Option<Magazine> {
        self.take_empty().or_else(|| self.pop_partial())
    }

    /// An empty magazine.
    pub(crate) fn take_empty(&self) -> Option<Magazine> {
        self.empty.pop().map(|index| magazine(index, 0))
    }

    /// Counts `frames` out of the stock, after they were taken, as demand.
    pub(crate) fn count_drawn(&self, frames: u32) -> Ring {
        self.drawn.add(u64::from(frames));
        self.level.removed(frames)
    }

    /// Takes one frame out of a magazine that goes back at once.
    pub(crate) fn take_one(&self, magazines: &Magazines) -> Option<(FrameNumber, Ring)> {
        let mut magazine = self.pop_partial().or_else(|| self.take_full())?;
        let frame = magazines.pop(&mut magazine);
        self.put(magazine);
        Some((frame?, self.count_drawn(1)))
    }

    /// Puts one frame into a magazine that goes back at once; the frame comes back when no magazine has room.
    pub(crate) fn put_one(&self, magazines: &Magazines, frame: FrameNumber) -> Result<Ring, FrameNumber> {
        let Some(mut magazine) = self.pop_partial().or_else(|| self.take_empty()) else { return Err(frame) };
        let outcome = magazines.push(&mut magazine, frame);
        let ring = match outcome {
            Ok(()) => Ok(self.level.added(1)),
            Err(frame) => Err(frame),
        };
        self.put(magazine);
        ring
    }
}

/// Takes up a magazine that one of the stacks gave us.
#[allow(unsafe_code, reason = "the stacks are where magazines are laid down as bare indices")]
fn magazine(index: u32, length: u32) -> Magazine {
    // SAFETY: an index is pushed only by `Depot::put`, which used a magazine up, and a stack gives each index out once
    // (INV-2); the length is the one it was laid down with.
    unsafe { Magazine::from_parts(index, length) }
}
