//! Reservations: what they take, what they cost, and what comes back.
#![cfg(not(loom))]

mod common;

use common::{assert_accounts, pool, set_cpu};
use framepool::{AllocError, Builder, FallbackPolicy, Frame, Request, Watermarks};
use std::{collections::HashSet, sync::atomic::Ordering::SeqCst};

/// One CPU, with all `frames` in magazines of 32 in the depot.
fn stocked(frames: u32) -> Builder {
    let marks = Watermarks { min: 0, low: 0, high: frames, max: frames };
    Builder::new(frames).watermarks(marks).cpus(1).magazine_size(32).fallback(FallbackPolicy::Never)
}

// Hardened, each frame is looked at when it is taken.
#[cfg(not(feature = "hardened"))]
#[test]
fn whole_magazines_change_hands_and_only_the_rest_is_moved() {
    let pool = pool(stocked(256), 256);
    let reservation = pool.reserve(3 * 32 + 5).unwrap();
    let stats = pool.stats();
    assert_eq!(
        (stats.reserved, stats.depot_hits, stats.cache_hits),
        (96, 1, 4),
        "three magazines and five frames"
    );
    assert_accounts(&pool, 101);
    let drawn: Vec<_> = std::iter::from_fn(|| reservation.draw()).collect();
    assert_eq!(drawn.iter().map(Frame::phys_addr).collect::<HashSet<_>>().len(), 101, "INV-1 and INV-8");
    assert!(reservation.draw().is_none());
    drop((drawn, reservation));
    assert_accounts(&pool, 0);
}

#[test]
fn what_was_not_drawn_goes_back_as_it_came() {
    let pool = pool(stocked(256), 256);
    for drawn in [0, 1, 31, 32, 33, 64, 100, 117] {
        let reservation = pool.reserve(117).unwrap();
        let frames: Vec<_> = std::iter::from_fn(|| reservation.draw()).take(drawn).collect();
        assert_eq!(reservation.left() as usize, 117 - drawn);
        drop(reservation);
        assert_accounts(&pool, drawn as u64);
        drop(frames);
        assert_accounts(&pool, 0);
    }
    assert_eq!(pool.stats().overflow, 0);
}

#[test]
fn a_reservation_takes_idle_frames_from_other_cpus_before_it_fails() {
    let pool = pool(stocked(64).cpus(2), 64);
    let frames: Vec<_> = (0..64).map(|_| pool.alloc().unwrap()).collect();
    drop(frames); // all 64 are in the two magazines of CPU 0
    set_cpu(&pool, 1);
    let reservation = pool.reserve(64).unwrap();
    assert_eq!((pool.stats().steals, reservation.left()), (2, 64), "R8");
}

#[test]
fn a_reservation_of_an_ordinary_caller_stops_at_min_and_a_critical_one_does_not() {
    let builder = stocked(64).watermarks(Watermarks { min: 24, low: 24, high: 64, max: 64 });
    let pool = pool(builder, 64);
    let refused = pool.reserve(41).unwrap_err();
    assert_eq!((refused.missing(), refused.reason()), (1, AllocError::ReserveOnly), "INV-5");
    assert_accounts(&pool, 0);
    let reservation = pool.reserve_with(Request::CRITICAL, 64).unwrap();
    assert_eq!(pool.stats().reserve, 0);
    drop(reservation);
    assert_eq!(pool.stats().reserve, 24, "what comes back fills the reserve first, from whole magazines too");
    assert_accounts(&pool, 0);
}

#[test]
fn a_reservation_takes_the_rest_from_the_host_if_it_may() {
    let builder = stocked(64).initial(10).fallback(FallbackPolicy::Always);
    let pool = pool(builder, 64);
    assert_eq!(pool.reserve_with(Request::ORDINARY.without_fallback(), 20).unwrap_err().missing(), 10);
    assert_eq!(pool.source().tried.load(SeqCst), 0);
    let reservation = pool.reserve(20).unwrap();
    assert_eq!((reservation.left(), pool.stats().fallback_taken), (20, 10));
    pool.source().failing.store(true, SeqCst);
    assert_eq!(pool.reserve(20).unwrap_err().reason(), AllocError::FallbackFailed);
    drop(reservation);
    assert_accounts(&pool, 0);
}

#[test]
fn more_reservations_than_the_pool_was_built_for_are_refused_and_small_ones_never() {
    // 24 magazines: sixteen for the frames, two for the slot, four for operations in progress, two for reservations.
    let pool = pool(stocked(512).reservations(2), 512);
    let mut large = Vec::new();
    let refused = loop {
        match pool.reserve(17) {
            Ok(reservation) => large.push(reservation),
            Err(refused) => break refused,
        }
    };
    assert_eq!((refused.missing(), refused.reason()), (17, AllocError::TooManyReservations));
    assert_eq!(large.len(), 13, "15 of 32 entries of each stay unused, and six magazines were to spare");
    let small: Vec<_> = (0..4).map(|_| pool.reserve(16).unwrap()).collect();
    assert!(pool.reserve(32).is_ok(), "a whole magazine needs no other");
    drop((large, small));
    assert!(pool.reserve(17).is_ok());
    assert_accounts(&pool, 0);
    assert_eq!(pool.stats().overflow, 0);
}

#[test]
fn a_reservation_of_nothing_is_empty() {
    let pool = pool(stocked(64), 64);
    let reservation = pool.reserve(0).unwrap();
    assert!(reservation.draw().is_none());
    assert_eq!(format!("{reservation:?}"), "Reservation { left: 0, .. }");
}

#[test]
fn reservations_shared_by_threads_give_out_each_frame_once() {
    let pool = pool(stocked(1024), 1024);
    for _ in 0..20 {
        let reservation = pool.reserve(900).unwrap();
        let drawn: Vec<_> = std::thread::scope(|scope| {
            let draw = || std::iter::from_fn(|| reservation.draw().map(Frame::into_raw)).collect::<Vec<_>>();
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(draw)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(drawn.iter().collect::<HashSet<_>>().len(), 900, "INV-1 and INV-8");
        for frame in drawn {
            // SAFETY: each frame was drawn and laid down once.
            drop(unsafe { Frame::from_raw(&pool, frame) });
        }
    }
    assert_accounts(&pool, 0);
}
