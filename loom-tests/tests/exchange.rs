//! Magazines that change hands between two CPUs and the depot.
#![cfg(loom)]
#![allow(missing_docs)]

use loom::sync::Arc;
use loom_tests::{UNBOUNDED, on_cpu, pool};

#[test]
fn two_cpus_exchange_magazines_with_the_depot() {
    loom_tests::model(UNBOUNDED, || {
        let watched = pool(2, 1, 2, 0);
        let other = {
            let watched = Arc::clone(&watched);
            on_cpu(1, move || watched.take_and_give())
        };
        let mine = watched.take_and_give();
        let theirs = other.join().unwrap();
        assert!(mine && theirs, "R8: there was a frame for each");
        watched.assert_complete(2);
    });
}

#[test]
fn a_full_slot_gives_its_magazine_to_a_cpu_that_has_none() {
    loom_tests::model(6, || {
        let watched = pool(2, 1, 3, 0);
        // Three frames out of the depot; two fill the slot again, the third must push a full magazine out.
        let frames: Vec<_> = (0..3).map(|_| watched.pool.alloc().unwrap()).collect();
        let other = {
            let watched = Arc::clone(&watched);
            on_cpu(1, move || watched.take_and_give())
        };
        frames.iter().for_each(|frame| watched.touch(frame));
        drop(frames);
        other.join().unwrap();
        watched.assert_complete(3);
    });
}

#[test]
fn a_partial_magazine_keeps_its_length_on_the_way_through_the_depot() {
    loom_tests::model(UNBOUNDED, || {
        // Three frames in magazines of two: one full, one partial.
        let watched = pool(2, 2, 3, 0);
        let other = {
            let watched = Arc::clone(&watched);
            on_cpu(1, move || watched.take_and_give())
        };
        watched.take_and_give();
        other.join().unwrap();
        watched.assert_complete(3);
    });
}
