//! Threads that map, unmap, join, walk, build beforehand and reclaim in one domain, in ranges that share every table.

use crate::{
    choose, model,
    tiny::{
        PAGE, TinyDomain, TinyFrames, close, is_mapped, join_in, map, noting_domain, reclaim, tiny_domain,
        unmap,
    },
};
use framepool::vtd::{Iova, UnmapError};
use shuttle::thread;
use std::sync::Arc;

const STEPS: usize = 4;
/// Pages of the domain.
const PAGES: u64 = 8;

/// A walk of somebody else's: whatever it finds, it finds no frame that is free.
fn look(domain: &TinyDomain) {
    is_mapped(domain, choose(PAGES as u32).into());
}

/// Unmaps pages that are mapped, unless a leaf must be split and there is no frame.
fn take_out(domain: &TinyDomain, first: u64, pages: u64) -> bool {
    match domain.unmap(Iova::new(first * PAGE), pages * PAGE) {
        // SAFETY: nothing walks these tables but the model.
        Ok(invalidation) => unsafe { invalidation.complete() },
        Err(UnmapError::OutOfFrames { .. }) => return false,
        Err(error) => panic!("it was mapped: {error}"),
    }
    true
}

/// What a thread does with its `pages` pages from number `first` on, once; `mapped` is what they are.
fn change(domain: &TinyDomain, first: u64, pages: u64, mapped: &mut bool) {
    match choose(8) {
        0 => drop(reclaim(domain, 0, PAGES)),
        1 => drop(reclaim(domain, first & !1, 2)),
        2 => look(domain),
        3 if choose(2) == 0 => preallocate_and_release(domain, first, pages),
        _ if *mapped => {
            // All at once, or in pieces.
            let cut = if choose(2) == 0 { pages } else { 1 };
            if take_out(domain, first, cut) {
                assert!(cut == pages || take_out(domain, first + cut, pages - cut), "a page needs no frame");
                *mapped = false;
            }
        }
        _ => *mapped = map(domain, first, pages).is_ok(),
    }
    assert!((first..first + pages).all(|page| is_mapped(domain, page) == *mapped), "V1");
}

/// Tables for pages that are built beforehand, if there are frames, and left to the next reclaim.
fn preallocate_and_release(domain: &TinyDomain, first: u64, pages: u64) {
    let (iova, length) = (Iova::new(first * PAGE), pages * PAGE);
    if domain.preallocate(iova, length).is_ok() {
        domain.release(iova, length).unwrap();
    }
}

/// Every frame is where the domain says, and goes back.
fn end(domain: Arc<TinyDomain>, mapped: impl Iterator<Item = (u64, u64, bool)>) {
    for (first, pages, mapped) in mapped {
        assert!((first..first + pages).all(|page| is_mapped(&domain, page) == mapped), "V1");
        assert!(!mapped || unmap(&domain, first, pages), "V1");
    }
    for _ in 0..2 {
        assert!(reclaim(&domain, 0, PAGES), "nobody else has the turn");
    }
    assert_eq!((domain.maintain(), domain.table_frames()), (0, 1), "V9: the root is left");
    assert_eq!(domain.allocator().out_and_leaked(), (1, 0));
    close(Arc::into_inner(domain).unwrap());
}

#[test]
fn four_threads_share_every_table() {
    model("tables", || {
        // Enough for all tables, or not.
        let domain = Arc::new(tiny_domain(&TinyFrames::new(5 + choose(10) as usize), true));
        let threads = [0, 1, 2, 3].map(|number| {
            let domain = Arc::clone(&domain);
            thread::spawn(move || {
                let mut mapped = false;
                (0..STEPS).for_each(|_| change(&domain, 2 * number, 2, &mut mapped));
                (2 * number, 2, mapped)
            })
        });
        let mapped = threads.map(|thread| thread.join().unwrap());
        end(domain, mapped.into_iter());
    });
}

#[test]
fn pages_of_one_table_come_and_go_by_three_threads() {
    model("one table", || {
        let domain = Arc::new(tiny_domain(&TinyFrames::new(3 + choose(6) as usize), true));
        let threads = [0, 1, 3].map(|page| {
            let domain = Arc::clone(&domain);
            thread::spawn(move || {
                let mut mapped = false;
                (0..STEPS).for_each(|_| change(&domain, page, 1, &mut mapped));
                (page, 1, mapped)
            })
        });
        let mapped = threads.map(|thread| thread.join().unwrap());
        end(domain, mapped.into_iter());
    });
}

/// Leaves of two pages are split, and joined again.
#[test]
fn large_leaves_come_and_go_by_three_threads() {
    model("large leaves", || {
        let domain = Arc::new(noting_domain(&TinyFrames::new(4 + choose(6) as usize)));
        let threads = [0, 1, 3].map(|number| {
            let domain = Arc::clone(&domain);
            thread::spawn(move || {
                let (first, mut mapped) = (2 * number, false);
                for _ in 0..STEPS {
                    change(&domain, first, 2, &mut mapped);
                    if mapped && choose(2) == 0 && take_out(&domain, first, 1) {
                        // The leaf was split, which leaves it whole if the page can be mapped again.
                        mapped = map(&domain, first, 1).is_ok();
                        assert!(mapped || take_out(&domain, first + 1, 1), "a page needs no frame");
                    }
                    join_in(&domain, first, 2);
                    assert!((first..first + 2).all(|page| is_mapped(&domain, page) == mapped), "V1");
                }
                (first, 2, mapped)
            })
        });
        let mapped = threads.map(|thread| thread.join().unwrap());
        end(domain, mapped.into_iter());
    });
}
