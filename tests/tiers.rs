//! Each tier on its own, seen through the statistics, which are exact when nothing is in progress.
#![cfg(not(loom))]

mod common;

use common::{Scripted, TestHost, assert_accounts, pool, rings, set_cpu};
use framepool::{AllocError, Builder, FallbackPolicy, Frame, Outcome, Request, Watermarks};
use std::{collections::HashSet, sync::atomic::Ordering::SeqCst, time::Duration};

fn marks(min: u32, low: u32, high: u32, max: u32) -> Watermarks {
    Watermarks { min, low, high, max }
}

/// Two CPUs with magazines of four: sixteen frames fill all four magazines of the caches.
fn small(capacity: u32, watermarks: Watermarks) -> Builder {
    Builder::new(capacity).watermarks(watermarks).cpus(2).magazine_size(4).fallback(FallbackPolicy::Never)
}

fn take(pool: &common::TestPool, count: usize) -> Vec<Frame<'_, Scripted, TestHost>> {
    (0..count).map(|_| pool.alloc().unwrap()).collect()
}

#[test]
fn hits_swap_magazines_and_go_to_the_depot_once_a_magazine() {
    let pool = pool(small(32, marks(0, 0, 32, 32)), 32);
    assert_accounts(&pool, 0);
    let frames = take(&pool, 32);
    let stats = pool.stats();
    assert_eq!((stats.depot_hits, stats.cache_hits), (8, 24), "one depot visit for every four frames");
    assert_eq!(frames.iter().map(Frame::phys_addr).collect::<HashSet<_>>().len(), 32, "INV-1");
    assert_accounts(&pool, 32);
    drop(frames);
    let stats = pool.stats();
    assert_eq!(
        (stats.freed, stats.cached),
        (32, 8),
        "both magazines of the CPU are full, the rest is in the depot"
    );
    assert_eq!((stats.stock, stats.collisions, stats.overflow), (24, 0, 0));
    assert_accounts(&pool, 0);
}

#[test]
fn an_exhausted_pool_says_so_and_works_again_when_a_frame_comes_back() {
    let pool = pool(small(8, marks(0, 0, 8, 8)), 8);
    let mut frames = take(&pool, 8);
    for failures in 1..=3 {
        assert_eq!(pool.alloc().err(), Some(AllocError::Exhausted));
        assert_eq!(pool.stats().exhausted, failures);
    }
    frames.pop();
    let again = pool.alloc().unwrap();
    assert_eq!(pool.stats().exhausted, 3);
    drop((again, frames));
    assert_accounts(&pool, 0);
}

#[test]
fn crossing_low_rings_once_and_one_pass_refills_by_use() {
    let pool = pool(small(64, marks(0, 16, 32, 64)), 64);
    assert_eq!(pool.stats().stock, 32, "filled up to high");
    let first = take(&pool, 16);
    assert_eq!((rings(&pool), pool.stats().stock), (0, 16), "at low, not below");
    let second = take(&pool, 8);
    assert_eq!((rings(&pool), pool.stats().stock), (1, 8), "INV-6: two exchanges below low, one ring");
    let pass = pool.maintain();
    assert_eq!((pass.outcome, pass.fetched, pass.retry_after), (Outcome::Done, 24, None));
    let stats = pool.stats();
    assert_eq!(
        (stats.stock, stats.refills, stats.refilled, stats.rings),
        (32, 2, 56, 1),
        "demand of 24, up to high"
    );
    let third = take(&pool, 20);
    assert_eq!(rings(&pool), 2, "INV-6: the next crossing rings again");
    drop((first, second, third));
    assert_accounts(&pool, 0);
}

#[test]
fn a_quiet_pool_is_refilled_only_a_little_above_low() {
    let pool = pool(small(64, marks(0, 16, 48, 64)).initial(0), 64);
    let pass = pool.maintain();
    assert_eq!(pass.fetched, 17);
    assert_eq!(pool.maintain().fetched, 0, "nothing to do");
}

#[test]
fn frames_idle_in_another_cpus_cache_are_stolen_before_anything_fails() {
    let pool = pool(small(8, marks(0, 0, 8, 8)), 8);
    let frames = take(&pool, 8);
    drop(frames); // all eight are now in the magazines of CPU 0
    assert_eq!((pool.stats().cached, pool.stats().stock), (8, 0));
    set_cpu(&pool, 1);
    let frames = take(&pool, 8);
    let stats = pool.stats();
    assert_eq!((stats.steals, stats.cached, stats.exhausted), (2, 0, 0), "R8: whole magazines were stolen");
    drop(frames);
    assert_accounts(&pool, 0);
}

#[test]
fn a_wrong_cpu_number_costs_speed_only() {
    let pool = pool(small(16, marks(0, 0, 16, 16)), 16);
    let mut frames = Vec::new();
    for cpu in [0, 1, 7, usize::MAX, 1 << 40, 0, 1, 3] {
        set_cpu(&pool, cpu);
        frames.push(pool.alloc().unwrap());
    }
    assert_accounts(&pool, 8);
    drop(frames);
    assert_accounts(&pool, 0);
}

#[test]
fn ordinary_callers_stop_at_min_and_critical_ones_get_every_frame_of_the_reserve() {
    let pool = pool(small(16, marks(6, 6, 16, 16)), 16);
    assert_eq!(pool.stats().reserve, 6);
    let ordinary = take(&pool, 10);
    assert_eq!(pool.alloc().err(), Some(AllocError::ReserveOnly), "INV-5");
    let critical: Vec<_> = (0..6).map(|_| pool.alloc_with(Request::CRITICAL).unwrap()).collect();
    assert_eq!(pool.stats().reserve_hits, 6);
    assert_eq!(pool.alloc_with(Request::CRITICAL).err(), Some(AllocError::Exhausted));
    drop(critical);
    assert_eq!(pool.stats().reserve, 6, "the next frames that come back fill the reserve first");
    assert_eq!(pool.alloc().err(), Some(AllocError::ReserveOnly), "INV-5");
    drop(ordinary);
    assert_accounts(&pool, 0);
}

#[test]
fn the_fallback_asks_the_host_once_a_miss_and_only_when_allowed() {
    let builder = small(16, marks(0, 0, 4, 16)).fallback(FallbackPolicy::Always);
    let pool = pool(builder, 16);
    let mut frames = take(&pool, 4);
    assert_eq!(pool.alloc_with(Request::ORDINARY.without_fallback()).err(), Some(AllocError::Exhausted));
    assert_eq!(pool.source().tried.load(SeqCst), 0, "R6: optional per call");
    frames.extend(take(&pool, 12));
    assert_eq!((pool.stats().fallback_taken, pool.source().tried.load(SeqCst)), (12, 12));
    assert_eq!(pool.alloc().err(), Some(AllocError::FallbackFailed), "at capacity the host is not asked");
    let stats = pool.stats();
    assert_eq!((stats.fallback_failed, stats.exhausted, stats.owned), (1, 2, 16));
    pool.source().failing.store(true, SeqCst);
    drop(frames);
    assert_accounts(&pool, 0);
}

#[test]
fn the_fallbacks_budget_lasts_until_the_next_pass() {
    let builder = small(32, marks(0, 0, 4, 32)).fallback(FallbackPolicy::Budget(2));
    let pool = pool(builder, 32);
    let mut frames = take(&pool, 6);
    assert_eq!(pool.alloc().err(), Some(AllocError::FallbackFailed));
    assert_eq!((pool.stats().fallback_taken, pool.stats().fallback_failed), (2, 1));
    pool.source().failing.store(true, SeqCst);
    assert_eq!(pool.maintain().outcome, Outcome::SourceFailed);
    pool.source().failing.store(false, SeqCst);
    frames.extend(take(&pool, 2));
    assert_eq!(pool.stats().fallback_taken, 4);
    drop(frames);
    assert_accounts(&pool, 0);
}

#[test]
fn a_source_that_fails_is_left_alone_longer_and_longer_and_the_pool_goes_on() {
    let pool = pool(small(32, marks(0, 8, 16, 32)), 32);
    pool.source().failing.store(true, SeqCst);
    let frames = take(&pool, 12);
    let waits: Vec<_> = (0..4).map(|_| pool.maintain().retry_after).collect();
    assert_eq!(waits, [1, 2, 4, 8].map(|wait| Some(Duration::from_millis(wait))));
    assert_eq!(pool.stats().source_failures, 4);
    drop(pool.alloc().unwrap());
    pool.source().failing.store(false, SeqCst);
    let pass = pool.maintain();
    assert_eq!((pass.outcome, pass.retry_after), (Outcome::Done, None));
    assert!(pool.stats().stock >= 8);
    drop(frames);
    assert_accounts(&pool, 0);
}

#[test]
fn a_stock_above_max_rings_and_is_trimmed_to_high() {
    let pool = pool(small(64, marks(2, 4, 8, 16)).initial(40), 64);
    assert_eq!((pool.stats().stock, rings(&pool)), (40, 1));
    let pass = pool.maintain();
    assert_eq!((pass.trimmed, pool.stats().stock, pool.stats().trimmed), (32, 8, 32));
    assert_eq!(pool.source().reclaimed.load(SeqCst), 32);
    assert_eq!(pool.stats().reserve, 2);
    assert_accounts(&pool, 0);
}

#[test]
fn bulk_calls_take_and_give_all_or_as_many_as_there_are() {
    let pool = pool(small(24, marks(4, 4, 24, 24)), 24);
    let mut frames: Vec<_> = (0..20).map(|_| None).collect();
    pool.alloc_bulk_exact(Request::ORDINARY, &mut frames).unwrap();
    assert_accounts(&pool, 20);
    let mut more: Vec<_> = (0..5).map(|_| None).collect();
    assert_eq!(pool.alloc_bulk_exact(Request::CRITICAL, &mut more).err(), Some(AllocError::Exhausted));
    assert!(more.iter().all(Option::is_none));
    assert_accounts(&pool, 20);
    assert_eq!(pool.stats().reserve, 4, "what a failed call took is back where it belongs");
    assert_eq!(pool.alloc_bulk(Request::CRITICAL, &mut more).unwrap(), 4);
    pool.free_bulk(&mut more);
    pool.free_bulk(&mut frames);
    assert_eq!(pool.alloc_bulk(Request::ORDINARY, &mut []).unwrap(), 0);
    assert_accounts(&pool, 0);
}

#[test]
fn a_frame_survives_as_a_bare_address() {
    let pool = pool(small(8, marks(0, 0, 8, 8)), 8);
    let address = pool.alloc().unwrap().into_raw();
    assert_accounts(&pool, 1);
    let refused = pool.close().unwrap_err();
    assert_eq!(refused.frames_out(), 1);
    let pool = refused.into_pool();
    drop(take(&pool, 7));
    // SAFETY: the address came from `into_raw` above.
    drop(unsafe { Frame::from_raw(&pool, address) });
    let source = pool.close().unwrap();
    assert_eq!(source.out(), 0, "every frame went back to the source");
}

#[test]
fn a_pool_that_is_dropped_with_frames_out_never_unmaps_them() {
    let pool = pool(small(8, marks(0, 0, 8, 8)), 8);
    let frame = pool.alloc().unwrap();
    let pointer = frame.as_ptr();
    let _ = frame.into_raw();
    drop(pool);
    // SAFETY: INV-12: the frame is out, so its memory is still mapped and ours.
    unsafe {
        pointer.write(7);
        assert_eq!(pointer.read(), 7);
    }
}

#[test]
fn figures_are_the_fields_by_name_and_in_order() {
    let pool = Builder::new(64).build(Scripted::new(64), TestHost::default()).unwrap();
    let frames: Vec<_> = (0..3).map(|_| pool.alloc().unwrap()).collect();
    let stats = pool.stats();
    let figures = stats.figures().map(|(name, value)| format!("{name}: {value}")).join(", ");
    assert_eq!(format!("{stats:?}"), format!("Stats {{ {figures} }}"));
    let lines: Vec<_> = stats.to_string().lines().map(|line| line.split_whitespace().count()).collect();
    assert_eq!(lines, [2; 36], "a name and a figure each");
    drop(frames);
}
