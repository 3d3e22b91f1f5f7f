//! Owns the set of frames that the pool has taken in: the door where a frame that comes a second time is refused.
//!
//! A hash set of frame numbers in buckets of one cache line. A number lives in one of the `REACH` buckets from its
//! hash on, at any position, and a look-up always reads all of them: removal simply empties a position, and there are no
//! tombstones. Only the slow paths come here (refill, fallback, trim), never an allocation that hits.
//!
//! # Why the same number is never in twice, whoever inserts at the same time
//! An insertion puts its number into an empty position (W), then fences (F), then reads all positions again (R). Of
//! two insertions of one number, one fence comes first in the order of all SeqCst fences; the R of the other stands
//! behind it and sees the W of the first: it takes its own number out and refuses the frame. Both may do so, when a
//! source hands the same frame to two callers at once; the frame then stays outside, which is safe.

use super::{arena::Carved, magazine::FrameNumber};
use crate::sync::atomic::{AtomicU32, Ordering, fence};

/// Numbers in one cache line.
const BUCKET: usize = 16;
/// Buckets in which a number may live.
const REACH: usize = 4;
/// No number.
const VACANT: u32 = u32::MAX;

/// The frames that a pool owns, whether they are in it or out.
#[derive(Debug)]
pub struct Registry {
    positions: Carved<AtomicU32>,
}

/// Why a frame was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The pool has it already.
    Duplicate,
    /// Every position in which it could live is taken.
    Crowded,
}

impl Registry {
    /// How many positions a pool of `capacity` frames needs: at most three quarters of them are ever taken.
    pub const fn positions(capacity: u32) -> usize {
        let buckets = (capacity as usize).div_ceil(BUCKET / 4 * 3);
        (buckets + REACH) * BUCKET
    }

    /// A position before any number is in it.
    pub fn vacant() -> AtomicU32 {
        AtomicU32::new(VACANT)
    }

    pub fn new(positions: Carved<AtomicU32>) -> Self {
        Self { positions }
    }

    /// The positions in which `frame` may live. Numbers in a row spread evenly (Fibonacci hashing, Knuth 6.4).
    fn reach(&self, frame: FrameNumber) -> &[AtomicU32] {
        let homes = (self.positions.len() / BUCKET).saturating_sub(REACH) as u64 + 1;
        let hash = u64::from(frame.wrapping_mul(0x9E37_79B1));
        let start = ((hash * homes) >> 32) as usize * BUCKET;
        self.positions.get(start..start + REACH * BUCKET).unwrap_or(&self.positions)
    }

    fn count(positions: &[AtomicU32], frame: FrameNumber) -> usize {
        // Ordering: Relaxed; within an insertion the SeqCst fence before it is what makes the other one's number
        // visible, elsewhere the caller owns the frame and with it the only right to change its entry.
        positions.iter().filter(|position| position.load(Ordering::Relaxed) == frame).count()
    }

    /// Takes a frame in. Bounded: it reads the reach twice and tries each position once.
    pub fn insert(&self, frame: FrameNumber) -> Result<(), Refusal> {
        let reach = self.reach(frame);
        if frame == VACANT || Self::count(reach, frame) > 0 {
            return Err(Refusal::Duplicate);
        }
        let taken = reach.iter().find(|position| {
            // Ordering: Relaxed; the number says nothing about other memory, and its visibility to a rival insertion
            // comes from the fence below.
            position.compare_exchange(VACANT, frame, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        });
        let Some(position) = taken else { return Err(Refusal::Crowded) };
        // Ordering: SeqCst fence between our number's store and the reading of all others: of two insertions of one
        // number at least one sees the other. Acquire and Release would allow both to miss each other.
        fence(Ordering::SeqCst);
        if Self::count(reach, frame) > 1 {
            // Ordering: Relaxed; as for putting it in.
            position.store(VACANT, Ordering::Relaxed);
            return Err(Refusal::Duplicate);
        }
        Ok(())
    }

    /// Where the number of a frame stands that is in the set. Bounded by the reach.
    #[cfg(feature = "hardened")]
    pub fn place_of(&self, frame: FrameNumber) -> Option<usize> {
        let reach = self.reach(frame);
        // Ordering: Relaxed; the number of a frame that is in the set stays where it is.
        let within = reach.iter().position(|position| position.load(Ordering::Relaxed) == frame)?;
        let start = reach.as_ptr().addr().wrapping_sub(self.positions.as_ptr().addr());
        Some(start / size_of::<AtomicU32>() + within)
    }

    /// The number at `place`, if there is one.
    #[cfg(feature = "hardened")]
    pub fn number_at(&self, place: usize) -> Option<FrameNumber> {
        // Ordering: Relaxed; a figure.
        let number = self.positions.get(place)?.load(Ordering::Relaxed);
        (number != VACANT).then_some(number)
    }

    /// Lets a frame go; the caller owns it. Bounded by the reach.
    pub fn remove(&self, frame: FrameNumber) {
        for position in self.reach(frame) {
            // Ordering: Relaxed; the frame is the caller's, so nobody inserts or removes its number at the same time,
            // unless the source hands it out before it has got it back.
            if position.compare_exchange(frame, VACANT, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return;
            }
        }
    }
}
