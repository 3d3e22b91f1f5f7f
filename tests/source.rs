//! Sources that fail, lie or are late: the pool refuses what breaks an invariant, counts it, and goes on.
#![cfg(not(loom))]

mod common;

use common::{Scripted, TestHost};
use framepool::{
    AnonymousMemory, BuildError, Builder, FallbackPolicy, FixedRegion, Frame, FrameSource, HugePages,
    Outcome, PhysAddr, SourceError, Watermarks,
};
use std::{
    collections::HashSet,
    mem::MaybeUninit,
    ptr::NonNull,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
};

/// A source that hands out exactly the addresses of a list, true or not, and never reads them.
#[derive(Debug)]
struct Liar {
    says: Mutex<Vec<u64>>,
    claims: usize,
    reclaimed: Mutex<Vec<PhysAddr>>,
}

impl Liar {
    fn new(says: &[u64]) -> Self {
        Self {
            says: Mutex::new(says.iter().rev().copied().collect()),
            claims: 0,
            reclaimed: Mutex::default(),
        }
    }
}

// SAFETY: the tests touch no frame, and nothing overflows; what is false is what the pool has to find out.
unsafe impl FrameSource for Liar {
    fn supply(&self, frames: &mut [PhysAddr]) -> Result<usize, SourceError> {
        let mut says = self.says.lock().unwrap();
        let mut supplied = 0;
        while supplied < frames.len() {
            let Some(address) = says.pop() else { break };
            frames[supplied] = PhysAddr::new(address);
            supplied += 1;
        }
        Ok(supplied + self.claims)
    }
    fn try_supply(&self) -> Option<PhysAddr> {
        self.says.lock().unwrap().pop().map(PhysAddr::new)
    }
    unsafe fn reclaim(&self, frames: &[PhysAddr]) {
        self.reclaimed.lock().unwrap().extend(frames);
    }
    fn pointer(&self, _frame: PhysAddr) -> NonNull<u8> {
        NonNull::dangling()
    }
    fn base(&self) -> PhysAddr {
        PhysAddr::new(0x10_0000)
    }
}

fn builder(capacity: u32) -> Builder {
    let watermarks = Watermarks { min: 0, low: 0, high: capacity, max: capacity };
    Builder::new(capacity).watermarks(watermarks).cpus(1).magazine_size(4).fallback(FallbackPolicy::Always)
}

#[test]
fn false_addresses_are_refused_at_the_door_and_counted() {
    let beyond_window = 0x10_0000 + (u64::from(u32::MAX) << 12);
    let says =
        [0x10_0000, 0x10_0001, 0x10_0000, 0xF_F000, beyond_window, u64::MAX, 0x10_2000, 0x10_2800, 0x10_3000];
    let pool = builder(9).build(Liar::new(&says), TestHost::default()).unwrap();
    let stats = pool.stats();
    assert_eq!((stats.owned, stats.refused), (3, 6), "{stats}");
    let frames: Vec<_> = (0..3).map(|_| pool.alloc().unwrap()).collect();
    let addresses: HashSet<_> = frames.iter().map(Frame::phys_addr).collect();
    assert_eq!(addresses, [0x10_0000, 0x10_2000, 0x10_3000].map(PhysAddr::new).into());
    drop(frames);
    let source = pool.close().unwrap();
    assert_eq!(source.reclaimed.into_inner().unwrap().len(), 3, "what was refused is not given back");
}

#[test]
fn a_frame_that_is_out_is_not_taken_in_a_second_time() {
    let pool = builder(4).initial(1).build(Liar::new(&[0x10_1000, 0x10_1000]), TestHost::default()).unwrap();
    let frame = pool.alloc().unwrap();
    assert!(pool.alloc().is_err(), "INV-1: the fallback brought the same frame again");
    assert_eq!((pool.stats().refused, pool.stats().fallback_failed, pool.stats().owned), (1, 1, 1));
    drop(frame);
    assert_eq!(pool.stats().in_use, 0);
}

#[test]
fn a_source_that_claims_more_than_it_was_asked_for_is_not_believed() {
    let liar = Liar { claims: 1000, ..Liar::new(&[0x10_1000, 0x10_2000]) };
    let pool = builder(2).build(liar, TestHost::default()).unwrap();
    assert_eq!((pool.stats().owned, pool.stats().stock), (2, 2));
}

#[test]
fn a_reserve_that_the_source_cannot_fill_is_no_pool() {
    let watermarks = Watermarks { min: 4, low: 4, high: 4, max: 4 };
    let build = Builder::new(4).watermarks(watermarks).build(Liar::new(&[0x10_1000]), TestHost::default());
    assert_eq!(build.err(), Some(BuildError::SourceExhausted { wanted: 4, got: 1 }));
}

#[test]
fn an_empty_source_makes_an_empty_pool_that_says_so() {
    let pool = builder(4).build(Liar::new(&[]), TestHost::default()).unwrap();
    assert_eq!(pool.maintain().outcome, Outcome::SourceFailed);
    assert!(pool.alloc().is_err());
    assert_eq!(pool.stats().source_failures, 2);
}

#[test]
fn a_panicking_source_leaves_the_accounts_in_order() {
    struct Panics;
    // SAFETY: no frame is ever handed out.
    unsafe impl FrameSource for Panics {
        fn supply(&self, _: &mut [PhysAddr]) -> Result<usize, SourceError> {
            panic!("the source panics")
        }
        fn try_supply(&self) -> Option<PhysAddr> {
            None
        }
        unsafe fn reclaim(&self, _: &[PhysAddr]) {}
        fn pointer(&self, _: PhysAddr) -> NonNull<u8> {
            NonNull::dangling()
        }
    }
    let pool = builder(4).initial(0).build(Panics, TestHost::default()).unwrap();
    for _ in 0..2 {
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.maintain()));
        assert!(panicked.is_err(), "the turn was given back, so the next pass reaches the source again");
        assert_eq!(pool.stats().owned, 0);
    }
}

/// A source that panics when it gets frames back, as often as it is told.
#[derive(Debug)]
struct Spills {
    inner: Scripted,
    panics: AtomicU32,
    kept: AtomicU32,
}

// SAFETY: everything is the inner source's; frames that it panicked over it has, and hands out never again.
unsafe impl FrameSource for Spills {
    fn supply(&self, frames: &mut [PhysAddr]) -> Result<usize, SourceError> {
        self.inner.supply(frames)
    }
    fn try_supply(&self) -> Option<PhysAddr> {
        self.inner.try_supply()
    }
    unsafe fn reclaim(&self, frames: &[PhysAddr]) {
        if self.panics.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
            self.kept.fetch_add(frames.len() as u32, SeqCst);
            panic!("the source panics");
        }
        // SAFETY: the caller's.
        unsafe { self.inner.reclaim(frames) }
    }
    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        self.inner.pointer(frame)
    }
    fn base(&self) -> PhysAddr {
        self.inner.base()
    }
}

#[test]
fn a_source_that_panics_when_it_gets_frames_back_keeps_those_and_no_other() {
    let watermarks = Watermarks { min: 2, low: 4, high: 8, max: 100 };
    let source = Spills { inner: Scripted::new(200), panics: AtomicU32::new(0), kept: AtomicU32::new(0) };
    let builder = Builder::new(200).watermarks(watermarks).cpus(2).magazine_size(16).initial(200);
    let pool = builder.fallback(FallbackPolicy::Never).build(source, TestHost::default()).unwrap();
    drop((0..40).map(|_| pool.alloc().unwrap()).collect::<Vec<_>>());
    let panics = |work: &dyn Fn()| {
        pool.source().panics.store(1, SeqCst);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err();
        assert_eq!(pool.source().panics.load(SeqCst), 0, "the source was reached");
        assert!(panicked);
        let stats = pool.stats();
        assert_eq!(stats.owned, u64::from(pool.source().inner.out() - pool.source().kept.load(SeqCst)));
        assert_eq!((stats.in_use, stats.cached + stats.stock), (0, stats.owned), "INV-1 and INV-4: {stats}");
        assert!(pool.alloc().is_ok() && pool.alloc_zeroed().is_ok(), "and the pool goes on");
    };
    panics(&|| {
        pool.maintain();
    });
    panics(&|| {
        pool.shrink_to(20);
    });
    panics(&|| drop(pool.vacate()));
    pool.vacate().unwrap();
    assert_eq!(pool.stats().owned, 0);
    assert_eq!(pool.source().inner.out(), pool.source().kept.load(SeqCst));
}

#[test]
fn a_region_gives_each_of_its_frames_once_and_takes_it_back() {
    let memory: &'static mut [MaybeUninit<u8>] = Box::leak(Box::new_uninit_slice(20 * 4096 + 123));
    let region = FixedRegion::new(memory).unwrap().at(PhysAddr::new(0x4000_0000));
    let frames: Vec<_> = std::iter::from_fn(|| region.try_supply()).collect();
    assert_eq!(frames.len(), region.frames() as usize);
    assert_eq!(frames.iter().collect::<HashSet<_>>().len(), frames.len());
    assert!(frames.iter().all(|frame| frame.is_aligned(4096) && *frame >= region.base()));
    for frame in &frames {
        // SAFETY: the frame is out, with us.
        unsafe { region.pointer(*frame).as_ptr().write_bytes(0xAA, 4096) };
    }
    assert!(region.supply(&mut [PhysAddr::new(0)]).is_err());
    // SAFETY: all frames came from this source and are given back once.
    unsafe { region.reclaim(&frames) };
    assert_eq!(std::iter::from_fn(|| region.try_supply()).count(), frames.len());
    assert!(FixedRegion::new(&mut []).is_err());
    assert!(FixedRegion::new(Box::leak(Box::new_uninit_slice(4096))).is_err());
}

#[test]
fn anonymous_memory_comes_back_empty_and_with_every_choice() {
    assert!(AnonymousMemory::new(0).is_err());
    assert!(AnonymousMemory::new(u32::MAX).is_err());
    for (huge_pages, populate) in
        [(HugePages::System, false), (HugePages::Transparent, false), (HugePages::System, true)]
    {
        let source = AnonymousMemory::builder(600).huge_pages(huge_pages).populate(populate).build().unwrap();
        assert!(source.base().is_aligned(2 << 20), "the kernel can use huge pages");
        let mut frames = [PhysAddr::new(0); 601];
        assert_eq!(source.supply(&mut frames).unwrap(), 600);
        // SAFETY: the frames are out, with us; each is reclaimed once.
        unsafe {
            source.pointer(frames[599]).as_ptr().write_bytes(0xAA, 4096);
            source.reclaim(&frames[..600]);
        }
        let again: Vec<_> = std::iter::from_fn(|| source.try_supply()).collect();
        assert_eq!(again.iter().collect::<HashSet<_>>().len(), 600);
        // SAFETY: as above.
        assert_eq!(unsafe { source.pointer(frames[599]).read() }, 0, "the system took the memory back");
    }
}
