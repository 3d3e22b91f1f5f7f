//! The two sides: frames that are cleared, promised, and taken across.
#![cfg(loom)]
#![allow(missing_docs)]

use framepool::Frame;
use loom::sync::Arc;
use loom_tests::{UNBOUNDED, Watched, on_cpu, pool};

/// A pool of one CPU with one soiled frame, in the dirty stock of the depot, and a worker that wants to clear it.
fn one_soiled_frame() -> Arc<Watched> {
    let watched = pool(1, 1, 1, 0);
    watched.soil(&watched.pool.alloc().unwrap());
    assert!(watched.take_zeroed_and_soil(), "cleared inline, which the next pass notices");
    watched.pool.drain_cpu(0).unwrap();
    watched
}

#[test]
fn a_frame_that_the_worker_clears_is_zero_for_whoever_gets_it() {
    // Deeper costs minutes: the worker's pass reads many words, and loom tries every value that each may have.
    loom_tests::model(2, || {
        let watched = one_soiled_frame();
        let caller = {
            let watched = Arc::clone(&watched);
            on_cpu(0, move || watched.take_zeroed_and_soil())
        };
        watched.pool.maintain();
        caller.join().unwrap();
        watched.assert_complete(1);
    });
}

#[test]
fn a_frame_that_the_worker_clears_is_there_for_an_ordinary_caller_too() {
    loom_tests::model(3, || {
        let watched = one_soiled_frame();
        let caller = {
            let watched = Arc::clone(&watched);
            on_cpu(0, move || {
                if let Ok(frame) = watched.pool.alloc() {
                    watched.soil(&frame);
                }
            })
        };
        watched.pool.maintain();
        caller.join().unwrap();
        assert!(watched.take_zeroed_and_soil(), "R8");
        watched.assert_complete(1);
    });
}

#[test]
fn a_frame_that_is_promised_to_be_zero_goes_to_a_caller_of_either_kind() {
    loom_tests::model(UNBOUNDED, || {
        let watched = pool(2, 1, 1, 0);
        let frame = watched.pool.alloc_zeroed().unwrap();
        watched.touch(&frame);
        let frame = frame.into_raw();
        let caller = {
            let watched = Arc::clone(&watched);
            on_cpu(1, move || {
                if let Ok(frame) = watched.pool.alloc() {
                    watched.soil(&frame);
                }
            })
        };
        // SAFETY: the frame was laid down as this address, once, and is zero.
        unsafe { Frame::from_raw(&watched.pool, frame).free_zeroed() };
        caller.join().unwrap();
        assert!(watched.take_zeroed_and_soil(), "R8");
        watched.assert_complete(1);
    });
}

#[test]
fn two_callers_share_a_clean_magazine() {
    loom_tests::model(4, || {
        let watched = pool(2, 2, 2, 0);
        let frames = (watched.pool.alloc_zeroed().unwrap(), watched.pool.alloc_zeroed().unwrap());
        // SAFETY: both are zero.
        unsafe {
            frames.0.free_zeroed();
            frames.1.free_zeroed();
        }
        watched.pool.drain_cpu(0).unwrap();
        assert_eq!(watched.pool.stats().clean, 2);
        let other = {
            let watched = Arc::clone(&watched);
            on_cpu(1, move || watched.take_zeroed_and_soil())
        };
        watched.take_zeroed_and_soil();
        other.join().unwrap();
        watched.assert_complete(2);
    });
}
