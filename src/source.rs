//! Where a pool's frames come from: the contract with the host's allocator, and two sources of our own.

use crate::frame::{FrameSize, PhysAddr};
use core::{error::Error, fmt, ptr::NonNull};

#[cfg(feature = "std")]
pub(crate) mod anonymous;
pub(crate) mod region;

/// The host's allocator behind a pool.
///
/// | method | called from | may sleep |
/// |---|---|---|
/// | [`supply`](Self::supply) | the worker, [`maintain`](crate::FramePool::maintain), construction | yes |
/// | [`try_supply`](Self::try_supply) | any context in which the pool is asked, interrupts included | **never** |
/// | [`reclaim`](Self::reclaim) | the worker, `maintain`, closing the pool | yes |
/// | [`pointer`](Self::pointer), [`address`](Self::address), [`base`](Self::base) | any context | never |
///
/// The pool checks what it is given. A frame that is misaligned, out of the window that starts at `base`, beyond the pool's
/// address limit, or in the pool already is refused and counted in [`Stats::refused`](crate::Stats::refused); it is not given back, since a source
/// that hands out such an address has lost track of it.
///
/// # Safety
/// * A frame that was handed out belongs to the pool until `reclaim` gets it back: nobody else reads, writes or
///   unmaps it.
/// * `pointer` maps every frame that was handed out and not reclaimed: valid for reads and writes of one whole frame,
///   aligned to the frame size, at the same place each time.
/// * `address` is the reverse of `pointer`, or none.
/// * `try_supply`, `pointer`, `address` and `base` do not sleep, take no lock that an interrupt could find taken, allocate
///   nothing from a heap and do not panic.
/// * `base`, `frame_size` and `supplies_zeroed` are the same each time; if the last says so, every frame is zero when it is handed out.
///
/// ```
/// use core::ptr::NonNull;
/// use framepool::{FrameSource, PhysAddr, SourceError};
///
/// /// A host without memory: every request fails, and the pool says so in its statistics.
/// struct Empty;
///
/// // SAFETY: no frame is ever handed out.
/// unsafe impl FrameSource for Empty {
///     fn supply(&self, _frames: &mut [PhysAddr]) -> Result<usize, SourceError> {
///         Err(SourceError::new("this host has no memory"))
///     }
///     fn try_supply(&self) -> Option<PhysAddr> {
///         None
///     }
///     unsafe fn reclaim(&self, _frames: &[PhysAddr]) {}
///     fn pointer(&self, _frame: PhysAddr) -> NonNull<u8> {
///         NonNull::dangling()
///     }
/// }
/// ```
pub unsafe trait FrameSource: Sync {
    /// Hands out up to `frames.len()` frames into the front of `frames` and returns how many. May sleep.
    ///
    /// Thread context: the worker, `maintain`, or construction.
    ///
    /// # Errors
    /// [`SourceError`] when the host has nothing now. The pool backs off and asks again later.
    fn supply(&self, frames: &mut [PhysAddr]) -> Result<usize, SourceError>;

    /// Hands out one frame without sleeping, if that is possible at this moment. The unreliable last resort.
    ///
    /// From any context in which the pool is asked, an NMI too; returns after a bounded number of steps.
    fn try_supply(&self) -> Option<PhysAddr>;

    /// Takes frames back. May sleep.
    ///
    /// Thread context: the worker, `maintain`, or closing.
    ///
    /// # Safety
    /// Every frame came from this source, was not given back since, and nobody reaches it any more.
    unsafe fn reclaim(&self, frames: &[PhysAddr]);

    /// Where the CPU reads and writes `frame`.
    ///
    /// Any context; never sleeps.
    fn pointer(&self, frame: PhysAddr) -> NonNull<u8>;

    /// The frame that is mapped at `pointer`, the start of one; the reverse of [`pointer`](Self::pointer), for those who know a frame only
    /// by where the CPU reaches it. As provided: none, and whoever needs it gets no frame. Any context; never sleeps.
    fn address(&self, pointer: NonNull<u8>) -> Option<PhysAddr> {
        let _ = pointer;
        None
    }

    /// How large the frames are that this source hands out: what a pool over it must be built for. As provided: 4 KiB.
    ///
    /// Any context; never sleeps.
    fn frame_size(&self) -> FrameSize {
        FrameSize::Size4K
    }

    /// Whether every frame that is handed out is zero in every byte, so that the pool need not clear it. As provided: no.
    ///
    /// Any context; never sleeps.
    fn supplies_zeroed(&self) -> bool {
        false
    }

    /// The lowest address that this source ever hands out. A pool numbers its frames from here and takes those of
    /// the next 2³² − 1 frames (16 TiB with frames of 4 KiB), up to its capacity. Must be a multiple of the frame size.
    ///
    /// Any context; never sleeps.
    fn base(&self) -> PhysAddr {
        PhysAddr::new(0)
    }
}

/// A source had nothing to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceError {
    reason: &'static str,
}

impl SourceError {
    /// An error that names its reason.
    pub const fn new(reason: &'static str) -> Self {
        Self { reason }
    }

    /// Why there was nothing.
    pub const fn reason(&self) -> &'static str {
        self.reason
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the frame source has nothing to give: {}", self.reason)
    }
}

impl Error for SourceError {}
