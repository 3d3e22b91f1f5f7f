//! Shrinking: idle caches, a CPU that goes away, a host that wants its memory back.
#![cfg(not(loom))]

mod common;

use common::{TestPool, assert_accounts, pool, set_cpu};
use framepool::{AnonymousMemory, Builder, FallbackPolicy, LinuxPlatform, Outcome, Watermarks};
use std::sync::atomic::Ordering::SeqCst;

/// Two CPUs with magazines of four; each cache holds up to eight frames of a kind.
fn small(capacity: u32, low: u32) -> Builder {
    let marks = Watermarks { min: 0, low, high: capacity, max: capacity };
    Builder::new(capacity).watermarks(marks).cpus(2).magazine_size(4).fallback(FallbackPolicy::Never)
}

/// Takes `count` frames on a CPU and gives them back there: zeroed ones with a promise, if `clean`.
fn use_on(pool: &TestPool, cpu: usize, count: usize, clean: bool) {
    set_cpu(pool, cpu);
    let frames: Vec<_> = (0..count)
        .map(|_| if clean { pool.alloc_zeroed().unwrap() } else { pool.alloc().unwrap() })
        .collect();
    for frame in frames {
        if clean {
            // SAFETY: nobody has written to it.
            unsafe { frame.free_zeroed() };
        }
    }
}

#[test]
fn the_caches_of_a_cpu_that_does_nothing_go_back_to_the_depot() {
    let pool = pool(small(32, 0).idle_passes(3), 32);
    use_on(&pool, 0, 8, false);
    use_on(&pool, 0, 8, true);
    use_on(&pool, 1, 8, false);
    assert_eq!((pool.stats().cached, pool.stats().stock), (24, 8));
    for _ in 0..4 {
        use_on(&pool, 1, 1, false);
        assert_eq!(pool.maintain().outcome, Outcome::Done);
    }
    let stats = pool.stats();
    assert_eq!((stats.cached, stats.decayed), (8, 16), "both caches of CPU 0, not that of CPU 1");
    assert_eq!(stats.clean, 16, "what was clean is clean");
    use_on(&pool, 0, 8, false);
    assert_accounts(&pool, 0);
}

#[test]
fn a_cache_that_is_used_now_and_then_keeps_its_frames() {
    let pool = pool(small(32, 0).idle_passes(3), 32);
    use_on(&pool, 0, 8, false);
    for pass in 0..20 {
        pool.maintain();
        if pass % 3 == 2 {
            use_on(&pool, 0, 1, false);
        }
    }
    assert_eq!(pool.stats().decayed, 0);
}

#[test]
fn the_caches_of_a_cpu_that_goes_away_are_drained_at_once() {
    let pool = pool(small(32, 0), 32);
    use_on(&pool, 0, 8, false);
    use_on(&pool, 1, 5, false);
    use_on(&pool, 1, 3, true);
    let cached = pool.stats().cached;
    let (first, second) = (pool.drain_cpu(1).unwrap(), pool.drain_cpu(1).unwrap());
    assert_eq!((u64::from(first), second), (cached - 8, 0));
    assert_eq!((pool.stats().cached, pool.stats().stock), (8, 24));
    assert_eq!(pool.drain_cpu(usize::MAX).unwrap() + pool.drain_cpu(0).unwrap(), 8, "numbers beyond share");
    let all: Vec<_> = (0..32).map(|_| pool.alloc().unwrap()).collect();
    drop(all);
    assert_accounts(&pool, 0);
}

#[test]
fn a_host_gets_back_what_is_free_from_the_depot_and_then_from_the_caches() {
    let pool = pool(small(64, 8), 64);
    use_on(&pool, 0, 8, false);
    use_on(&pool, 1, 8, true);
    set_cpu(&pool, 0);
    let held: Vec<_> = (0..12).map(|_| pool.alloc().unwrap()).collect();
    assert_accounts(&pool, 12);

    let cached = pool.stats().cached;
    let shrunk = pool.shrink_to(50);
    assert_eq!((shrunk.outcome, shrunk.trimmed, pool.stats().owned), (Outcome::Done, 14, 50));
    assert_eq!(pool.stats().cached, cached, "the depot was enough");
    assert_eq!(pool.shrink_to(50).trimmed, 0);

    let shrunk = pool.shrink_to(21);
    assert_eq!((shrunk.outcome, pool.stats().owned), (Outcome::Done, 21));
    assert_eq!(pool.stats().cached, 0, "the caches too");

    let shrunk = pool.shrink_to(0);
    assert_eq!((shrunk.outcome, pool.stats().owned), (Outcome::InUse, 12 + 8), "12 out, and 8 up to low");
    assert_eq!(pool.maintain().fetched, 0, "nothing that was given back is fetched again at once");
    assert_accounts(&pool, 12);
    assert_eq!(pool.source().reclaimed.load(SeqCst), 44);
    drop(held);
    assert_accounts(&pool, 0);
}

#[test]
fn shrinking_keeps_the_reserve() {
    let marks = Watermarks { min: 6, low: 6, high: 32, max: 32 };
    let pool = pool(small(32, 0).watermarks(marks), 32);
    let shrunk = pool.shrink_to(0);
    assert_eq!((shrunk.outcome, shrunk.trimmed), (Outcome::InUse, 26));
    assert_eq!((pool.stats().reserve, pool.stats().owned), (6, 6));
    assert_accounts(&pool, 0);
}

#[test]
fn dirty_frames_go_back_to_the_source_before_clean_ones() {
    let pool = pool(small(32, 0), 32);
    use_on(&pool, 0, 16, false);
    pool.drain_cpu(0).unwrap();
    assert_eq!(pool.stats().clean, 16);
    pool.shrink_to(20);
    assert_eq!((pool.stats().owned, pool.stats().clean), (20, 16));
    pool.shrink_to(10);
    assert_eq!((pool.stats().owned, pool.stats().clean), (10, 10));
    assert_accounts(&pool, 0);
}

#[test]
fn what_was_given_back_is_taken_in_again() {
    let source = AnonymousMemory::new(32).unwrap();
    let pool = small(32, 8).build(source, LinuxPlatform::claiming()).unwrap();
    for _ in 0..3 {
        pool.shrink_to(0);
        assert_eq!(pool.stats().owned, 8, "up to low");
        let held: Vec<_> = (0..8).map(|_| pool.alloc().unwrap()).collect();
        while pool.maintain().more {}
        let stats = pool.stats();
        assert!(stats.owned >= 16 && stats.refused == 0, "{stats}");
        drop(held);
    }
}
