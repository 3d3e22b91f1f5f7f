//! Leaves that change while hardware writes to them too: no bit that it sets is lost, and no change.
#![cfg(loom)]
#![allow(missing_docs)]

use framepool::vtd::{Iova, Permissions};
use loom::thread;
use loom_tests::{
    UNBOUNDED, model,
    tables::{
        PAGE, TinyDomain, TinyFrames, close, is_mapped, join, map, noting_domain, protect, take_accessed,
        take_dirty,
    },
};
use std::sync::Arc;

/// Maps the first two pages, and runs `change` beside a write of the device to page number `page`; whether the device could write.
fn beside_a_write(page: u64, domain: &TinyDomain, change: impl FnOnce(&TinyDomain)) -> bool {
    map(domain, 0, 2).unwrap();
    let (frames, root) = (domain.allocator().clone(), domain.root());
    let device = thread::spawn(move || frames.device_writes(root, page));
    change(domain);
    device.join().unwrap()
}

fn rights(domain: &TinyDomain, page: u64) -> Permissions {
    domain.translate(Iova::new(page * PAGE)).unwrap().permissions
}

#[test]
fn a_write_beside_the_split_of_its_leaf_is_noted_and_the_leaf_is_split() {
    model(UNBOUNDED, || {
        let domain = noting_domain(&TinyFrames::new(3));
        assert!(beside_a_write(1, &domain, |domain| protect(domain, 0)), "page 1 is writable all the time");
        assert_eq!((rights(&domain, 0), rights(&domain, 1)), (Permissions::READ, Permissions::all()));
        assert!(take_dirty(&domain) & 2 != 0);
        close(domain);
    });
}

#[test]
fn a_write_beside_the_loss_of_the_right_to_it_is_noted_if_it_was_done() {
    model(UNBOUNDED, || {
        let domain = noting_domain(&TinyFrames::new(3));
        let wrote = beside_a_write(0, &domain, |domain| {
            protect(domain, 1);
            protect(domain, 0);
        });
        assert_eq!(rights(&domain, 0), Permissions::READ);
        assert!(!wrote || take_dirty(&domain) & 1 != 0);
        close(domain);
    });
}

#[test]
fn a_write_beside_the_reading_of_bits_is_in_this_reading_or_the_next() {
    model(UNBOUNDED, || {
        let domain = noting_domain(&TinyFrames::new(3));
        let mut first = 0;
        assert!(beside_a_write(0, &domain, |domain| first = take_dirty(domain)));
        let second = take_dirty(&domain);
        assert_eq!((first | second, first & second), (3, 0), "the leaf stands for two pages");
        close(domain);
    });
}

#[test]
fn a_bit_that_hardware_sets_beside_the_clearing_of_the_other_is_kept() {
    model(UNBOUNDED, || {
        let domain = noting_domain(&TinyFrames::new(3));
        map(&domain, 0, 2).unwrap();
        let (frames, root) = (domain.allocator().clone(), domain.root());
        assert!(frames.device_writes(root, 0));
        assert_eq!(take_accessed(&domain), 3, "the leaf stands for two pages");
        let device = thread::spawn(move || frames.device_writes(root, 0));
        assert_eq!(take_dirty(&domain), 3);
        assert!(device.join().unwrap());
        assert_eq!(take_accessed(&domain), 3, "the second write was noted");
        close(domain);
    });
}

/// Two leaves of a page each, in a table of their own.
fn two_pages(frames: usize) -> TinyDomain {
    let domain = noting_domain(&TinyFrames::new(frames));
    map(&domain, 0, 1).unwrap();
    map(&domain, 1, 1).unwrap();
    domain
}

#[test]
fn a_write_beside_a_join_is_noted_whether_it_goes_through_the_table_or_the_leaf() {
    model(UNBOUNDED, || {
        let domain = two_pages(4);
        let (frames, root) = (domain.allocator().clone(), domain.root());
        let device = thread::spawn(move || frames.device_writes(root, 1));
        // SAFETY: nobody else changes these tables.
        let invalidation = unsafe { domain.join(Iova::new(0), 2 * PAGE).unwrap() };
        assert!(device.join().unwrap(), "the page is writable all the time");
        // SAFETY: the device has written what it had to write.
        unsafe { invalidation.complete() };
        assert!(take_dirty(&domain) & 2 != 0);
        close(domain);
    });
}

#[test]
fn a_reader_beside_a_join_finds_the_pages() {
    model(5, || {
        let domain = Arc::new(two_pages(4));
        let reader = {
            let domain = Arc::clone(&domain);
            thread::spawn(move || assert!(is_mapped(&domain, 0)))
        };
        join(&domain);
        reader.join().unwrap();
        domain.maintain();
        assert_eq!((domain.maintain(), domain.table_frames()), (0, 2));
        close(Arc::into_inner(domain).unwrap());
    });
}
