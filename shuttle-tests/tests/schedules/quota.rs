//! Accounts and reservations beside callers who take all that there is.

use crate::{
    choose,
    harness::{Watched, forever, on_cpu, pool, watched},
    model,
};
use framepool::{AllocError, Builder, FallbackPolicy, Request, Watermarks};
use shuttle::sync::Arc;

const FRAMES: u32 = 6;
const GUARANTEE: u32 = 2;
const LIMIT: u32 = 3;

/// Takes up to `most` frames, all at once in hand, and gives them back.
fn take_all(watched: &Watched, most: usize) {
    let frames: Vec<_> = std::iter::from_fn(|| watched.pool.alloc().ok()).take(most).collect();
    frames.iter().for_each(|frame| watched.touch(frame));
}

#[test]
fn an_account_keeps_its_guarantee_and_its_limit_beside_reservations_and_greed() {
    model("quota", || {
        let watermarks = Watermarks { min: 0, low: 0, high: FRAMES, max: FRAMES };
        let builder = Builder::new(FRAMES).watermarks(watermarks).cpus(2).magazine_size(1 + choose(2));
        let builder = builder.guarantees(GUARANTEE).reservations(4).fallback(FallbackPolicy::Never);
        let watched = watched(builder, FRAMES);
        // SAFETY: all threads are done, and the account is dropped, before the pool goes.
        let shared = unsafe { forever(&watched) };
        let account = Arc::new(shared.pool.quota(GUARANTEE, LIMIT).unwrap());
        let charges = [0, 1].map(|cpu| {
            let (watched, account) = (Arc::clone(&watched), Arc::clone(&account));
            on_cpu(cpu, move || {
                for _ in 0..3 {
                    let first = account.alloc();
                    // Two threads charge it, each with one frame at this moment, or two.
                    assert!(account.used() <= LIMIT, "INV-13: the limit");
                    if let Ok(frame) = &first {
                        watched.touch_at(frame.phys_addr());
                    }
                    if choose(2) == 0 {
                        let second = account.alloc();
                        second.iter().for_each(|frame| watched.touch_at(frame.phys_addr()));
                        assert!(account.used() <= LIMIT, "INV-13: the limit");
                    }
                }
            })
        });
        let reserver = {
            let watched = Arc::clone(&watched);
            on_cpu(0, move || {
                for _ in 0..3 {
                    if let Ok(reservation) = watched.pool.reserve_with(Request::ORDINARY, 2) {
                        let frames: Vec<_> = std::iter::from_fn(|| reservation.draw()).collect();
                        frames.iter().for_each(|frame| watched.touch(frame));
                        assert_eq!(frames.len(), 2, "INV-8");
                    }
                }
            })
        };
        let greedy = {
            let watched = Arc::clone(&watched);
            on_cpu(1, move || (0..3).for_each(|_| take_all(&watched, 1 + choose(FRAMES) as usize)))
        };
        charges.into_iter().chain([reserver, greedy]).for_each(|thread| thread.join().unwrap());
        assert_eq!(account.used(), 0);
        // All that the others may have, and then the share.
        let rest: Vec<_> = std::iter::from_fn(|| shared.pool.alloc().ok()).collect();
        let share: Vec<_> = std::iter::from_fn(|| account.alloc().ok()).collect();
        assert_eq!((rest.len(), share.len()), ((FRAMES - GUARANTEE) as usize, GUARANTEE as usize), "INV-13");
        drop((rest, share));
        drop(account);
        watched.assert_complete(FRAMES as usize);
    });
}

/// One thread has the account for itself, and uses less than its share: it gets every frame that it asks for.
#[test]
fn an_account_that_uses_less_than_its_share_is_never_refused() {
    model("share", || {
        let watermarks = Watermarks { min: 0, low: 0, high: 4, max: 4 };
        let builder = Builder::new(4).watermarks(watermarks).cpus(2).magazine_size(1).guarantees(GUARANTEE);
        let watched = watched(builder.fallback(FallbackPolicy::Never), 4);
        // SAFETY: as above.
        let shared = unsafe { forever(&watched) };
        let account = Arc::new(shared.pool.quota(GUARANTEE, LIMIT).unwrap());
        let greedy = [0, 1].map(|cpu| {
            let watched = Arc::clone(&watched);
            on_cpu(cpu, move || (0..3).for_each(|_| take_all(&watched, 4)))
        });
        let charge = {
            let (watched, account) = (Arc::clone(&watched), Arc::clone(&account));
            on_cpu(0, move || {
                for _ in 0..4 {
                    let frames: [Result<_, AllocError>; 2] = [account.alloc(), account.alloc()];
                    frames
                        .iter()
                        .for_each(|frame| watched.touch_at(frame.as_ref().expect("INV-13").phys_addr()));
                }
            })
        };
        greedy.into_iter().chain([charge]).for_each(|thread| thread.join().unwrap());
        drop(account);
        watched.assert_complete(4);
    });
}

/// Three threads draw from one reservation, whose magazines one of them empties and gives back, beside others who take and give.
#[test]
fn a_reservation_is_drawn_by_three_threads() {
    model("draws", || {
        let watched = pool(2, 1 + choose(3), FRAMES, 0);
        // SAFETY: all threads are done, and the reservation is dropped, before the pool goes.
        let shared = unsafe { forever(&watched) };
        let reserved = 3 + choose(2);
        let reservation = Arc::new(shared.pool.reserve(reserved).unwrap());
        let drawn = [0, 1, 1].map(|cpu| {
            let (watched, reservation) = (Arc::clone(&watched), Arc::clone(&reservation));
            on_cpu(cpu, move || {
                let frames: Vec<_> = std::iter::from_fn(|| reservation.draw()).take(2).collect();
                frames.iter().for_each(|frame| watched.touch(frame));
                frames.len()
            })
        });
        let greedy = {
            let watched = Arc::clone(&watched);
            on_cpu(0, move || (0..3).for_each(|_| take_all(&watched, FRAMES as usize)))
        };
        let drawn: usize = drawn.into_iter().map(|thread| thread.join().unwrap()).sum();
        greedy.join().unwrap();
        assert_eq!(
            (drawn, reservation.left()),
            (reserved as usize, 0),
            "INV-8: two for each, as long as there are some"
        );
        drop(reservation);
        watched.assert_complete(FRAMES as usize);
    });
}
