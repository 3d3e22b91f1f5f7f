//! A source over memory that the host set aside: frames of one region, and nothing else to sleep for.

use super::{FrameSource, SourceError};
use crate::{
    frame::{FrameSize, PhysAddr},
    raw::{arena::Arena, numbers::Numbers},
    sync::atomic::AtomicU32,
};
use core::{error::Error, fmt, mem::MaybeUninit, ptr::NonNull};

/// Frames out of one piece of memory that is given away for ever. Needs neither std nor a heap: the bookkeeping, four
/// bytes a frame, comes out of the same memory.
///
/// ```
/// use core::mem::MaybeUninit;
/// use framepool::{FixedRegion, FrameSource, PhysAddr};
///
/// let memory: &'static mut [MaybeUninit<u8>] = Box::leak(Box::new_uninit_slice(10 * 4096));
/// let region = FixedRegion::new(memory)?.at(PhysAddr::new(0x10_0000));
/// assert!(region.frames() >= 8, "at most one is lost to alignment, one to bookkeeping");
/// assert!(region.try_supply().is_some_and(|frame| frame >= PhysAddr::new(0x10_0000)));
/// # Ok::<(), framepool::RegionTooSmall>(())
/// ```
#[derive(Debug)]
pub struct FixedRegion {
    start: NonNull<u8>,
    base: PhysAddr,
    frames: u32,
    frame_size: FrameSize,
    numbers: Numbers,
}

// SAFETY: the memory was given away for ever and is reached only through frames, each of which has one owner.
unsafe impl Send for FixedRegion {}
// SAFETY: as for `Send`; the stock of numbers is lock-free.
unsafe impl Sync for FixedRegion {}

/// The region has no room for a single aligned frame and its bookkeeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionTooSmall {
    bytes: usize,
    frame_size: FrameSize,
}

impl fmt::Display for RegionTooSmall {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} bytes hold no aligned frame of {} and its bookkeeping: give at least three times as much",
            self.bytes, self.frame_size
        )
    }
}

impl Error for RegionTooSmall {}

impl FixedRegion {
    /// A source of frames of 4 KiB over `memory`; otherwise as [`with_frame_size`](Self::with_frame_size).
    ///
    /// # Errors
    /// [`RegionTooSmall`] if there is no room for one frame.
    pub fn new(memory: &'static mut [MaybeUninit<u8>]) -> Result<Self, RegionTooSmall> {
        Self::with_frame_size(memory, FrameSize::Size4K)
    }

    /// A source over `memory`. The first frame starts at the first multiple of its size; its physical address is its virtual
    /// one until [`at`](Self::at) says otherwise.
    ///
    /// Any context that owns the memory; bounded by the frames, for which links are made.
    ///
    /// # Errors
    /// [`RegionTooSmall`] if there is no room for one frame.
    pub fn with_frame_size(
        memory: &'static mut [MaybeUninit<u8>],
        frame_size: FrameSize,
    ) -> Result<Self, RegionTooSmall> {
        let too_small = RegionTooSmall { bytes: memory.len(), frame_size };
        let size = frame_size.bytes();
        let padding = memory.as_ptr().align_offset(size);
        let aligned = memory.get_mut(padding..).ok_or(too_small)?;
        // Each frame takes its own size and one link; the links' alignment costs no more than one of them.
        let fitting = aligned.len().saturating_sub(align_of::<AtomicU32>()) / (size + size_of::<AtomicU32>());
        let frames = u32::try_from(fitting).unwrap_or(u32::MAX - 1);
        let (pages, rest) = aligned.split_at_mut_checked(frames as usize * size).ok_or(too_small)?;
        let (mut arena, _) = Arena::given(rest);
        let links = arena.carve(frames as usize, |_| AtomicU32::new(0)).ok_or(too_small)?;
        if frames == 0 {
            return Err(too_small);
        }
        let start = NonNull::from(pages).cast();
        Ok(Self {
            start,
            base: PhysAddr::new(start.as_ptr() as u64),
            frames,
            frame_size,
            numbers: Numbers::new(frames, links),
        })
    }

    /// The same source, whose first frame has the physical address `base` (a multiple of the frame size). Frames whose
    /// addresses are no multiples, or wrap, are refused by the pool.
    pub fn at(self, base: PhysAddr) -> Self {
        Self { base, ..self }
    }

    /// How many frames the region holds.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    fn distance(&self, frame: PhysAddr) -> usize {
        frame.as_u64().wrapping_sub(self.base.as_u64()) as usize
    }
}

// SAFETY: each number stands for one frame of the region, which was given away for ever, and is out at most once; taking one
// is lock-free and sleeps for nothing; the region is mapped at `start` all the time.
unsafe impl FrameSource for FixedRegion {
    fn supply(&self, frames: &mut [PhysAddr]) -> Result<usize, SourceError> {
        let mut supplied = 0;
        for (place, frame) in frames.iter_mut().zip(core::iter::from_fn(|| self.try_supply())) {
            *place = frame;
            supplied += 1;
        }
        if supplied == 0 { Err(SourceError::new("every frame of the region is out")) } else { Ok(supplied) }
    }

    fn try_supply(&self) -> Option<PhysAddr> {
        let number = self.numbers.take()?;
        let distance = u64::from(number) * self.frame_size.bytes() as u64;
        Some(PhysAddr::new(self.base.as_u64().wrapping_add(distance)))
    }

    unsafe fn reclaim(&self, frames: &[PhysAddr]) {
        for &frame in frames {
            self.numbers.give((self.distance(frame) / self.frame_size.bytes()) as u32);
        }
    }

    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        // SAFETY: a frame of this source lies within the region; for any other address the result is only a pointer that
        // nobody may use.
        unsafe { NonNull::new_unchecked(self.start.as_ptr().wrapping_add(self.distance(frame))) }
    }

    fn address(&self, pointer: NonNull<u8>) -> Option<PhysAddr> {
        let offset = pointer.addr().get().checked_sub(self.start.addr().get())?;
        let bytes = self.frames as usize * self.frame_size.bytes();
        (offset < bytes).then(|| PhysAddr::new(self.base.as_u64().wrapping_add(offset as u64)))
    }

    fn frame_size(&self) -> FrameSize {
        self.frame_size
    }

    fn base(&self) -> PhysAddr {
        self.base
    }
}
