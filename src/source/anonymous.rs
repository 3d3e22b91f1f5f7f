//! A source of anonymous memory in a Linux process: one window of addresses, filled by the kernel when it is touched.

use super::{FrameSource, SourceError};
use crate::{
    frame::{FrameSize, PhysAddr},
    raw::{
        arena::{Arena, Measure, Memory},
        numbers::Numbers,
    },
    sync::atomic::AtomicU32,
};
use core::{ffi::c_void, ptr::NonNull};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::io;

/// The alignment of the window, so that the kernel can back it with huge pages.
const HUGE_PAGE: usize = 2 << 20;

/// Whether the kernel backs the window with pages of 2 MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// As the system does by itself.
    #[default]
    System,
    /// Ask for transparent huge pages (`MADV_HUGEPAGE`).
    Transparent,
    /// Take them from the system's pool of huge pages (`MAP_HUGETLB`); fails if that has too few. Frames that come back keep
    /// their memory.
    Explicit,
}

/// How a window of anonymous memory is made.
///
/// ```
/// use framepool::{AnonymousMemory, FrameSize, HugePages};
/// // Huge pages if the system has set any aside, otherwise what it gives.
/// let window = AnonymousMemory::builder(4).frame_size(FrameSize::Size2M);
/// let source = window.huge_pages(HugePages::Explicit).build().or_else(|_| window.build())?;
/// # let _ = source;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct AnonymousMemoryBuilder {
    frames: u32,
    frame_size: FrameSize,
    huge_pages: HugePages,
    populate: bool,
}

impl AnonymousMemoryBuilder {
    /// How large the frames are. Default: 4 KiB.
    pub const fn frame_size(self, frame_size: FrameSize) -> Self {
        Self { frame_size, ..self }
    }

    /// Whether the kernel backs the window with huge pages. Default: [`HugePages::System`].
    pub const fn huge_pages(self, huge_pages: HugePages) -> Self {
        Self { huge_pages, ..self }
    }

    /// Whether all memory is taken from the system at once (`MAP_POPULATE`), so that touching a frame for the first time
    /// never faults. Default: no.
    pub const fn populate(self, populate: bool) -> Self {
        Self { populate, ..self }
    }

    /// Maps the window.
    ///
    /// Thread context: system calls, and memory from the heap for the bookkeeping. Bounded by the frames, for which links are made,
    /// and which are filled with zeros if the window is populated.
    ///
    /// # Errors
    /// The system's error when it has no room for the window, no huge pages, or not the memory to populate it; invalid input
    /// for a window of no frames.
    pub fn build(self) -> io::Result<AnonymousMemory> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "a window needs 1 to 2^32 - 2 frames");
        if self.frames == 0 || self.frames == u32::MAX {
            return Err(invalid());
        }
        let bytes = (self.frames as usize).checked_mul(self.frame_size.bytes()).ok_or_else(invalid)?;
        let window = Window::map(bytes, self)?;
        let layout = Measure::new().array::<AtomicU32>(self.frames as usize).finish().ok_or_else(invalid)?;
        let (mut arena, memory) = Arena::on_heap(layout).ok_or(io::ErrorKind::OutOfMemory)?;
        let links =
            arena.carve(self.frames as usize, |_| AtomicU32::new(0)).ok_or(io::ErrorKind::OutOfMemory)?;
        let keeps_memory = self.huge_pages == HugePages::Explicit;
        Ok(AnonymousMemory {
            numbers: Numbers::new(self.frames, links),
            window,
            frame_size: self.frame_size,
            keeps_memory,
            _memory: memory,
        })
    }
}

/// Frames of anonymous memory in this process.
///
/// The physical address of a frame is its virtual address, as for a device behind a VFIO container that maps one to one.
/// Everything is lock-free, so `try_supply` may be called in a signal handler; what it cannot avoid is that the kernel
/// faults the page in when it is first touched, unless the window is populated.
///
/// ```
/// # #[cfg(feature = "std")] {
/// use framepool::{AnonymousMemory, FrameSource};
/// let source = AnonymousMemory::builder(512).populate(true).build()?;
/// let frame = source.try_supply().unwrap();
/// assert_eq!(source.pointer(frame).as_ptr() as u64, frame.as_u64());
/// # }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct AnonymousMemory {
    numbers: Numbers,
    window: Window,
    frame_size: FrameSize,
    keeps_memory: bool,
    _memory: Memory,
}

impl AnonymousMemory {
    /// A window of `frames` frames of 4 KiB, with the system's defaults.
    ///
    /// Contexts and bound as for `build`.
    ///
    /// # Errors
    /// As for [`AnonymousMemoryBuilder::build`].
    pub fn new(frames: u32) -> io::Result<Self> {
        Self::builder(frames).build()
    }

    /// The choices for a window of `frames` frames.
    pub const fn builder(frames: u32) -> AnonymousMemoryBuilder {
        AnonymousMemoryBuilder {
            frames,
            frame_size: FrameSize::Size4K,
            huge_pages: HugePages::System,
            populate: false,
        }
    }
}

/// A piece of this process's address space.
#[derive(Debug)]
struct Window {
    mapping: NonNull<c_void>,
    mapped: usize,
    start: NonNull<u8>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is reached only through frames with one owner each.
unsafe impl Send for Window {}
// SAFETY: a shared window only tells its address.
unsafe impl Sync for Window {}

impl Window {
    fn map(bytes: usize, options: AnonymousMemoryBuilder) -> io::Result<Self> {
        let explicit = options.huge_pages == HugePages::Explicit;
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let whole = bytes.checked_next_multiple_of(HUGE_PAGE).ok_or_else(invalid)?;
        // Explicit huge pages come aligned; otherwise the window is moved to the next multiple within a larger mapping.
        let mapped = if explicit { whole } else { whole.checked_add(HUGE_PAGE).ok_or_else(invalid)? };
        let mut flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        if explicit {
            flags |= MapFlags::HUGETLB;
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing.
        let address = unsafe {
            mmap_anonymous(core::ptr::null_mut(), mapped, ProtFlags::READ | ProtFlags::WRITE, flags)
        }?;
        let mapping = NonNull::new(address).ok_or(io::ErrorKind::OutOfMemory)?;
        let padding = address.align_offset(HUGE_PAGE);
        // SAFETY: the padding is less than a huge page, by which the mapping is longer than what is used.
        let window = Self { mapping, mapped, start: unsafe { mapping.cast::<u8>().add(padding) } };
        if options.huge_pages == HugePages::Transparent {
            window.advise(0, whole, Advice::LinuxHugepage)?;
        }
        if options.populate {
            window.advise(0, bytes, Advice::LinuxPopulateWrite)?;
        }
        Ok(window)
    }

    fn advise(&self, offset: usize, bytes: usize, advice: Advice) -> rustix::io::Result<()> {
        // SAFETY: the callers name parts of the window that hold nothing: fresh, or given back by their owner.
        unsafe { madvise(self.start.as_ptr().add(offset).cast(), bytes, advice) }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and a pool drops its source only when no frame is out (INV-12).
        let _ = unsafe { munmap(self.mapping.as_ptr(), self.mapped) };
    }
}

// SAFETY: each number stands for one frame of the window and is out at most once; taking one is lock-free; the window stays
// mapped at the same place as long as the source lives.
unsafe impl FrameSource for AnonymousMemory {
    fn supply(&self, frames: &mut [PhysAddr]) -> Result<usize, SourceError> {
        let mut supplied = 0;
        for (place, frame) in frames.iter_mut().zip(core::iter::from_fn(|| self.try_supply())) {
            *place = frame;
            supplied += 1;
        }
        if supplied == 0 { Err(SourceError::new("every frame of the window is out")) } else { Ok(supplied) }
    }

    fn try_supply(&self) -> Option<PhysAddr> {
        let offset = u64::from(self.numbers.take()?) * self.frame_size.bytes() as u64;
        Some(PhysAddr::new(self.window.start.as_ptr() as u64 + offset))
    }

    unsafe fn reclaim(&self, frames: &[PhysAddr]) {
        let size = self.frame_size.bytes();
        for &frame in frames {
            let offset = (frame.as_u64() - self.window.start.as_ptr() as u64) as usize;
            if !self.keeps_memory && self.window.advise(offset, size, Advice::LinuxDontNeed).is_err() {
                // A frame that keeps its memory (it may be locked) is as good, once it is as empty as the system's.
                // SAFETY: the frame came back, so it is ours, and lies within the window.
                unsafe { self.pointer(frame).as_ptr().write_bytes(0, size) };
            }
            self.numbers.give((offset / size) as u32);
        }
    }

    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        let offset = frame.as_u64().wrapping_sub(self.window.start.as_ptr() as u64) as usize;
        // SAFETY: a frame of this source lies within the window; for any other address the result is only a pointer that
        // nobody may use.
        unsafe { NonNull::new_unchecked(self.window.start.as_ptr().wrapping_add(offset)) }
    }

    fn address(&self, pointer: NonNull<u8>) -> Option<PhysAddr> {
        // The address of a frame is where it is mapped.
        let (start, end) =
            (self.window.start.addr().get(), self.window.mapping.addr().get() + self.window.mapped);
        (start..end).contains(&pointer.addr().get()).then(|| PhysAddr::new(pointer.addr().get() as u64))
    }

    fn frame_size(&self) -> FrameSize {
        self.frame_size
    }

    fn supplies_zeroed(&self) -> bool {
        !self.keeps_memory
    }

    fn base(&self) -> PhysAddr {
        PhysAddr::new(self.window.start.as_ptr() as u64)
    }
}
