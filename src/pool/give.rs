//! The ways back: where a free puts its frame when its CPU's cache has no room.

use super::{FramePool, Request, SourceContents, depot::Depot};
use crate::{
    platform::Platform,
    raw::{
        magazine::{FrameNumber, Kind, Magazine},
        overflow::Chain,
        slot::SlotMiss,
    },
    source::FrameSource,
};

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    /// Takes a frame back from a caller.
    #[inline(always)]
    pub(crate) fn give(&self, kind: Kind, frame: FrameNumber) {
        if let Some(kind) = self.check_in(kind, frame) {
            self.put(kind, frame);
        }
    }

    /// Puts a frame that is in the hands of an operation of the pool where it belongs.
    #[inline(always)]
    pub(super) fn put(&self, kind: Kind, frame: FrameNumber) {
        if let Err(miss) = self.cache_of(kind).push(&self.platform, frame, &self.wanted) {
            self.give_below(kind, frame, miss);
        }
    }

    /// What a free does when the slot is full or busy, or the frame is wanted elsewhere.
    #[cold]
    #[inline(never)]
    fn give_below(&self, kind: Kind, frame: FrameNumber, miss: SlotMiss) {
        let again = self.cache_of(kind).push_again(&self.platform, frame, &self.wanted, miss);
        let Err(miss) = again else { return };
        self.depot().count_freed(1);
        self.count_collision(miss);
        let Err((kind, frame)) = self.divert(kind, frame) else { return };
        let magazines = self.cache.magazines();
        if miss == SlotMiss::Unsuited
            && let Some((depot, mut magazine)) =
                self.depots.find(&self.platform, |depot| Some((depot, depot.take_vacant(kind)?)))
        {
            let from_stock = magazine.length();
            let pushed = magazines.push(&mut magazine, frame);
            match self.cache_of(kind).load_vacant(&self.platform, magazine) {
                Ok(full) => {
                    self.return_to_stock(kind, full);
                    if from_stock > 0 {
                        let ring = depot.level().removed(kind, from_stock);
                        self.ring(self.depots.after_removal(depot, ring));
                    }
                }
                Err(magazine) => {
                    let ring = depot.level().added(kind, magazine.length() - from_stock);
                    self.ring(ring);
                    depot.put(kind, magazine);
                }
            }
            self.announce();
            if pushed.is_ok() {
                return;
            }
        }
        self.put_one(kind, frame);
    }

    /// Gives back a magazine as a whole; while frames are wanted elsewhere, its frames one by one.
    pub(super) fn give_magazine(&self, kind: Kind, mut magazine: Magazine) {
        while (cfg!(feature = "hardened") || self.wanted.is_any())
            && let Some(frame) = self.cache.magazines().pop(&mut magazine)
        {
            self.give(kind, frame);
        }
        self.depot().count_freed(magazine.length());
        self.return_to_stock(kind, magazine);
    }

    /// Puts one frame into the stock, or the overflow when there is no magazine with room.
    #[allow(unsafe_code, reason = "the overflow runs through the frames themselves")]
    pub(super) fn put_one(&self, kind: Kind, frame: FrameNumber) {
        let put =
            self.depots.find(&self.platform, |depot| depot.put_one(self.cache.magazines(), kind, frame).ok());
        match put {
            Some(ring) => self.ring(ring),
            None => {
                self.counters.overflowed.add(1);
                // SAFETY: the frame is the pool's and in no other place, and the source maps it.
                unsafe { self.overflow.push(&SourceContents(&*self.source), frame, self.door.address(frame)) }
            }
        }
        self.announce();
    }

    /// Puts a magazine on the depot whose frames the level does not count yet.
    pub(super) fn return_to_stock(&self, kind: Kind, magazine: Magazine) {
        let depot = self.depot();
        if magazine.length() > 0 {
            let ring = depot.level().added(kind, magazine.length());
            self.ring(ring);
        }
        self.put_back(depot, kind, magazine);
    }

    /// Puts a magazine on the depot whose level counts its frames already.
    pub(super) fn put_back(&self, depot: &Depot, kind: Kind, magazine: Magazine) {
        let has_frames = magazine.length() > 0;
        depot.put(kind, magazine);
        if has_frames {
            self.announce();
        }
    }

    /// Gives every frame of the overflow another chance to find a magazine.
    pub(super) fn recover_overflow(&self) {
        let mut chain = self.overflow.take_all();
        while let Some(frame) = self.next_of(&mut chain) {
            self.counters.recovered.add(1);
            self.put_one(Kind::Dirty, frame);
        }
    }

    /// Takes the next frame off a chain.
    #[allow(unsafe_code, reason = "chains run through the frames themselves")]
    pub(super) fn next_of(&self, chain: &mut Chain) -> Option<FrameNumber> {
        // SAFETY: the frames of the chain are the pool's, and the source maps every frame of the pool.
        let frame = unsafe { chain.pop(&SourceContents(&*self.source), |number| self.door.address(number)) };
        if let Some(frame) = frame {
            self.mend_link(frame);
        }
        frame
    }

    /// Takes the next frame off a chain for a caller, cleared if its request asks for that.
    pub(super) fn next_for(&self, request: Request, chain: &mut Chain) -> Option<FrameNumber> {
        loop {
            let frame = self.next_of(chain)?;
            if request.is_zeroed() {
                self.count_zeroed(Kind::Dirty, 1);
                self.clear_inline(frame);
            }
            if self.check_out(frame) {
                return Some(frame);
            }
        }
    }
}
