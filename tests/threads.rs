//! Threads of a process that keep caches of their own beside threads that do not.
#![cfg(not(loom))]

use framepool::{
    AnonymousMemory, Builder, FallbackPolicy, Frame, FramePool, PhysAddr, PinError, ThreadPlatform,
    Watermarks,
};
use std::{collections::HashSet, sync::mpsc, thread};

type Pool = FramePool<AnonymousMemory, ThreadPlatform>;

/// Caches for two threads and two CPUs, magazines of four.
fn pool(frames: u32) -> Pool {
    let marks = Watermarks { min: 0, low: 0, high: frames, max: frames };
    let builder = Builder::new(frames).watermarks(marks).cpus(4).magazine_size(4);
    let builder = builder.fallback(FallbackPolicy::Never);
    builder.build(AnonymousMemory::new(frames).unwrap(), ThreadPlatform::new(2).unwrap()).unwrap()
}

fn take(pool: &Pool, frames: usize) -> Vec<Frame<'_, AnonymousMemory, ThreadPlatform>> {
    (0..frames).map_while(|_| pool.alloc().ok()).collect()
}

fn assert_complete(pool: &Pool, frames: u32) {
    let stats = pool.stats();
    assert_eq!(stats.in_use, 0, "INV-1\n{stats}");
    assert_eq!(stats.owned, stats.cached + stats.stock, "INV-4\n{stats}");
    let all = take(pool, frames as usize + 1);
    let distinct: HashSet<PhysAddr> = all.iter().map(Frame::phys_addr).collect();
    assert_eq!((all.len(), distinct.len()), (frames as usize, frames as usize), "INV-1");
}

#[test]
fn a_thread_keeps_what_it_gives_back_until_it_is_no_longer_pinned() {
    let pool = pool(8);
    let pinned = pool.pin_thread().unwrap();
    drop(take(&pool, 8));
    assert_eq!((pool.stats().cached, pool.stats().stock), (8, 0));
    thread::scope(|scope| {
        assert_eq!(scope.spawn(|| take(&pool, 1).len()).join().unwrap(), 0, "asked for");
        drop(take(&pool, 1));
        assert_eq!(scope.spawn(|| take(&pool, 8).len()).join().unwrap(), 8, "and lent (R8)");
    });
    drop(take(&pool, 8));
    drop(pinned);
    assert_complete(&pool, 8);
}

#[test]
fn as_many_threads_are_pinned_as_the_platform_was_made_for() {
    let pool = pool(16);
    let first = pool.pin_thread().unwrap();
    assert_eq!(pool.pin_thread().unwrap_err(), PinError::Pinned);
    thread::scope(|scope| {
        let (done, wait) = mpsc::channel::<()>();
        let (pinned, is_pinned) = mpsc::channel();
        let pool = &pool;
        let second = scope.spawn(move || {
            let guard = pool.pin_thread();
            pinned.send(guard.is_ok()).unwrap();
            wait.recv().unwrap();
        });
        assert!(is_pinned.recv().unwrap());
        let third = scope.spawn(|| pool.pin_thread().unwrap_err());
        assert_eq!(third.join().unwrap(), PinError::AllInUse);
        done.send(()).unwrap();
        second.join().unwrap();
        assert!(scope.spawn(|| pool.pin_thread().is_ok()).join().unwrap(), "its number came back");
    });
    drop(first);
    assert_complete(&pool, 16);
}

#[test]
fn a_thread_is_pinned_to_a_few_pools_at_a_time() {
    let pools: Vec<_> = (0..5).map(|_| pool(8)).collect();
    let pinned: Vec<_> = pools.iter().map(FramePool::pin_thread).collect();
    assert!(pinned[..4].iter().all(Result::is_ok));
    assert_eq!(pinned[4].as_ref().unwrap_err(), &PinError::TooManyPools);
    pools.iter().for_each(|pool| drop(take(pool, 8)));
    drop(pinned);
    pools.iter().for_each(|pool| assert_complete(pool, 8));
}

#[test]
fn frames_go_back_on_whatever_thread() {
    let pool = pool(64);
    let (send, receive) = mpsc::sync_channel(16);
    thread::scope(|scope| {
        let pool = &pool;
        scope.spawn(move || {
            let _pinned = pool.pin_thread().unwrap();
            let mut sent = 0;
            while sent < 20_000 {
                match pool.alloc() {
                    Ok(frame) => {
                        send.send(frame).unwrap();
                        sent += 1;
                    }
                    Err(_) => thread::yield_now(),
                }
            }
        });
        scope.spawn(move || {
            let _pinned = pool.pin_thread().unwrap();
            receive.iter().for_each(drop);
        });
    });
    assert_complete(&pool, 64);
}

#[test]
fn a_pool_is_closed_over_a_cache_that_its_thread_has_forgotten() {
    let pool = pool(16);
    thread::scope(|scope| {
        scope.spawn(|| {
            std::mem::forget(pool.pin_thread().unwrap());
            drop(take(&pool, 8));
        });
    });
    assert!(pool.stats().cached >= 8);
    assert!(pool.close().is_ok());
}
