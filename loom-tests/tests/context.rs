//! The tables that lead to a domain: entries written, read and taken away by several contexts at once.
#![cfg(loom)]
#![allow(missing_docs)]

use framepool::{
    PhysAddr,
    vtd::{
        Capabilities, ContextEntry, ContextTranslation, DomainId, Levels, SourceId, TableFrames,
        context::{AttachError, LegacyTables},
    },
};
use loom::{
    sync::{Arc, atomic::AtomicU64},
    thread,
};
use loom_tests::{UNBOUNDED, model};
use std::{ptr::NonNull, sync::Mutex};

/// A unit that snoops, with four levels.
const UNIT: Capabilities = Capabilities::from_registers(0x00d2_008c_222f_0606, 0x00f0_0f4b);

/// Frames of words that loom watches; which are out is no part of the model.
struct Frames {
    words: Vec<Vec<AtomicU64>>,
    out: Mutex<Vec<bool>>,
}

impl Frames {
    fn new(frames: usize) -> Self {
        let words = (0..frames).map(|_| (0..512).map(|_| AtomicU64::new(0)).collect()).collect();
        Self { words, out: Mutex::new(vec![false; frames]) }
    }

    fn out(&self) -> usize {
        self.out.lock().unwrap().iter().filter(|&&out| out).count()
    }
}

// SAFETY: a frame is out at most once, and its words are atomics that live as long as the allocator.
unsafe impl TableFrames for Frames {
    fn allocate(&self) -> Option<PhysAddr> {
        let mut out = self.out.lock().unwrap();
        let number = out.iter().position(|out| !out)?;
        out[number] = true;
        Some(PhysAddr::new((number as u64 + 1) << 12))
    }

    unsafe fn free(&self, frame: PhysAddr) {
        let number = (frame.as_u64() >> 12) as usize - 1;
        assert!(std::mem::take(&mut self.out.lock().unwrap()[number]), "INV-1: {frame} came back twice");
    }

    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        NonNull::from(self.words[(frame.as_u64() >> 12) as usize - 1].as_slice()).cast()
    }
}

type Tables = LegacyTables<Frames>;

fn tables(frames: usize) -> Arc<Tables> {
    Arc::new(LegacyTables::new(UNIT, 48, Frames::new(frames)).unwrap())
}

fn device(function: u8) -> SourceId {
    SourceId::new(0, 0, function).unwrap()
}

fn entry(domain: u16) -> ContextEntry {
    let root = PhysAddr::new(u64::from(domain) << 12);
    let translation = ContextTranslation::SecondStage { root, levels: Levels::Four, device_tlb: false };
    ContextEntry::new(translation, DomainId::new(domain).unwrap())
}

fn attach(tables: &Tables, at: SourceId, domain: u16) -> Result<(), AttachError> {
    // SAFETY: no device is there to follow the entry.
    unsafe { tables.attach(at, entry(domain)) }.map(|_| ())
}

#[test]
fn two_first_devices_of_a_bus_share_one_table() {
    model(UNBOUNDED, || {
        let shared = tables(3);
        let other = Arc::clone(&shared);
        let second = thread::spawn(move || attach(&other, device(1), 9));
        assert_eq!(attach(&shared, device(0), 8), Ok(()));
        assert_eq!(second.join().unwrap(), Ok(()));
        assert_eq!(shared.entry(device(0)), Ok(Some(entry(8))));
        assert_eq!(shared.entry(device(1)), Ok(Some(entry(9))));
        assert_eq!((shared.allocator().out(), shared.table_frames()), (2, 2), "the loser's table is back");
    });
}

#[test]
fn of_two_entries_for_a_device_one_is_refused() {
    model(UNBOUNDED, || {
        let shared = tables(3);
        attach(&shared, device(1), 7).unwrap();
        let other = Arc::clone(&shared);
        let second = thread::spawn(move || attach(&other, device(0), 9));
        let mine = attach(&shared, device(0), 8);
        let theirs = second.join().unwrap();
        let winner = if mine.is_ok() { 8 } else { 9 };
        assert!(mine.is_ok() != theirs.is_ok(), "{mine:?} {theirs:?}");
        assert_eq!(shared.entry(device(0)), Ok(Some(entry(winner))), "both words are the winner's");
    });
}

#[test]
fn whoever_sees_an_entry_sees_all_of_it() {
    model(UNBOUNDED, || {
        let shared = tables(3);
        attach(&shared, device(1), 7).unwrap();
        let other = Arc::clone(&shared);
        let reader = thread::spawn(move || other.entry(device(0)));
        attach(&shared, device(0), 8).unwrap();
        let seen = reader.join().unwrap().expect("no word is of another entry");
        assert!(seen.is_none_or(|seen| seen == entry(8)));
    });
}

#[test]
fn an_entry_that_goes_is_seen_whole_or_not_at_all() {
    model(UNBOUNDED, || {
        let shared = tables(3);
        attach(&shared, device(0), 8).unwrap();
        let other = Arc::clone(&shared);
        let reader = thread::spawn(move || other.entry(device(0)));
        // SAFETY: no unit reads these tables.
        unsafe { shared.detach(device(0)).unwrap().complete() };
        let seen = reader.join().unwrap().expect("no word is of another entry");
        assert!(seen.is_none_or(|seen| seen == entry(8)));
    });
}

#[test]
fn a_place_is_free_only_when_the_removal_is_complete() {
    model(UNBOUNDED, || {
        let shared = tables(3);
        attach(&shared, device(0), 8).unwrap();
        let other = Arc::clone(&shared);
        let successor = thread::spawn(move || attach(&other, device(0), 9));
        let detached = shared.detach(device(0)).unwrap();
        // SAFETY: no unit reads these tables.
        unsafe { detached.complete() };
        let next = successor.join().unwrap().map(|()| entry(9));
        assert_eq!(shared.entry(device(0)), Ok(next.ok()), "the new entry is whole, or there is none");
    });
}

#[test]
fn of_two_removals_one_is_refused() {
    model(UNBOUNDED, || {
        let shared = tables(3);
        attach(&shared, device(0), 8).unwrap();
        let other = Arc::clone(&shared);
        let remover = thread::spawn(move || {
            other.detach(device(0)).map(|detached| {
                // SAFETY: no unit reads these tables.
                unsafe { detached.complete() }
            })
        });
        let mine = shared.detach(device(0)).is_ok();
        let theirs = remover.join().unwrap().is_ok();
        assert!(mine != theirs);
    });
}
