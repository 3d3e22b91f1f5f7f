//! The depot's stacks: what a pop gives, and why the tag is there.
#![cfg(loom)]
#![allow(missing_docs)]

use framepool::internals::{
    arena::{Arena, Measure},
    stack::TaggedStack,
};
use loom::{
    cell::UnsafeCell,
    sync::{Arc, atomic::AtomicU32},
    thread,
};
use loom_tests::{UNBOUNDED, model};

struct Shared {
    stack: TaggedStack,
    behind: Vec<UnsafeCell<u32>>,
}

// SAFETY: a cell is reached by whoever popped its index; that this is one at a time is what loom checks.
unsafe impl Sync for Shared {}
// SAFETY: as for `Sync`.
unsafe impl Send for Shared {}

/// A stack with `indices` pushed in descending order, so that 0 is on top.
fn stack(indices: u32) -> Arc<Shared> {
    let layout = Measure::new().array::<AtomicU32>(indices as usize).finish().unwrap();
    let (mut arena, memory) = Arena::on_heap(layout).unwrap();
    let stack = TaggedStack::new(arena.carve(indices as usize, |_| AtomicU32::new(0)).unwrap());
    std::mem::forget(memory);
    (0..indices).rev().for_each(|index| stack.push(index));
    Arc::new(Shared { stack, behind: (0..indices).map(|_| UnsafeCell::new(0)).collect() })
}

impl Shared {
    fn take(&self) -> Option<u32> {
        let index = self.stack.pop()?;
        // SAFETY: the index is ours; loom reports it if somebody else thinks the same.
        self.behind[index as usize].with_mut(|value| unsafe { *value += 1 });
        Some(index)
    }

    fn assert_holds(&self, mut expected: Vec<u32>) {
        let mut found: Vec<_> = core::iter::from_fn(|| self.take()).take(expected.len() + 1).collect();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "INV-2");
    }
}

#[test]
fn what_stands_behind_an_index_goes_over_with_it() {
    model(UNBOUNDED, || {
        let shared = stack(1);
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.take().map(|index| shared.stack.push(index)))
        };
        if let Some(index) = shared.take() {
            shared.stack.push(index);
        }
        other.join().unwrap();
        shared.assert_holds(vec![0]);
    });
}

#[test]
fn an_interrupted_pop_is_not_fooled_by_the_index_it_saw() {
    model(UNBOUNDED, || {
        let shared = stack(2);
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (first, second) = (shared.take(), shared.take());
                if let Some(first) = first {
                    shared.stack.push(first);
                }
                second
            })
        };
        let mine = shared.take();
        let theirs = other.join().unwrap();
        let held: Vec<_> = mine.into_iter().chain(theirs).collect();
        assert_eq!(held.iter().collect::<std::collections::HashSet<_>>().len(), held.len(), "INV-2");
        shared.assert_holds((0..2).filter(|index| !held.contains(index)).collect());
    });
}

#[test]
fn three_contexts_take_and_give_and_nothing_is_lost() {
    model(3, || {
        let shared = stack(2);
        let others: Vec<_> = (0..2)
            .map(|_| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.take().map(|index| shared.stack.push(index)))
            })
            .collect();
        if let Some(index) = shared.take() {
            shared.stack.push(index);
        }
        others.into_iter().for_each(|other| drop(other.join()));
        shared.assert_holds(vec![0, 1]);
    });
}
