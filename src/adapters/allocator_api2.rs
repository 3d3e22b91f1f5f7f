//! A pool as the `Allocator` of the crate [`allocator-api2`](https://docs.rs/allocator-api2) 0.2: memory of up to one frame for
//! collections.
//!
//! | asked for | given |
//! |---|---|
//! | nothing | a place of no size |
//! | up to one frame, aligned to no more | one frame, all of it |
//! | more, or over a source that does not know its frames by their pointers | `AllocError` |
//!
//! Growing and shrinking within a frame move nothing. Contexts and bounds are those of [`FramePool::alloc`] and of a free; what the
//! collection does beside is its own business.
//!
//! ```
//! use allocator_api2::vec::Vec;
//! use framepool::{AnonymousMemory, Builder};
//!
//! let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
//! let mut values: Vec<u64, _> = Vec::new_in(&**&pool);
//! values.try_reserve(512).map_err(|_| "one frame is enough")?;
//! values.extend(0..512);
//! assert_eq!((values.iter().sum::<u64>(), pool.stats().in_use), (130_816, 1));
//! assert!(values.try_reserve(1).is_err(), "more than one frame");
//! drop(values);
//! assert_eq!(pool.stats().in_use, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::{Frame, FramePool, FrameSource, Platform};
use allocator_api2::alloc::{AllocError, Allocator};
use core::{
    alloc::Layout,
    ptr::{self, NonNull},
};

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    fn fits(&self, layout: Layout) -> bool {
        layout.size().max(layout.align()) <= self.frame_size()
    }
}

fn nothing(layout: Layout) -> NonNull<[u8]> {
    let place = NonNull::new(ptr::without_provenance_mut(layout.align()));
    NonNull::slice_from_raw_parts(place.unwrap_or(NonNull::dangling()), 0)
}

// SAFETY: a frame stays where it is, in nobody else's hands, until it is given back, also when the pool is moved; a pool that is dropped
// while frames are out leaves their memory alone (INV-12).
unsafe impl<S: FrameSource, P: Platform> Allocator for FramePool<S, P> {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            return Ok(nothing(layout));
        }
        if !self.fits(layout) {
            return Err(AllocError);
        }
        let frame = self.alloc().map_err(|_| AllocError)?;
        let pointer = frame.as_ptr();
        // `deallocate` knows the memory by this pointer alone.
        if self.source().address(pointer) != Some(frame.phys_addr()) {
            return Err(AllocError);
        }
        let _ = frame.into_raw();
        Ok(NonNull::slice_from_raw_parts(pointer, self.frame_size()))
    }

    unsafe fn deallocate(&self, pointer: NonNull<u8>, layout: Layout) {
        if layout.size() != 0
            && let Some(address) = self.source().address(pointer)
        {
            // SAFETY: the caller gives up a frame that `allocate` laid down.
            drop(unsafe { Frame::from_raw(self, address) });
        }
    }

    unsafe fn grow(
        &self,
        pointer: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        if old.size() == 0 {
            return self.allocate(new);
        }
        // More than the frame that it has is more than any other has.
        if self.fits(new) {
            Ok(NonNull::slice_from_raw_parts(pointer, self.frame_size()))
        } else {
            Err(AllocError)
        }
    }

    unsafe fn grow_zeroed(
        &self,
        pointer: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's.
        let grown = unsafe { self.grow(pointer, old, new) }?;
        if let Some(more) = grown.len().checked_sub(old.size()) {
            // SAFETY: the memory is as long as `grown` says.
            unsafe { grown.cast::<u8>().add(old.size()).write_bytes(0, more) };
        }
        Ok(grown)
    }

    unsafe fn shrink(
        &self,
        pointer: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        if new.size() == 0 {
            // SAFETY: the caller's.
            unsafe { self.deallocate(pointer, old) };
            return Ok(nothing(new));
        }
        if self.fits(new) {
            Ok(NonNull::slice_from_raw_parts(pointer, self.frame_size()))
        } else {
            Err(AllocError)
        }
    }
}
