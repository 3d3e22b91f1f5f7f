//! The door of the pool: which frames it owns, how many, and what their numbers are.
//!
//! A frame comes in here once, from the source, and goes out here once, back to it; in between it only moves from place
//! to place (INV-1). The source is not believed: a frame that is misaligned, outside the window, beyond the address
//! limit, or in the pool already is refused and counted.

#[cfg(feature = "hardened")]
use crate::raw::custody::{Custodies, Custody};
use crate::{
    frame::{FrameSize, PhysAddr},
    raw::{magazine::FrameNumber, registry::Registry},
    sync::{
        atomic::{AtomicU32, Ordering},
        counter,
    },
};

/// The frames that the pool owns.
#[derive(Debug)]
pub(crate) struct Door {
    registry: Registry,
    base: PhysAddr,
    frame_size: u32,
    /// The first address that no frame may reach.
    limit: u64,
    capacity: u32,
    /// Frames owned, and room promised to requests to the source that are under way.
    owned: AtomicU32,
    refused: counter::Shared,
    #[cfg(feature = "hardened")]
    custodies: Custodies,
}

impl Door {
    pub(crate) fn new(
        registry: Registry,
        base: PhysAddr,
        frame_size: FrameSize,
        limit: PhysAddr,
        capacity: u32,
        #[cfg(feature = "hardened")] custodies: Custodies,
    ) -> Self {
        let (frame_size, limit) = (frame_size.bytes() as u32, limit.as_u64());
        let owned = AtomicU32::new(0);
        Self {
            registry,
            base,
            frame_size,
            limit,
            capacity,
            owned,
            refused: counter::Shared::new(),
            #[cfg(feature = "hardened")]
            custodies,
        }
    }

    /// The size of one frame in bytes.
    pub(crate) fn frame_size(&self) -> u32 {
        self.frame_size
    }

    /// How many frames the pool may own.
    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// How many frames the pool owns, those under way from the source included.
    pub(crate) fn owned(&self) -> u32 {
        // Ordering: Relaxed; a figure for the worker and for statistics. `make_room` decides by read-modify-write.
        self.owned.load(Ordering::Relaxed)
    }

    /// How many frames were refused.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// Promises room for up to `wanted` more frames; for how many. Lock-free.
    pub(crate) fn make_room(&self, wanted: u32) -> u32 {
        let mut granted = 0;
        // Ordering: Relaxed; the count limits itself and publishes nothing.
        let _ = self.owned.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |owned| {
            granted = wanted.min(self.capacity.saturating_sub(owned));
            Some(owned.saturating_add(granted))
        });
        granted
    }

    /// Takes back room that was promised and not used.
    pub(crate) fn return_room(&self, frames: u32) {
        // Ordering: Relaxed; as in `make_room`.
        self.owned.fetch_sub(frames, Ordering::Relaxed);
    }

    /// Lets a frame in for which room was promised; on refusal the room stays promised.
    pub(crate) fn admit(&self, address: PhysAddr) -> Option<FrameNumber> {
        let within =
            address.as_u64().checked_add(u64::from(self.frame_size)).is_some_and(|end| end <= self.limit);
        let frame = self.number(address).filter(|_| within);
        let admitted = frame.filter(|&frame| self.registry.insert(frame).is_ok());
        if admitted.is_none() {
            self.refused.add(1);
        }
        admitted
    }

    /// Lets a frame out for good; the caller owns it and brings it back to the source.
    pub(crate) fn dismiss(&self, frame: FrameNumber) -> PhysAddr {
        self.registry.remove(frame);
        self.return_room(1);
        self.address(frame)
    }

    /// Who has each frame.
    #[cfg(feature = "hardened")]
    pub(crate) fn custodies(&self) -> &Custodies {
        &self.custodies
    }

    /// Where the custody of a frame stands, if the pool owns it.
    #[cfg(feature = "hardened")]
    pub(crate) fn place_of(&self, frame: FrameNumber) -> Option<usize> {
        self.registry.place_of(frame)
    }

    /// The frames that are in this custody.
    #[cfg(feature = "hardened")]
    pub(crate) fn frames_in_custody(&self, custody: Custody) -> impl Iterator<Item = PhysAddr> + '_ {
        (0..Registry::positions(self.capacity)).filter_map(move |place| {
            let number = self.registry.number_at(place).filter(|_| self.custodies.of(place) == custody);
            number.map(|number| self.address(number))
        })
    }

    /// The address of the frame `frame`.
    #[inline(always)]
    pub(crate) fn address(&self, frame: FrameNumber) -> PhysAddr {
        PhysAddr::new(self.base.as_u64().wrapping_add(u64::from(frame) * u64::from(self.frame_size)))
    }

    /// The number of the frame at `address`, if it can have one.
    #[inline(always)]
    pub(crate) fn number(&self, address: PhysAddr) -> Option<FrameNumber> {
        let distance = address.as_u64().checked_sub(self.base.as_u64())?;
        let size = u64::from(self.frame_size);
        if distance & (size - 1) != 0 {
            return None;
        }
        FrameNumber::try_from(distance >> size.trailing_zeros())
            .ok()
            .filter(|&number| number != FrameNumber::MAX)
    }
}
