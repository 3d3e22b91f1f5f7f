//! The clean side (R13): zeroed frames on demand, how many the depot keeps ready, and who clears them.
//!
//! A frame that comes back goes to the dirty side unless its owner promises that it is zero. The worker clears dirty frames of
//! the depot up to a goal; an allocation that finds no clean frame clears a dirty one itself, and says so.
//!
//! # How many are kept ready
//! The goal follows what was used of the clean side between two passes, and how often that was not enough:
//!
//! | event | goal |
//! |---|---|
//! | frames were cleared inline since the last pass | doubled, and at least twice what was used |
//! | in [`WINDOW`] passes never more than a quarter of the goal was used between two | halved |
//! | in as many passes nothing was used at all | halved, down to nothing |
//!
//! While anything is used it is at least [`DRAWS`] magazines, since whoever draws takes a whole one. It is never more than the
//! depot holds: what is not there cannot be cleared ahead. The doorbell rings when the clean side
//! falls below half of the goal and there is something to clear. So a pool of which nobody wants zeroed frames clears none,
//! and one that is asked for nothing else clears all that comes back. Passes follow each other quickly or slowly, as other
//! things want; so it is the most used in several of them that counts.
//!
//! # Why clearing hides next to nothing
//! The worker takes a few frames out of a magazine and puts the magazine back before it clears them ([`IN_HAND`] bytes, one frame
//! at least), and it stops as soon as the stock is low, which the next pass mends first.

use super::{AllocError, FramePool, Request, SourceContents, refill::CHUNK};
use crate::{
    frame::{Frame, PhysAddr},
    platform::Platform,
    raw::{
        contents::{clear, clear_uncached},
        level::{Fill, Ring},
        magazine::{FrameNumber, Kind},
    },
    source::FrameSource,
};

/// What the worker has in its hands while it clears, in bytes.
const IN_HAND: usize = 64 << 10;
/// What one pass clears at most, in bytes; with more to do it is soon called again.
const PASS: usize = 16 << 20;

/// Passes over which the goal looks back before it is lowered.
const WINDOW: u32 = 32;

/// Magazines that a goal has room for, unless it is nothing.
const DRAWS: u32 = 4;

/// How many clean frames the depot shall hold, as the worker remembers it from pass to pass.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CleanGoal {
    goal: u32,
    used: u64,
    lacked: u64,
    /// Passes of the window so far, and the most that was used between two of them.
    passes: u32,
    most_used: u64,
    /// The pass before left something to clear: this one only goes on.
    unfinished: bool,
}

impl CleanGoal {
    /// Notes the frames in total that were drawn from the clean side, a `magazine` at a time, and that it lacked; the goal that
    /// follows, of a depot with `stock` frames.
    fn follow(&mut self, used: u64, lacked: u64, magazine: u32, stock: u32) -> u32 {
        let least = magazine.saturating_mul(DRAWS);
        let newly_lacked = lacked.saturating_sub(self.lacked);
        let newly_used = used.saturating_sub(self.used).saturating_add(newly_lacked);
        if newly_lacked > 0 {
            let twice = newly_used.max(self.goal.into()).saturating_mul(2);
            self.goal = u32::try_from(twice).unwrap_or(u32::MAX).max(least);
            (self.passes, self.most_used) = (0, newly_used);
        } else if !self.unfinished {
            self.passes += 1;
            self.most_used = self.most_used.max(newly_used);
            if self.passes >= WINDOW {
                if self.most_used.saturating_mul(4) <= u64::from(self.goal) {
                    self.goal = (self.goal / 2).max(if self.most_used > 0 { least } else { 0 });
                }
                (self.passes, self.most_used) = (0, 0);
            }
        }
        if newly_lacked > 0 || !self.unfinished {
            (self.used, self.lacked) = (used, lacked);
        }
        self.goal = self.goal.min(stock);
        self.goal
    }
}

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    /// Takes one frame of zeros, as an ordinary caller; [`Request::zeroed`] is the same for any request and for the bulk calls.
    ///
    /// From any context. When the clean side has a frame this costs what [`alloc`](Self::alloc) does; otherwise the frame is
    /// cleared here, which adds the time to write one frame to the bound, and is counted in
    /// [`Stats::cleared_inline`](crate::Stats::cleared_inline).
    /// At most 3,000 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// INV-9: every byte is zero.
    ///
    /// # Errors
    /// As for [`alloc`](Self::alloc): a zeroed frame is only lacking when every frame is.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// let frame = pool.alloc_zeroed()?;
    /// // SAFETY: the frame is ours, and this is its first byte.
    /// assert_eq!(unsafe { frame.as_ptr().read() }, 0);
    /// // SAFETY: nobody has written to it.
    /// unsafe { frame.free_zeroed() };
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn alloc_zeroed(&self) -> Result<Frame<'_, S, P>, AllocError> {
        self.alloc_with(Request::ORDINARY.zeroed())
    }

    /// Clears a frame that was just taken, for its new owner, who will want it in this CPU's cache.
    #[allow(unsafe_code, reason = "the contents of a frame that is nobody else's")]
    pub(super) fn clear_inline(&self, frame: FrameNumber) {
        // If something was written to it, nobody gets it any more.
        self.inspect(frame);
        // SAFETY: the frame was just taken and is not handed out yet; the source maps all of it.
        unsafe { clear(&SourceContents(&*self.source), self.address_of(frame), self.frame_size()) };
        self.note_cleared(frame);
    }

    /// Clears dirty frames of the depot until its clean side is where it should be; how many, and whether there is more to do.
    pub(super) fn clear_ahead(&self, policy: &mut CleanGoal) -> (u32, bool) {
        let counters = &self.counters;
        let (used, lacked) = (counters.clean_drawn.get(), counters.cleared_inline.get());
        let goal =
            policy.follow(used, lacked, self.cache.magazines().shape().size(), self.depots.fill().frames);
        self.depots.set_clean_low(goal / 2);
        let low = self.watermarks.low - self.watermarks.min;
        let most = (PASS / self.frame_size()).max(1) as u32;
        let mut cleared = 0;
        let wanted = |fill: Fill| goal.min(fill.frames).saturating_sub(fill.clean);
        let mut fill = self.depots.fill();
        // A stock that is low again has rung, and is refilled first.
        while wanted(fill) > 0 && fill.frames >= low && cleared < most {
            match self.clear_some(wanted(fill)) {
                0 => break,
                frames => cleared += frames,
            }
            fill = self.depots.fill();
        }
        policy.unfinished = wanted(fill) > 0;
        (cleared, cleared >= most && policy.unfinished)
    }

    /// Moves up to `wanted` frames of the depot, as many as may be in hand at once, from its dirty side to its clean one.
    #[allow(unsafe_code, reason = "the contents of frames that are nobody else's")]
    fn clear_some(&self, wanted: u32) -> u32 {
        let mut chunk: [FrameNumber; CHUNK] = [0; CHUNK];
        let most = (IN_HAND / self.frame_size()).clamp(1, CHUNK).min(wanted as usize);
        let (depot, length) = self.take_uncounted(Kind::Dirty, chunk.get_mut(..most).unwrap_or_default());
        self.announce();
        let taken = chunk.get_mut(..length).unwrap_or_default();
        let length = self.keep_if(taken, |frame| self.inspect(frame));
        if length < taken.len() {
            // Somebody has written to the others, which nobody gets any more.
            let ring = depot.level().removed(Kind::Dirty, (taken.len() - length) as u32);
            self.ring(self.depots.after_removal(depot, ring));
        }
        let frames = chunk.get(..length).unwrap_or_default();
        let mut addresses = [PhysAddr::new(0); CHUNK];
        for (address, &frame) in addresses.iter_mut().zip(frames) {
            *address = self.address_of(frame);
        }
        let addresses = addresses.get(..length).unwrap_or_default();
        // SAFETY: the frames were just taken out of the depot and are nobody else's (INV-1); the source maps all of each.
        unsafe { clear_uncached(&SourceContents(&*self.source), addresses, self.frame_size()) };
        frames.iter().for_each(|&frame| self.note_cleared(frame));
        self.counters.cleared_ahead.add(length as u64);
        // INV-9: counted and pushed after they were cleared.
        let left = self.stock(depot, Kind::Clean, frames, |frames| {
            depot.level().cleared(frames);
            Ring::No
        });
        if !left.is_empty() {
            // No magazine there has room for them: elsewhere they are counted anew.
            let ring = depot.level().removed(Kind::Dirty, left.len() as u32);
            self.ring(self.depots.after_removal(depot, ring));
            left.iter().for_each(|&frame| self.put_one(Kind::Clean, frame));
        }
        length as u32
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_goal_doubles_when_it_was_not_enough_and_fades_when_less_is_used() {
        let mut goal = CleanGoal::default();
        let mut follow = |used, lacked| goal.follow(used, lacked, 10, 1000);
        assert_eq!(follow(0, 0), 0, "nobody asks, nothing is cleared");
        assert_eq!(follow(0, 3), 40, "room for four magazines");
        assert_eq!(follow(0, 33), 80);
        assert_eq!(follow(60, 33), 80, "it was enough, and needed");
        assert_eq!(follow(120, 34), 160);
        assert_eq!(follow(121, 35), 320, "not enough, however little was used");
        assert_eq!(follow(1121, 135), 1000, "never more than there is");
        let mut used = 1121;
        let mut pass = |amount| {
            used += amount;
            follow(used, 135)
        };
        for number in 0..200 {
            let goal = pass(if number % WINDOW == 0 { 300 } else { 1 });
            assert_eq!(goal, 1000, "short passes between long ones say nothing");
        }
        let faded = (0..).take_while(|_| pass(1) > 40).count() as u32;
        assert!((4 * WINDOW..6 * WINDOW).contains(&faded), "{faded} passes");
        assert!((0..10 * WINDOW).all(|_| pass(1) == 40), "somebody still asks");
        let gone = (0..).take_while(|_| pass(0) > 0).count() as u32;
        assert!((5 * WINDOW..8 * WINDOW).contains(&gone), "{gone} passes");
    }
}
