//! Owns the frames that came back when no magazine was left to put them into: a chain through the frames themselves.
//!
//! A pool has magazines for all its frames, two for each slot, and some for the operations in progress; only when more
//! operations than that are stopped in the middle, each holding a magazine, does a free find none (user space with many
//! more threads than CPUs). It must not fail and must not wait (INV-3), so the frame itself carries the link.
//!
//! # The word
//! ```text
//! head: number of the top frame + 1, 0 = empty          first word of a frame: the same for the frame below
//! ```
//! There is no tag and no ABA: frames are put on one by one, and taken off all at once. A push whose exchange succeeds has
//! linked to the frame that is on top at that moment, whatever happened in between; a take-all compares nothing.

use super::{
    contents::{Contents, read_link, write_link},
    magazine::FrameNumber,
};
use crate::{
    frame::PhysAddr,
    sync::atomic::{AtomicU64, Ordering},
};

/// A chain of frames that only grows until it is taken whole.
#[derive(Debug)]
pub struct Overflow {
    head: AtomicU64,
}

impl Overflow {
    pub fn new() -> Self {
        Self { head: AtomicU64::new(0) }
    }

    /// Whether there is anything to take.
    pub fn is_empty(&self) -> bool {
        // Ordering: Relaxed; a hint that saves the exchange in `take_all`, which does the ordering.
        self.head.load(Ordering::Relaxed) == 0
    }

    /// Adds a frame. Lock-free: a retry means that another context finished an operation.
    ///
    /// # Safety
    /// The caller owns `frame` and gives it up; `address` is its address, which `contents` maps.
    pub unsafe fn push(&self, contents: &impl Contents, frame: FrameNumber, address: PhysAddr) {
        // Ordering: Relaxed; the exchange checks the value, nothing is read through it.
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            // SAFETY: the frame is still ours, since the exchange has not happened.
            unsafe { write_link(contents, address, head) };
            // Ordering: Release publishes the link and the contents to the Acquire of `take_all`; later pushes are
            // read-modify-writes and continue the release sequence. On failure nothing is read, Relaxed.
            let top = u64::from(frame) + 1;
            match self.head.compare_exchange_weak(head, top, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(current) => head = current,
            }
        }
    }

    /// The frames from the top down, for the census.
    ///
    /// # Safety
    /// Nobody uses the overflow meanwhile, `contents` maps its frames, and `address` gives the address of each by its number.
    pub(crate) unsafe fn frames(
        &self,
        contents: &impl Contents,
        address: impl Fn(FrameNumber) -> PhysAddr,
    ) -> impl Iterator<Item = FrameNumber> {
        // Ordering: Acquire, as in `take_all`.
        let mut next = self.head.load(Ordering::Acquire);
        core::iter::from_fn(move || {
            let frame = FrameNumber::try_from(next.checked_sub(1)?).ok()?;
            // SAFETY: nobody takes the frame off or writes its link, as the caller says.
            next = unsafe { read_link(contents, address(frame)) };
            Some(frame)
        })
    }

    /// Takes all frames off. Wait-free: one exchange.
    pub fn take_all(&self) -> Chain {
        if self.is_empty() {
            return Chain { next: 0 };
        }
        // Ordering: Acquire makes the links and the contents of every frame on the chain ours. Nothing is published by
        // an empty chain.
        Chain { next: self.head.swap(0, Ordering::Acquire) }
    }
}

/// Frames in a row through the frames themselves, owned by one operation, which must empty it.
#[must_use]
#[derive(Debug, Default)]
pub struct Chain {
    next: u64,
}

impl Chain {
    /// Adds a frame in front.
    ///
    /// # Safety
    /// The caller owns `frame` and gives it up; `address` is its address, which `contents` maps.
    pub unsafe fn push(&mut self, contents: &impl Contents, frame: FrameNumber, address: PhysAddr) {
        // SAFETY: the frame is ours and mapped.
        unsafe { write_link(contents, address, self.next) };
        self.next = u64::from(frame) + 1;
    }

    /// The next frame of the chain; its first word is zero again.
    ///
    /// # Safety
    /// `contents` maps the frames, and `address` gives the address of each by its number.
    pub unsafe fn pop(
        &mut self,
        contents: &impl Contents,
        address: impl Fn(FrameNumber) -> PhysAddr,
    ) -> Option<FrameNumber> {
        let frame = FrameNumber::try_from(self.next.checked_sub(1)?).ok()?;
        // SAFETY: the chain is ours, so this frame is ours alone; its link was written by one of both `push`.
        unsafe {
            self.next = read_link(contents, address(frame));
            write_link(contents, address(frame), 0);
        }
        Some(frame)
    }
}
