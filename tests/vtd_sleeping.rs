//! Maps that wait for frames: a shortage is waited out, nothing is lost by those who give up, and what can never be is said at once.
#![cfg(not(loom))]

mod common;

use common::{assert_settles, tables::NoHardware};
use framepool::{
    AllocError, AnonymousMemory, Builder, FallbackPolicy, PhysAddr, Watermarks, WorkedPool, vtd::*,
};
use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;
const LONG: Duration = Duration::from_secs(30);

fn pool(frames: u32) -> WorkedPool<AnonymousMemory> {
    let watermarks = Watermarks { min: 0, low: 0, high: frames, max: frames };
    let builder = Builder::new(frames).watermarks(watermarks).fallback(FallbackPolicy::Never);
    builder.start(AnonymousMemory::new(frames).unwrap()).unwrap()
}

type Second<A> = SecondStageDomain<A>;

/// A domain that takes one table for a whole gibibyte.
fn domain<A: TableFrames>(frames: A) -> Second<A> {
    let config = DomainConfig { page_sizes: PageSizes::SIZE_2M, ..DomainConfig::new(Levels::Three) };
    SecondStageDomain::new(config, frames).unwrap()
}

fn map_blocking<A: PooledFrames>(
    domain: &Second<A>,
    iova: u64,
    length: u64,
    timeout: Duration,
) -> Result<(), MapError> {
    let (iova, target) = (Iova::new(iova), PhysAddr::new(0));
    // SAFETY: no device walks these tables.
    unsafe { domain.map_blocking(iova, target, length, Permissions::READ, timeout) }
}

fn unmap<A: TableFrames>(domain: &Second<A>, iova: u64, length: u64) {
    let invalidation = domain.unmap(Iova::new(iova), length).unwrap();
    // SAFETY: no device walks these tables.
    unsafe { invalidation.complete() };
}

fn close<A: TableFrames>(domain: Second<A>) {
    // SAFETY: no device walks these tables.
    unsafe { domain.close().complete() };
}

#[test]
fn a_map_waits_for_the_frames_that_an_unmap_brings_back() {
    // The root, and a table for one of two gibibytes.
    let pool = pool(2);
    let domain = domain(&*pool);
    map_blocking(&domain, 0, GIB, LONG).unwrap();
    let short = MapError::NotServed { reason: AllocError::TimedOut };
    assert_eq!(map_blocking(&domain, GIB, GIB, Duration::from_millis(20)), Err(short));
    assert!(domain.translate(Iova::new(GIB)).is_none());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| map_blocking(&domain, GIB, GIB, LONG));
        while pool.stats().waiters == 0 {
            thread::yield_now();
        }
        unmap(&domain, 0, GIB);
        assert_eq!(waiting.join().unwrap(), Ok(()));
    });
    assert!(domain.translate(Iova::new(GIB)).is_some() && domain.translate(Iova::new(0)).is_none());
    close(domain);
    assert_settles(&pool, 0);
}

#[test]
fn a_map_that_is_dropped_while_it_waits_has_mapped_nothing_and_keeps_no_frame() {
    let pool = pool(2);
    let domain = domain(&*pool);
    let taken = pool.alloc().unwrap();
    let mut context = Context::from_waker(Waker::noop());
    {
        let (iova, target) = (Iova::new(0), PhysAddr::new(0));
        // SAFETY: no device walks these tables.
        let mut waiting = pin!(unsafe { domain.map_async(iova, target, GIB, Permissions::READ) });
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        assert_eq!(pool.stats().waiters, 1);
        // The frame comes to it, and it gives up before it looks.
        drop(taken);
        pool.serve_waiters();
    }
    assert_eq!(pool.stats().waiters, 0);
    assert_settles(&pool, 1); // the root
    assert_eq!((domain.table_frames(), domain.mappings().count()), (1, 0));
    map_blocking(&domain, 0, GIB, Duration::ZERO).unwrap();
    close(domain);
    assert_settles(&pool, 0);
}

#[test]
fn tables_that_others_link_meanwhile_are_not_taken_twice() {
    let pool = pool(4);
    let domain = domain(&*pool);
    let mut context = Context::from_waker(Waker::noop());
    let taken: Vec<_> = (0..3).map(|_| pool.alloc().unwrap()).collect();
    {
        let (iova, target) = (Iova::new(GIB), PhysAddr::new(0));
        // SAFETY: no device walks these tables.
        let mut waiting = pin!(unsafe { domain.map_async(iova, target, PAGE, Permissions::READ) });
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        drop(taken);
        pool.serve_waiters();
        // It lacks two and has them; another links the first of both before it looks.
        map_blocking(&domain, GIB + (2 << 20), 2 << 20, LONG).unwrap();
        assert_settles(&pool, 2); // what is on its way to it does not count
        assert_eq!(waiting.as_mut().poll(&mut context), Poll::Ready(Ok(())));
    }
    assert_settles(&pool, 3); // what was not needed is back
    assert_eq!(domain.table_frames(), 3);
    close(domain);
    assert_settles(&pool, 0);
}

#[test]
fn what_waiting_cannot_bring_is_refused_at_once() {
    let pool = pool(8);
    let config = DomainConfig {
        hardware: Hardware { coherent: false, ..Hardware::default() },
        ..DomainConfig::new(Levels::Three)
    };
    let domain = SecondStageDomain::new(config, FlushedFrames::new(&*pool, NoHardware)).unwrap();
    let never = MapError::NotServed { reason: AllocError::BeyondCapacity };
    assert_eq!(map_blocking(&domain, 0, 8 * 512 * PAGE, Duration::MAX), Err(never));
    let empty = MapError::Range(RangeError::Empty);
    assert_eq!(map_blocking(&domain, 0, 0, Duration::MAX), Err(empty), "bad input is not waited for");
    map_blocking(&domain, 0, PAGE, Duration::ZERO).unwrap();
    let mapped = MapError::AlreadyMapped { iova: Iova::new(0) };
    assert_eq!(map_blocking(&domain, 0, PAGE, Duration::MAX), Err(mapped));
    close(domain);
    assert_settles(&pool, 0);
}

#[test]
fn many_who_wait_are_all_served_while_the_pool_is_too_small_for_all() {
    // Four roots, and two tables for four who want one each.
    let pool = pool(6);
    let domains: Vec<_> = (0..4).map(|_| domain(&*pool)).collect();
    thread::scope(|scope| {
        for domain in &domains {
            scope.spawn(move || {
                for round in 0..300 {
                    let iova = round % 7 * GIB;
                    map_blocking(domain, iova, GIB, LONG).unwrap();
                    thread::yield_now();
                    unmap(domain, iova, GIB);
                }
            });
        }
    });
    domains.into_iter().for_each(close);
    assert_settles(&pool, 0);
}
