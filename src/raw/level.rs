//! Owns the fill level of the depot and the note that the worker has been rung: one word, so that exactly one caller rings
//! for each crossing of a watermark.
//!
//! # The word
//! ```text
//!  63 ................ 33 |  32  | 31 ............. 0
//!  of these, known zero   | RUNG | frames in the depot
//! ```
//! | transition | frames | clean frames | rings, if RUNG was set by this one |
//! |---|---|---|---|
//! | `removed(kind, n)` | − n | − n if clean | below `low`; or clean ones below `clean_low` while dirty ones are there |
//! | `added(kind, n)` | + n | + n if clean | above `max` |
//! | `missed` | | | always |
//! | `missed_clean` | | | while dirty frames are there, which the worker can clear |
//! | `cleared(n)` | | + n | never |
//! | `soiled(n)` | | − n | never: clean frames were taken for others, and the next that is missed rings |
//! | `answered` | | | never: RUNG = 0, the worker looks at the frames of the same word |
//!
//! # Why no crossing is lost (INV-6)
//! All of them are read-modify-writes of one word, so they have one order. A removal that goes below `low` stands either
//! before the worker's next `answered`, which then returns the lowered level, or after it, and then finds RUNG clear, sets
//! it and rings. Two removals between the same two answers find the bit of the first: one ring. The bell itself carries
//! the ring to the sleeper (`raw/doorbell.rs`).
//!
//! # Why the level never goes below zero
//! Frames are counted in before they can be taken (`added`, `cleared` stand before the push) and counted out after they
//! were taken (`removed`, `soiled` stand after the pop): the level is never less than what the depot holds, on either side.

//!
//! # Several levels (`raw/level/parts.rs`)
//! A pool of several depots has a level for each, without a `low` of its own; each has a part of the pool's instead.

use super::magazine::Kind;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

pub mod parts;

/// The most frames that the word can count.
pub(crate) const LEVEL_LIMIT: u32 = u32::MAX >> 1;

/// The word as a pure value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LevelWord(u64);

impl LevelWord {
    const RUNG: u64 = 1 << 32;
    const CLEAN_SHIFT: u32 = 33;

    const fn frames(self) -> u32 {
        self.0 as u32
    }

    const fn clean(self) -> u32 {
        (self.0 >> Self::CLEAN_SHIFT) as u32
    }

    const fn is_rung(self) -> bool {
        self.0 & Self::RUNG != 0
    }

    const fn with(self, frames: u32, clean: u32, ring: bool) -> Self {
        let ring = if ring { Self::RUNG } else { 0 };
        Self((clean as u64) << Self::CLEAN_SHIFT | self.0 & Self::RUNG | ring | frames as u64)
    }

    const fn rung_if(self, ring: bool) -> Self {
        self.with(self.frames(), self.clean(), ring)
    }

    const fn has_dirty(self) -> bool {
        self.frames() > self.clean()
    }
}

/// Whether the caller must ring the doorbell.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ring {
    Yes,
    No,
}

/// What the worker reads when it answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fill {
    /// Frames in the depot.
    pub frames: u32,
    /// Those of them that are known to be zero.
    pub clean: u32,
}

/// The fill level of a pool's depot, with the watermarks at which the worker is wanted.
#[derive(Debug)]
pub struct FillLevel {
    word: AtomicU64,
    low: u32,
    max: u32,
    clean_low: AtomicU32,
    /// One of several levels has this part of the pool's `low`.
    part: AtomicU32,
}

impl FillLevel {
    pub fn new(low: u32, max: u32) -> Self {
        let none = || AtomicU32::new(0);
        Self { word: AtomicU64::new(0), low, max, clean_low: none(), part: none() }
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

    /// Counts `frames` out, after they were taken from the side `kind`.
    pub fn removed(&self, kind: Kind, frames: u32) -> Ring {
        let clean_low = match kind {
            Kind::Dirty => 0,
            // Ordering: Relaxed; a watermark that the worker moves now and then. Either value is one to ring at.
            Kind::Clean => self.clean_low.load(Ordering::Relaxed),
        };
        self.apply(|word| {
            let left = word.frames().saturating_sub(frames);
            match kind {
                Kind::Dirty => word.with(left, word.clean(), left < self.low),
                Kind::Clean => {
                    let clean = word.clean().saturating_sub(frames);
                    word.with(left, clean, left < self.low || clean < clean_low && left > clean)
                }
            }
        })
    }

    /// Counts `frames` in, before they can be taken from the side `kind`.
    pub fn added(&self, kind: Kind, frames: u32) -> Ring {
        self.apply(|word| {
            let sum = word.frames().saturating_add(frames);
            let clean = if kind == Kind::Clean { word.clean().saturating_add(frames) } else { word.clean() };
            word.with(sum, clean, sum > self.max)
        })
    }

    /// Notes that somebody found the depot empty.
    pub fn missed(&self) -> Ring {
        self.apply(|word| word.rung_if(true))
    }

    /// Notes that somebody found no clean frame, for which the worker is wanted if it has something to clear.
    pub fn missed_clean(&self) -> Ring {
        // Ordering: Relaxed; spares a pool that has nothing to clear the exchange at every frame that is cleared inline. A
        // stale view costs one more of those: the next one rings.
        let word = LevelWord(self.word.load(Ordering::Relaxed));
        if word.is_rung() || !word.has_dirty() {
            Ring::No
        } else {
            self.apply(|word| word.rung_if(word.has_dirty()))
        }
    }

    /// Counts `frames` of the depot over to the clean side, after they were cleared and before they can be taken there.
    pub fn cleared(&self, frames: u32) {
        let _ = self.apply(|word| word.with(word.frames(), word.clean().saturating_add(frames), false));
    }

    /// Counts `frames` of the depot over to the dirty side, after they were taken from the clean one.
    pub fn soiled(&self, frames: u32) {
        let _ = self.apply(|word| word.with(word.frames(), word.clean().saturating_sub(frames), false));
    }

    /// Sets the number of clean frames below which the worker is wanted.
    pub fn set_clean_low(&self, frames: u32) {
        // Ordering: Relaxed; as in `removed`.
        self.clean_low.store(frames, Ordering::Relaxed);
    }

    /// The worker takes note: the frames in the depot; from now on the next crossing rings again.
    pub fn answered(&self) -> Fill {
        // Ordering: Relaxed; one read-modify-write both clears the bit and reads the frames, so a removal is either in
        // the value returned or will find the bit clear. See `apply` for what it does not publish.
        let word = LevelWord(self.word.fetch_and(!LevelWord::RUNG, Ordering::Relaxed));
        Fill { frames: word.frames(), clean: word.clean() }
    }

    /// The frames in the depot.
    pub fn fill(&self) -> Fill {
        // Ordering: Relaxed; a momentary figure for the worker and for statistics.
        let word = LevelWord(self.word.load(Ordering::Relaxed));
        Fill { frames: word.frames(), clean: word.clean() }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Kind::*, *};

    fn fill(frames: u32, clean: u32) -> Fill {
        Fill { frames, clean }
    }

    #[test]
    fn each_crossing_rings_once_until_the_worker_has_answered() {
        let level = FillLevel::new(4, 8);
        assert_eq!(level.added(Dirty, 6), Ring::No);
        assert_eq!(level.removed(Dirty, 2), Ring::No);
        assert_eq!(level.removed(Dirty, 1), Ring::Yes);
        assert_eq!(level.removed(Dirty, 1), Ring::No);
        assert_eq!(level.answered(), fill(2, 0));
        assert_eq!(level.removed(Dirty, 1), Ring::Yes);
        assert_eq!(level.answered(), fill(1, 0));
        assert_eq!(level.added(Clean, 7), Ring::No);
        assert_eq!(level.added(Dirty, 1), Ring::Yes);
        assert_eq!(level.missed(), Ring::No);
        assert_eq!(level.answered(), fill(9, 7));
        assert_eq!(level.missed(), Ring::Yes);
        assert_eq!(level.fill(), fill(9, 7));
    }

    #[test]
    fn the_clean_side_rings_only_while_there_is_something_to_clear() {
        let level = FillLevel::new(0, 100);
        assert_eq!(level.missed_clean(), Ring::No, "nothing to clear");
        assert_eq!(level.added(Clean, 10), Ring::No);
        level.set_clean_low(8);
        assert_eq!(level.removed(Clean, 3), Ring::No, "below, but all frames are clean");
        assert_eq!(level.added(Dirty, 5), Ring::No);
        assert_eq!(level.removed(Clean, 1), Ring::Yes);
        assert_eq!(level.missed_clean(), Ring::No, "rung already");
        assert_eq!(level.answered(), fill(11, 6));
        level.cleared(4);
        assert_eq!(level.removed(Clean, 2), Ring::No, "at the mark, not below");
        level.soiled(8);
        assert_eq!(level.answered(), fill(9, 0));
        assert_eq!(level.missed_clean(), Ring::Yes);
    }

    #[test]
    fn both_counts_hold_as_many_frames_as_a_pool_may_have() {
        let level = FillLevel::new(0, LEVEL_LIMIT);
        assert_eq!(level.added(Clean, LEVEL_LIMIT), Ring::No);
        assert_eq!(level.answered(), fill(LEVEL_LIMIT, LEVEL_LIMIT));
        assert_eq!(level.removed(Clean, LEVEL_LIMIT), Ring::No);
        assert_eq!(level.answered(), fill(0, 0));
    }
}
