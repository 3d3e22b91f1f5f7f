//! What flows through the pool: the address of a frame and the linear handle that owns one.

use crate::{
    FramePool, FrameSource, Platform,
    raw::magazine::{FrameNumber, Kind},
};
use core::{fmt, mem::ManuallyDrop, ptr::NonNull};

/// A physical address, in bytes, as the device or the page tables see it.
///
/// What "physical" means is the host's business: real physical memory in a kernel, any numbering that its
/// [`FrameSource`] keeps consistent elsewhere.
///
/// ```
/// use framepool::PhysAddr;
/// assert_eq!(PhysAddr::new(0x1000).as_u64(), 4096);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct PhysAddr(u64);

impl PhysAddr {
    /// The address `address`, in bytes.
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// This address in bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Whether the address is a multiple of `alignment` bytes; `alignment` must be a power of two.
    pub const fn is_aligned(self, alignment: u64) -> bool {
        self.0 & alignment.wrapping_sub(1) == 0
    }
}

impl fmt::Debug for PhysAddr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PhysAddr({:#x})", self.0)
    }
}

impl fmt::Display for PhysAddr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:#x}", self.0)
    }
}

/// How large the frames of a pool are, and to what they are aligned (R14).
///
/// ```
/// assert_eq!(framepool::FrameSize::Size64K.bytes(), 65536);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrameSize {
    /// 4 KiB, the size of a page-table frame.
    #[default]
    Size4K,
    /// 64 KiB.
    Size64K,
    /// 2 MiB.
    Size2M,
}

impl FrameSize {
    /// The size in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Size4K => 4 << 10,
            Self::Size64K => 64 << 10,
            Self::Size2M => 2 << 20,
        }
    }
}

impl fmt::Display for FrameSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Size4K => "4 KiB",
            Self::Size64K => "64 KiB",
            Self::Size2M => "2 MiB",
        })
    }
}

/// One frame, owned: linear, neither `Copy` nor `Clone`. Dropping it gives it back to its pool, from any context.
/// At most 530 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
///
/// INV-1: a frame is in exactly one place; while this value lives, it is here.
///
/// ```
/// # #[cfg(feature = "std")] {
/// # use framepool::{AnonymousMemory, Builder, Frame};
/// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
/// let frame = pool.alloc()?;
/// // SAFETY: the frame is ours, and this is its first byte.
/// unsafe { frame.as_ptr().write(7) };
/// let entry = frame.into_raw(); // for a page-table entry: no longer given back by itself
/// // SAFETY: `entry` came from `into_raw` of the same pool, once.
/// drop(unsafe { Frame::from_raw(&pool, entry) });
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a frame that is dropped at once was allocated for nothing"]
pub struct Frame<'p, S: FrameSource, P: Platform> {
    pool: &'p FramePool<S, P>,
    number: FrameNumber,
}

impl<'p, S: FrameSource, P: Platform> Frame<'p, S, P> {
    pub(crate) const fn new(pool: &'p FramePool<S, P>, number: FrameNumber) -> Self {
        Self { pool, number }
    }

    pub(crate) fn into_number(self) -> FrameNumber {
        ManuallyDrop::new(self).number
    }

    pub(crate) fn is_of(&self, pool: &FramePool<S, P>) -> bool {
        core::ptr::eq(self.pool, pool)
    }

    /// The frame's physical address, for a device or a page-table entry.
    pub fn phys_addr(&self) -> PhysAddr {
        self.pool.address_of(self.number)
    }

    /// Where the CPU reads and writes the frame: as many bytes as [`FramePool::frame_size`] says. What is there is left from
    /// the frame's last use, unless it was asked for zeroed.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.pool.source().pointer(self.phys_addr())
    }

    /// Gives the frame back and promises that it is zero, so that nobody need clear it again. From any context, as a drop.
    /// At most 380 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Safety
    /// Every byte of the frame is zero, and nothing reaches it any more, hardware included: the next owner of a zeroed frame
    /// relies on it.
    #[inline]
    pub unsafe fn free_zeroed(self) {
        let this = ManuallyDrop::new(self);
        this.pool.give(Kind::Clean, this.number);
    }

    /// Gives up the handle and keeps the frame out of the pool, for a place that holds bare addresses.
    ///
    /// Come back with [`from_raw`](Self::from_raw). Until then the pool counts the frame as in use, and cannot be closed.
    pub fn into_raw(self) -> PhysAddr {
        let address = self.phys_addr();
        let _ = self.into_number();
        address
    }

    /// Takes the handle up again.
    ///
    /// Any context; constant time.
    ///
    /// # Safety
    /// `frame` came from [`into_raw`](Self::into_raw) of a frame of `pool`, has not been taken up since, and nothing reaches
    /// the frame any more, hardware included.
    pub unsafe fn from_raw(pool: &'p FramePool<S, P>, frame: PhysAddr) -> Self {
        Self { pool, number: pool.number_of(frame) }
    }
}

impl<S: FrameSource, P: Platform> Drop for Frame<'_, S, P> {
    #[inline(always)]
    fn drop(&mut self) {
        self.pool.give(Kind::Dirty, self.number);
    }
}

impl<S: FrameSource, P: Platform> fmt::Debug for Frame<'_, S, P> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Frame({})", self.phys_addr())
    }
}
