//! What flows through the pool: the address of a frame and the linear handle that owns one.

use core::fmt;

/// A physical address, in bytes, as the device or the page tables see it.
///
/// What "physical" means is the host's business: real physical memory in a kernel, any numbering that its
/// [`FrameSource`](crate::FrameSource) keeps consistent elsewhere.
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
