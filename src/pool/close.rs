//! The end of a pool: every frame goes back to the source, or the pool stays.

use super::{FramePool, standstill::Standstill};
use crate::{platform::Platform, source::FrameSource};
use core::{error::Error, fmt, mem::ManuallyDrop};

/// The pool could not be closed, and is given back as it was.
pub struct CloseError<T> {
    pool: T,
    frames_out: u32,
}

impl<T> CloseError<T> {
    pub(crate) fn new(pool: T, frames_out: u32) -> Self {
        Self { pool, frames_out }
    }

    /// The same error around what `wrap` makes of the pool.
    #[cfg(feature = "std")]
    pub(crate) fn map<U>(self, wrap: impl FnOnce(T) -> U) -> CloseError<U> {
        CloseError { pool: wrap(self.pool), frames_out: self.frames_out }
    }

    /// How many frames are still out, those that the feature `hardened` has quarantined included; with that feature
    /// `FramePool::frames_out` tells the addresses of the others. 0 if an operation or the worker was in progress and closing gave up waiting.
    pub fn frames_out(&self) -> u32 {
        self.frames_out
    }

    /// The pool, which works as before.
    pub fn into_pool(self) -> T {
        self.pool
    }
}

impl<T> fmt::Debug for CloseError<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CloseError").field("frames_out", &self.frames_out).finish_non_exhaustive()
    }
}

impl<T> fmt::Display for CloseError<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.frames_out {
            0 => formatter
                .write_str("an operation on the pool is in progress: close it when its users are done"),
            out => write!(formatter, "{out} frames are still out: give them back, then close the pool"),
        }
    }
}

impl<T> Error for CloseError<T> {}

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    /// Gives every frame back to the source, and the source to the caller.
    ///
    /// Thread context: waits for operations in progress, for a bounded time, and the source may sleep.
    ///
    /// # Errors
    /// [`CloseError`] gives the pool back when frames are out (as raw addresses, or leaked), since a device may still
    /// reach them (INV-12).
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, Frame, LinuxPlatform};
    /// let pool = Builder::new(64).build(AnonymousMemory::new(64)?, LinuxPlatform::new())?;
    /// let address = pool.alloc()?.into_raw(); // say, in a page table
    /// let refused = pool.close().unwrap_err();
    /// assert_eq!(refused.frames_out(), 1);
    /// let pool = refused.into_pool();
    /// // SAFETY: taken up once, and nothing reaches it.
    /// drop(unsafe { Frame::from_raw(&pool, address) });
    /// assert!(pool.close().is_ok());
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[allow(
        clippy::result_large_err,
        reason = "the pool itself comes back, and there may be no heap to box it"
    )]
    pub fn close(mut self) -> Result<S, CloseError<Self>> {
        self.release_held();
        match self.empty_out() {
            Ok(()) => Ok(self.into_source()),
            Err(frames_out) => Err(CloseError::new(self, frames_out)),
        }
    }

    /// Gives every frame back to the source and leaves the pool empty but usable: for a pool in a `static`, which cannot be
    /// closed by value.
    ///
    /// Thread context: waits for operations in progress, for a bounded time, and the source may sleep. Allocations meanwhile
    /// fail with [`AllocError::Closed`](crate::AllocError::Closed) unless their CPU's cache serves them first.
    /// At most 1,100 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`CloseError`] when frames are out, and how many: those in the hands of a free that is still in progress are. Then nothing
    /// has changed, unless an allocation or a free came in between: then frames that were not out may have gone back already.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, LinuxPlatform};
    /// let pool = Builder::new(64).build(AnonymousMemory::new(64)?, LinuxPlatform::new())?;
    /// pool.vacate().map_err(|_| "frames are out")?;
    /// assert_eq!(pool.stats().owned, 0);
    /// pool.maintain(); // and in use again
    /// assert!(pool.alloc().is_ok());
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn vacate(&self) -> Result<(), CloseError<()>> {
        self.empty_out().map_err(|frames_out| CloseError::new((), frames_out))
    }

    /// Brings every frame back to the source if none is out; otherwise how many are.
    ///
    /// The slots are shut one by one. From then on every operation finds its slot busy and goes to the depot, where an
    /// allocation sees that the pool is closing; a free still goes into the stock. Then everything is counted: a frame that
    /// is being freed meanwhile is either counted in the stock or missing, and if one is missing the slots are opened again
    /// with what they held. Otherwise their magazines go to the depot, and everything there to the source. An allocation
    /// that went past the sign before it was put up may still find a frame on the way; so what is owned is looked at once
    /// more in the end.
    fn empty_out(&self) -> Result<(), u32> {
        self.maintenance.try_with(|_| self.empty_out_alone()).unwrap_or(Err(0))
    }

    fn empty_out_alone(&self) -> Result<(), u32> {
        let mut standstill = Standstill::begin(self);
        self.refuse_waiters();
        let cached = standstill.shut_all().ok_or(0u32)?;
        self.recover_overflow();
        let reserve = self.reserve.target().saturating_sub(self.wanted.missing());
        let inside = cached.saturating_add(self.depots.fill().frames).saturating_add(reserve);
        match self.door.owned().saturating_sub(inside) {
            0 => {}
            out => return Err(out),
        }
        standstill.drain_all();
        self.send_back_stock(u32::MAX);
        while let Some((frame, _)) = self.reserve.take(&self.wanted) {
            self.send_back(&[frame]);
        }
        match self.door.owned() {
            0 => Ok(()),
            out => Err(out),
        }
    }

    /// Takes back what contexts keep in caches of their own; by now none of them uses the pool.
    fn release_held(&mut self) {
        self.cache.release_held();
        self.clean_cache.release_held();
    }

    /// The source of an emptied pool.
    #[allow(unsafe_code, reason = "a type with a destructor is taken apart")]
    fn into_source(self) -> S {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is never used or dropped again, so each of its fields is taken or dropped once; those that own
        // something are the source, the platform and, last, the memory.
        unsafe {
            let source = ManuallyDrop::take(&mut this.source);
            core::ptr::drop_in_place(&mut this.platform);
            core::ptr::drop_in_place(&mut this.memory);
            source
        }
    }
}

impl<S: FrameSource, P: Platform> Drop for FramePool<S, P> {
    /// Gives every frame back and drops the source. If frames are out, the source is leaked instead: a device may still
    /// reach them (INV-12).
    #[allow(unsafe_code, reason = "the source is dropped by hand")]
    fn drop(&mut self) {
        self.release_held();
        if self.empty_out().is_ok() {
            // SAFETY: the pool is being dropped, nobody uses the source any more.
            unsafe { ManuallyDrop::drop(&mut self.source) }
        }
    }
}
