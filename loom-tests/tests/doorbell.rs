//! The fill level and the doorbell: one ring for each crossing, and none is lost.
#![cfg(loom)]
#![allow(missing_docs)]

use framepool::{
    Doorbell,
    internals::{
        level::{FillLevel, Ring, parts::share_out},
        magazine::Kind,
    },
};
use loom::{sync::Arc, thread};
use loom_tests::{Count, UNBOUNDED, model};

struct Shared {
    level: FillLevel,
    doorbell: Doorbell,
    rings: Count,
}

fn shared(low: u32, frames: u32) -> Arc<Shared> {
    let level = FillLevel::new(low, 100);
    let _ = level.added(Kind::Dirty, frames);
    Arc::new(Shared { level, doorbell: Doorbell::new(), rings: Count::default() })
}

impl Shared {
    fn take(&self) {
        if self.level.removed(Kind::Dirty, 1) == Ring::Yes {
            self.rings.add();
            self.doorbell.ring();
        }
    }
}

#[test]
fn of_two_callers_below_low_exactly_one_rings() {
    model(UNBOUNDED, || {
        let shared = shared(2, 2);
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.take())
        };
        shared.take();
        other.join().unwrap();
        assert_eq!(shared.rings.get(), 1, "INV-6");
    });
}

/// The worker sleeps until it has seen the level below low; if a ring is lost it sleeps for ever, which loom reports.
#[test]
fn the_worker_never_sleeps_through_a_crossing() {
    model(4, || {
        let shared = shared(1, 2);
        let callers: Vec<_> = (0..2)
            .map(|_| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.take())
            })
            .collect();
        while shared.level.answered().frames > 0 {
            shared.doorbell.wait(None);
        }
        callers.into_iter().for_each(|caller| drop(caller.join()));
        assert_eq!(shared.level.fill().frames, 0);
    });
}

/// The worker answers a first crossing while the second happens: the second is rung again or seen by the answer.
#[test]
fn a_crossing_during_the_answer_rings_again_or_is_seen() {
    model(UNBOUNDED, || {
        let shared = shared(2, 2);
        shared.take();
        let caller = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.take())
        };
        let seen = shared.level.answered().frames;
        caller.join().unwrap();
        assert_eq!(shared.rings.get(), if seen == 0 { 1 } else { 2 }, "INV-6");
        assert!(shared.doorbell.wait(None), "somebody has rung");
    });
}

/// The two sides share the word: whichever crossing comes first rings for both.
#[test]
fn of_a_caller_below_low_and_one_who_lacks_clean_frames_exactly_one_rings() {
    model(UNBOUNDED, || {
        let shared = shared(3, 3);
        let _ = shared.level.added(Kind::Clean, 1);
        shared.level.set_clean_low(1);
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                if shared.level.removed(Kind::Clean, 1) == Ring::Yes {
                    shared.rings.add();
                }
            })
        };
        shared.take();
        other.join().unwrap();
        assert_eq!(shared.rings.get(), 1, "INV-6");
        let left = shared.level.answered();
        assert_eq!((left.frames, left.clean), (2, 0));
    });
}

/// What the ringer did before it rang is there for the sleeper.
#[test]
fn a_ring_publishes_what_was_done_before_it() {
    model(UNBOUNDED, || {
        let shared = Arc::new((Doorbell::new(), loom::cell::UnsafeCell::new(0u32)));
        struct Send2(Arc<(Doorbell, loom::cell::UnsafeCell<u32>)>);
        // SAFETY: the cell is written before the ring and read after the wait; loom checks it.
        unsafe impl Send for Send2 {}
        let ringer = {
            let shared = Send2(Arc::clone(&shared));
            thread::spawn(move || {
                let shared = shared;
                // SAFETY: nobody reads before the ring.
                shared.0.1.with_mut(|value| unsafe { *value = 1 });
                shared.0.0.ring();
            })
        };
        while !shared.0.wait(None) {}
        // SAFETY: nobody writes after the ring.
        assert_eq!(shared.1.with(|value| unsafe { *value }), 1);
        ringer.join().unwrap();
    });
}

/// INV-6 of a pool with several depots: when all together have less than `low`, the worker has been rung since it answered, or knows.
#[test]
fn levels_that_fall_below_low_together_ring_also_while_low_is_shared_out() {
    const LOW: u32 = 2;
    model(4, || {
        let levels = Arc::new([FillLevel::new(0, 100), FillLevel::new(0, 100)]);
        for level in levels.iter() {
            let _ = level.added(Kind::Dirty, 2);
        }
        let callers: Vec<_> = [(0, 2), (1, 1)]
            .into_iter()
            .map(|(which, frames)| {
                let levels = Arc::clone(&levels);
                thread::spawn(move || {
                    let level: &FillLevel = &levels[which];
                    let ring = level.removed(Kind::Dirty, frames);
                    ring == Ring::Yes || level.rings_below_part() == Ring::Yes
                })
            })
            .collect();
        for level in levels.iter() {
            let _ = level.answered();
        }
        // What a pass decides by; the rest of it lies between.
        let knows = levels.iter().map(|level| level.fill().frames).sum::<u32>() < LOW;
        let rang = share_out(LOW, knows, levels.iter()) == Ring::Yes;
        let rung = callers.into_iter().fold(false, |before, caller| caller.join().unwrap() || before);
        assert!(knows || rang || rung, "INV-6");
    });
}
