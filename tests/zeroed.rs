//! Zeroed frames: which side a frame is on, who clears it and when, and that it is zero in every byte.
//!
//! `FRAMEPOOL_ZEROED_FRAMES` sets how many frames are checked under load (default 1,000,000).
#![cfg(not(loom))]

mod common;

use common::{Scripted, TestHost, TestPool, assert_accounts, is_zero, rings, set_cpu, soil, storm::Random};
use framepool::{
    AnonymousMemory, Builder, FallbackPolicy, Frame, FramePool, LinuxPlatform, Outcome, Request, Watermarks,
};
use std::{
    sync::{
        Barrier,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// A source whose frames are not known to be zero.
fn unknown(builder: Builder, frames: u32) -> TestPool {
    builder.build(Scripted { zeroed: false, ..Scripted::new(frames) }, TestHost::default()).unwrap()
}

fn small(capacity: u32) -> Builder {
    let marks = Watermarks { min: 0, low: 0, high: capacity, max: capacity };
    Builder::new(capacity).watermarks(marks).cpus(2).magazine_size(4).fallback(FallbackPolicy::Never)
}

fn take_zeroed(pool: &TestPool, count: usize) -> Vec<Frame<'_, Scripted, TestHost>> {
    let frames: Vec<_> = (0..count).map(|_| pool.alloc_zeroed().unwrap()).collect();
    assert!(frames.iter().all(is_zero), "INV-9");
    frames
}

#[test]
fn frames_from_a_source_of_zeros_are_not_cleared_again() {
    let pool = common::pool(small(16), 16);
    assert_eq!(pool.stats().clean, 16);
    let frames = take_zeroed(&pool, 16);
    let stats = pool.stats();
    assert_eq!((stats.zeroed_hits, stats.cleared_inline, stats.clean), (16, 0, 0));
    assert_eq!((stats.depot_hits, stats.cache_hits), (4, 12), "a clean slot works as a dirty one does");
    drop(frames);
    assert_eq!((pool.stats().clean, pool.stats().cached), (0, 8), "they came back without a promise");
    assert_accounts(&pool, 0);
}

#[test]
fn a_promise_keeps_a_frame_on_the_clean_side_and_costs_no_clearing() {
    let pool = common::pool(small(16), 16);
    for _ in 0..100 {
        for frame in take_zeroed(&pool, 10) {
            // SAFETY: nobody has written to it.
            unsafe { frame.free_zeroed() };
        }
    }
    let stats = pool.stats();
    assert_eq!((stats.zeroed_hits, stats.cleared_inline, stats.cleared_ahead, stats.clean), (1000, 0, 0, 16));
    assert_accounts(&pool, 0);
}

#[test]
fn either_kind_of_frame_serves_either_kind_of_caller_before_anything_fails() {
    let pool = common::pool(small(8), 8);
    let zeroed = take_zeroed(&pool, 8);
    assert!(pool.alloc().is_err() && pool.alloc_zeroed().is_err());
    drop(zeroed); // eight dirty frames in the slot of CPU 0
    set_cpu(&pool, 1);
    let zeroed = take_zeroed(&pool, 8);
    assert_eq!((pool.stats().cleared_inline, pool.stats().steals), (8, 2), "stolen, then cleared inline");
    for frame in zeroed {
        // SAFETY: nobody has written to it.
        unsafe { frame.free_zeroed() };
    }
    assert_eq!((pool.stats().clean, pool.stats().stock), (8, 0), "eight clean frames in the slot of CPU 1");
    set_cpu(&pool, 0);
    let ordinary: Vec<_> = (0..8).map(|_| pool.alloc().unwrap()).collect();
    assert_eq!((pool.stats().steals, pool.stats().clean), (4, 0), "R8");
    drop(ordinary);
    assert_accounts(&pool, 0);
}

#[test]
fn ordinary_callers_leave_clean_frames_while_there_are_dirty_ones_in_the_depot() {
    let pool = common::pool(small(32), 32);
    // 16 soiled frames, of which eight stay in the slot and eight go to the depot; 16 clean ones there.
    take_zeroed(&pool, 16).iter().for_each(soil);
    assert_eq!((pool.stats().clean, pool.stats().stock), (16, 24));
    let ordinary: Vec<_> = (0..16).map(|_| pool.alloc().unwrap()).collect();
    assert_eq!(pool.stats().clean, 16);
    let more = pool.alloc().unwrap();
    assert_eq!(pool.stats().clean, 12, "a clean magazine, for want of a dirty one");
    drop((ordinary, more));
    assert_accounts(&pool, 0);
}

#[test]
fn the_worker_clears_what_is_asked_for_and_nothing_before() {
    let pool = unknown(small(64), 64);
    assert_eq!(pool.maintain().cleared, 0, "nobody asks for zeroed frames");
    take_zeroed(&pool, 10).iter().for_each(soil);
    assert_eq!(rings(&pool), 1, "the first that lacked a clean frame rang");
    assert_eq!(pool.stats().cleared_inline, 10);
    let pass = pool.maintain();
    assert_eq!((pass.outcome, pass.cleared, pass.more), (Outcome::Done, 20, false), "twice what was used");
    assert_eq!((pool.stats().clean, pool.stats().cleared_ahead), (20, 20));
    take_zeroed(&pool, 8).iter().for_each(soil);
    assert_eq!((rings(&pool), pool.stats().cleared_inline), (1, 10), "12 of 20 are left, not below the half");
    take_zeroed(&pool, 4).iter().for_each(soil);
    assert_eq!((rings(&pool), pool.stats().clean), (2, 8), "INV-6: below the half");
    assert_eq!(pool.maintain().cleared, 12);
    assert_eq!(pool.stats().cleared_inline, 10);
    assert_accounts(&pool, 0);
}

#[test]
fn a_stock_that_is_low_is_refilled_before_any_of_it_is_cleared() {
    let marks = Watermarks { min: 0, low: 40, high: 64, max: 64 };
    let pool = unknown(small(64).watermarks(marks), 64);
    take_zeroed(&pool, 10).iter().for_each(soil);
    let held: Vec<_> = (0..40).map(|_| pool.alloc().unwrap()).collect();
    assert!(pool.stats().stock < 40);
    assert_eq!(pool.maintain().cleared, 0);
    drop(held);
    assert!(pool.stats().stock >= 40);
    assert_eq!(pool.maintain().cleared, 20);
    assert_accounts(&pool, 0);
}

#[test]
fn a_demand_that_has_gone_fades_and_its_frames_serve_others() {
    let pool = unknown(small(64), 64);
    drop(take_zeroed(&pool, 10));
    pool.maintain();
    assert_eq!(pool.stats().clean, 20);
    let ahead = pool.stats().cleared_ahead;
    for _ in 0..40 {
        drop(take_zeroed(&pool, 1));
        assert_eq!(pool.maintain().outcome, Outcome::Done);
    }
    let quiet = pool.stats().cleared_ahead;
    assert!(quiet - ahead <= 40, "no more was cleared than was used: {}", quiet - ahead);
    let all: Vec<_> = (0..64).map(|_| pool.alloc().unwrap()).collect();
    assert_eq!(pool.stats().clean, 0);
    drop(all);
    assert_accounts(&pool, 0);
}

#[test]
fn a_pool_without_dirty_stock_does_not_ring_for_what_nobody_can_clear() {
    let pool = unknown(small(8), 8);
    let frames = take_zeroed(&pool, 8);
    drop(frames); // all in the slot of CPU 0
    let before = rings(&pool);
    for _ in 0..100 {
        soil(&take_zeroed(&pool, 1)[0]);
    }
    assert_eq!(rings(&pool), before);
    assert_eq!(pool.stats().cleared_inline, 108);
}

#[test]
fn bulk_calls_and_reservations_hand_out_zeros_too() {
    for pool in [common::pool(small(64), 64), unknown(small(64), 64)] {
        for _ in 0..4 {
            let mut frames: Vec<_> = (0..22).map(|_| None).collect();
            pool.alloc_bulk_exact(Request::ORDINARY.zeroed(), &mut frames).unwrap();
            let reservation = pool.reserve_with(Request::CRITICAL.zeroed(), 23).unwrap();
            let drawn: Vec<_> = (0..11).map(|_| reservation.draw().unwrap()).collect();
            assert!(frames.iter().flatten().chain(&drawn).all(is_zero), "INV-9");
            drop(reservation);
            drawn.iter().for_each(soil);
            // SAFETY: nobody has written to them.
            unsafe { pool.free_bulk_zeroed(&mut frames) };
            assert!(frames.iter().all(Option::is_none));
            assert!(pool.stats().clean >= 22 + 12, "the promise, and what was not drawn");
        }
        assert_accounts(&pool, 0);
    }
}

#[test]
fn a_dirty_free_in_the_reserve_or_the_slot_forgets_nothing_but_the_promise() {
    let marks = Watermarks { min: 2, low: 2, high: 8, max: 8 };
    let pool = common::pool(small(8).watermarks(marks), 8);
    let all: Vec<_> = (0..8).map(|_| pool.alloc_with(Request::CRITICAL.zeroed()).unwrap()).collect();
    assert!(all.iter().all(is_zero), "INV-9: also those of the reserve");
    all.iter().for_each(soil);
    drop(all);
    let all: Vec<_> = (0..8).map(|_| pool.alloc_with(Request::CRITICAL.zeroed()).unwrap()).collect();
    assert!(all.iter().all(is_zero), "INV-9");
    drop(all);
    assert_accounts(&pool, 0);
}

#[test]
fn the_table_builder_gets_tables_that_nobody_cleared_for_it() {
    use framepool::vtd::TableFrames;
    let pool = common::pool(small(16), 16);
    let tables: Vec<_> = (0..4).map(|_| TableFrames::allocate(&pool).unwrap()).collect();
    assert_eq!((pool.stats().zeroed_hits, pool.stats().cleared_inline), (4, 0));
    for &table in &tables {
        // SAFETY: the table came from `allocate`, and nobody has written to it.
        unsafe { TableFrames::free_zeroed(&pool, table) };
    }
    assert_eq!(pool.stats().clean, 16);
    assert_accounts(&pool, 0);
}

/// One thread's part of a round: takes zeroed frames a few at a time, looks at every byte, soils them and frees them; how many were not
/// zero. It does not end before its round, or the others would wait for it.
fn fill_pages(pool: &FramePool<AnonymousMemory, LinuxPlatform>, frames: u64, random: &mut Random) -> u64 {
    const HELD: u64 = 32;
    let mut not_zero = 0;
    for _ in 0..frames / HELD {
        let held: Vec<_> = (0..HELD).map(|_| pool.alloc_zeroed().unwrap()).collect();
        for frame in &held {
            // SAFETY: the frame is ours.
            let words = unsafe { frame.as_ptr().cast::<[u64; 512]>().as_mut() };
            not_zero += u64::from(words.iter().any(|&word| word != 0));
            words[random.next() as usize % 512] = random.next();
            words[511] = 0xAA << 56;
        }
    }
    not_zero
}

/// Every byte of a million frames, all of which were soiled before: two threads take zeroed frames and free soiled ones while
/// a third maintains the pool. A round ends when everybody is done, so that the worker lags behind by a round at most, whatever
/// else the machine has to do.
#[test]
fn a_million_zeroed_frames_under_load_are_zero_and_hardly_one_is_cleared_inline() {
    const THREADS: u64 = 2;
    const ROUND: u64 = 512;
    let total = std::env::var("FRAMEPOOL_ZEROED_FRAMES").ok().and_then(|frames| frames.parse().ok());
    let total: u64 = total.unwrap_or(1_000_000);
    let warm_up = 20;
    let rounds = warm_up + total.div_ceil(THREADS * ROUND);
    let capacity = 16_384;
    let marks = Watermarks { min: 0, low: 1024, high: capacity, max: capacity };
    let builder = Builder::new(capacity).watermarks(marks).fallback(FallbackPolicy::Never);
    let cpus = LinuxPlatform::possible_cpus();
    let source = AnonymousMemory::new(capacity).unwrap();
    let pool = builder.cpus(cpus).build(source, LinuxPlatform::new()).unwrap();
    let all: Vec<_> = core::iter::from_fn(|| pool.alloc().ok()).collect();
    assert_eq!(all.len(), capacity as usize);
    for frame in all {
        // SAFETY: the frame is ours.
        unsafe { frame.as_ptr().write_bytes(0xAA, 4096) };
    }
    let barrier = Barrier::new(THREADS as usize + 1);
    let (working, not_zero) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut warm = pool.stats();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (pool, barrier, working, not_zero) = (&pool, &barrier, &working, &not_zero);
            scope.spawn(move || {
                let mut random = Random::new(thread);
                for _ in 0..rounds {
                    barrier.wait();
                    not_zero.fetch_add(fill_pages(pool, ROUND, &mut random), SeqCst);
                    working.fetch_sub(1, SeqCst);
                    pool.platform().doorbell().ring();
                    barrier.wait();
                }
            });
        }
        for round in 0..rounds {
            if round == warm_up {
                warm = pool.stats();
            }
            working.store(THREADS, SeqCst);
            barrier.wait();
            let mut done = false;
            while !done {
                // The last to finish rings, so what was rung before is answered in this round.
                done = working.load(SeqCst) == 0;
                pool.platform().doorbell().wait(done.then_some(Duration::ZERO));
                while pool.maintain().more {}
            }
            barrier.wait();
        }
    });
    assert_eq!(not_zero.into_inner(), 0, "INV-9: frames that were not zero");
    let stats = pool.stats();
    let (inline, hits) = (stats.cleared_inline - warm.cleared_inline, stats.zeroed_hits - warm.zeroed_hits);
    println!(
        "{hits} frames were clean, {inline} were cleared inline; the pool cleared {}",
        stats.cleared_ahead
    );
    assert!(hits + inline >= total);
    assert!(inline * 1000 < hits, "{stats}");
    pool.close().unwrap();
}
