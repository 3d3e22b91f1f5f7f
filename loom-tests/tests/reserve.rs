//! The reserve: what Critical callers take comes back to it, and ordinary callers never see it.
#![cfg(loom)]
#![allow(missing_docs)]

use framepool::{Frame, Request};
use loom::sync::Arc;
use loom_tests::{UNBOUNDED, on_cpu, pool};

#[test]
fn two_critical_callers_get_the_two_frames_of_the_reserve_and_give_them_back() {
    loom_tests::model(2, || {
        let watched = pool(1, 1, 2, 2);
        let other = {
            let watched = Arc::clone(&watched);
            on_cpu(0, move || {
                watched.pool.alloc_with(Request::CRITICAL).map(|frame| watched.touch(&frame)).is_ok()
            })
        };
        let mine = watched.pool.alloc_with(Request::CRITICAL).map(|frame| watched.touch(&frame)).is_ok();
        assert!(other.join().unwrap() && mine, "the reserve keeps its promise");
        assert_eq!(watched.pool.stats().reserve, 2, "INV-5: nothing leaked out of the reserve");
        watched.assert_complete(2);
    });
}

#[test]
fn an_ordinary_caller_beside_critical_ones_never_gets_a_frame_of_the_reserve() {
    loom_tests::model(3, || {
        let watched = pool(2, 1, 1, 1);
        let critical = {
            let watched = Arc::clone(&watched);
            on_cpu(1, move || {
                let frame = watched.pool.alloc_with(Request::CRITICAL).unwrap();
                watched.touch(&frame);
            })
        };
        assert!(watched.pool.alloc().map(Frame::into_raw).is_err(), "INV-5");
        critical.join().unwrap();
        assert_eq!(watched.pool.stats().reserve, 1);
    });
}

#[test]
fn a_frame_that_is_freed_while_the_reserve_is_used_finds_its_cell() {
    loom_tests::model(4, || {
        let watched = pool(2, 1, 2, 1);
        let ordinary = watched.pool.alloc().unwrap();
        let critical = {
            let watched = Arc::clone(&watched);
            on_cpu(1, move || {
                if let Ok(frame) = watched.pool.alloc_with(Request::CRITICAL) {
                    watched.touch(&frame);
                }
            })
        };
        watched.touch(&ordinary);
        drop(ordinary);
        critical.join().unwrap();
        assert_eq!(watched.pool.stats().reserve, 1, "INV-5: the reserve is whole again");
        watched.assert_complete(2);
    });
}

#[test]
fn what_a_critical_caller_gave_back_is_there_for_it_whoever_is_stopped_in_a_free() {
    loom_tests::model(2, || {
        let watched = pool(1, 1, 2, 1);
        let ordinary = watched.pool.alloc().unwrap().into_raw();
        let critical = watched.pool.alloc_with(Request::CRITICAL).unwrap();
        let other = {
            let watched = Arc::clone(&watched);
            on_cpu(0, move || {
                watched.touch_at(ordinary);
                // SAFETY: the frame was laid down as this address, once.
                drop(unsafe { Frame::from_raw(&watched.pool, ordinary) });
            })
        };
        watched.touch(&critical);
        drop(critical);
        // Whatever an ordinary caller finds is not the reserve's.
        let taken = watched.pool.alloc();
        let again = watched.pool.alloc_with(Request::CRITICAL).expect("INV-5: the reserve keeps its promise");
        watched.touch(&again);
        drop((taken, again));
        other.join().unwrap();
        assert_eq!(watched.pool.stats().reserve, 1, "INV-5: the reserve is whole again");
        watched.assert_complete(2);
    });
}

#[test]
fn a_frame_that_the_reserve_counts_is_there_to_be_taken() {
    loom_tests::model(UNBOUNDED, || {
        let watched = pool(1, 1, 1, 1);
        let critical = watched.pool.alloc_with(Request::CRITICAL).unwrap().into_raw();
        let other = {
            let watched = Arc::clone(&watched);
            on_cpu(0, move || {
                watched.touch_at(critical);
                // SAFETY: the frame was laid down as this address, once.
                drop(unsafe { Frame::from_raw(&watched.pool, critical) });
            })
        };
        let counted = watched.pool.stats().reserve == 1;
        let taken = watched.pool.alloc_with(Request::CRITICAL);
        assert!(!counted || taken.is_ok(), "INV-5: a frame counts when it can be taken");
        drop(taken);
        other.join().unwrap();
        watched.assert_complete(1);
    });
}
