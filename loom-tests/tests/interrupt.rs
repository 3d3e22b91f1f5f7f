//! The claim: an interrupt on the same CPU is a second thread with the same slot.
#![cfg(loom)]
#![allow(missing_docs)]

use loom::sync::Arc;
use loom_tests::{UNBOUNDED, on_cpu, pool};

#[test]
fn an_interrupt_inside_an_operation_gets_a_frame_of_its_own() {
    loom_tests::model(UNBOUNDED, || {
        let watched = pool(1, 2, 2, 0);
        drop(watched.pool.alloc());
        let interrupt = {
            let watched = Arc::clone(&watched);
            on_cpu(0, move || watched.take_and_give())
        };
        watched.take_and_give();
        interrupt.join().unwrap();
        watched.assert_complete(2);
    });
}

#[test]
fn an_interrupt_that_keeps_its_frame_takes_it_from_nobody() {
    loom_tests::model(UNBOUNDED, || {
        let watched = pool(1, 1, 2, 0);
        let interrupt = {
            let watched = Arc::clone(&watched);
            on_cpu(0, move || {
                let frame = watched.pool.alloc().ok();
                frame.inspect(|frame| watched.touch(frame)).map(framepool::Frame::into_raw)
            })
        };
        let mine = watched.pool.alloc().ok().inspect(|frame| watched.touch(frame));
        let theirs = interrupt.join().unwrap();
        assert_ne!(
            mine.as_ref().map(framepool::Frame::phys_addr),
            theirs.or(Some(framepool::PhysAddr::new(1))),
            "INV-1"
        );
        if let Some(theirs) = theirs {
            // SAFETY: the interrupt laid the frame down as this address, once.
            drop(unsafe { framepool::Frame::from_raw(&watched.pool, theirs) });
        }
        drop(mine);
        watched.assert_complete(2);
    });
}

#[test]
fn an_interrupt_that_frees_finds_a_place() {
    loom_tests::model(UNBOUNDED, || {
        let watched = pool(1, 1, 2, 0);
        let (first, second) = (watched.pool.alloc().unwrap(), watched.pool.alloc().unwrap());
        watched.touch(&second);
        let second = second.into_raw();
        let interrupt = {
            let watched = Arc::clone(&watched);
            on_cpu(0, move || {
                // SAFETY: the frame was laid down as this address, once.
                drop(unsafe { framepool::Frame::from_raw(&watched.pool, second) });
            })
        };
        watched.touch(&first);
        drop(first);
        interrupt.join().unwrap();
        watched.assert_complete(2);
    });
}

#[test]
fn two_interrupts_share_a_partial_magazine_of_the_depot() {
    loom_tests::model(4, || {
        // Five frames in magazines of three: a full one, of which two frames are then in the slot, and a partial one.
        let watched = pool(1, 3, 5, 0);
        drop(watched.pool.alloc());
        let interrupts: Vec<_> = (0..2)
            .map(|_| {
                let watched = Arc::clone(&watched);
                on_cpu(0, move || {
                    // None when both magazines with frames are in the hands of the other two at this moment.
                    let frame = watched.pool.alloc().ok().inspect(|frame| watched.touch(frame));
                    frame.map(framepool::Frame::into_raw)
                })
            })
            .collect();
        let mine = watched.pool.alloc().ok().inspect(|frame| watched.touch(frame));
        for theirs in interrupts.into_iter().filter_map(|interrupt| interrupt.join().unwrap()) {
            // SAFETY: the interrupt laid the frame down as this address, once.
            drop(unsafe { framepool::Frame::from_raw(&watched.pool, theirs) });
        }
        drop(mine);
        watched.assert_complete(5);
    });
}
