//! The size of the frames and the address limit as properties of a pool (R14).
#![cfg(not(loom))]

mod common;

use common::TestHost;
use framepool::{
    AnonymousMemory, BuildError, Builder, FallbackPolicy, FixedRegion, Frame, FramePool, FrameSize,
    FrameSource, PhysAddr, Watermarks,
};
use std::{collections::HashSet, mem::MaybeUninit};

const SIZES: [FrameSize; 3] = [FrameSize::Size4K, FrameSize::Size64K, FrameSize::Size2M];
const FRAMES: u32 = 6;

fn builder(frame_size: FrameSize) -> Builder {
    let marks = Watermarks { min: 1, low: 1, high: FRAMES, max: FRAMES };
    let builder = Builder::new(FRAMES).watermarks(marks).cpus(1).magazine_size(2);
    builder.fallback(FallbackPolicy::Always).frame_size(frame_size)
}

fn anonymous(frame_size: FrameSize) -> AnonymousMemory {
    AnonymousMemory::builder(FRAMES).frame_size(frame_size).build().unwrap()
}

fn region(frame_size: FrameSize) -> FixedRegion {
    let bytes = (FRAMES as usize + 2) * frame_size.bytes();
    let memory: &'static mut [MaybeUninit<u8>] = Box::leak(Box::new_uninit_slice(bytes));
    FixedRegion::with_frame_size(memory, frame_size).unwrap().at(PhysAddr::new(0x4000_0000))
}

fn words<'f>(frame: &'f Frame<'_, impl FrameSource, TestHost>, size: FrameSize) -> &'f [u64] {
    // SAFETY: the frame is ours, this large, and was zeroed or written in full.
    unsafe { core::slice::from_raw_parts(frame.as_ptr().cast::<u64>().as_ptr(), size.bytes() / 8) }
}

fn use_all<S: FrameSource>(pool: FramePool<S, TestHost>, size: FrameSize) -> S {
    assert_eq!(pool.frame_size(), size.bytes());
    for round in 0..3 {
        let request = framepool::Request::CRITICAL.zeroed();
        let frames: Vec<_> = std::iter::from_fn(|| pool.alloc_with(request).ok()).collect();
        assert_eq!(frames.len(), FRAMES as usize);
        let addresses: HashSet<_> = frames.iter().map(Frame::phys_addr).collect();
        assert_eq!(addresses.len(), frames.len(), "INV-1");
        for (number, frame) in frames.iter().enumerate() {
            assert!(frame.phys_addr().is_aligned(size.bytes() as u64));
            assert!(words(frame, size).iter().all(|&word| word == 0), "INV-9");
            // SAFETY: the frame is ours, and this large.
            unsafe { frame.as_ptr().write_bytes(number as u8 + 1, size.bytes()) };
        }
        for (number, frame) in frames.iter().enumerate() {
            let all = u64::from_ne_bytes([number as u8 + 1; 8]);
            assert!(words(frame, size).iter().all(|&word| word == all), "frames overlap");
        }
        drop(frames);
        pool.drain_cpu(0).unwrap();
        // The first round may have lived on the zeros of the source.
        let cleared = pool.maintain().cleared;
        assert!(round == 0 || cleared > 0, "the worker clears frames of this size too");
    }
    assert_eq!(pool.stats().refused, 0);
    pool.close().unwrap()
}

#[test]
fn both_sources_serve_pools_of_every_frame_size() {
    for size in SIZES {
        let source = use_all(builder(size).build(anonymous(size), TestHost::default()).unwrap(), size);
        assert!(source.supplies_zeroed() && source.frame_size() == size);
        use_all(builder(size).build(region(size), TestHost::default()).unwrap(), size);
    }
}

#[test]
fn a_source_of_another_frame_size_is_no_source_for_the_pool() {
    for (pool, source) in SIZES.iter().flat_map(|&pool| SIZES.map(|source| (pool, source))) {
        let error = builder(pool).build(anonymous(source), TestHost::default()).err();
        let expected = (pool != source).then_some(BuildError::FrameSize { pool, source });
        assert_eq!(error, expected);
    }
}

#[test]
fn frames_beyond_the_address_limit_are_refused_and_counted() {
    for size in SIZES {
        let bytes = size.bytes() as u64;
        let source = region(size);
        let supplied = u64::from(source.frames());
        let base = source.base();
        // The last frame that fits ends exactly at the limit; the next one would reach one byte beyond.
        let limit = PhysAddr::new(base.as_u64() + 4 * bytes - 1);
        let pool = builder(size).address_limit(limit).build(source, TestHost::default()).unwrap();
        let stats = pool.stats();
        assert_eq!((stats.owned, stats.refused), (3, supplied - 3), "{stats}");

        let least = builder(size).address_limit(limit).initial(1);
        let pool = least.build(region(size), TestHost::default()).unwrap();
        let frames: Vec<_> = std::iter::from_fn(|| pool.alloc().ok()).collect();
        assert!(frames.iter().all(|frame| frame.phys_addr().as_u64() + bytes <= limit.as_u64()));
        let stats = pool.stats();
        assert_eq!((stats.fallback_taken, stats.fallback_failed, stats.refused), (2, 1, 1), "{stats}");
    }
}

#[test]
fn a_source_that_begins_beyond_the_limit_is_refused_whole() {
    let (base, size) = (PhysAddr::new(0x4000_0000), FrameSize::Size64K);
    for limit in [0, 0x1000, 0x4000_0000, 0x4000_FFFF].map(PhysAddr::new) {
        let built = builder(size).address_limit(limit).build(region(size), TestHost::default());
        assert_eq!(built.err(), Some(BuildError::BeyondLimit { base, limit }));
    }
    let limit = PhysAddr::new(0x4001_0000);
    let pool = builder(size).address_limit(limit).build(region(size), TestHost::default()).unwrap();
    assert_eq!(pool.stats().owned, 1, "exactly one fits");
}

#[test]
fn a_pool_of_larger_frames_makes_no_tables() {
    use framepool::vtd::TableFrames;
    let pool = builder(FrameSize::Size64K).build(region(FrameSize::Size64K), TestHost::default()).unwrap();
    assert_eq!(TableFrames::allocate(&pool), None);
}
