//! The overflow: frames put on one by one while others take all.
#![cfg(loom)]
#![allow(missing_docs)]

use framepool::{
    FrameSource, PhysAddr,
    internals::{contents::Contents, overflow::Overflow},
};
use loom::{sync::Arc, thread};
use loom_tests::{Source, model};
use std::ptr::NonNull;

struct Frames(Source);

impl Contents for Frames {
    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        self.0.pointer(frame)
    }
}

fn address(frame: u32) -> PhysAddr {
    PhysAddr::new(u64::from(frame) * 4096)
}

fn take_all(overflow: &Overflow, frames: &Frames) -> Vec<u32> {
    let mut chain = overflow.take_all();
    // SAFETY: the frames of the chain are ours and mapped.
    core::iter::from_fn(|| unsafe { chain.pop(frames, address) }).collect()
}

#[test]
fn every_frame_comes_off_once() {
    model(7, || {
        let shared = Arc::new((Overflow::new(), Frames(Source::new(3))));
        let pushers: Vec<_> = (0..2)
            .map(|frame| {
                let shared = Arc::clone(&shared);
                // SAFETY: each frame is pushed once.
                thread::spawn(move || unsafe { shared.0.push(&shared.1, frame, address(frame)) })
            })
            .collect();
        // SAFETY: as above.
        unsafe { shared.0.push(&shared.1, 2, address(2)) };
        let mut taken = take_all(&shared.0, &shared.1);
        pushers.into_iter().for_each(|pusher| drop(pusher.join()));
        taken.extend(take_all(&shared.0, &shared.1));
        taken.sort_unstable();
        assert_eq!(taken, [0, 1, 2], "INV-1");
    });
}
