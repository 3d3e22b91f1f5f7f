//! Slots that their owner keeps: interrupts that nest on its CPU, and other CPUs that ask.
#![cfg(loom)]
#![allow(missing_docs)]

use framepool::{Frame, PhysAddr, Pinned};
use loom::{sync::Arc, thread::JoinHandle};
use loom_tests::{ThisCpu, UNBOUNDED, Watched, interrupt_on, on_cpu, pool_on};

type Owned = Pinned<ThisCpu>;

/// A pool whose slots are lent for `lent_for` operations.
fn pinned(lent_for: u32, cpus: usize, magazine: u32, frames: u32) -> Arc<Watched<Owned>> {
    pool_on(Pinned::lending(ThisCpu, lent_for), cpus, magazine, frames, 0)
}

fn take(watched: &Watched<Owned>) -> Option<PhysAddr> {
    let frame = watched.pool.alloc().ok().inspect(|frame| watched.touch(frame));
    frame.map(Frame::into_raw)
}

fn give(watched: &Watched<Owned>, frame: PhysAddr) {
    watched.touch_at(frame);
    // SAFETY: each frame is laid down by `take` and taken up once.
    drop(unsafe { Frame::from_raw(&watched.pool, frame) });
}

/// Another CPU takes a frame and gives it back, and keeps nothing; whether there was one.
fn visit(watched: &Arc<Watched<Owned>>) -> JoinHandle<bool> {
    let watched = Arc::clone(watched);
    on_cpu(1, move || {
        let served = watched.take_and_give();
        watched.pool.drain_cpu(1).unwrap();
        served
    })
}

#[test]
fn an_interrupt_inside_an_operation_takes_a_frame_from_nobody() {
    loom_tests::model(UNBOUNDED, || {
        let watched = pinned(0, 1, 2, 2);
        drop(watched.pool.alloc().unwrap());
        let interrupt = {
            let watched = Arc::clone(&watched);
            interrupt_on(0, 1, move || take(&watched))
        };
        let mine = take(&watched);
        let theirs = interrupt.join().unwrap();
        assert!(mine.is_none() || mine != theirs, "INV-1");
        mine.into_iter().chain(theirs).for_each(|frame| give(&watched, frame));
        watched.assert_complete(2);
    });
}

#[test]
fn an_interrupt_that_frees_inside_an_operation_finds_a_place_of_its_own() {
    loom_tests::model(UNBOUNDED, || {
        let watched = pinned(0, 1, 2, 2);
        let (first, second) = (take(&watched).unwrap(), take(&watched).unwrap());
        let interrupt = {
            let watched = Arc::clone(&watched);
            interrupt_on(0, 1, move || give(&watched, second))
        };
        give(&watched, first);
        interrupt.join().unwrap();
        watched.assert_complete(2);
    });
}

#[test]
fn an_interrupt_of_an_interrupt_finds_what_both_have_left() {
    loom_tests::model(3, || {
        let watched = pinned(0, 1, 3, 3);
        drop(watched.pool.alloc().unwrap());
        let interrupts = [1, 2].map(|level| {
            let watched = Arc::clone(&watched);
            interrupt_on(0, level, move || take(&watched))
        });
        let mine = take(&watched);
        let theirs = interrupts.map(|interrupt| interrupt.join().unwrap());
        theirs.into_iter().chain([mine]).flatten().for_each(|frame| give(&watched, frame));
        watched.assert_complete(3);
    });
}

#[test]
fn an_owner_that_is_asked_lends_and_both_get_frames_of_their_own() {
    loom_tests::model(4, || {
        let watched = pinned(1, 2, 1, 2);
        // Both frames into the two magazines of CPU 0, which keeps them.
        let frames = (watched.pool.alloc().unwrap(), watched.pool.alloc().unwrap());
        drop(frames);
        let thief = visit(&watched);
        watched.take_and_give();
        // Lends, claims, and keeps again.
        watched.take_and_give();
        watched.take_and_give();
        thief.join().unwrap();
        watched.assert_complete(2);
    });
}

#[test]
fn who_has_asked_gets_the_frames_after_the_next_operation_of_their_owner() {
    loom_tests::model(UNBOUNDED, || {
        let watched = pinned(4, 2, 1, 2);
        let frames = (watched.pool.alloc().unwrap(), watched.pool.alloc().unwrap());
        drop(frames);
        assert!(!visit(&watched).join().unwrap(), "the owner keeps them, and is asked");
        watched.take_and_give();
        assert!(visit(&watched).join().unwrap(), "R8");
        watched.assert_complete(2);
    });
}

#[test]
fn an_interrupt_while_the_slot_is_lent_finds_one_owner() {
    loom_tests::model(UNBOUNDED, || {
        let watched = pinned(0, 2, 1, 2);
        let frames = (watched.pool.alloc().unwrap(), watched.pool.alloc().unwrap());
        drop(frames);
        visit(&watched).join().unwrap();
        let interrupt = {
            let watched = Arc::clone(&watched);
            interrupt_on(0, 1, move || take(&watched))
        };
        let mine = take(&watched);
        let theirs = interrupt.join().unwrap();
        mine.into_iter().chain(theirs).for_each(|frame| give(&watched, frame));
        watched.assert_complete(2);
    });
}

#[test]
fn a_free_while_the_slots_are_being_shut_is_neither_lost_nor_given_back_early() {
    loom_tests::model(UNBOUNDED, || {
        let watched = pinned(1, 2, 1, 1);
        let frame = take(&watched).unwrap();
        let drainer = {
            let watched = Arc::clone(&watched);
            on_cpu(1, move || watched.pool.shrink_to(0).trimmed)
        };
        give(&watched, frame);
        let trimmed = drainer.join().unwrap();
        assert!(trimmed <= 1);
        watched.pool.drain_cpu(0).unwrap();
        watched.pool.shrink_to(0);
        assert_eq!(watched.pool.source().out(), 0, "INV-1: nothing is lost");
    });
}
