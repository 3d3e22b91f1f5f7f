//! What a pool costs beside its frames: bytes of bookkeeping for each, and the time in which it is made.

mod common;

use framepool::{Builder, FrameSource, LinuxPlatform, PhysAddr, SourceError};
use serde_json::json;
use std::{
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

/// Addresses without memory: what is measured never touches a frame.
struct Addresses {
    next: AtomicU64,
}

// SAFETY: each address is handed out once, and no benchmark here reads or writes through one.
unsafe impl FrameSource for Addresses {
    fn supply(&self, frames: &mut [PhysAddr]) -> Result<usize, SourceError> {
        // Ordering: Relaxed; a number that is only counted.
        let first = self.next.fetch_add(frames.len() as u64, Ordering::Relaxed);
        for (frame, number) in frames.iter_mut().zip(first..) {
            *frame = PhysAddr::new(number << 12);
        }
        Ok(frames.len())
    }
    fn try_supply(&self) -> Option<PhysAddr> {
        let mut one = [PhysAddr::new(0)];
        self.supply(&mut one).ok().map(|_| one[0])
    }
    unsafe fn reclaim(&self, _: &[PhysAddr]) {}
    fn pointer(&self, _: PhysAddr) -> NonNull<u8> {
        NonNull::dangling()
    }
    fn supplies_zeroed(&self) -> bool {
        true
    }
}

fn main() {
    let mut results = Vec::new();
    for frames in [1_000, 10_000, 100_000, 1_000_000, 10_000_000_u32] {
        let builder = Builder::new(frames);
        let bytes = builder.memory_layout().expect("a layout").size();
        let source = Addresses { next: AtomicU64::new(0) };
        let start = Instant::now();
        let pool = builder.build(source, LinuxPlatform::new()).expect("a pool");
        let seconds = start.elapsed().as_secs_f64();
        drop(pool);
        let per_frame = bytes as f64 / f64::from(frames);
        println!(
            "{frames:>9} frames: {per_frame:6.2} bytes of bookkeeping a frame, made in {:8.3} ms",
            seconds * 1e3
        );
        results.push(json!({ "frames": frames, "bytes": bytes, "seconds": seconds }));
    }
    common::leave("memory", &results.into());
}
