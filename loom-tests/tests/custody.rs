//! The feature `hardened`: a frame that is given back twice at once comes in once, and is not handed out while it is in doubt.
#![cfg(loom)]
#![allow(missing_docs)]

use framepool::internals::{
    arena::{Arena, Measure},
    custody::{Custodies, Custody},
};
use loom::{
    sync::{Arc, atomic::AtomicU32},
    thread,
};
use loom_tests::{UNBOUNDED, model};

fn custodies(custody: Custody) -> Arc<Custodies> {
    let layout = Measure::new().array::<AtomicU32>(1).finish().unwrap();
    let (mut arena, memory) = Arena::on_heap(layout).unwrap();
    std::mem::forget(memory);
    let custodies = Custodies::new(arena.carve(1, |_| AtomicU32::new(0)).unwrap());
    custodies.admit(0, custody);
    Arc::new(custodies)
}

#[test]
fn of_two_who_give_one_frame_back_one_is_refused_and_nobody_gets_it_afterwards() {
    model(UNBOUNDED, || {
        let custodies = custodies(Custody::OUT);
        let other = {
            let custodies = Arc::clone(&custodies);
            thread::spawn(move || custodies.take_back(0))
        };
        let mine = custodies.take_back(0);
        custodies.settle(0, Custody::POISONED);
        assert!(mine ^ other.join().unwrap(), "one of them had it");
        assert!(!custodies.hand_out(0, Custody::OUT), "the other may still use it");
    });
}

#[test]
fn a_frame_is_handed_out_to_one_owner_whoever_gives_it_back_a_second_time_meanwhile() {
    model(UNBOUNDED, || {
        let custodies = custodies(Custody::POISONED);
        let again = {
            let custodies = Arc::clone(&custodies);
            thread::spawn(move || custodies.take_back(0))
        };
        let handed_out = custodies.hand_out(0, Custody::OUT);
        match (handed_out, again.join().unwrap()) {
            // It came after the frame had been handed out: the new owner is the one who is told.
            (true, true) => assert!(!custodies.take_back(0)),
            (true, false) => panic!("refused, and handed out all the same"),
            (false, taken_back) => assert!(!taken_back && !custodies.hand_out(0, Custody::OUT)),
        }
    });
}
