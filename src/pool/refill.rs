//! Supply: what the worker, or a host that has no threads, does for the pool in one pass. What it gives back is in
//! `pool/shrink.rs`, what it clears in `pool/clean.rs`.
//!
//! How much to fetch follows use, unless the pool was told otherwise ([`Growth`]). Demand is what was drawn from the stock since the last pass; the policy keeps its
//! exponentially weighted mean and a peak that decays. Below `low` the stock is filled up to `low` plus the larger of both,
//! and never beyond `high`: a quiet pool stays near `low`, a busy one gets the room that its bursts need.

use super::{FramePool, Watermarks, clean::CleanGoal, config::BuildError, depot::Depot, door::Door};
use crate::{
    frame::PhysAddr,
    platform::Platform,
    raw::{
        level::Ring,
        magazine::{FrameNumber, Kind},
    },
    source::FrameSource,
};
use core::time::Duration;

/// Frames that go to or come from the source at a time, on the stack.
pub(crate) const CHUNK: usize = 64;

/// The wait after the first failure of the source; it doubles with each further one.
const BACK_OFF_FIRST: Duration = Duration::from_millis(1);
/// How often it doubles.
const BACK_OFF_DOUBLINGS: u32 = 10;

/// What one pass did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Maintenance {
    /// How it ended.
    pub outcome: Outcome,
    /// Frames fetched from the source.
    pub fetched: u32,
    /// Frames given back to the source.
    pub trimmed: u32,
    /// Frames cleared for those who will ask for zeroed ones.
    pub cleared: u32,
    /// There is more to clear: pass again at once, before sleeping.
    pub more: bool,
    /// Callers wait, and a cache that was in use could not be looked into for them: serve them again within a millisecond or so.
    pub look_again: bool,
    /// How long to leave the source alone, whoever rings: after each failure twice as long, up to about a second.
    pub retry_after: Option<Duration>,
}

impl Maintenance {
    /// Nothing to do.
    pub(super) const IDLE: Self = Self {
        outcome: Outcome::Done,
        fetched: 0,
        trimmed: 0,
        cleared: 0,
        more: false,
        look_again: false,
        retry_after: None,
    };
    /// Somebody else has the turn.
    pub(super) const BUSY: Self =
        Self { outcome: Outcome::Busy, retry_after: Some(BACK_OFF_FIRST), ..Self::IDLE };
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The stock is where it should be.
    Done,
    /// The source had too little; the pool goes on serving with what it has.
    SourceFailed,
    /// The pool owns as many frames as it may, and most of them are out.
    AtCapacity,
    /// The pool owns more than it shall shrink to: the rest is out, in caches that are in use, or kept for the watermarks.
    InUse,
    /// Somebody else is maintaining the pool at this moment.
    Busy,
}

/// Up to where a pass fills the stock when it is below `low` (R4). What each costs and saves under two loads is a table in the design,
/// made by `cargo run --release --example growth`.
///
/// ```
/// # #[cfg(feature = "std")] {
/// # use framepool::{AnonymousMemory, Builder, Growth, LinuxPlatform, Watermarks};
/// let marks = Watermarks { min: 0, low: 8, high: 64, max: 64 };
/// for (growth, stock) in [(Growth::ToLow, 8), (Growth::ToHigh, 64)] {
///     let builder = Builder::new(64).watermarks(marks).initial(0).growth(growth);
///     let pool = builder.build(AnonymousMemory::new(64)?, LinuxPlatform::new())?;
///     pool.maintain();
///     assert_eq!(pool.stats().stock, stock);
/// }
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Growth {
    /// To `low`: the least memory, and a fallback whenever a burst is larger.
    ToLow,
    /// To `low` and what was lately drawn between two passes, the larger of its mean and a peak that decays; at most to `high`.
    #[default]
    ByUse,
    /// To `high`: the most memory, whatever is used.
    ToHigh,
}

/// What the worker remembers from pass to pass.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Policy {
    drawn: u64,
    /// Mean demand of a pass, in 1/16 frames.
    mean: u64,
    peak: u64,
    clean: CleanGoal,
    failures: u32,
}

impl Policy {
    /// Notes the frames drawn in total, and returns the stock that the next fill should reach.
    fn target(&mut self, drawn: u64, marks: Watermarks, growth: Growth) -> u32 {
        let demand = drawn.saturating_sub(self.drawn);
        self.drawn = drawn;
        // A new pass counts for a quarter.
        self.mean = self.mean - self.mean / 4 + demand.saturating_mul(16) / 4;
        self.peak = demand.max(self.peak - self.peak.div_ceil(8));
        let expected = u32::try_from((self.mean / 16).max(self.peak).max(1)).unwrap_or(u32::MAX);
        match growth {
            // One frame at least, of which the pool's ordinary callers see something although `low` is nothing.
            Growth::ToLow => marks.low.max(marks.min.saturating_add(1)).min(marks.high),
            Growth::ByUse => marks.low.saturating_add(expected).min(marks.high),
            Growth::ToHigh => marks.high,
        }
    }

    /// How long to leave the source alone after it failed.
    fn back_off(&mut self) -> Duration {
        let wait = BACK_OFF_FIRST * (1 << self.failures.min(BACK_OFF_DOUBLINGS));
        self.failures = self.failures.saturating_add(1);
        wait
    }
}

/// Room at the door for frames under way; what is not used goes back, also when the source panics.
struct Room<'d> {
    door: &'d Door,
    frames: u32,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.door.return_room(self.frames);
    }
}

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    /// One pass: answers the doorbell, takes back what idle CPUs' caches hold, refills the reserve and the stock or trims it
    /// above `max`, and clears frames for those who ask for zeroed ones. The worker thread does nothing else; a host without
    /// threads calls this when [`Platform::ring`] asked for it, and now and then.
    ///
    /// Thread context only: the source may sleep. Bounded by the frames that move, and 16 MiB to clear.
    /// At most 30,500 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, LinuxPlatform, Outcome, Watermarks};
    /// let marks = Watermarks { min: 0, low: 8, high: 16, max: 32 };
    /// let source = AnonymousMemory::new(64)?;
    /// let pool = Builder::new(64).watermarks(marks).initial(0).build(source, LinuxPlatform::new())?;
    /// let pass = pool.maintain();
    /// assert_eq!(pass.outcome, Outcome::Done);
    /// assert_eq!(u64::from(pass.fetched), pool.stats().stock);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn maintain(&self) -> Maintenance {
        self.maintenance.try_with(|policy| self.pass(policy)).unwrap_or(Maintenance::BUSY)
    }

    /// What follows for the worker when the source has panicked in a pass.
    #[cfg(feature = "std")]
    pub(super) fn back_off_after_panic(&self) -> Maintenance {
        self.counters.source_panics.add(1);
        let back_off = |policy: &mut Policy| Maintenance {
            outcome: Outcome::SourceFailed,
            retry_after: Some(policy.back_off()),
            ..Maintenance::IDLE
        };
        self.maintenance.try_with(back_off).unwrap_or(Maintenance::BUSY)
    }

    fn pass(&self, policy: &mut Policy) -> Maintenance {
        // Answered first: a crossing that happens from here on rings again (INV-6).
        self.depots.answered();
        self.fallback.renew();
        let mut left_out = self.serve_waiters();
        self.recover_overflow();
        self.complete_reserve();
        self.decay_caches();
        self.stats();
        let marks = self.watermarks;
        let depot = self.depots.fill().frames;
        let target = policy.target(self.depots.drawn(), marks, self.growth);
        let missing = self.wanted.missing();
        let lacking = missing.saturating_add(self.wanted.waited_for());
        let stock = depot.saturating_add(self.reserve.target().saturating_sub(missing));
        let mut done = Maintenance::IDLE;
        if stock > marks.max {
            done.trimmed = self.trim(stock - marks.high);
        } else if stock < marks.low || depot == 0 || lacking > 0 {
            let wanted = target.saturating_sub(stock).max(lacking);
            (done.fetched, done.outcome) = self.fill(wanted);
            if done.fetched > 0 {
                left_out = self.serve_waiters();
            }
        }
        let ring = self.depots.share_out(done.outcome != Outcome::Done);
        self.ring(ring);
        done.look_again = left_out;
        match done.outcome {
            Outcome::SourceFailed | Outcome::AtCapacity => done.retry_after = Some(policy.back_off()),
            Outcome::Done | Outcome::Busy | Outcome::InUse => policy.failures = 0,
        }
        (done.cleared, done.more) = self.clear_ahead(&mut policy.clean);
        done
    }

    /// Brings frames of the stock to the reserve while it lacks some.
    fn complete_reserve(&self) {
        for _ in 0..self.wanted.missing() {
            let mut frame = [0];
            let kind =
                [Kind::Dirty, Kind::Clean].into_iter().find(|&kind| self.take_chunk(kind, &mut frame) > 0);
            let (Some(kind), [frame]) = (kind, frame) else { return };
            if let Err((kind, frame)) = self.keep_in_reserve(kind, frame) {
                return self.put_one(kind, frame);
            }
        }
    }

    /// The first frames of a pool.
    pub(super) fn fill_at_construction(&self, initial: u32) -> Result<(), BuildError> {
        let (got, _) = self.fill(initial);
        let wanted = self.reserve.target();
        if got < wanted { Err(BuildError::SourceExhausted { wanted, got }) } else { Ok(()) }
    }

    /// Fetches up to `wanted` frames: into the reserve while it lacks some, then for those who wait, then into the depot.
    fn fill(&self, wanted: u32) -> (u32, Outcome) {
        let mut fetched = 0;
        let mut outcome = Outcome::Done;
        while fetched < wanted {
            match self.fetch((wanted - fetched).min(CHUNK as u32)) {
                Ok(0) => outcome = Outcome::SourceFailed,
                Ok(frames) => fetched += frames,
                Err(failed) => outcome = failed,
            }
            if outcome != Outcome::Done {
                break;
            }
        }
        if outcome == Outcome::SourceFailed {
            self.counters.source_failures.add(1);
        }
        if fetched > 0 {
            self.counters.refills.add(1);
        }
        (fetched, outcome)
    }

    /// Fetches up to `wanted` frames, at most [`CHUNK`], in one request; how many the pool took in.
    fn fetch(&self, wanted: u32) -> Result<u32, Outcome> {
        let mut room = Room { door: &self.door, frames: self.door.make_room(wanted) };
        if room.frames == 0 {
            return Err(Outcome::AtCapacity);
        }
        let mut addresses = [PhysAddr::new(0); CHUNK];
        let requested = addresses.get_mut(..room.frames as usize).unwrap_or_default();
        let supplied = self.source.supply(requested).map_err(|_| Outcome::SourceFailed)?;
        let kind = self.kind_of_supply();
        let mut taken_in = 0;
        let mut chunk: [FrameNumber; CHUNK] = [0; CHUNK];
        let mut length = 0;
        for address in requested.iter().take(supplied) {
            let Some(frame) = self.door.admit(*address) else { continue };
            room.frames -= 1;
            taken_in += 1;
            let known = self.check_supply(frame);
            let Err((known, frame)) = self.keep_in_reserve(known, frame) else { continue };
            let Err(frame) = self.promise(frame) else { continue };
            if known != kind {
                self.put_one(known, frame);
            } else if let Some(place) = chunk.get_mut(length) {
                *place = frame;
                length += 1;
            }
        }
        let depot = self.depots.poorest();
        let chunk = chunk.get(..length).unwrap_or_default();
        let left = self.stock(depot, kind, chunk, |frames| depot.level().added(kind, frames));
        left.iter().for_each(|&frame| self.put_one(kind, frame));
        self.counters.refilled.add(u64::from(taken_in));
        Ok(taken_in)
    }

    /// What is known about the frames that the source hands out.
    pub(super) fn kind_of_supply(&self) -> Kind {
        if self.source.supplies_zeroed() { Kind::Clean } else { Kind::Dirty }
    }

    /// Puts frames into a depot, magazine by magazine; `count` counts them in before they can be taken. Those for which it has no
    /// magazine with room come back.
    pub(super) fn stock<'f>(
        &self,
        depot: &Depot,
        kind: Kind,
        frames: &'f [FrameNumber],
        count: impl Fn(u32) -> Ring,
    ) -> &'f [FrameNumber] {
        let mut rest = frames.iter();
        while !rest.as_slice().is_empty() {
            let Some(mut magazine) = depot.take_roomy(kind) else { break };
            let before = magazine.length();
            while let Some(&frame) = rest.as_slice().first() {
                if self.cache.magazines().push(&mut magazine, frame).is_err() {
                    break;
                }
                rest.next();
            }
            let ring = count(magazine.length() - before);
            self.ring(ring);
            self.put_back(depot, kind, magazine);
        }
        rest.as_slice()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MARKS: Watermarks = Watermarks { min: 0, low: 10, high: 100, max: 200 };

    #[test]
    fn the_target_follows_demand_and_stays_between_low_and_high() {
        let mut policy = Policy::default();
        assert_eq!(policy.target(0, MARKS, Growth::ByUse), 11);
        assert_eq!(policy.target(40, MARKS, Growth::ByUse), 50);
        assert_eq!(policy.target(1000, MARKS, Growth::ByUse), 100);
        let mut targets = std::vec::Vec::new();
        for _ in 0..60 {
            targets.push(policy.target(1000, MARKS, Growth::ByUse));
        }
        assert!(targets.is_sorted_by(|a, b| a >= b));
        assert_eq!(targets.last(), Some(&11));
    }

    #[test]
    fn a_pool_may_be_told_to_grow_to_a_mark_whatever_is_used() {
        for (growth, target) in [(Growth::ToLow, 10), (Growth::ToHigh, 100)] {
            let mut policy = Policy::default();
            assert_eq!([0, 40, 1000].map(|drawn| policy.target(drawn, MARKS, growth)), [target; 3]);
        }
        let nothing = Watermarks { min: 0, low: 0, high: 4, max: 4 };
        assert_eq!(Policy::default().target(0, nothing, Growth::ToLow), 1);
    }

    #[test]
    fn the_back_off_doubles_up_to_about_a_second() {
        let mut policy = Policy::default();
        assert_eq!(policy.back_off(), Duration::from_millis(1));
        assert_eq!(policy.back_off(), Duration::from_millis(2));
        let longest = (0..50).map(|_| policy.back_off()).max();
        assert_eq!(longest, Some(Duration::from_millis(1024)));
    }
}
