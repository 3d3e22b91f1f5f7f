//! The tables: mappers that need the same one, unmaps of the same range, readers beside an unmap, and flushes.
#![cfg(loom)]
#![allow(missing_docs)]

use loom::thread;
use loom_tests::{
    UNBOUNDED, model,
    tables::{PAGE, TinyFrames, close, is_mapped, map, preallocate, reclaim, tiny_domain, unmap},
};
use std::sync::Arc;

#[test]
fn two_mappers_that_need_the_same_tables_share_one_of_each() {
    model(UNBOUNDED, || {
        let domain = Arc::new(tiny_domain(&TinyFrames::new(5), true));
        let other = {
            let domain = Arc::clone(&domain);
            thread::spawn(move || map(&domain, 1, 1).unwrap())
        };
        map(&domain, 0, 1).unwrap();
        other.join().unwrap();
        assert!(is_mapped(&domain, 0) && is_mapped(&domain, 1) && !is_mapped(&domain, 2));
        assert_eq!((domain.table_frames(), domain.allocator().out_and_leaked()), (3, (3, 0)));
        close(Arc::into_inner(domain).unwrap());
    });
}

#[test]
fn two_unmaps_of_one_subtree_give_each_table_to_one_of_them() {
    model(3, || {
        let domain = Arc::new(tiny_domain(&TinyFrames::new(4), true));
        map(&domain, 0, 4).unwrap();
        let other = {
            let domain = Arc::clone(&domain);
            // All below the root, which contains what the other one unmaps: against the contract, and yet no frame gets two owners.
            thread::spawn(move || unmap(&domain, 0, 4))
        };
        let mine = unmap(&domain, 0, 2);
        assert!(other.join().unwrap() || mine);
        domain.maintain();
        assert_eq!(domain.retired_frames(), 0);
        close(Arc::into_inner(domain).unwrap());
    });
}

#[test]
fn a_frame_that_a_reader_may_be_inside_is_not_used_again() {
    model(4, || {
        let domain = Arc::new(tiny_domain(&TinyFrames::new(3), true));
        // Once before, so that the frames have a history.
        map(&domain, 0, 2).unwrap();
        assert!(unmap(&domain, 0, 2));
        map(&domain, 0, 2).unwrap();
        // A walk elsewhere, whose slot the reader finds, and then one of its own.
        assert!(!is_mapped(&domain, 6));
        let reader = {
            let domain = Arc::clone(&domain);
            thread::spawn(move || {
                is_mapped(&domain, 1);
                is_mapped(&domain, 6);
            })
        };
        assert!(unmap(&domain, 0, 2));
        // The frames of the last mapping, if they are back.
        let _ = map(&domain, 6, 2);
        reader.join().unwrap();
        assert!(!is_mapped(&domain, 1));
        assert_eq!(domain.maintain(), 0, "nobody is inside any more");
        close(Arc::into_inner(domain).unwrap());
    });
}

#[test]
fn frames_that_one_context_retires_and_another_returns_come_back_once() {
    model(3, || {
        let domain = Arc::new(tiny_domain(&TinyFrames::new(3), true));
        map(&domain, 0, 2).unwrap();
        let reader = {
            let domain = Arc::clone(&domain);
            // Where the tables were that are retired: it holds them back.
            thread::spawn(move || is_mapped(&domain, 0))
        };
        let other = {
            let domain = Arc::clone(&domain);
            thread::spawn(move || assert!(unmap(&domain, 0, 2)))
        };
        domain.maintain();
        other.join().unwrap();
        reader.join().unwrap();
        assert_eq!((domain.maintain(), domain.allocator().out_and_leaked()), (0, (2, 0)));
        close(Arc::into_inner(domain).unwrap());
    });
}

#[test]
fn a_map_beside_the_return_of_its_empty_tables_is_found_by_hardware_and_by_readers() {
    model(3, || {
        let domain = Arc::new(tiny_domain(&TinyFrames::new(5), false));
        let root = domain.root();
        // In pieces, so that the tables stay.
        map(&domain, 0, 1).unwrap();
        assert!(unmap(&domain, 0, 1));
        let other = {
            let domain = Arc::clone(&domain);
            thread::spawn(move || {
                map(&domain, 1, 1).unwrap();
                assert!(domain.allocator().hardware_finds(root, PAGE), "V6");
            })
        };
        assert!(reclaim(&domain, 0, 2));
        other.join().unwrap();
        assert!(is_mapped(&domain, 1) && domain.allocator().hardware_finds(root, PAGE), "V9");
        domain.maintain();
        assert_eq!((domain.table_frames(), domain.allocator().out_and_leaked()), (3, (3, 0)));
        close(Arc::into_inner(domain).unwrap());
    });
}

#[test]
fn a_reader_beside_the_return_of_an_empty_table_finds_no_frame_of_somebody_else() {
    model(3, || {
        let domain = Arc::new(tiny_domain(&TinyFrames::new(5), true));
        map(&domain, 0, 1).unwrap();
        assert!(unmap(&domain, 0, 1));
        let reader = {
            let domain = Arc::clone(&domain);
            thread::spawn(move || assert!(!is_mapped(&domain, 1)))
        };
        assert!(reclaim(&domain, 0, 2));
        // The frames that were taken, if they are back.
        map(&domain, 6, 2).unwrap();
        reader.join().unwrap();
        assert_eq!(domain.maintain(), 0, "nobody is inside any more");
        close(Arc::into_inner(domain).unwrap());
    });
}

#[test]
fn two_reclaims_take_each_table_once() {
    model(UNBOUNDED, || {
        let domain = Arc::new(tiny_domain(&TinyFrames::new(3), true));
        map(&domain, 0, 1).unwrap();
        assert!(unmap(&domain, 0, 1));
        let other = {
            let domain = Arc::clone(&domain);
            thread::spawn(move || reclaim(&domain, 0, 2))
        };
        let mine = reclaim(&domain, 0, 2);
        assert!(other.join().unwrap() || mine, "it was the turn of one of them");
        assert!(reclaim(&domain, 0, 8));
        domain.maintain();
        assert_eq!((domain.table_frames(), domain.allocator().out_and_leaked()), (1, (1, 0)), "the root");
        close(Arc::into_inner(domain).unwrap());
    });
}

#[test]
fn tables_that_are_built_beforehand_beside_a_reclaim_stay() {
    model(3, || {
        let domain = Arc::new(tiny_domain(&TinyFrames::new(5), true));
        map(&domain, 0, 1).unwrap();
        assert!(unmap(&domain, 0, 1));
        let other = {
            let domain = Arc::clone(&domain);
            thread::spawn(move || preallocate(&domain, 0, 2))
        };
        assert!(reclaim(&domain, 0, 2));
        other.join().unwrap();
        assert!(reclaim(&domain, 0, 8));
        domain.maintain();
        assert_eq!((domain.table_frames(), domain.allocator().out_and_leaked()), (3, (3, 0)));
        close(Arc::into_inner(domain).unwrap());
    });
}

#[test]
fn what_a_mapper_says_is_mapped_is_found_by_hardware_that_does_not_snoop_whoever_linked_the_tables() {
    model(3, || {
        let domain = Arc::new(tiny_domain(&TinyFrames::new(5), false));
        let root = domain.root();
        let other = {
            let domain = Arc::clone(&domain);
            thread::spawn(move || {
                map(&domain, 1, 1).unwrap();
                assert!(domain.allocator().hardware_finds(root, PAGE), "V6");
            })
        };
        map(&domain, 0, 1).unwrap();
        assert!(domain.allocator().hardware_finds(root, 0), "V6");
        assert!(!domain.allocator().hardware_finds(root, 2 * PAGE), "V6");
        other.join().unwrap();
        assert!(unmap(&domain, 0, 1) && !domain.allocator().hardware_finds(root, 0), "V6");
        close(Arc::into_inner(domain).unwrap());
    });
}
