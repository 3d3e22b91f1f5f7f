//! The tables: mappers that need the same one, unmaps of the same range, readers beside an unmap, and flushes.
#![cfg(loom)]
#![allow(missing_docs)]

use loom::thread;
use loom_tests::{
    model,
    tables::{PAGE, TinyFrames, close, is_mapped, map, tiny_domain, unmap},
};
use std::sync::Arc;

#[test]
fn two_mappers_that_need_the_same_tables_share_one_of_each() {
    model(3, || {
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
    model(3, || {
        let domain = Arc::new(tiny_domain(&TinyFrames::new(4), true));
        // Once before, so that the frames have a history.
        map(&domain, 0, 4).unwrap();
        assert!(unmap(&domain, 0, 4));
        map(&domain, 0, 4).unwrap();
        let reader = {
            let domain = Arc::clone(&domain);
            thread::spawn(move || is_mapped(&domain, 1))
        };
        assert!(unmap(&domain, 0, 4));
        // The frames of the last mapping, if they are back.
        let _ = map(&domain, 6, 2);
        reader.join().unwrap();
        assert!(!is_mapped(&domain, 1));
        assert_eq!(domain.maintain(), 0, "nobody is inside any more");
        close(Arc::into_inner(domain).unwrap());
    });
}

#[test]
fn frames_that_two_contexts_retire_at_once_all_come_back() {
    model(3, || {
        let domain = Arc::new(tiny_domain(&TinyFrames::new(5), true));
        map(&domain, 0, 2).unwrap();
        map(&domain, 4, 2).unwrap();
        let other = {
            let domain = Arc::clone(&domain);
            thread::spawn(move || assert!(unmap(&domain, 0, 2)))
        };
        assert!(unmap(&domain, 4, 2));
        other.join().unwrap();
        domain.maintain();
        assert_eq!((domain.maintain(), domain.allocator().out_and_leaked()), (0, (3, 0)));
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
