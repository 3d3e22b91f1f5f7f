//! A reader who is stopped in the middle of a walk: it stops neither map nor unmap, and holds back the frames only that it may see.
#![cfg(not(loom))]

mod common;

use common::tables::TestFrames;
use framepool::{PhysAddr, vtd::*};
use std::{
    cell::Cell,
    ptr::NonNull,
    sync::Barrier,
    thread::{self, Scope, ScopedJoinHandle},
};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

thread_local! {
    /// How many more tables this thread looks into before it stops.
    static STEPS: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// Frames behind a gate: a reader stops there, twice waiting for the others.
struct Gate {
    frames: TestFrames,
    stopped: Barrier,
}

// SAFETY: the frames keep the contract; the gate only takes time.
unsafe impl TableFrames for &Gate {
    fn allocate(&self) -> Option<PhysAddr> {
        self.frames.allocate()
    }
    unsafe fn free(&self, frame: PhysAddr) {
        // SAFETY: the caller's.
        unsafe { self.frames.free(frame) }
    }
    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        let left = STEPS.get();
        STEPS.set(left.wrapping_sub(1));
        if left == 0 {
            self.stopped.wait();
            self.stopped.wait();
        }
        self.frames.pointer(frame)
    }
    fn leaked(&self, frames: u64) {
        self.frames.leaked(frames);
    }
}

type GatedDomain<'g> = SecondStageDomain<&'g Gate>;

fn gate() -> Gate {
    Gate { frames: TestFrames::default(), stopped: Barrier::new(2) }
}

fn cycle(domain: &GatedDomain<'_>, iova: u64, length: u64) {
    // SAFETY: no device walks these tables.
    unsafe { domain.map(Iova::new(iova), PhysAddr::new(0), length, Permissions::all()).unwrap() };
    // SAFETY: as above.
    unsafe { domain.unmap(Iova::new(iova), length).unwrap().complete() };
}

/// A thread that was stopped. It goes on when this goes.
struct Stopped<'s, 'g, T> {
    gate: &'g Gate,
    thread: Option<ScopedJoinHandle<'s, T>>,
}

impl<T> Stopped<'_, '_, T> {
    fn let_go(mut self) -> T {
        let thread = self.thread.take().unwrap();
        self.gate.stopped.wait();
        thread.join().unwrap()
    }
}

impl<T> Drop for Stopped<'_, '_, T> {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.gate.stopped.wait();
        }
    }
}

/// Starts a thread that stops before it looks into the table after so many, and returns when it has.
fn stop<'s, 'g, T: Send + 's>(
    scope: &'s Scope<'s, '_>,
    domain: &'s GatedDomain<'g>,
    steps: u64,
    work: impl FnOnce(&GatedDomain<'g>) -> T + Send + 's,
) -> Stopped<'s, 'g, T> {
    let thread = scope.spawn(move || {
        STEPS.set(steps);
        work(domain)
    });
    let gate = *domain.allocator();
    gate.stopped.wait();
    Stopped { gate, thread: Some(thread) }
}

fn close(domain: GatedDomain<'_>) {
    let gate = *domain.allocator();
    // SAFETY: no device walks these tables.
    unsafe { domain.close().complete() };
    assert_eq!((gate.frames.live(), gate.frames.leaked_so_far()), (0, 0), "every table frame is back");
}

#[test]
fn a_reader_that_is_stopped_holds_back_the_tables_of_its_address_only() {
    let gate = gate();
    let domain = SecondStageDomain::new(DomainConfig::new(Levels::Four), &gate).unwrap();
    // SAFETY: no device walks these tables.
    unsafe { domain.map(Iova::new(0), PhysAddr::new(0), 2 * MIB, Permissions::all()).unwrap() };
    // The last that its table translates: what is next to it is another's.
    let page = 511 * PAGE;
    thread::scope(|scope| {
        let reader = stop(scope, &domain, 3, |domain| domain.translate(Iova::new(page)));
        cycle(&domain, 2 * MIB, 2 * MIB);
        for number in 1..1000 {
            cycle(&domain, number % 64 * 2 * MIB + GIB, 2 * MIB);
        }
        assert_eq!(domain.stats().retired, 0, "tables for other addresses go back at once");
        assert_eq!((gate.frames.live(), domain.table_frames()), (5, 5));
        // SAFETY: as above.
        unsafe { domain.unmap(Iova::new(0), 2 * MIB).unwrap().complete() };
        for round in 1..100 {
            assert_eq!(
                (domain.stats().retired, domain.maintain()),
                (round, round),
                "the reader may see these"
            );
            cycle(&domain, 0, 2 * MIB);
        }
        assert_eq!(gate.frames.live(), domain.table_frames() + 100);
        // The table that it was about to look into is untouched but for its first entry.
        let found = reader.let_go();
        assert!(found.is_none_or(|at| at.target == PhysAddr::new(page)), "{found:?}");
    });
    assert_eq!(domain.maintain(), 0);
    assert_eq!((domain.stats().retired_most, gate.frames.live()), (100, domain.table_frames()));
    close(domain);
}

#[test]
fn an_iterator_that_is_held_open_holds_nothing_but_a_step_of_it_all_that_is_left() {
    let gate = gate();
    let domain = SecondStageDomain::new(DomainConfig::new(Levels::Three), &gate).unwrap();
    for number in 0..4 {
        // SAFETY: no device walks these tables.
        unsafe {
            domain.map(Iova::new(number * GIB), PhysAddr::new(0), PAGE, Permissions::all()).unwrap();
        }
    }
    let mut mappings = domain.mappings();
    assert_eq!(mappings.next().map(|mapping| mapping.iova), Some(Iova::new(0)));
    cycle(&domain, 2 * MIB, 2 * MIB);
    assert_eq!(domain.stats().retired, 0, "nobody is inside between two steps");
    thread::scope(|scope| {
        let reader = stop(scope, &domain, 2, |domain| domain.mappings().count());
        for round in 1..10 {
            cycle(&domain, 2 * MIB, 2 * MIB);
            assert_eq!(domain.stats().retired, round);
        }
        assert_eq!(reader.let_go(), 4);
    });
    assert_eq!((domain.maintain(), mappings.count()), (0, 3));
    close(domain);
}

#[test]
fn frames_that_were_retired_later_wait_for_the_reader_who_came_later() {
    let gate = gate();
    let domain = SecondStageDomain::new(DomainConfig::new(Levels::Three), &gate).unwrap();
    cycle(&domain, 0, PAGE);
    thread::scope(|scope| {
        let first = stop(scope, &domain, 1, |domain| domain.translate(Iova::new(0)));
        cycle(&domain, 0, 2 * MIB);
        assert_eq!(domain.maintain(), 1);
        first.let_go();
        let second = stop(scope, &domain, 1, |domain| domain.translate(Iova::new(0)));
        cycle(&domain, 0, 2 * MIB);
        assert_eq!(domain.maintain(), 1, "the first is back, the second is not");
        second.let_go();
    });
    assert_eq!(domain.maintain(), 0);
    close(domain);
}

#[test]
fn a_map_that_is_stopped_keeps_its_empty_tables_and_no_others() {
    // It goes by the root and two tables, and stops before it looks into the last.
    a_stopped_map_keeps(0, PAGE, 2, 3);
}

#[test]
fn a_map_that_is_stopped_on_the_long_way_keeps_its_empty_tables_and_no_others() {
    // It looks into four tables, then again, and stops before it writes into the first of both leaf tables.
    a_stopped_map_keeps(2 * MIB - PAGE, 2 * PAGE, 6, 4);
}

/// A map of `length` bytes from `iova` on is stopped after `steps` tables: `kept` of eight stay, which are all on its way.
fn a_stopped_map_keeps(iova: u64, length: u64, steps: u64, kept: u64) {
    let gate = gate();
    let domain = SecondStageDomain::new(DomainConfig::new(Levels::Three), &gate).unwrap();
    let iovas = [0, 2 * MIB, GIB, 3 * GIB];
    for iova in iovas {
        cycle(&domain, iova, PAGE);
    }
    assert_eq!(domain.table_frames(), 1 + 3 + 4);
    thread::scope(|scope| {
        let mapper = stop(scope, &domain, steps, |domain| {
            // SAFETY: no device walks these tables.
            unsafe { domain.map(Iova::new(iova), PhysAddr::new(7 * PAGE), length, Permissions::all()) }
        });
        for _ in 0..3 {
            // SAFETY: as above.
            unsafe { domain.reclaim(Iova::new(0), 4 * GIB).unwrap().complete() };
            assert_eq!(domain.table_frames(), kept, "those on its way stay, all others go");
        }
        assert_eq!(gate.frames.live(), kept);
        mapper.let_go().unwrap();
    });
    assert_eq!(domain.translate(Iova::new(iova)).map(|at| at.target), Some(PhysAddr::new(7 * PAGE)));
    // SAFETY: as above.
    unsafe { domain.reclaim(Iova::new(0), 4 * GIB).unwrap().complete() };
    assert_eq!((domain.table_frames(), domain.stats().reclaimed), (kept, 8 - kept));
    close(domain);
}
