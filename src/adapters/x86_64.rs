//! The frame traits of the crate [`x86_64`](https://docs.rs/x86_64) 0.15 on a reference to a pool: frames for the tables that its mappers
//! build, and where the CPU reaches them.
//!
//! The traits take `&mut self`, a pool is shared: a mutable copy of the reference serves. Contexts and bounds are those of
//! [`FramePool::alloc`] and of a free.
//!
//! ```
//! use framepool::{AnonymousMemory, Builder};
//! use x86_64::structures::paging::{mapper::{CleanUp, PageTableFrameMapping}, *};
//! use x86_64::{PhysAddr, VirtAddr};
//!
//! let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
//! let mut frames = &*pool;
//! let root: PhysFrame<Size4KiB> = frames.allocate_frame().ok_or("no frame")?;
//! let root_pointer = frames.frame_to_pointer(root);
//! // SAFETY: the frame is ours, a table fits it, and the pool knows where it is mapped.
//! let mut mapper = unsafe {
//!     root_pointer.write(PageTable::new());
//!     MappedPageTable::new(&mut *root_pointer, frames)
//! };
//! let page = Page::<Size4KiB>::containing_address(VirtAddr::new(0x40_0000));
//! let target = PhysFrame::containing_address(PhysAddr::new(0x1000));
//! // SAFETY: nobody runs on these tables.
//! unsafe { mapper.map_to(page, target, PageTableFlags::PRESENT, &mut frames) }.map_err(|_| "not mapped")?.ignore();
//! assert_eq!(mapper.translate_addr(VirtAddr::new(0x40_0123)), Some(PhysAddr::new(0x1123)));
//! assert_eq!(pool.stats().in_use, 4, "one table for each level");
//!
//! mapper.unmap(page).map_err(|_| "not unmapped")?.1.ignore();
//! // SAFETY: nobody else uses the tables.
//! unsafe { mapper.clean_up(&mut frames) };
//! unsafe { frames.deallocate_frame(root) };
//! assert_eq!(pool.stats().in_use, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::{Frame, FramePool, FrameSource, PhysAddr, Platform};
use x86_64::structures::paging::{
    FrameAllocator, FrameDeallocator, PageSize, PageTable, PhysFrame, mapper::PageTableFrameMapping,
};

// SAFETY: INV-1, a frame that was handed out is in no other place until it is given back.
unsafe impl<Z: PageSize, S: FrameSource, P: Platform> FrameAllocator<Z> for &FramePool<S, P> {
    /// A frame, if those of the pool have the size that is asked for. Its content is whatever it was.
    fn allocate_frame(&mut self) -> Option<PhysFrame<Z>> {
        if self.frame_size() as u64 != Z::SIZE {
            return None;
        }
        let frame = self.alloc().ok()?;
        // An address that no processor of this kind has leads to no frame, which goes back as it is dropped.
        let address = x86_64::PhysAddr::try_new(frame.phys_addr().as_u64()).ok()?;
        let _ = frame.into_raw();
        PhysFrame::from_start_address(address).ok()
    }
}

impl<Z: PageSize, S: FrameSource, P: Platform> FrameDeallocator<Z> for &FramePool<S, P> {
    unsafe fn deallocate_frame(&mut self, frame: PhysFrame<Z>) {
        let address = PhysAddr::new(frame.start_address().as_u64());
        // SAFETY: the caller gives up a frame that `allocate_frame` laid down.
        drop(unsafe { Frame::from_raw(self, address) });
    }
}

// SAFETY: the source maps every frame of the pool, at the same place each time.
unsafe impl<S: FrameSource, P: Platform> PageTableFrameMapping for &FramePool<S, P> {
    fn frame_to_pointer(&self, frame: PhysFrame) -> *mut PageTable {
        self.source().pointer(PhysAddr::new(frame.start_address().as_u64())).as_ptr().cast()
    }
}
