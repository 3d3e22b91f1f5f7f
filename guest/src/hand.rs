//! The frames that one context holds: each stamped with its name while it is here.

use crate::{host::Pool, ledger};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use framepool::{AllocError, Frame, PhysAddr, Request};

/// The most frames that a hand holds.
const SIZE: usize = 128;

/// The pool's frame, as this program names it.
pub type PoolFrame = Frame<'static, &'static crate::host::PhysicalMemory, crate::host::Kernel>;

/// The frames of one context, which alone touches them.
pub struct Hand {
    owner: u32,
    frames: [AtomicU64; SIZE],
    count: AtomicUsize,
}

impl Hand {
    /// An empty hand of the context that stamps its frames with `owner`, 1 to 4,095.
    pub const fn new(owner: u32) -> Self {
        Self { owner, frames: [const { AtomicU64::new(0) }; SIZE], count: AtomicUsize::new(0) }
    }

    /// How many frames are here.
    pub fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Keeps a frame.
    pub fn keep(&self, frame: PoolFrame) {
        self.lay_down(frame.into_raw());
    }

    /// Keeps the frame `frame`, whose handle was given up.
    pub fn lay_down(&self, frame: PhysAddr) {
        ledger::received(frame, self.owner);
        let count = self.count();
        match self.frames.get(count) {
            Some(place) => place.store(frame.as_u64(), Relaxed),
            None => return ledger::violation(&"a hand is full"),
        }
        self.count.store(count + 1, Relaxed);
    }

    /// Lets go of the frame that came last, which then goes wherever the caller sends it.
    pub fn release(&self, pool: &'static Pool) -> Option<PoolFrame> {
        // SAFETY: `keep` laid the frame down, and nobody else knows it.
        self.pick_up().map(|frame| unsafe { Frame::from_raw(pool, frame) })
    }

    /// Lets go of the frame that came last, whose handle the caller takes up again.
    pub fn pick_up(&self) -> Option<PhysAddr> {
        let count = self.count().checked_sub(1)?;
        self.count.store(count, Relaxed);
        let frame = PhysAddr::new(self.frames[count].load(Relaxed));
        ledger::given_up(frame, self.owner);
        Some(frame)
    }

    /// Takes up to `count` frames one by one; how many there were.
    pub fn take(&self, pool: &'static Pool, request: Request, count: usize) -> Result<usize, AllocError> {
        for taken in 0..count {
            match pool.alloc_with(request) {
                Ok(frame) => self.keep(frame),
                Err(error) if taken == 0 => return Err(error),
                Err(_) => return Ok(taken),
            }
        }
        Ok(count)
    }

    /// Gives up to `count` frames back, one by one.
    pub fn give(&self, pool: &'static Pool, count: usize) {
        for frame in core::iter::from_fn(|| self.release(pool)).take(count) {
            drop(frame);
        }
    }

    /// Gives everything back.
    pub fn give_all(&self, pool: &'static Pool) {
        self.give(pool, usize::MAX);
    }
}
