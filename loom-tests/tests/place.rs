//! The place of a static pool: filled once, seen whole.
#![cfg(loom)]
#![allow(missing_docs)]

use framepool::internals::place::Place;
use loom::{cell::Cell, sync::Arc, thread};
use loom_tests::{UNBOUNDED, model};

/// A value of which loom knows who has written it.
struct Value(Cell<u32>);

// SAFETY: the models only read it from more than one thread.
unsafe impl Sync for Value {}

#[test]
fn who_finds_the_value_finds_it_whole() {
    model(UNBOUNDED, || {
        let place = Arc::new(Place::new());
        let reader = {
            let place = Arc::clone(&place);
            thread::spawn(move || place.get().is_none_or(|value: &Value| value.0.get() == 7))
        };
        assert!(place.fill(Value(Cell::new(7))).is_ok());
        assert!(reader.join().unwrap());
        assert!(place.get().is_some());
    });
}

#[test]
fn one_of_two_fills_the_place_and_the_other_gets_its_value_back() {
    model(UNBOUNDED, || {
        let place = Arc::new(Place::new());
        let other = {
            let place = Arc::clone(&place);
            thread::spawn(move || place.fill(Value(Cell::new(1))).err().map(|value| value.0.get()))
        };
        let mine = place.fill(Value(Cell::new(2))).err().map(|value| value.0.get());
        let theirs = other.join().unwrap();
        assert!(
            (mine, theirs) == (None, Some(1)) || (mine, theirs) == (Some(2), None),
            "{mine:?} {theirs:?}"
        );
        assert_eq!(place.get().map(|value| value.0.get()), Some(if mine.is_none() { 2 } else { 1 }));
    });
}
