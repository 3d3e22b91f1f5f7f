//! The turn of the worker: one at a time, who finds it taken goes away.
#![cfg(loom)]
#![allow(missing_docs)]

use framepool::internals::turn::Turn;
use loom::{sync::Arc, thread};
use loom_tests::{UNBOUNDED, model, on_cpu, pool};

#[test]
fn one_at_a_time_sees_what_the_one_before_left() {
    model(UNBOUNDED, || {
        let turn = Arc::new(Turn::new(0u32));
        let other = {
            let turn = Arc::clone(&turn);
            thread::spawn(move || turn.try_with(|count| *count += 1).is_some())
        };
        let mine = turn.try_with(|count| *count += 1).is_some();
        let theirs = other.join().unwrap();
        assert_eq!(turn.try_with(|count| *count), Some(u32::from(mine) + u32::from(theirs)));
    });
}

#[test]
fn a_refill_beside_a_caller_loses_nothing() {
    model(UNBOUNDED, || {
        let watched = pool(1, 1, 2, 1);
        let caller = {
            let watched = Arc::clone(&watched);
            on_cpu(0, move || watched.take_and_give())
        };
        watched.pool.maintain();
        caller.join().unwrap();
        watched.assert_complete(2);
    });
}
