//! Touches the contents of frames that the pool owns: the only place of the pool that does.

use crate::frame::PhysAddr;
use core::ptr::NonNull;

/// Reaches the contents of frames through the source that supplied them.
pub trait Contents {
    /// Where the CPU reads and writes `frame`.
    fn pointer(&self, frame: PhysAddr) -> NonNull<u8>;
}

/// Reads the first word of a frame.
///
/// # Safety
/// The caller owns the frame, and `contents` maps it.
pub unsafe fn read_link(contents: &impl Contents, frame: PhysAddr) -> u64 {
    // SAFETY: a frame is aligned to its size, mapped, and ours.
    unsafe { contents.pointer(frame).cast::<u64>().read() }
}

/// Writes the first word of a frame.
///
/// # Safety
/// The caller owns the frame, and `contents` maps it.
pub unsafe fn write_link(contents: &impl Contents, frame: PhysAddr, link: u64) {
    // SAFETY: a frame is aligned to its size, mapped, and ours.
    unsafe { contents.pointer(frame).cast::<u64>().write(link) }
}

/// Fills a frame of `bytes` bytes with zeros.
///
/// # Safety
/// The caller owns the frame, `contents` maps all of it, and `bytes` is its size.
#[cfg(feature = "vtd")]
pub unsafe fn clear(contents: &impl Contents, frame: PhysAddr, bytes: usize) {
    // SAFETY: the whole frame is mapped and ours.
    unsafe { contents.pointer(frame).as_ptr().write_bytes(0, bytes) }
}
