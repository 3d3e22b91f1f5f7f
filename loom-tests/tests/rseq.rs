//! Restartable sequences: contexts that end each other's sequences on one CPU, and another CPU that reaches for the slot.
#![cfg(loom)]
#![allow(missing_docs)]

use framepool::{Frame, internals::rseq::Rseq};
use loom::sync::Arc;
use loom_tests::{UNBOUNDED, on_cpu, pool_on};

/// A CPU on which no thread has a registration.
const UNREGISTERED: usize = 7;

#[test]
fn two_contexts_on_a_cpu_get_frames_of_their_own() {
    loom_tests::model(6, || {
        let watched = pool_on(Rseq::modelled(), 2, 2, 2, 0);
        drop(watched.pool.alloc().unwrap());
        let other = {
            let watched = Arc::clone(&watched);
            on_cpu(0, move || {
                let frame = watched.pool.alloc().ok();
                frame.inspect(|frame| watched.touch(frame)).map(Frame::into_raw)
            })
        };
        let mine = watched.pool.alloc().ok().inspect(|frame| watched.touch(frame));
        let theirs = other.join().unwrap();
        assert!(theirs.is_none() || mine.as_ref().map(Frame::phys_addr) != theirs, "INV-1");
        if let Some(theirs) = theirs {
            // SAFETY: the other context laid the frame down as this address, once.
            drop(unsafe { Frame::from_raw(&watched.pool, theirs) });
        }
        drop(mine);
        watched.assert_complete(2);
    });
}

#[test]
fn two_contexts_on_a_cpu_free_into_places_of_their_own() {
    loom_tests::model(4, || {
        let watched = pool_on(Rseq::modelled(), 2, 2, 2, 0);
        let (first, second) = (watched.pool.alloc().unwrap(), watched.pool.alloc().unwrap());
        watched.touch(&second);
        let second = second.into_raw();
        let other = {
            let watched = Arc::clone(&watched);
            on_cpu(0, move || {
                // SAFETY: the frame was laid down as this address, once.
                drop(unsafe { Frame::from_raw(&watched.pool, second) });
            })
        };
        watched.touch(&first);
        drop(first);
        other.join().unwrap();
        watched.assert_complete(2);
    });
}

#[test]
fn an_owner_and_a_thief_behind_the_barrier_share_what_is_in_the_slot() {
    loom_tests::model(3, || {
        let watched = pool_on(Rseq::modelled(), 3, 1, 2, 0);
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

#[test]
fn a_frame_that_is_freed_while_it_is_stolen_behind_the_barrier_goes_to_one_of_both() {
    loom_tests::model(UNBOUNDED, || {
        let watched = pool_on(Rseq::modelled(), 3, 1, 1, 0);
        let frame = watched.pool.alloc().unwrap();
        watched.touch(&frame);
        let frame = frame.into_raw();
        let thief = {
            let watched = Arc::clone(&watched);
            on_cpu(1, move || watched.take_and_give())
        };
        // SAFETY: the frame was laid down as this address, once.
        drop(unsafe { Frame::from_raw(&watched.pool, frame) });
        thief.join().unwrap();
        watched.assert_complete(1);
    });
}

#[test]
fn two_thieves_shut_a_gate_once() {
    loom_tests::model(2, || {
        let watched = pool_on(Rseq::modelled(), 3, 1, 2, 0);
        let frames = (watched.pool.alloc().unwrap(), watched.pool.alloc().unwrap());
        drop(frames);
        let thieves = [1, UNREGISTERED].map(|cpu| {
            let watched = Arc::clone(&watched);
            on_cpu(cpu, move || watched.take_and_give())
        });
        assert!(thieves.map(|thief| thief.join().unwrap()).contains(&true));
        watched.assert_complete(2);
    });
}

#[test]
fn a_free_while_the_gates_are_shut_is_neither_lost_nor_given_back_early() {
    loom_tests::model(4, || {
        let watched = pool_on(Rseq::modelled(), 2, 1, 1, 0);
        let frame = watched.pool.alloc().unwrap();
        watched.touch(&frame);
        let frame = frame.into_raw();
        let owner = {
            let watched = Arc::clone(&watched);
            on_cpu(0, move || {
                // SAFETY: the frame was laid down as this address, once.
                drop(unsafe { Frame::from_raw(&watched.pool, frame) });
            })
        };
        let early = watched.pool.vacate();
        owner.join().unwrap();
        // A free that was in progress may have left its frame in the stock.
        assert!(
            early.is_ok() || watched.pool.source().out() == 1,
            "INV-12: it was out, and is not given back"
        );
        watched.pool.vacate().unwrap();
        assert_eq!(watched.pool.source().out(), 0, "INV-1: nothing is lost");
    });
}

#[test]
fn a_thread_without_a_registration_claims_the_last_slot_beside_the_sequences() {
    loom_tests::model(UNBOUNDED, || {
        let watched = pool_on(Rseq::modelled(), 2, 1, 2, 0);
        let stranger = {
            let watched = Arc::clone(&watched);
            on_cpu(UNREGISTERED, move || watched.take_and_give() && watched.take_and_give())
        };
        watched.take_and_give();
        stranger.join().unwrap();
        watched.assert_complete(2);
    });
}
