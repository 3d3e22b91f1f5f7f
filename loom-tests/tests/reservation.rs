//! Reservations: all or nothing beside others, and draws that meet in one magazine.
#![cfg(loom)]
#![allow(missing_docs)]

use framepool::Reservation;
use loom::sync::Arc;
use loom_tests::{Host, Source, UNBOUNDED, forever, on_cpu, pool};

/// INV-8: what was reserved can be drawn, to the frame, whatever a competitor takes at the same time.
#[test]
fn a_reservation_beside_a_competing_allocation_gets_all_or_nothing() {
    loom_tests::model(2, || {
        let watched = pool(2, 2, 3, 0);
        let competitor = {
            let watched = Arc::clone(&watched);
            on_cpu(1, move || watched.take_and_give())
        };
        match watched.pool.reserve(3) {
            Ok(reservation) => {
                let drawn: Vec<_> = core::iter::from_fn(|| reservation.draw()).collect();
                drawn.iter().for_each(|frame| watched.touch(frame));
                assert_eq!(drawn.len(), 3, "INV-8");
            }
            Err(refused) => assert!((1..=3).contains(&refused.missing()), "{refused}"),
        }
        competitor.join().unwrap();
        watched.assert_complete(3);
    });
}

#[test]
fn two_reservations_that_compete_take_no_frame_twice_and_lose_none() {
    loom_tests::model(3, || {
        let watched = pool(2, 1, 2, 0);
        let competitor = {
            let watched = Arc::clone(&watched);
            on_cpu(1, move || {
                watched.pool.reserve(2).is_ok_and(|reservation| {
                    core::iter::from_fn(|| reservation.draw()).inspect(|frame| watched.touch(frame)).count()
                        == 2
                })
            })
        };
        if let Ok(reservation) = watched.pool.reserve(1) {
            watched.touch(&reservation.draw().unwrap());
        }
        competitor.join().unwrap();
        watched.assert_complete(2);
    });
}

/// The drawers meet in one magazine, and the one that empties it gives it back while the other may still be reading. The slot
/// is full, so what the first one frees goes into that very magazine.
#[test]
fn an_interrupt_draws_from_the_reservation_that_it_interrupts() {
    loom_tests::model(3, || {
        let watched = pool(1, 2, 6, 0);
        // SAFETY: the thread is joined before the pool goes.
        let shared = unsafe { forever(&watched) };
        let mut frames = [const { None }; 4];
        shared.pool.alloc_bulk_exact(framepool::Request::ORDINARY, &mut frames).unwrap();
        let reservation = Arc::new(shared.pool.reserve(2).unwrap());
        shared.pool.free_bulk(&mut frames);
        let draw = |reservation: &Reservation<'static, Source, Host>| {
            shared.touch(&reservation.draw().expect("INV-8"));
        };
        let interrupt = {
            let reservation = Arc::clone(&reservation);
            on_cpu(0, move || draw(&reservation))
        };
        draw(&reservation);
        interrupt.join().unwrap();
        assert!(reservation.draw().is_none(), "two frames were reserved, and no more");
        drop(reservation);
        watched.assert_complete(6);
        watched.assert_complete(6);
    });
}

#[test]
fn draws_go_on_into_the_next_magazine_and_the_loose_frames() {
    loom_tests::model(UNBOUNDED, || {
        let watched = pool(1, 2, 5, 0);
        // SAFETY: the thread is joined before the pool goes.
        let shared = unsafe { forever(&watched) };
        let reservation = Arc::new(shared.pool.reserve(5).unwrap());
        let interrupt = {
            let reservation = Arc::clone(&reservation);
            on_cpu(0, move || reservation.draw().map(|frame| shared.touch(&frame)).expect("INV-8"))
        };
        let mine: Vec<_> = core::iter::from_fn(|| reservation.draw()).take(3).collect();
        mine.iter().for_each(|frame| shared.touch(frame));
        interrupt.join().unwrap();
        assert_eq!((mine.len(), reservation.left()), (3, 1), "INV-8");
        drop((reservation, mine));
        watched.assert_complete(5);
    });
}
