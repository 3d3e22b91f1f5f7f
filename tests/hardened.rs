//! The feature `hardened`: each misuse is found, reported with what was found, and kept from doing harm.
#![cfg(not(loom))]

mod common;

use common::TestHost;
use framepool::{
    AnonymousMemory, Builder, FallbackPolicy, Frame, FramePool, FrameSource, Misuse, PhysAddr, Request,
    SourceError, Watermarks,
};
use std::{
    cell::RefCell,
    collections::HashSet,
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
};

type Pool = FramePool<Claims, TestHost>;
/// A way out of the pool.
type Way<'w> = &'w dyn Fn(&Pool);

thread_local! {
    /// What was reported in this test.
    static REPORTS: RefCell<Vec<Misuse>> = const { RefCell::new(Vec::new()) };
}

fn note(misuse: &Misuse) {
    REPORTS.with_borrow_mut(|reports| reports.push(*misuse));
}

fn reports() -> Vec<Misuse> {
    REPORTS.take()
}

/// Memory that says that it is zero, and is, but for the first frames that it hands out.
#[derive(Debug)]
struct Claims {
    memory: AnonymousMemory,
    soiled: AtomicU32,
}

// SAFETY: but for the claim, which is false as often as a test says, everything is that of the memory.
unsafe impl FrameSource for Claims {
    fn supply(&self, frames: &mut [PhysAddr]) -> Result<usize, SourceError> {
        let supplied = self.memory.supply(frames)?;
        for frame in &frames[..supplied] {
            if self.soiled.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
                // SAFETY: the frame is not handed out yet.
                unsafe { self.memory.pointer(*frame).cast::<u64>().add(3).write(0x77) };
            }
        }
        Ok(supplied)
    }
    fn try_supply(&self) -> Option<PhysAddr> {
        self.memory.try_supply()
    }
    unsafe fn reclaim(&self, frames: &[PhysAddr]) {
        // SAFETY: the caller's.
        unsafe { self.memory.reclaim(frames) }
    }
    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        self.memory.pointer(frame)
    }
    fn base(&self) -> PhysAddr {
        self.memory.base()
    }
    fn supplies_zeroed(&self) -> bool {
        true
    }
}

fn pool_with(soiled: u32, builder: Builder) -> Pool {
    reports();
    let source = Claims { memory: AnonymousMemory::new(8).unwrap(), soiled: AtomicU32::new(soiled) };
    let marks = Watermarks { min: 0, low: 0, high: 8, max: 8 };
    let builder = builder.watermarks(marks).cpus(1).magazine_size(4).fallback(FallbackPolicy::Never);
    builder.on_misuse(note).build(source, TestHost::default()).unwrap()
}

fn pool() -> Pool {
    pool_with(0, Builder::new(8))
}

/// Every frame that the pool hands out, each once.
fn all(pool: &Pool) -> Vec<Frame<'_, Claims, TestHost>> {
    let frames: Vec<_> = std::iter::from_fn(|| pool.alloc().ok()).collect();
    let different: HashSet<_> = frames.iter().map(Frame::phys_addr).collect();
    assert_eq!(different.len(), frames.len(), "INV-1: each frame once");
    frames
}

/// The frame `frame` and no other is gone for good, and the accounts say so.
fn assert_quarantined(pool: &Pool, frame: PhysAddr) {
    let frames = all(pool);
    assert_eq!(frames.len(), 7);
    assert!(frames.iter().all(|other| other.phys_addr() != frame), "nobody gets it any more");
    drop(frames);
    let stats = pool.stats();
    assert_eq!((stats.misuses, stats.quarantined, stats.in_use), (1, 1, 0), "{stats}");
    assert_eq!(stats.owned, stats.cached + stats.stock + stats.quarantined, "INV-4: {stats}");
    assert_eq!(pool.vacate().err().map(|error| error.frames_out()), Some(1), "INV-12: nor does the source");
    assert_eq!(pool.frames_out().count(), 0, "nobody has it");
}

unsafe fn take_up(pool: &Pool, frame: PhysAddr) -> Frame<'_, Claims, TestHost> {
    // SAFETY: none, where a test misuses it; the pool has to find out.
    unsafe { Frame::from_raw(pool, frame) }
}

fn write(pool: &Pool, frame: PhysAddr, offset: usize, word: u64) {
    // SAFETY: the memory is mapped; that the frame may be the pool's is what the pool has to find out.
    unsafe { pool.source().pointer(frame).add(offset).cast::<u64>().write(word) };
}

#[test]
fn a_frame_that_is_given_back_twice_is_handed_out_to_nobody() {
    let pool = pool();
    let frame = pool.alloc().unwrap().into_raw();
    // SAFETY: once rightly, and once not.
    unsafe {
        drop(take_up(&pool, frame));
        assert!(reports().is_empty());
        drop(take_up(&pool, frame));
    }
    assert_eq!(reports(), [Misuse::DoubleFree { frame }]);
    assert_quarantined(&pool, frame);
}

#[test]
fn a_foreign_address_and_one_inside_of_a_frame_change_nothing() {
    let pool = pool();
    let frame = pool.alloc().unwrap().into_raw();
    let (inside, below) = (PhysAddr::new(frame.as_u64() + 24), PhysAddr::new(0x1000));
    let beyond = PhysAddr::new(pool.source().base().as_u64() + 4096 * 4000);
    for address in [inside, below, beyond] {
        // SAFETY: none; this is the misuse.
        drop(unsafe { take_up(&pool, address) });
    }
    let found = [
        Misuse::Misaligned { frame, offset: 24 },
        Misuse::Foreign { address: below },
        Misuse::Foreign { address: beyond },
    ];
    assert_eq!(reports(), found);
    let stats = pool.stats();
    assert_eq!((stats.misuses, stats.quarantined, stats.in_use), (3, 0, 1), "{stats}");
    // SAFETY: the frame was laid down as this address, once.
    drop(unsafe { take_up(&pool, frame) });
    assert_eq!(all(&pool).len(), 8);
    pool.close().unwrap();
}

#[test]
fn a_frame_of_another_pool_is_refused_and_still_its_own_pools() {
    let (pool, other) = (pool(), pool());
    let frame = other.alloc().unwrap().into_raw();
    // SAFETY: none; this is the misuse.
    drop(unsafe { take_up(&pool, frame) });
    assert_eq!(reports(), [Misuse::Foreign { address: frame }]);
    assert_eq!((pool.stats().in_use, other.stats().in_use), (0, 1));
    // SAFETY: the frame was laid down as this address, once.
    drop(unsafe { take_up(&other, frame) });
    assert_eq!(reports(), []);
    assert_eq!((all(&pool).len(), all(&other).len()), (8, 8));
}

#[cfg(feature = "vtd")]
#[test]
fn a_table_frame_that_is_given_back_wrongly_is_found_as_well() {
    use framepool::vtd::TableFrames;
    let pool = pool_with(0, Builder::new(8).guarantees(2));
    let quota = pool.quota(2, 4).unwrap();
    let table = quota.allocate().unwrap();
    // SAFETY: none; this is the misuse.
    unsafe {
        quota.free(PhysAddr::new(table.as_u64() + 8));
        quota.free(table);
        quota.free(table);
    }
    assert_eq!(
        reports(),
        [Misuse::Misaligned { frame: table, offset: 8 }, Misuse::DoubleFree { frame: table }]
    );
    assert_eq!(quota.used(), 0, "it was discharged once");
    let tables: Vec<_> = std::iter::from_fn(|| quota.allocate()).collect();
    assert!(tables.len() == 4 && !tables.contains(&table), "others are there in its place");
}

#[test]
fn a_write_to_a_frame_that_lies_in_the_pool_is_found_wherever_the_frame_leaves() {
    const EXPECTED: u64 = 0xF4EE_F4EE_F4EE_F4EE;
    let ways: [(&str, Way<'_>); 5] = [
        ("one by one", &|pool| drop(all(pool))),
        ("zeroed", &|pool| {
            drop(std::iter::from_fn(|| pool.alloc_zeroed().ok()).collect::<Vec<_>>());
        }),
        ("many at once", &|pool| {
            let mut frames = [const { None }; 8];
            assert_eq!(pool.alloc_bulk(Request::ORDINARY, &mut frames), Ok(7));
            pool.free_bulk(&mut frames);
        }),
        ("reserved", &|pool| assert_eq!(pool.reserve(7).unwrap().left(), 7)),
        ("to the source", &|pool| assert!(pool.vacate().is_err())),
    ];
    for (way, leave) in ways {
        let pool = pool();
        let frames = all(&pool);
        let (frame, other) = (frames[2].phys_addr(), frames[5].phys_addr());
        drop(frames);
        write(&pool, frame, 4088, 0xBAD);
        write(&pool, other, 8, EXPECTED);
        leave(&pool);
        if way == "to the source" {
            assert_eq!((pool.stats().owned, pool.stats().quarantined), (1, 1));
        }
        let found = Misuse::WriteAfterFree { frame, offset: 4088, expected: EXPECTED, found: 0xBAD };
        assert_eq!(reports(), [found], "{way}");
        if way != "to the source" {
            assert_quarantined(&pool, frame);
        }
    }
}

#[test]
fn a_write_to_a_frame_that_was_cleared_ahead_is_found() {
    let pool = pool();
    let frame = pool.alloc_zeroed().unwrap();
    let address = frame.phys_addr();
    // SAFETY: nobody has written to it.
    unsafe { frame.free_zeroed() };
    write(&pool, address, 0, 5);
    drop(std::iter::from_fn(|| pool.alloc_zeroed().ok()).collect::<Vec<_>>());
    let found = Misuse::WriteAfterFree { frame: address, offset: 0, expected: 0, found: 5 };
    assert_eq!(reports(), [found]);
    assert_quarantined(&pool, address);
}

#[test]
fn a_false_promise_of_zeros_is_found_when_it_is_given() {
    let pool = pool();
    let frame = pool.alloc().unwrap();
    let address = frame.phys_addr();
    write(&pool, address, 1024, 9);
    // SAFETY: none; this is the misuse.
    unsafe { frame.free_zeroed() };
    assert_eq!(reports(), [Misuse::FalsePromise { frame: address, offset: 1024, found: 9 }]);
    assert_quarantined(&pool, address);
}

#[test]
fn a_source_that_says_its_frames_are_zero_is_not_believed() {
    let pool = pool_with(2, Builder::new(8));
    let found = reports();
    assert_eq!(found.len(), 2);
    assert!(
        found.iter().all(|misuse| matches!(misuse, Misuse::SourceNotZero { offset: 24, found: 0x77, .. }))
    );
    let stats = pool.stats();
    assert_eq!((stats.misuses, stats.quarantined, stats.clean, stats.owned), (2, 0, 6, 8), "{stats}");
    let zeroed: Vec<_> = std::iter::from_fn(|| pool.alloc_zeroed().ok()).collect();
    assert_eq!(zeroed.len(), 8);
    assert!(zeroed.iter().all(common::is_zero), "INV-9");
}

#[test]
fn a_pool_that_cannot_be_closed_tells_which_frames_are_out() {
    let pool = pool();
    let (handle, raw) = (pool.alloc().unwrap(), pool.alloc().unwrap().into_raw());
    let out: HashSet<_> = pool.frames_out().collect();
    assert_eq!(out, [handle.phys_addr(), raw].into());
    drop(handle);
    let error = pool.close().unwrap_err();
    assert_eq!(error.frames_out(), 1);
    let pool = error.into_pool();
    assert_eq!(pool.frames_out().collect::<Vec<_>>(), [raw]);
    // SAFETY: the frame was laid down as this address, once.
    drop(unsafe { take_up(&pool, raw) });
    assert!(pool.close().is_ok() && reports().is_empty());
}

#[test]
fn whoever_uses_a_pool_rightly_hears_nothing() {
    let pool = pool();
    for round in 0..200usize {
        let mut frames = [const { None }; 3];
        let reservation = pool.reserve(round as u32 % 3).unwrap();
        pool.alloc_bulk_exact(Request::ORDINARY, &mut frames).unwrap();
        let zeroed = pool.alloc_zeroed().unwrap();
        assert!(common::is_zero(&zeroed));
        for frame in frames.iter().flatten() {
            write(&pool, frame.phys_addr(), 8 * round % 4096, 1);
        }
        if round % 2 == 0 {
            // SAFETY: nobody has written to it.
            unsafe { zeroed.free_zeroed() };
        }
        drop((frames, reservation.draw()));
        pool.maintain();
    }
    assert_eq!((reports(), pool.stats().misuses, pool.stats().in_use), (vec![], 0, 0));
    pool.close().unwrap();
}
