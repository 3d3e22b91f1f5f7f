//! Closing against a free: the frame goes back to the source or the pool stays as it is.
#![cfg(loom)]
#![allow(missing_docs)]

use loom::sync::Arc;
use loom_tests::{UNBOUNDED, on_cpu, pool};

#[test]
fn a_frame_that_is_freed_while_the_pool_closes_is_neither_lost_nor_given_back_early() {
    loom_tests::model(UNBOUNDED, || {
        let watched = pool(1, 1, 1, 0);
        let frame = watched.pool.alloc().unwrap();
        watched.touch(&frame);
        let frame = frame.into_raw();
        let owner = {
            let watched = Arc::clone(&watched);
            on_cpu(0, move || {
                // SAFETY: the frame was laid down as this address, once.
                drop(unsafe { framepool::Frame::from_raw(&watched.pool, frame) });
            })
        };
        let closed = watched.pool.vacate();
        owner.join().unwrap();
        match closed {
            Ok(()) => assert_eq!(watched.pool.source().out(), 0, "closed: the source has every frame"),
            Err(_) => watched.assert_complete(1),
        }
        watched.pool.vacate().unwrap();
        assert_eq!(watched.pool.source().out(), 0, "INV-1: nothing is lost");
    });
}

#[test]
fn an_allocation_while_the_pool_closes_gets_a_frame_or_is_told() {
    loom_tests::model(UNBOUNDED, || {
        let watched = pool(1, 1, 1, 0);
        drop(watched.pool.alloc().unwrap());
        let caller = {
            let watched = Arc::clone(&watched);
            on_cpu(0, move || watched.pool.alloc().ok().map(framepool::Frame::into_raw))
        };
        let closed = watched.pool.vacate();
        let frame = caller.join().unwrap();
        match (closed, frame) {
            (Ok(()), frame) => assert_eq!(frame, None, "INV-12: a frame that is out is not given back"),
            (Err(_), Some(frame)) => {
                assert_eq!(watched.pool.source().out(), 1);
                // SAFETY: the frame was laid down as this address, once.
                drop(unsafe { framepool::Frame::from_raw(&watched.pool, frame) });
            }
            (Err(_), None) => {}
        }
        watched.pool.vacate().unwrap();
    });
}

#[test]
fn an_allocation_that_is_past_the_sign_when_it_is_put_up_keeps_its_frame() {
    loom_tests::model(7, || {
        // The frame is in the depot, where the caller goes after it has seen that the pool is open.
        let watched = pool(1, 1, 1, 0);
        let caller = {
            let watched = Arc::clone(&watched);
            on_cpu(0, move || watched.pool.alloc().ok().map(framepool::Frame::into_raw))
        };
        let closed = watched.pool.vacate();
        if let Some(frame) = caller.join().unwrap() {
            assert!(closed.is_err(), "INV-12: {frame} is out");
            assert_eq!(watched.pool.source().out(), 1);
            // SAFETY: the frame was laid down as this address, once.
            drop(unsafe { framepool::Frame::from_raw(&watched.pool, frame) });
        }
        watched.pool.vacate().unwrap();
        assert_eq!(watched.pool.source().out(), 0);
    });
}
