//! The end of a pool: every frame goes back to the source, or the pool stays.

use super::FramePool;
use crate::{
    frame::PhysAddr,
    platform::Platform,
    raw::magazine::{FrameNumber, Magazine},
    source::FrameSource,
    sync::{atomic::Ordering, wait_hint},
};
use core::{error::Error, fmt, mem::ManuallyDrop};

/// How often closing looks again at a slot in which an operation is in progress.
const PATIENCE: u32 = 1 << 16;

/// Frames that go to or come from the source at a time, on the stack.
pub(crate) const CHUNK: usize = 64;

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

    /// How many frames are still out; 0 if an operation or the worker was in progress and closing gave up waiting.
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
    #[allow(
        clippy::result_large_err,
        reason = "the pool itself comes back, and there may be no heap to box it"
    )]
    pub fn close(self) -> Result<S, CloseError<Self>> {
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
    ///
    /// # Errors
    /// [`CloseError`] when frames are out; then nothing has changed.
    pub fn vacate(&self) -> Result<(), CloseError<()>> {
        self.empty_out().map_err(|frames_out| CloseError::new((), frames_out))
    }

    /// Brings every frame back to the source if none is out; otherwise how many are, and nothing has changed.
    ///
    /// The slots are shut one by one and stay so. From then on every operation finds its slot busy and goes to the depot,
    /// where an allocation sees that the pool is closing; a free still goes into the stock. Then everything is counted: a
    /// frame that is being freed meanwhile is either counted in the stock or missing, and if one is missing the slots are
    /// opened again with what they held.
    fn empty_out(&self) -> Result<(), u32> {
        self.maintenance.try_with(|_| self.empty_out_alone()).unwrap_or(Err(0))
    }

    fn empty_out_alone(&self) -> Result<(), u32> {
        // Ordering: Release; pairs with the Acquire in `is_closing`.
        self.closing.store(true, Ordering::Release);
        let mut cached = 0;
        let mut shut = 0;
        while let Some(frames) = self.shut(shut) {
            cached += frames;
            shut += 1;
        }
        let outcome = if shut < self.cache.slots() { Err(0) } else { self.empty_stock(cached) };
        for cpu in 0..shut {
            self.cache.reopen(&self.platform, cpu, |magazine| match outcome {
                Ok(()) => self.send_back_all(magazine),
                Err(_) => magazine,
            });
        }
        // Ordering: Release; as above.
        self.closing.store(false, Ordering::Release);
        outcome
    }

    /// Shuts one slot, waiting for an operation that is in progress there; how many frames it holds.
    fn shut(&self, cpu: usize) -> Option<u32> {
        if cpu >= self.cache.slots() {
            return None;
        }
        for _ in 0..PATIENCE {
            if let Some(frames) = self.cache.shut(&self.platform, cpu) {
                return Some(frames);
            }
            wait_hint();
        }
        None
    }

    /// With all slots shut, holding `cached` frames: empties the stock if it and they are all that the pool owns.
    fn empty_stock(&self, cached: u32) -> Result<(), u32> {
        self.recover_overflow();
        let reserve = self.reserve.target().saturating_sub(self.reserve.missing());
        let inside = cached.saturating_add(self.depot.level().frames()).saturating_add(reserve);
        let out = self.door.owned().saturating_sub(inside);
        if out > 0 {
            return Err(out);
        }
        while let Some(magazine) = self.depot.take_stocked() {
            let frames = magazine.length();
            let empty = self.send_back_all(magazine);
            // The worker is not wanted any more.
            let _ = self.depot.level().removed(frames);
            self.depot.put(empty);
        }
        while let Some(frame) = self.reserve.take() {
            self.send_back(&[frame]);
        }
        Ok(())
    }

    fn send_back_all(&self, mut magazine: Magazine) -> Magazine {
        self.send_back_from(&mut magazine, u32::MAX);
        magazine
    }

    /// Brings up to `most` frames of a magazine back to the source for good; how many.
    pub(crate) fn send_back_from(&self, magazine: &mut Magazine, most: u32) -> u32 {
        let mut sent = 0;
        loop {
            let mut chunk: [FrameNumber; CHUNK] = [0; CHUNK];
            let mut length = 0;
            for place in chunk.iter_mut().take((most - sent) as usize) {
                let Some(frame) = self.cache.magazines().pop(magazine) else { break };
                *place = frame;
                length += 1;
            }
            if length == 0 {
                return sent;
            }
            self.send_back(chunk.get(..length).unwrap_or_default());
            sent += length as u32;
        }
    }

    /// Brings up to [`CHUNK`] frames back to the source for good.
    #[allow(unsafe_code, reason = "this is where frames leave the pool")]
    fn send_back(&self, frames: &[FrameNumber]) {
        let mut addresses = [PhysAddr::new(0); CHUNK];
        for (address, &frame) in addresses.iter_mut().zip(frames) {
            *address = self.door.dismiss(frame);
        }
        let addresses = addresses.get(..frames.len()).unwrap_or_default();
        // SAFETY: the frames came from this source, were in the pool and hence with nobody else (INV-1), and the door has
        // just forgotten them.
        unsafe { self.source.reclaim(addresses) }
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
        if self.empty_out().is_ok() {
            // SAFETY: the pool is being dropped, nobody uses the source any more.
            unsafe { ManuallyDrop::drop(&mut self.source) }
        }
    }
}
