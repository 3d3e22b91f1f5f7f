//! The door: a source that hands the same frame to two callers at once.
#![cfg(loom)]
#![allow(missing_docs)]

use framepool::internals::{
    arena::{Arena, Measure},
    registry::Registry,
};
use loom::{
    sync::{Arc, atomic::AtomicU32},
    thread,
};
use loom_tests::{UNBOUNDED, model};

fn registry() -> Arc<Registry> {
    let positions = Registry::positions(1);
    let layout = Measure::new().array::<AtomicU32>(positions).finish().unwrap();
    let (mut arena, memory) = Arena::on_heap(layout).unwrap();
    std::mem::forget(memory);
    Arc::new(Registry::new(arena.carve(positions, |_| Registry::vacant()).unwrap()))
}

#[test]
fn the_same_frame_is_never_taken_in_twice() {
    model(UNBOUNDED, || {
        let registry = registry();
        // 10 and 7 hash to the same home, so that 10 is in the first position that 7 would choose.
        registry.insert(10).unwrap();
        let other = {
            let registry = Arc::clone(&registry);
            thread::spawn(move || {
                registry.remove(10);
                registry.insert(7).is_ok()
            })
        };
        let mine = registry.insert(7).is_ok();
        let theirs = other.join().unwrap();
        assert!(!(mine && theirs), "INV-1: one frame, two owners");
    });
}
