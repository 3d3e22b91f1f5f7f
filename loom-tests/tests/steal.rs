//! Stealing: a free on one CPU against an allocation on another that finds nothing anywhere else.
#![cfg(loom)]
#![allow(missing_docs)]

use loom::sync::Arc;
use loom_tests::{UNBOUNDED, on_cpu, pool};

#[test]
fn a_frame_that_is_freed_while_it_is_stolen_goes_to_one_of_both() {
    loom_tests::model(UNBOUNDED, || {
        let watched = pool(2, 1, 1, 0);
        let frame = watched.pool.alloc().unwrap();
        watched.touch(&frame);
        let frame = frame.into_raw();
        let thief = {
            let watched = Arc::clone(&watched);
            on_cpu(1, move || watched.take_and_give())
        };
        // SAFETY: the frame was laid down as this address, once.
        drop(unsafe { framepool::Frame::from_raw(&watched.pool, frame) });
        thief.join().unwrap();
        watched.assert_complete(1);
    });
}

#[test]
fn an_owner_and_a_thief_share_what_is_in_the_slot() {
    loom_tests::model(UNBOUNDED, || {
        let watched = pool(2, 1, 2, 0);
        // Both frames into the two magazines of CPU 0.
        let frames = (watched.pool.alloc().unwrap(), watched.pool.alloc().unwrap());
        drop(frames);
        let thief = {
            let watched = Arc::clone(&watched);
            on_cpu(1, move || watched.take_and_give())
        };
        let mine = watched.take_and_give();
        let theirs = thief.join().unwrap();
        assert!(mine || theirs);
        watched.assert_complete(2);
    });
}
