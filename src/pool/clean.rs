//! The clean side (R13): zeroed frames on demand, how many the depot keeps ready, and who clears them.
//!
//! A frame that comes back goes to the dirty side unless its owner promises that it is zero. The worker clears dirty frames of
//! the depot up to a goal; an allocation that finds no clean frame clears a dirty one itself, and says so.
//!
//! # How many are kept ready
//! The goal follows what was drawn from the clean side between two passes and how often that was not enough:
//!
//! | between two passes | goal |
//! |---|---|
//! | frames were cleared inline | doubled, and at least twice what was used |
//! | less than a quarter of the goal was used, and the pass before had cleared all that it wanted | an eighth less, down to nothing |
//! | otherwise | as before |
//!
//! It is never more than the depot holds: what is not there cannot be cleared ahead. The doorbell rings when the clean side
//! falls below half of the goal and there is something to clear. So a pool of which nobody wants zeroed frames clears none,
//! and one that is asked for nothing else clears all that comes back.
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

/// How many clean frames the depot shall hold, as the worker remembers it from pass to pass.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CleanGoal {
    goal: u32,
    used: u64,
    lacked: u64,
    /// The pass before left something to clear, so the time since then says little about demand.
    unfinished: bool,
}

impl CleanGoal {
    /// Notes the frames in total that were drawn from the clean side and that it lacked; the goal that follows.
    fn follow(&mut self, used: u64, lacked: u64, stock: u32) -> u32 {
        let newly_lacked = lacked.saturating_sub(self.lacked);
        let newly_used = used.saturating_sub(self.used).saturating_add(newly_lacked);
        (self.used, self.lacked) = (used, lacked);
        if newly_lacked > 0 {
            let twice = newly_used.max(self.goal.into()).saturating_mul(2);
            self.goal = u32::try_from(twice).unwrap_or(u32::MAX);
        } else if newly_used.saturating_mul(4) < u64::from(self.goal) && !self.unfinished {
            self.goal -= self.goal.div_ceil(8);
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
        // SAFETY: the frame was just taken and is not handed out yet; the source maps all of it.
        unsafe { clear(&SourceContents(&*self.source), self.address_of(frame), self.frame_size()) };
    }

    /// Clears dirty frames of the depot until its clean side is where it should be; how many, and whether there is more to do.
    pub(super) fn clear_ahead(&self, policy: &mut CleanGoal) -> (u32, bool) {
        let level = self.depot.level();
        let counters = &self.counters;
        let goal =
            policy.follow(counters.clean_drawn.get(), counters.cleared_inline.get(), level.fill().frames);
        level.set_clean_low(goal / 2);
        let low = self.watermarks.low - self.watermarks.min;
        let most = (PASS / self.frame_size()).max(1) as u32;
        let mut cleared = 0;
        let wanted = |fill: Fill| goal.min(fill.frames).saturating_sub(fill.clean);
        let mut fill = level.fill();
        // A stock that is low again has rung, and is refilled first.
        while wanted(fill) > 0 && fill.frames >= low && cleared < most {
            match self.clear_some(wanted(fill)) {
                0 => break,
                frames => cleared += frames,
            }
            fill = level.fill();
        }
        policy.unfinished = wanted(fill) > 0;
        (cleared, cleared >= most && policy.unfinished)
    }

    /// Moves up to `wanted` frames of the depot, as many as may be in hand at once, from its dirty side to its clean one.
    #[allow(unsafe_code, reason = "the contents of frames that are nobody else's")]
    fn clear_some(&self, wanted: u32) -> u32 {
        let mut chunk: [FrameNumber; CHUNK] = [0; CHUNK];
        let most = (IN_HAND / self.frame_size()).clamp(1, CHUNK).min(wanted as usize);
        let length = self.take_uncounted(Kind::Dirty, chunk.get_mut(..most).unwrap_or_default());
        let frames = chunk.get(..length).unwrap_or_default();
        let mut addresses = [PhysAddr::new(0); CHUNK];
        for (address, &frame) in addresses.iter_mut().zip(frames) {
            *address = self.address_of(frame);
        }
        let addresses = addresses.get(..length).unwrap_or_default();
        // SAFETY: the frames were just taken out of the depot and are nobody else's (INV-1); the source maps all of each.
        unsafe { clear_uncached(&SourceContents(&*self.source), addresses, self.frame_size()) };
        self.counters.cleared_ahead.add(length as u64);
        // INV-9: counted and pushed after they were cleared.
        self.stock(Kind::Clean, frames, |frames| {
            self.depot.level().cleared(frames);
            Ring::No
        });
        length as u32
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_goal_doubles_when_it_was_not_enough_and_fades_when_nobody_asks() {
        let mut goal = CleanGoal::default();
        assert_eq!(goal.follow(0, 0, 1000), 0, "nobody asks, nothing is cleared");
        assert_eq!(goal.follow(0, 30, 1000), 60);
        assert_eq!(goal.follow(40, 30, 1000), 60, "it was enough, and needed");
        assert_eq!(goal.follow(100, 31, 1000), 122);
        assert_eq!(goal.follow(101, 32, 1000), 244, "not enough, however little was used");
        assert_eq!(goal.follow(1101, 132, 1000), 1000, "never more than there is");
        let mut faded = 0;
        while goal.follow(1101, 132, 1000) > 0 {
            faded += 1;
        }
        assert!((10..60).contains(&faded), "{faded} passes");
    }
}
