//! The reserve: what Critical callers take comes back to it, and ordinary callers never see it.
#![cfg(loom)]
#![allow(missing_docs)]

use framepool::{Frame, Request};
use loom::sync::Arc;
use loom_tests::{on_cpu, pool};

#[test]
fn two_critical_callers_get_the_two_frames_of_the_reserve_and_give_them_back() {
    loom_tests::model(2, || {
        let watched = pool(2, 1, 2, 2);
        let other = {
            let watched = Arc::clone(&watched);
            on_cpu(1, move || {
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
    loom_tests::model(2, || {
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
