//! Caches that their owner keeps, on a host whose CPU number is set by hand: requests, lending, draining, closing.
#![cfg(not(loom))]

use framepool::{
    AnonymousMemory, Builder, FallbackPolicy, Frame, FramePool, PhysAddr, Pinned, PinnedContext, Platform,
    Watermarks,
};
use std::{
    collections::HashSet,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

/// The test is one thread, which is on one CPU at a time and never inside an operation when it moves.
static CPU: AtomicUsize = AtomicUsize::new(0);

struct ThisCpu;

// SAFETY: one thread, without interrupts.
unsafe impl PinnedContext for ThisCpu {
    fn slot(&self) -> Option<usize> {
        Some(CPU.load(SeqCst)).filter(|&cpu| cpu != STRANGER)
    }
}

/// A CPU without a slot of its own.
const STRANGER: usize = 99;

struct Host(Pinned<ThisCpu>);

impl Platform for Host {
    type Ownership = Pinned<ThisCpu>;
    fn ownership(&self) -> &Pinned<ThisCpu> {
        &self.0
    }
    fn current_cpu(&self) -> usize {
        CPU.load(SeqCst)
    }
    fn ring(&self) {}
}

type Pool = FramePool<AnonymousMemory, Host>;

/// Two CPUs, magazines of four.
fn pool(frames: u32) -> Pool {
    CPU.store(0, SeqCst);
    let marks = Watermarks { min: 0, low: 0, high: frames, max: frames };
    let builder = Builder::new(frames).watermarks(marks).cpus(2).magazine_size(4);
    let source = AnonymousMemory::new(frames).unwrap();
    builder.fallback(FallbackPolicy::Never).build(source, Host(Pinned::new(ThisCpu))).unwrap()
}

fn on<T>(cpu: usize, body: impl FnOnce() -> T) -> T {
    let before = CPU.swap(cpu, SeqCst);
    let outcome = body();
    CPU.store(before, SeqCst);
    outcome
}

fn take(pool: &Pool, frames: usize) -> Vec<Frame<'_, AnonymousMemory, Host>> {
    (0..frames).map_while(|_| pool.alloc().ok()).collect()
}

fn assert_complete(pool: &Pool, frames: u32) {
    let stats = pool.stats();
    assert_eq!(stats.in_use, 0, "INV-1\n{stats}");
    assert_eq!(stats.owned, stats.cached + stats.stock, "INV-4\n{stats}");
    for cpu in 0..2 {
        on(cpu, || pool.drain_cpu(cpu)).unwrap();
    }
    let all = take(pool, frames as usize + 1);
    let distinct: HashSet<PhysAddr> = all.iter().map(Frame::phys_addr).collect();
    assert_eq!((all.len(), distinct.len()), (frames as usize, frames as usize), "INV-1");
}

/// One test, since all share the number of the CPU.
#[test]
fn an_owner_keeps_its_cache_until_it_is_asked() {
    what_an_owner_keeps_is_counted_and_served_from();
    frames_are_had_from_the_owners_next_operation_on();
    an_owner_that_is_left_alone_keeps_its_cache_again();
    an_owner_drains_its_own_cache_at_once();
    a_pool_is_closed_over_what_owners_keep();
    a_context_without_a_cache_of_its_own_claims();
    bulk_calls_move_what_the_cache_has();
}

fn what_an_owner_keeps_is_counted_and_served_from() {
    let pool = pool(16);
    drop(take(&pool, 6));
    let before = pool.stats();
    assert_eq!((before.in_use, before.cached), (0, 8), "two magazines came from the depot\n{before}");
    drop(take(&pool, 6));
    let after = pool.stats();
    assert_eq!((after.cache_hits - before.cache_hits, after.collisions), (6, 0));
    assert_complete(&pool, 16);
}

fn frames_are_had_from_the_owners_next_operation_on() {
    let pool = pool(8);
    drop(take(&pool, 8));
    assert_eq!(pool.stats().cached, 8);
    on(1, || assert_eq!(take(&pool, 1).len(), 0, "the owner keeps them, and is asked"));
    assert_eq!(pool.stats().exhausted, 1);
    drop(take(&pool, 1));
    on(1, || assert_eq!(take(&pool, 8).len(), 8, "R8"));
    assert_eq!(pool.stats().steals, 2, "whole magazines");
    assert_complete(&pool, 8);
}

fn an_owner_that_is_left_alone_keeps_its_cache_again() {
    let pool = pool(8);
    drop(take(&pool, 8));
    on(1, || assert_eq!(take(&pool, 1).len(), 0));
    // Answers, and works on what all can reach for a while.
    (0..100).for_each(|_| drop(take(&pool, 1)));
    on(1, || assert_eq!(pool.drain_cpu(0).unwrap(), 8, "it is in everybody's reach"));
    (0..60).for_each(|_| drop(take(&pool, 1)));
    drop(take(&pool, 8));
    on(1, || assert_eq!(take(&pool, 1).len(), 0, "kept again"));
    assert_complete(&pool, 8);
}

fn an_owner_drains_its_own_cache_at_once() {
    let pool = pool(8);
    drop(take(&pool, 8));
    assert_eq!(pool.drain_cpu(0).unwrap(), 8);
    on(1, || assert_eq!(take(&pool, 8).len(), 8));
    assert_complete(&pool, 8);
}

fn a_pool_is_closed_over_what_owners_keep() {
    let pool = pool(16);
    drop(take(&pool, 8));
    on(1, || drop(take(&pool, 8)));
    let refused = on(1, || pool.vacate()).unwrap_err();
    assert_eq!(refused.frames_out(), 0, "CPU 0 keeps its cache, and does not call");
    assert_eq!(pool.stats().owned, 16, "and nothing has changed");
    assert!(pool.close().is_ok(), "whoever has the pool alone needs nobody's answer");
}

fn a_context_without_a_cache_of_its_own_claims() {
    let pool = pool(16);
    on(STRANGER, || {
        drop(take(&pool, 4));
        let hits = pool.stats().cache_hits;
        drop(take(&pool, 4));
        assert_eq!(pool.stats().cache_hits, hits + 4);
    });
    assert_complete(&pool, 16);
}

fn bulk_calls_move_what_the_cache_has() {
    let pool = pool(16);
    let mut frames = [const { None }; 12];
    pool.alloc_bulk_exact(framepool::Request::ORDINARY, &mut frames).unwrap();
    let distinct: HashSet<PhysAddr> = frames.iter().flatten().map(Frame::phys_addr).collect();
    assert_eq!(distinct.len(), 12);
    pool.free_bulk(&mut frames);
    assert_complete(&pool, 16);
}
