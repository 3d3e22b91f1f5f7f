//! The ways down: whom an allocation asks when its CPU's cache has nothing, tier by tier.

use super::{AllocError, Class, FramePool, Request};
use crate::{
    platform::Platform,
    raw::{
        magazine::{FrameNumber, Magazine},
        slot::SlotMiss,
    },
    source::FrameSource,
};

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    #[inline(always)]
    pub(crate) fn take(&self, request: Request) -> Result<FrameNumber, AllocError> {
        match self.cache.pop(&self.platform) {
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
        *frame = self.take_below(request, miss)?;
        Ok(())
    }

    /// The tiers below the cache, in their order.
    fn take_below(&self, request: Request, miss: SlotMiss) -> Result<FrameNumber, AllocError> {
        self.count_collision(miss);
        if self.is_closing() {
            return Err(AllocError::Closed);
        }
        if let Some(frame) = self.take_from_depot(miss) {
            self.counters.depot_hits.add(1);
            return Ok(frame);
        }
        let ring = self.depot.level().missed();
        self.ring(ring);
        if let Some(frame) = self.steal(miss) {
            self.counters.steals.add(1);
            return Ok(frame);
        }
        // INV-5: below `min` only Critical takes.
        if request.class() == Class::Critical
            && let Some(frame) = self.reserve.take()
        {
            self.counters.reserve_hits.add(1);
            return Ok(frame);
        }
        if request.allows_fallback()
            && self.fallback.is_allowed()
            && let Some(frame) = self.take_from_host()
        {
            self.fallback.taken.add(1);
            return Ok(frame);
        }
        self.counters.exhausted.add(1);
        Err(self.reason(request))
    }

    pub(super) fn reason(&self, request: Request) -> AllocError {
        if request.class() == Class::Ordinary && self.reserve.missing() < self.reserve.target() {
            AllocError::ReserveOnly
        } else if request.allows_fallback() && self.fallback.is_allowed() {
            AllocError::FallbackFailed
        } else {
            AllocError::Exhausted
        }
    }

    /// Tier 2: loads a whole magazine into the slot, or takes one frame when the slot is busy.
    fn take_from_depot(&self, miss: SlotMiss) -> Option<FrameNumber> {
        let magazines = self.cache.magazines();
        if miss == SlotMiss::Busy {
            if let Some((frame, ring)) = self.depot.take_one(magazines) {
                self.ring(ring);
                return Some(frame);
            }
        } else if let Some(mut magazine) = self.depot.take_stocked() {
            let frame = magazines.pop(&mut magazine);
            let loaded = self.load_stocked(magazine);
            let ring = self.depot.count_drawn(loaded + u32::from(frame.is_some()));
            self.ring(ring);
            return frame;
        }
        self.take_from_overflow()
    }

    /// Loads what is left of a magazine into the slot, or puts it on the depot when the slot is not empty any more; how many
    /// frames went into the slot. Does not count.
    fn load_stocked(&self, magazine: Magazine) -> u32 {
        let frames = magazine.length();
        if frames == 0 {
            self.depot.put(magazine);
            return 0;
        }
        match self.cache.load_stocked(&self.platform, magazine) {
            Ok(empty) => {
                self.depot.put(empty);
                frames
            }
            Err(unchanged) => {
                self.depot.put(unchanged);
                0
            }
        }
    }

    /// Frames that found no magazine when they came back: one is taken, the others get another chance.
    fn take_from_overflow(&self) -> Option<FrameNumber> {
        let mut chain = self.overflow.take_all();
        let first = self.next_of(&mut chain)?;
        while let Some(frame) = self.next_of(&mut chain) {
            self.put_one(frame);
        }
        Some(first)
    }

    /// Tier 3: another CPU's magazine, from which one frame is taken and the rest goes into the slot.
    fn steal(&self, miss: SlotMiss) -> Option<FrameNumber> {
        let empty = self.depot.take_empty()?;
        let mut stolen = match self.cache.steal(&self.platform, empty) {
            Ok(stolen) => stolen,
            Err(empty) => {
                self.depot.put(empty);
                return None;
            }
        };
        let frame = self.cache.magazines().pop(&mut stolen);
        let left = stolen.length();
        if miss == SlotMiss::Busy || left == 0 {
            self.return_to_stock(stolen);
        } else {
            match self.cache.load_stocked(&self.platform, stolen) {
                Ok(empty) => self.depot.put(empty),
                Err(stolen) => self.return_to_stock(stolen),
            }
        }
        frame
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
