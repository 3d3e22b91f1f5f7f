//! A frame as a buffer of bytes that stays where it is: what drivers take that ask for the `ReadBuffer` or `WriteBuffer` of the crate
//! [`embedded-dma`](https://docs.rs/embedded-dma) 0.2, which it implements for whatever is `StableDeref`.
//!
//! ```
//! use embedded_dma::WriteBuffer;
//! use framepool::{AnonymousMemory, Builder, FramePool, LinuxPlatform, adapters::embedded_dma::FrameBuffer};
//! use std::sync::LazyLock;
//!
//! static POOL: LazyLock<FramePool<AnonymousMemory, LinuxPlatform>> = LazyLock::new(|| {
//!     Builder::new(64).build(AnonymousMemory::new(64).unwrap(), LinuxPlatform::new()).unwrap()
//! });
//! fn receive(mut buffer: impl WriteBuffer<Word = u8>) -> usize {
//!     // SAFETY: the buffer is ours as long as we have it.
//!     let (start, words) = unsafe { buffer.write_buffer() };
//!     // A driver would program the device with `start`.
//!     words
//! }
//! let buffer = FrameBuffer::new(&POOL)?;
//! assert!(buffer.iter().all(|&byte| byte == 0));
//! assert_eq!(receive(buffer), 4096);
//! # Ok::<(), framepool::AllocError>(())
//! ```

use crate::{AllocError, Frame, FramePool, FrameSource, PhysAddr, Platform};
use core::{
    ops::{Deref, DerefMut},
    slice,
};

/// The bytes of one frame, initialised, which goes back to its pool when they are dropped.
#[derive(Debug)]
pub struct FrameBuffer<'p, S: FrameSource, P: Platform> {
    frame: Frame<'p, S, P>,
    bytes: usize,
}

impl<'p, S: FrameSource, P: Platform> FrameBuffer<'p, S, P> {
    /// A buffer of zeros. Contexts and bound are those of [`FramePool::alloc_zeroed`].
    ///
    /// # Errors
    /// As for `alloc_zeroed`.
    pub fn new(pool: &'p FramePool<S, P>) -> Result<Self, AllocError> {
        Ok(Self { frame: pool.alloc_zeroed()?, bytes: pool.frame_size() })
    }

    /// Where the device finds it.
    pub fn phys_addr(&self) -> PhysAddr {
        self.frame.phys_addr()
    }
}

impl<S: FrameSource, P: Platform> Deref for FrameBuffer<'_, S, P> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the frame is ours, mapped for as long as we have it, and was zeroed, so every byte is initialised.
        unsafe { slice::from_raw_parts(self.frame.as_ptr().as_ptr(), self.bytes) }
    }
}

impl<S: FrameSource, P: Platform> DerefMut for FrameBuffer<'_, S, P> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and borrowed alone.
        unsafe { slice::from_raw_parts_mut(self.frame.as_ptr().as_ptr(), self.bytes) }
    }
}

// SAFETY: a frame stays where it is, wherever the handle goes.
unsafe impl<S: FrameSource, P: Platform> stable_deref_trait::StableDeref for FrameBuffer<'_, S, P> {}
