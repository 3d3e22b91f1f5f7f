//! The floor of a claim on a cache of the CPU's own: a stack for each CPU, found by the number that the kernel keeps in each thread's area,
//! whose length is exchanged for a mark and stored back. Neither tiers below nor other CPUs that steal, no counts.

use super::{FRAMES, bare_sequence::this_cpu, implementations::Implementation};
use std::{
    cell::UnsafeCell,
    sync::atomic::{AtomicU64, Ordering},
};

/// As many as there may be CPUs on which the benchmarks run.
const CPUS: usize = 64;
const TAKEN: u64 = u64::MAX;

#[repr(align(128))]
struct Stack {
    length: AtomicU64,
    frames: Box<UnsafeCell<[u32]>>,
}

/// A stack for each CPU.
pub struct FloorClaim {
    stacks: Box<[Stack]>,
}

// SAFETY: the frames of a stack belong to whoever has put the mark in the place of its length.
unsafe impl Sync for FloorClaim {}

impl FloorClaim {
    /// Changes the length of this CPU's stack as `change` says, which gets the frames as well.
    #[inline(always)]
    fn claim<R>(&self, change: impl FnOnce(u64, &mut [u32]) -> (u64, R)) -> R {
        let stack = &self.stacks[this_cpu()];
        // Ordering: Acquire and Release, as a claim has them.
        let length = stack.length.swap(TAKEN, Ordering::Acquire);
        assert!(length != TAKEN, "nobody else is here");
        // SAFETY: the mark is there.
        let (length, result) = change(length, unsafe { &mut *stack.frames.get() });
        stack.length.store(length, Ordering::Release);
        result
    }
}

impl Implementation for FloorClaim {
    const NAME: &'static str = "floor-claim";
    type Token<'p> = u64;
    type Thread<'p> = ();

    fn new() -> Option<Self> {
        let stack = || {
            let frames: Vec<u32> = (0..FRAMES).collect();
            // SAFETY: the two have the same representation.
            let frames =
                unsafe { Box::from_raw(Box::into_raw(frames.into_boxed_slice()) as *mut UnsafeCell<[u32]>) };
            Stack { length: AtomicU64::new(FRAMES.into()), frames }
        };
        (this_cpu() < CPUS).then(|| Self { stacks: std::iter::repeat_with(stack).take(CPUS).collect() })
    }
    fn enter(&self) {}
    #[inline(always)]
    fn take(&self, (): &mut ()) -> u64 {
        let frame = self.claim(|length, frames| (length - 1, frames[length as usize - 1]));
        u64::from(frame) << 12
    }
    #[inline(always)]
    fn give(&self, (): &mut (), token: u64) {
        self.claim(|length, frames| {
            frames[length as usize] = (token >> 12) as u32;
            (length + 1, ())
        });
    }
}
