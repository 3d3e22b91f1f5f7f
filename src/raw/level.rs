//! Owns the fill level of the shared stock and the note that the worker has been rung: one word, so that exactly one
//! caller rings for each crossing of a watermark.
//!
//! # The word
//! ```text
//!  63 ... 33 |  32  | 31 ................. 0
//!     zero   | RUNG | frames in the stock (depot and reserve)
//! ```
//! | transition | before | after | rings |
//! |---|---|---|---|
//! | `removed(n)` | frames, RUNG = r | frames − n, RUNG = r or below `low` | if RUNG was set by this one |
//! | `added(n)` | frames, RUNG = r | frames + n, RUNG = r or above `max` | if RUNG was set by this one |
//! | `missed` | frames, RUNG = r | frames, RUNG = 1 | if RUNG was set by this one |
//! | `answered` | frames, RUNG = r | frames, RUNG = 0 | never; the worker looks at the frames of the same word |
//!
//! # Why no crossing is lost (INV-6)
//! All four are read-modify-writes of one word, so they have one order. A removal that goes below `low` stands either
//! before the worker's next `answered`, which then returns the lowered level, or after it, and then finds RUNG clear, sets
//! it and rings. Two removals between the same two answers find the bit of the first: one ring. The bell itself carries
//! the ring to the sleeper (`raw/doorbell.rs`).
//!
//! # Why the level never goes below zero
//! Frames are counted in before they can be taken (`added` stands before the push) and counted out after they were taken
//! (`removed` stands after the pop): the level is never less than what the stock holds.

use crate::sync::atomic::{AtomicU64, Ordering};

/// The word as a pure value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LevelWord(u64);

impl LevelWord {
    const RUNG: u64 = 1 << 32;

    const fn frames(self) -> u32 {
        self.0 as u32
    }

    const fn is_rung(self) -> bool {
        self.0 & Self::RUNG != 0
    }

    const fn with(self, frames: u32, ring: bool) -> Self {
        Self(frames as u64 | self.0 & Self::RUNG | if ring { Self::RUNG } else { 0 })
    }
}

/// Whether the caller must ring the doorbell.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ring {
    Yes,
    No,
}

/// The fill level of a pool's shared stock, with the two watermarks at which the worker is wanted.
#[derive(Debug)]
pub struct FillLevel {
    word: AtomicU64,
    low: u32,
    max: u32,
}

impl FillLevel {
    pub fn new(low: u32, max: u32) -> Self {
        Self { word: AtomicU64::new(0), low, max }
    }

    /// Applies a transition; lock-free, a retry means that another context changed the level.
    fn apply(&self, transition: impl Fn(LevelWord) -> LevelWord) -> Ring {
        // Ordering: Relaxed; the exchange checks the value.
        let mut before = LevelWord(self.word.load(Ordering::Relaxed));
        loop {
            let after = transition(before);
            // Ordering: Relaxed on both sides; the word publishes nothing but itself, and all its changes are
            // read-modify-writes, so the worker's `answered` cannot miss one. The stock that it counts is published
            // by the stacks, the ring by the doorbell.
            match self.word.compare_exchange_weak(before.0, after.0, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) if after.is_rung() && !before.is_rung() => return Ring::Yes,
                Ok(_) => return Ring::No,
                Err(current) => before = LevelWord(current),
            }
        }
    }

    /// Counts `frames` out, after they were taken.
    pub fn removed(&self, frames: u32) -> Ring {
        self.apply(|word| {
            let left = word.frames().saturating_sub(frames);
            word.with(left, left < self.low)
        })
    }

    /// Counts `frames` in, before they can be taken.
    pub fn added(&self, frames: u32) -> Ring {
        self.apply(|word| {
            let sum = word.frames().saturating_add(frames);
            word.with(sum, sum > self.max)
        })
    }

    /// Notes that somebody found the stock empty.
    pub fn missed(&self) -> Ring {
        self.apply(|word| word.with(word.frames(), true))
    }

    /// The worker takes note: the frames in the stock; from now on the next crossing rings again.
    pub fn answered(&self) -> u32 {
        // Ordering: Relaxed; one read-modify-write both clears the bit and reads the frames, so a removal is either in
        // the value returned or will find the bit clear. See `apply` for what it does not publish.
        LevelWord(self.word.fetch_and(!LevelWord::RUNG, Ordering::Relaxed)).frames()
    }

    /// The frames in the stock.
    pub fn frames(&self) -> u32 {
        // Ordering: Relaxed; a momentary figure for the worker and for statistics.
        LevelWord(self.word.load(Ordering::Relaxed)).frames()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_crossing_rings_once_until_the_worker_has_answered() {
        let level = FillLevel::new(4, 8);
        assert_eq!(level.added(6), Ring::No);
        assert_eq!(level.removed(2), Ring::No);
        assert_eq!(level.removed(1), Ring::Yes);
        assert_eq!(level.removed(1), Ring::No);
        assert_eq!(level.answered(), 2);
        assert_eq!(level.removed(1), Ring::Yes);
        assert_eq!(level.answered(), 1);
        assert_eq!(level.added(7), Ring::No);
        assert_eq!(level.added(1), Ring::Yes);
        assert_eq!(level.missed(), Ring::No);
        assert_eq!(level.answered(), 9);
        assert_eq!(level.missed(), Ring::Yes);
        assert_eq!(level.frames(), 9);
    }
}
