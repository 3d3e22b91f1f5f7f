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

/// Fills a frame of `bytes` bytes with zeros, for an owner who will use it at once.
///
/// # Safety
/// The caller owns the frame, `contents` maps all of it, and `bytes` is its size.
pub unsafe fn clear(contents: &impl Contents, frame: PhysAddr, bytes: usize) {
    // SAFETY: the whole frame is mapped and ours.
    unsafe { contents.pointer(frame).as_ptr().write_bytes(0, bytes) }
}

/// Fills a frame of `bytes` bytes with one word.
///
/// # Safety
/// As for [`clear`].
#[cfg(feature = "hardened")]
pub unsafe fn fill(contents: &impl Contents, frame: PhysAddr, bytes: usize, word: u64) {
    let start = contents.pointer(frame).cast::<u64>();
    for index in 0..bytes / size_of::<u64>() {
        // SAFETY: the whole frame is mapped, aligned and ours.
        unsafe { start.add(index).write(word) }
    }
}

/// The first word of a frame of `bytes` bytes that is not `word`: its offset in bytes, and what it is.
///
/// # Safety
/// As for [`clear`].
#[cfg(feature = "hardened")]
pub unsafe fn first_difference(
    contents: &impl Contents,
    frame: PhysAddr,
    bytes: usize,
    word: u64,
) -> Option<(usize, u64)> {
    let start = contents.pointer(frame).cast::<u64>();
    (0..bytes / size_of::<u64>()).find_map(|index| {
        // SAFETY: the whole frame is mapped, aligned and ours. Volatile: whoever misuses the frame may write to it at this moment.
        let found = unsafe { start.add(index).read_volatile() };
        (found != word).then_some((index * size_of::<u64>(), found))
    })
}

/// Fills frames of `bytes` bytes each with zeros, for owners to come, on whatever CPU: where there are stores that bypass the
/// caches, this CPU's stay as they are.
///
/// # Safety
/// As for [`clear`], for each frame.
pub unsafe fn clear_uncached(contents: &impl Contents, frames: &[PhysAddr], bytes: usize) {
    for &frame in frames {
        // SAFETY: the caller's.
        unsafe { streaming::clear(contents.pointer(frame), bytes) }
    }
    streaming::settle();
}

/// Stores that bypass the caches (Intel SDM volume 1, section 10.4.6.2): from general registers, so that a kernel need not
/// save the vector state.
#[cfg(all(target_arch = "x86_64", not(loom)))]
mod streaming {
    use core::{arch::asm, ptr::NonNull};

    pub(super) unsafe fn clear(start: NonNull<u8>, bytes: usize) {
        debug_assert!(bytes.is_multiple_of(64) && bytes > 0);
        // SAFETY: the caller owns all `bytes` from `start` on, which are aligned and a multiple of 64: each round writes 64 of
        // them, until the end is reached.
        unsafe {
            asm!(
                "2:",
                "movnti [{start}], {zero}",
                "movnti [{start} + 8], {zero}",
                "movnti [{start} + 16], {zero}",
                "movnti [{start} + 24], {zero}",
                "movnti [{start} + 32], {zero}",
                "movnti [{start} + 40], {zero}",
                "movnti [{start} + 48], {zero}",
                "movnti [{start} + 56], {zero}",
                "add {start}, 64",
                "cmp {start}, {end}",
                "jne 2b",
                start = inout(reg) start.as_ptr() => _,
                end = in(reg) start.as_ptr().wrapping_add(bytes),
                zero = in(reg) 0u64,
                options(nostack),
            );
        }
    }

    /// Waits until the stores can be seen: a Release store or exchange alone does not order them.
    pub(super) fn settle() {
        // SAFETY: every x86-64 CPU has the instruction, which touches no register; the compiler moves no access across it.
        unsafe { asm!("sfence", options(nostack, preserves_flags)) }
    }
}

/// Everywhere else plain stores, which the publication of the frame orders by itself.
#[cfg(not(all(target_arch = "x86_64", not(loom))))]
mod streaming {
    use core::ptr::NonNull;

    pub(super) unsafe fn clear(start: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller's.
        unsafe { start.as_ptr().write_bytes(0, bytes) }
    }

    pub(super) fn settle() {}
}
