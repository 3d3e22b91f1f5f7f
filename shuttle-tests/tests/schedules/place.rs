//! A place for one value: who finds it filled finds the value whole.

use crate::model;
use framepool::internals::place::Place;
use shuttle::{sync::Arc, thread};

#[test]
fn two_fill_a_place_while_two_look() {
    model("place", || {
        let place = Arc::new(Place::new());
        let fillers = [1, 2].map(|number| {
            let place = Arc::clone(&place);
            thread::spawn(move || place.fill([number; 4]).is_ok())
        });
        let readers = [(), ()].map(|()| {
            let place = Arc::clone(&place);
            thread::spawn(move || {
                let seen = place.get().copied();
                assert!(seen.is_none_or(|value| value == [1; 4] || value == [2; 4]));
                assert!(seen.is_none() || place.get().copied() == seen, "it stays");
            })
        });
        let filled = fillers.map(|filler| filler.join().unwrap());
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        assert!(filled[0] != filled[1], "one of them");
        let expected = if filled[0] { 1 } else { 2 };
        assert_eq!(place.get(), Some(&[expected; 4]));
    });
}
