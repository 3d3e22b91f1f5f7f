//! Draining a CPU's cache, against its own use.
#![cfg(loom)]
#![allow(missing_docs)]

use framepool::{Builder, FallbackPolicy, Watermarks};
use loom::sync::Arc;
use loom_tests::{UNBOUNDED, on_cpu, pool, watched};

#[test]
fn a_cpu_that_uses_its_cache_while_it_is_drained_loses_nothing() {
    loom_tests::model(4, || {
        let watched = pool(1, 1, 2, 0);
        drop((watched.pool.alloc().unwrap(), watched.pool.alloc().unwrap()));
        let owner = {
            let watched = Arc::clone(&watched);
            on_cpu(0, move || watched.take_and_give())
        };
        let drained = watched.pool.drain_cpu(0);
        owner.join().unwrap();
        assert!(drained.is_ok_and(|frames| frames <= 2));
        watched.assert_complete(2);
    });
}

#[test]
fn a_free_into_a_cache_that_is_drained_finds_a_place() {
    loom_tests::model(UNBOUNDED, || {
        let watched = pool(1, 1, 2, 0);
        let frame = watched.pool.alloc().unwrap();
        drop(watched.pool.alloc().unwrap());
        watched.touch(&frame);
        let frame = frame.into_raw();
        let owner = {
            let watched = Arc::clone(&watched);
            on_cpu(0, move || {
                // SAFETY: the frame was laid down as this address, once.
                drop(unsafe { framepool::Frame::from_raw(&watched.pool, frame) });
            })
        };
        let _ = watched.pool.drain_cpu(0);
        owner.join().unwrap();
        watched.assert_complete(2);
    });
}

#[test]
fn two_that_drain_the_same_cpu_move_each_frame_once() {
    loom_tests::model(UNBOUNDED, || {
        let watched = pool(1, 2, 2, 0);
        drop((watched.pool.alloc().unwrap(), watched.pool.alloc().unwrap()));
        let other = {
            let watched = Arc::clone(&watched);
            on_cpu(1, move || watched.pool.drain_cpu(0).unwrap_or(0))
        };
        let mine = watched.pool.drain_cpu(0).unwrap_or(0);
        assert_eq!(mine + other.join().unwrap(), 2);
        watched.assert_complete(2);
    });
}

#[test]
fn a_cache_that_decays_while_its_cpu_wakes_up_loses_nothing() {
    loom_tests::model(4, || {
        let marks = Watermarks { min: 0, low: 0, high: 1, max: 1 };
        let builder = Builder::new(1).watermarks(marks).cpus(1).magazine_size(1).idle_passes(1);
        let watched = watched(builder.fallback(FallbackPolicy::Never), 1);
        drop(watched.pool.alloc().unwrap());
        watched.pool.maintain();
        let owner = {
            let watched = Arc::clone(&watched);
            on_cpu(0, move || watched.take_and_give())
        };
        watched.pool.maintain();
        owner.join().unwrap();
        watched.assert_complete(1);
    });
}
