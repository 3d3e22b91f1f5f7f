//! The domain ids: taken and given back by several contexts at once.
#![cfg(loom)]
#![allow(missing_docs)]

use framepool::vtd::{DomainId, DomainIds};
use loom::{cell::UnsafeCell, sync::Arc, thread};
use loom_tests::{UNBOUNDED, model};

/// Ids 1 and 2, and what each owner does under its id, as loom watches it.
struct Watched {
    ids: DomainIds<1>,
    tables: [UnsafeCell<u32>; 3],
}

// SAFETY: what belongs to an id is reached by its owner only; that this is so is what loom checks.
unsafe impl Sync for Watched {}
// SAFETY: as for `Sync`.
unsafe impl Send for Watched {}

impl Watched {
    fn new(domain_ids: u32) -> Arc<Self> {
        Arc::new(Self { ids: DomainIds::new(domain_ids), tables: [0; 3].map(UnsafeCell::new) })
    }

    fn touch(&self, id: DomainId) {
        // SAFETY: the id is ours; loom reports it if somebody else thinks the same.
        self.tables[usize::from(id.get())].with_mut(|table| unsafe { *table += 1 });
    }

    fn take_use_and_give(&self) -> bool {
        self.ids.take().is_some_and(|id| {
            self.touch(id);
            self.ids.give(id).is_ok()
        })
    }
}

#[test]
fn two_takers_never_get_the_same_id() {
    model(UNBOUNDED, || {
        let shared = Watched::new(3);
        let other = Arc::clone(&shared);
        let taker = thread::spawn(move || other.ids.take().inspect(|&id| other.touch(id)));
        let mine = shared.ids.take().inspect(|&id| shared.touch(id));
        let theirs = taker.join().unwrap();
        assert!(mine.is_some() && theirs.is_some(), "two ids for two takers");
        assert_ne!(mine, theirs);
        assert_eq!(shared.ids.take(), None);
    });
}

#[test]
fn the_next_owner_sees_what_was_done_under_the_id() {
    model(UNBOUNDED, || {
        let shared = Watched::new(2);
        let other = Arc::clone(&shared);
        let user = thread::spawn(move || other.take_use_and_give());
        let mine = shared.take_use_and_give();
        let theirs = user.join().unwrap();
        assert!(mine || theirs, "one id, so one of two fails at most");
        assert_eq!(shared.ids.take(), DomainId::new(1));
    });
}

#[test]
fn a_taker_in_between_does_not_hide_what_was_done_under_another_id() {
    model(UNBOUNDED, || {
        let shared = Watched::new(3);
        let first = shared.ids.take().unwrap();
        shared.touch(first);
        let users: Vec<_> = (0..2)
            .map(|_| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.take_use_and_give())
            })
            .collect();
        shared.ids.give(first).unwrap();
        users.into_iter().for_each(|user| drop(user.join()));
        assert_eq!([shared.ids.take(), shared.ids.take()], [DomainId::new(1), DomainId::new(2)]);
    });
}
