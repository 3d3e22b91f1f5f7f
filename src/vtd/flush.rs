//! Owns the way of changed table lines to a unit that does not snoop the processor's caches (V6): the host's hook, and the allocator that
//! carries it.
//!
//! The builder flushes in this order (VT-d specification, section 6.8, for ECAP_REG.C or SMPWCS = 0): all of a new table before the
//! entry that links it; the line of that entry before `map` returns, also by a mapper who finds the table linked by another
//! whose flush may not have been done (`tables.rs: confirm`); a run of leaves once, after all of them are written; cleared entries
//! before `unmap` returns, and so before the invalidation.

use super::{TableFrames, TooFewFrames};
use crate::PhysAddr;
use core::ptr::NonNull;

/// The host's way to make what the CPU wrote visible to hardware that does not snoop.
///
/// # Safety
/// * When `flush` returns, everything that this CPU wrote to the bytes before is in memory, and what it writes afterwards (the
///   doorbell of a device, say) is not seen before.
/// * It may be called from every context in which a domain is changed: it does not sleep, lock or panic.
///
/// ```
/// use core::ptr::NonNull;
/// use framepool::vtd::LineFlush;
///
/// /// A machine whose table frames are mapped uncached.
/// struct Uncached;
///
/// // SAFETY: what is written is in memory, and a fence keeps later writes behind it.
/// unsafe impl LineFlush for Uncached {
///     unsafe fn flush(&self, _start: NonNull<u8>, _bytes: usize) {
///         core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
///     }
/// }
/// ```
#[allow(unsafe_code, reason = "states duties that only the implementer can keep")]
pub unsafe trait LineFlush {
    /// Writes the cache lines that contain the `bytes` bytes from `start` on back to memory. May be more than the lines of one
    /// call: up to 4 KiB.
    ///
    /// From the contexts in which a domain is changed.
    ///
    /// # Safety
    /// The bytes are mapped.
    unsafe fn flush(&self, start: NonNull<u8>, bytes: usize);
}

/// An allocator of table frames for units that do not snoop: `frames`, and the hook that flushes what the builder writes to them.
///
/// ```
/// # #[cfg(all(feature = "std", target_arch = "x86_64"))] {
/// use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
///
/// let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
/// let unit = Capabilities::from_registers(0x00d2_008c_222f_0606, 0x00f0_0f4a);
/// let config = DomainConfig::from_capabilities::<SecondStage>(Levels::Four, TranslationMode::Legacy, 48, &[unit])?;
/// assert!(!config.hardware.coherent);
/// assert_eq!(SecondStageDomain::new(config, &*pool).err(), Some(DomainError::NoFlush));
/// let domain = SecondStageDomain::new(config, FlushedFrames::new(&*pool, CacheLineFlush))?;
/// // SAFETY: no device walks this domain.
/// unsafe { domain.map(Iova::new(0x1000), PhysAddr::new(0x2000), 0x1000, Permissions::READ)? };
/// // SAFETY: as above.
/// unsafe { domain.close().complete() };
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct FlushedFrames<A, H> {
    frames: A,
    hook: H,
}

impl<A, H> FlushedFrames<A, H> {
    /// The frames of `frames`, flushed by `hook`.
    pub const fn new(frames: A, hook: H) -> Self {
        Self { frames, hook }
    }

    /// The allocator.
    pub const fn frames(&self) -> &A {
        &self.frames
    }

    /// The hook.
    pub const fn hook(&self) -> &H {
        &self.hook
    }
}

#[allow(unsafe_code, reason = "passes the contract on")]
// SAFETY: the allocator and the hook keep the contract.
unsafe impl<A: TableFrames, H: LineFlush> TableFrames for FlushedFrames<A, H> {
    fn allocate(&self) -> Option<PhysAddr> {
        self.frames.allocate()
    }

    fn allocate_all(&self, count: u64, each: &mut dyn FnMut(PhysAddr)) -> Result<(), TooFewFrames> {
        self.frames.allocate_all(count, each)
    }

    fn allocate_any(&self, count: u64, each: &mut dyn FnMut(PhysAddr)) -> Result<(), TooFewFrames> {
        self.frames.allocate_any(count, each)
    }

    unsafe fn free(&self, frame: PhysAddr) {
        // SAFETY: the caller's.
        unsafe { self.frames.free(frame) }
    }

    unsafe fn free_zeroed(&self, frame: PhysAddr) {
        // SAFETY: the caller's.
        unsafe { self.frames.free_zeroed(frame) }
    }

    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        self.frames.pointer(frame)
    }

    fn leaked(&self, frames: u64) {
        self.frames.leaked(frames);
    }

    fn can_flush(&self) -> bool {
        true
    }

    unsafe fn flush(&self, start: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller's.
        unsafe { self.hook.flush(start, bytes) }
    }
}

/// The processor's own instruction, `clflush`: for hosts whose CPU is an x86-64.
///
/// Lines of 64 bytes. `clflush` is ordered with stores and with itself (Intel SDM, volume 2), so no fence is needed.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheLineFlush;

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "an instruction")]
// SAFETY: the instruction does what the contract says, in every context.
unsafe impl LineFlush for CacheLineFlush {
    unsafe fn flush(&self, start: NonNull<u8>, bytes: usize) {
        const LINE: usize = 64;
        let into_line = start.addr().get() & (LINE - 1);
        for offset in (0..into_line + bytes).step_by(LINE) {
            // SAFETY: the line contains bytes that the caller says are mapped.
            unsafe { core::arch::x86_64::_mm_clflush(start.as_ptr().wrapping_add(offset)) }
        }
    }
}
