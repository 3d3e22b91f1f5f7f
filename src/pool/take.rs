//! The ways down: whom an allocation asks when its CPU's cache has nothing, tier by tier.
//!
//! | tier | for a frame of any content | for a zeroed frame |
//! |---|---|---|
//! | 1 | this CPU's dirty slot | this CPU's clean slot |
//! | 2 | a dirty magazine of the depot, a clean one, the overflow | a clean magazine of the depot; then this CPU's dirty slot, a dirty magazine, the overflow, cleared inline |
//! | 3 | another CPU's dirty magazine, then any CPU's clean one | the same, cleared inline if dirty |
//! | 4, 5 | the reserve for Critical, the host | the same, cleared inline unless the source's frames are zero |
//!
//! So a frame of either kind keeps either caller from failing (R8), and a clean frame is only spent on a caller who does not
//! need it when there is no dirty one in the depot.

use super::{AllocError, Class, FramePool, Request, depot::Depot};
use crate::{
    platform::Platform,
    raw::{
        magazine::{FrameNumber, Kind, Magazine},
        slot::SlotMiss,
    },
    source::FrameSource,
};

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    /// Takes a frame for a caller.
    #[inline(always)]
    pub(crate) fn take(&self, request: Request) -> Result<FrameNumber, AllocError> {
        loop {
            let frame = self.take_any(request)?;
            if self.check_out(frame) {
                return Ok(frame);
            }
        }
    }

    /// Takes a frame, which is in the hands of the pool still.
    #[inline(always)]
    fn take_any(&self, request: Request) -> Result<FrameNumber, AllocError> {
        match self.cache_of(request.kind()).pop(&self.platform) {
            Ok(frame) => Ok(frame),
            Err(miss) => {
                let mut frame = FrameNumber::MAX;
                self.take_aside(request, miss, &mut frame)?;
                Ok(frame)
            }
        }
    }

    /// What a miss costs, out of the way of a hit: with a result of one small value, the compiler does not unite both.
    #[cold]
    #[inline(never)]
    fn take_aside(
        &self,
        request: Request,
        miss: SlotMiss,
        frame: &mut FrameNumber,
    ) -> Result<(), AllocError> {
        *frame = match (self.cache_of(request.kind()).pop_again(&self.platform, miss), request.kind()) {
            (Ok(frame), _) => frame,
            (Err(miss), Kind::Dirty) => self.take_below(request, miss)?.0,
            (Err(miss), Kind::Clean) => self.take_zeroed_below(request, miss)?,
        };
        Ok(())
    }

    /// A zeroed frame when this CPU's clean slot has none.
    fn take_zeroed_below(&self, request: Request, miss: SlotMiss) -> Result<FrameNumber, AllocError> {
        self.count_collision(miss);
        if self.is_closing() {
            return Err(AllocError::Closed);
        }
        if let Some(frame) = self.take_from_side(Kind::Clean, Kind::Clean, miss) {
            self.depot().count_hit();
            self.count_zeroed(Kind::Clean, 1);
            return Ok(frame);
        }
        let ring = self.depots.missed_clean(&self.platform);
        self.ring(ring);
        let popped = self.cache.pop(&self.platform);
        let (frame, kind) = match popped.or_else(|miss| self.cache.pop_again(&self.platform, miss)) {
            Ok(frame) => (frame, Kind::Dirty),
            Err(miss) => self.take_below(request, miss)?,
        };
        self.count_zeroed(kind, 1);
        if kind == Kind::Dirty {
            self.clear_inline(frame);
        }
        Ok(frame)
    }

    /// Counts frames that callers for zeroed ones got from below the cache, by what they were.
    pub(super) fn count_zeroed(&self, kind: Kind, frames: u32) {
        match kind {
            Kind::Clean => self.counters.zeroed_below.add(u64::from(frames)),
            Kind::Dirty => self.counters.cleared_inline.add(u64::from(frames)),
        }
    }

    /// The tiers below the cache, in their order; the frame, and what is known about it.
    #[cold]
    #[inline(never)]
    fn take_below(&self, request: Request, miss: SlotMiss) -> Result<(FrameNumber, Kind), AllocError> {
        self.count_collision(miss);
        if self.is_closing() {
            return Err(AllocError::Closed);
        }
        if let Some(taken) = self.take_from_depot(miss) {
            self.depot().count_hit();
            return Ok(taken);
        }
        let ring = self.depots.missed();
        self.ring(ring);
        if let Some(taken) = self.steal(request, miss) {
            self.counters.steals.add(1);
            return Ok(taken);
        }
        // INV-5: below `min` only Critical takes.
        if request.class() == Class::Critical
            && let Some(taken) = self.reserve.take(&self.wanted)
        {
            self.counters.reserve_hits.add(1);
            return Ok(taken);
        }
        if request.allows_fallback()
            && self.fallback.is_allowed()
            && let Some(frame) = self.take_from_host()
        {
            self.fallback.taken.add(1);
            return Ok((frame, self.check_supply(frame)));
        }
        self.counters.exhausted.add(1);
        Err(self.reason(request))
    }

    pub(super) fn reason(&self, request: Request) -> AllocError {
        if request.class() == Class::Ordinary && self.wanted.missing() < self.reserve.target() {
            AllocError::ReserveOnly
        } else if request.allows_fallback() && self.fallback.is_allowed() {
            AllocError::FallbackFailed
        } else {
            AllocError::Exhausted
        }
    }

    /// Tier 2 for a frame of any content.
    fn take_from_depot(&self, miss: SlotMiss) -> Option<(FrameNumber, Kind)> {
        let from = |kind| self.take_from_side(kind, Kind::Dirty, miss).map(|frame| (frame, kind));
        from(Kind::Dirty)
            .or_else(|| from(Kind::Clean))
            .or_else(|| self.take_from_overflow().map(|frame| (frame, Kind::Dirty)))
    }

    /// Tier 2: loads a whole magazine of the side `from` into this CPU's slot on the side `into`, or takes one frame when the
    /// slot is busy.
    fn take_from_side(&self, from: Kind, into: Kind, miss: SlotMiss) -> Option<FrameNumber> {
        self.depots.find(&self.platform, |depot| self.take_from(depot, from, into, miss))
    }

    /// As above, from one depot.
    fn take_from(&self, depot: &Depot, from: Kind, into: Kind, miss: SlotMiss) -> Option<FrameNumber> {
        let magazines = self.cache.magazines();
        let (frame, drawn, ring) = if miss == SlotMiss::Busy {
            let (frame, ring) = depot.take_one(magazines, from)?;
            // The rest of the magazine was in our hands for a moment.
            self.announce();
            (Some(frame), 1, ring)
        } else {
            let mut magazine = depot.take_stocked(from)?;
            let frame = magazines.pop(&mut magazine);
            let drawn = self.load_stocked(depot, from, into, magazine) + u32::from(frame.is_some());
            (frame, drawn, depot.count_drawn(from, drawn))
        };
        let ring = self.depots.after_removal(depot, ring);
        if into == Kind::Clean {
            self.counters.clean_drawn.add(u64::from(drawn));
        }
        self.ring(ring);
        frame
    }

    /// Loads what is left of a magazine of the side `from` into the slot on the side `into`, or puts it on the depot when the
    /// slot is not empty any more; how many frames went into the slot. Does not count.
    fn load_stocked(&self, depot: &Depot, from: Kind, into: Kind, magazine: Magazine) -> u32 {
        let frames = magazine.length();
        if frames == 0 {
            depot.put(from, magazine);
            return 0;
        }
        match self.cache_of(into).load_stocked(&self.platform, magazine) {
            Ok(empty) => {
                depot.put(from, empty);
                self.announce();
                frames
            }
            Err(unchanged) => {
                self.put_back(depot, from, unchanged);
                0
            }
        }
    }

    /// Frames that found no magazine when they came back: one is taken, the others get another chance.
    pub(super) fn take_from_overflow(&self) -> Option<FrameNumber> {
        let mut chain = self.overflow.take_all();
        let first = self.next_of(&mut chain)?;
        self.counters.recovered.add(1);
        while let Some(frame) = self.next_of(&mut chain) {
            self.counters.recovered.add(1);
            self.put_one(Kind::Dirty, frame);
        }
        Some(first)
    }

    /// Tier 3: another CPU's magazine, from which one frame is taken and the rest goes into the slot.
    fn steal(&self, request: Request, miss: SlotMiss) -> Option<(FrameNumber, Kind)> {
        let (depot, empty) = self.depots.find(&self.platform, |depot| Some((depot, depot.take_empty()?)))?;
        let stolen = match self.cache.steal(&self.platform, empty) {
            Ok(stolen) => Ok((stolen, Kind::Dirty)),
            Err(empty) => self.clean_cache.steal(&self.platform, empty).map(|stolen| (stolen, Kind::Clean)),
        };
        let (mut stolen, kind) = match stolen {
            Ok(stolen) => stolen,
            Err(empty) => {
                depot.put(Kind::Dirty, empty);
                return None;
            }
        };
        let frame = self.cache.magazines().pop(&mut stolen);
        let left = stolen.length();
        if miss == SlotMiss::Busy || left == 0 {
            self.return_to_stock(kind, stolen);
        } else {
            let into = if request.is_zeroed() { kind } else { Kind::Dirty };
            match self.cache_of(into).load_stocked(&self.platform, stolen) {
                Ok(empty) => {
                    depot.put(kind, empty);
                    self.announce();
                }
                Err(stolen) => self.return_to_stock(kind, stolen),
            }
        }
        Some((frame?, kind))
    }

    /// Tier 5: one request to the host, without sleeping.
    fn take_from_host(&self) -> Option<FrameNumber> {
        let frame = self.fallback.spend().then(|| self.ask_host()).flatten();
        if frame.is_none() {
            self.fallback.failed.add(1);
        }
        frame
    }

    fn ask_host(&self) -> Option<FrameNumber> {
        if self.door.make_room(1) == 0 {
            return None;
        }
        let frame = self.source.try_supply().and_then(|address| self.door.admit(address));
        if frame.is_none() {
            self.door.return_room(1);
        }
        frame
    }
}
