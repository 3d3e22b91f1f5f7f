//! Several depots in one pool: what lies in any of them is found, and the marks of the pool hold for all of them together.
#![cfg(not(loom))]

mod common;

use common::{Scripted, TestHost, TestPool, assert_accounts, pool, rings, set_cpu};
use framepool::{
    AllocError, BuildError, Builder, Claim, FallbackPolicy, Frame, Outcome, Platform, Request, Watermarks,
};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

const MAGAZINE: u32 = 4;
const CPUS: usize = 4;

/// Four CPUs, each with a depot of its own, and magazines of four frames.
fn builder(capacity: u32, marks: [u32; 4]) -> Builder {
    let [min, low, high, max] = marks;
    let builder = Builder::new(capacity).watermarks(Watermarks { min, low, high, max });
    builder.cpus(CPUS).depots(CPUS).magazine_size(MAGAZINE).fallback(FallbackPolicy::Never).idle_passes(1000)
}

fn take_on(pool: &TestPool, cpu: usize, count: usize) -> Vec<Frame<'_, Scripted, TestHost>> {
    set_cpu(pool, cpu);
    (0..count).map(|_| pool.alloc().unwrap()).collect()
}

/// Brings all frames of the pool to the depot and the cache of one CPU.
fn gather_on(pool: &TestPool, cpu: usize) {
    let frames = take_on(pool, cpu, pool.stats().owned as usize);
    drop(frames);
}

#[test]
fn every_frame_is_found_wherever_it_lies_before_an_allocation_fails() {
    for home in 0..CPUS {
        let pool = pool(builder(64, [0, 0, 64, 64]), 64);
        gather_on(&pool, home);
        for cpu in 0..CPUS {
            let frames = take_on(&pool, cpu, 64);
            assert_eq!(pool.alloc().err(), Some(AllocError::Exhausted));
            assert_accounts(&pool, 64);
            set_cpu(&pool, home);
            drop(frames);
            assert_accounts(&pool, 0);
        }
        assert!(pool.close().is_ok());
    }
}

#[test]
fn a_free_finds_room_in_other_depots_when_its_own_has_no_magazine() {
    let pool = pool(builder(64, [0, 0, 64, 64]), 64);
    for round in 0..20 {
        let frames: Vec<_> = (0..CPUS).flat_map(|cpu| take_on(&pool, cpu, 16)).collect();
        set_cpu(&pool, round % CPUS);
        drop(frames);
        assert_eq!(pool.stats().overflow, 0);
        assert_accounts(&pool, 0);
    }
    assert_eq!(pool.stats().exhausted, 0);
}

#[test]
fn reservations_and_bulk_calls_gather_from_all_depots() {
    let pool = pool(builder(64, [0, 0, 64, 64]).reservations(4), 64);
    for (cpu, home) in [(0, 3), (2, 1), (1, 1)] {
        gather_on(&pool, home);
        set_cpu(&pool, cpu);
        let reservation = pool.reserve(50).unwrap();
        assert_eq!((reservation.left(), pool.stats().exhausted), (50, 0));
        drop(reservation);
        let mut frames = [const { None }; 64];
        pool.alloc_bulk_exact(Request::ORDINARY, &mut frames).unwrap();
        pool.free_bulk(&mut frames);
        assert_accounts(&pool, 0);
    }
}

/// INV-6, for the sum: whichever depots the frames are taken from, the worker is rung by the time the pool is below `low`.
#[test]
fn a_pool_below_low_has_rung_whatever_depots_it_was_taken_from() {
    for first in 0..CPUS {
        for second in 0..CPUS {
            let pool = pool(builder(96, [0, 32, 96, 96]), 96);
            let mut held = Vec::new();
            let mut cpus = [first, second].into_iter().cycle();
            while pool.stats().stock >= 32 {
                held.extend(take_on(&pool, cpus.next().unwrap(), 1));
            }
            assert!(rings(&pool) > 0, "CPUs {first} and {second}");
            drop(held);
        }
    }
}

#[test]
fn a_pool_above_max_is_trimmed_by_the_next_pass_wherever_the_frames_came_to() {
    for home in 0..CPUS {
        let pool = pool(builder(96, [0, 0, 40, 40]).initial(40), 96);
        let frames = take_on(&pool, 0, 40);
        pool.maintain();
        let more = take_on(&pool, 1, 1);
        pool.maintain();
        let rung = rings(&pool);
        for (number, frame) in frames.into_iter().chain(more).enumerate() {
            set_cpu(&pool, if number % 2 == 0 { home } else { 3 - home });
            drop(frame);
        }
        let stock = pool.stats().stock;
        assert!(stock <= 40 || pool.maintain().trimmed > 0, "CPU {home}: {stock}");
        assert!(pool.stats().stock <= 40 && rings(&pool) >= rung);
    }
}

#[test]
fn a_depot_that_is_empty_is_no_reason_to_ring_while_others_have_enough() {
    let pool = pool(builder(128, [0, 16, 128, 128]), 128);
    gather_on(&pool, 3);
    pool.maintain();
    let rung = rings(&pool);
    for cpu in 0..CPUS {
        let frames = take_on(&pool, cpu, 4 * MAGAZINE as usize);
        set_cpu(&pool, 3);
        drop(frames);
        assert_eq!((rings(&pool), pool.maintain().fetched), (rung, 0), "CPU {cpu}");
    }
    assert_accounts(&pool, 0);
}

/// INV-6: a pool that the worker cannot bring above `low` rings with the next frame that leaves a depot, whichever, once for each pass.
#[test]
fn a_pool_that_stays_below_low_rings_again_after_each_pass() {
    let pool = pool(builder(64, [0, 60, 64, 64]), 64);
    let mut held = take_on(&pool, 0, 12);
    assert!(rings(&pool) > 0);
    for cpu in [2, 1, 3] {
        assert_eq!(pool.maintain().fetched, 0);
        let rung = rings(&pool);
        held.extend(take_on(&pool, cpu, MAGAZINE as usize + 1));
        assert_eq!(rings(&pool), rung + 1, "CPU {cpu}");
    }
}

#[test]
fn the_first_frames_are_spread_over_all_depots() {
    let pool = pool(builder(256, [0, 32, 256, 256]), 256);
    for cpu in 0..CPUS {
        drop(take_on(&pool, cpu, 12));
    }
    assert_eq!((rings(&pool), pool.stats().steals), (0, 0));
}

#[test]
fn shrinking_and_vacating_empty_every_depot() {
    let pool = pool(builder(64, [0, 0, 64, 64]), 64);
    let frames: Vec<_> = (0..CPUS).flat_map(|cpu| take_on(&pool, cpu, 16)).collect();
    for (number, frame) in frames.into_iter().enumerate() {
        set_cpu(&pool, number % CPUS);
        drop(frame);
    }
    assert_eq!((pool.shrink_to(10).outcome, pool.stats().owned), (Outcome::Done, 10));
    pool.vacate().unwrap();
    assert_eq!(pool.stats().owned, 0);
    pool.maintain();
    assert!(pool.alloc().is_ok());
}

#[test]
fn zeroed_frames_are_kept_ready_in_all_depots_together() {
    let mut source = Scripted::new(256);
    source.zeroed = false;
    let pool = builder(256, [0, 32, 256, 256]).build(source, TestHost::default()).unwrap();
    for round in 0..30 {
        set_cpu(&pool, round % CPUS);
        let frames: Vec<_> = (0..12).map(|_| pool.alloc_zeroed().unwrap()).collect();
        assert!(frames.iter().all(common::is_zero));
        set_cpu(&pool, (round + 1) % CPUS);
        frames.iter().for_each(common::soil);
        drop(frames);
        pool.maintain();
        assert_accounts(&pool, 0);
    }
    let stats = pool.stats();
    assert!(stats.cleared_ahead > stats.cleared_inline, "{stats}");
}

/// A machine whose CPUs with even numbers are on one node.
struct TwoNodes(AtomicUsize);

impl Platform for TwoNodes {
    type Ownership = Claim;
    fn ownership(&self) -> &Claim {
        &Claim
    }
    fn current_cpu(&self) -> usize {
        self.0.load(SeqCst)
    }
    fn depot_near(&self, cpu: usize) -> Option<usize> {
        // More than there are, and many more.
        Some(cpu % 2 + 2 * (cpu << 20))
    }
    fn ring(&self) {}
}

#[test]
fn the_platform_says_which_depot_is_near() {
    let builder = builder(64, [0, 0, 64, 64]).depots(2);
    let pool = builder.build(Scripted::new(64), TwoNodes(AtomicUsize::new(0))).unwrap();
    let frames: Vec<_> = (0..64).map(|_| pool.alloc().unwrap()).collect();
    drop(frames);
    let taken = |cpu| {
        pool.platform().0.store(cpu, SeqCst);
        pool.alloc().unwrap().into_raw()
    };
    let near = taken(2);
    // SAFETY: taken up once, and nothing reaches it.
    drop(unsafe { Frame::from_raw(&pool, near) });
    let stats = pool.stats();
    assert_eq!((stats.depot_hits, stats.steals, stats.in_use), (17, 0, 0));
}

#[test]
fn no_depot_and_more_than_cpus_are_refused() {
    for depots in [0, CPUS + 1, usize::MAX] {
        let refused =
            builder(64, [0, 0, 64, 64]).depots(depots).build(Scripted::new(64), TestHost::default());
        assert_eq!(refused.err(), Some(BuildError::Depots { depots, cpus: CPUS }));
    }
}
