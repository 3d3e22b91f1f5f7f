//! Tables that became empty: when they go, when they stay, what hardware is told, and that their number stays bounded.
#![cfg(not(loom))]

mod common;

use common::tables::{NoHardware, TestFrames, snapshot};
use framepool::{PhysAddr, vtd::*};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const ALL_LEVELS: [Levels; 3] = [Levels::Three, Levels::Four, Levels::Five];

type TestDomain<'f> = SecondStageDomain<&'f TestFrames>;

fn domain(levels: Levels, frames: &TestFrames) -> TestDomain<'_> {
    SecondStageDomain::new(DomainConfig::new(levels), frames).unwrap()
}

fn map<A: TableFrames>(domain: &SecondStageDomain<A>, iova: u64, length: u64) -> Result<(), MapError> {
    // SAFETY: no device walks these tables.
    unsafe { domain.map(Iova::new(iova), PhysAddr::new(iova), length, Permissions::all()) }
}

fn complete<A: TableFrames>(invalidation: Invalidation<'_, A>) {
    // SAFETY: no device walks these tables.
    unsafe { invalidation.complete() };
}

fn unmap<A: TableFrames>(domain: &SecondStageDomain<A>, iova: u64, length: u64) {
    complete(domain.unmap(Iova::new(iova), length).unwrap());
}

fn reclaim<'d>(domain: &'d TestDomain<'_>) -> Invalidation<'d, &'d TestFrames> {
    domain.reclaim(Iova::new(0), 1 << domain.config().address_width).unwrap()
}

fn target<A: TableFrames>(domain: &SecondStageDomain<A>, iova: u64) -> Option<u64> {
    domain.translate(Iova::new(iova)).map(|at| at.target.as_u64())
}

fn close(domain: TestDomain<'_>) {
    let frames = *domain.allocator();
    // SAFETY: no device walks these tables.
    unsafe { domain.close().complete() };
    assert_eq!((frames.live(), frames.leaked_so_far()), (0, 0), "every table frame is back");
}

/// Maps both pages of the range alone and unmaps them one by one, so that all tables for them stay.
fn leave_empty_tables<A: TableFrames>(domain: &SecondStageDomain<A>, iova: u64) {
    map(domain, iova, 2 * PAGE).unwrap();
    unmap(domain, iova, PAGE);
    unmap(domain, iova + PAGE, PAGE);
}

#[test]
fn in_a_quiet_domain_one_reclaim_takes_all_that_is_empty_and_nothing_else() {
    for levels in ALL_LEVELS {
        let frames = TestFrames::default();
        let domain = domain(levels, &frames);
        map(&domain, 4 * GIB, PAGE).unwrap();
        let needed = domain.table_frames();
        for iova in [0, 2 * MIB, GIB, 3 * GIB + 6 * MIB, 4 * GIB + 2 * MIB, 100 * GIB] {
            leave_empty_tables(&domain, iova);
        }
        let before = domain.table_frames();
        let invalidation = reclaim(&domain);
        assert_eq!(invalidation.table_frames(), before - needed);
        assert!(!invalidation.leaf_only(), "hardware may hold the entries that named them");
        assert_eq!((frames.live(), domain.table_frames()), (before, before), "INV-10: not yet");
        complete(invalidation);
        assert_eq!((frames.live(), domain.table_frames()), (needed, needed));
        assert_eq!(target(&domain, 4 * GIB), Some(4 * GIB));
        assert!(reclaim(&domain).is_empty());
        close(domain);
    }
}

#[test]
fn only_the_range_is_looked_at() {
    let frames = TestFrames::default();
    let domain = domain(Levels::Four, &frames);
    for iova in [0, 2 * MIB, 4 * MIB, GIB] {
        leave_empty_tables(&domain, iova);
    }
    let before = snapshot(&frames, domain.root(), 4);
    let invalidation = domain.reclaim(Iova::new(2 * MIB), PAGE).unwrap();
    assert_eq!(invalidation.table_frames(), 1);
    let ranges: Vec<_> = invalidation.ranges().collect();
    assert_eq!(ranges, [IovaRange { start: Iova::new(2 * MIB), length: 2 * MIB }]);
    assert_eq!(invalidation.least_mask(), 9, "what the entry covered");
    complete(invalidation);
    assert_eq!(domain.table_frames() + 1, before.len() as u64);
    for (iova, length, expected) in [
        (0, 0, RangeError::Empty),
        (5, PAGE, RangeError::Misaligned { iova: Iova::new(5), length: PAGE }),
        (0, 1 << 49, RangeError::BeyondWidth { iova: Iova::new(0), length: 1 << 49, width: 48 }),
    ] {
        let outcome = domain.reclaim(Iova::new(iova), length);
        assert_eq!(outcome.err(), Some(ReclaimError::Range(expected)));
    }
    close(domain);
}

#[test]
fn a_map_uses_a_table_again_that_hardware_may_still_remember() {
    let frames = TestFrames::default();
    let domain = domain(Levels::Four, &frames);
    leave_empty_tables(&domain, 0);
    leave_empty_tables(&domain, 2 * MIB);
    let before = snapshot(&frames, domain.root(), 4);
    let invalidation = reclaim(&domain);
    assert_eq!(invalidation.table_frames(), 4);
    frames.allow(0);
    map(&domain, 8 * PAGE, PAGE).expect("its tables are all there");
    frames.allow(u64::MAX);
    complete(invalidation);
    assert_eq!(domain.table_frames(), 4, "the other one is gone");
    let after = snapshot(&frames, domain.root(), 4);
    let addresses = |tables: &[(u64, [u64; 512])]| tables.iter().map(|table| table.0).collect::<Vec<_>>();
    assert_eq!(addresses(&after), addresses(&before[..4]), "the very same tables");
    assert_eq!(target(&domain, 8 * PAGE), Some(8 * PAGE));
    close(domain);
}

#[test]
fn one_reclaim_at_a_time_and_what_is_dropped_is_told_again() {
    let frames = TestFrames::default();
    let domain = domain(Levels::Five, &frames);
    leave_empty_tables(&domain, 0);
    let first = reclaim(&domain);
    let refused = domain.reclaim(Iova::new(0), PAGE).map(drop);
    assert_eq!(refused, Err(ReclaimError::InProgress));
    assert!(refused.unwrap_err().to_string().contains("complete its invalidation"));
    drop(first);
    assert_eq!((frames.live(), frames.leaked_so_far(), domain.table_frames()), (5, 0, 5));
    let mut second = reclaim(&domain);
    assert_eq!((second.table_frames(), second.ranges().count()), (4, 1));
    // One invalidation for both.
    map(&domain, 1 << 50, 2 * MIB).unwrap();
    second.merge(domain.unmap(Iova::new(1 << 50), 2 * MIB).unwrap()).unwrap();
    assert_eq!(second.table_frames(), 5);
    complete(second);
    assert_eq!(frames.live(), 4, "the root, and three above what the unmap has detached");
    complete(reclaim(&domain));
    assert_eq!(frames.live(), 1);
    close(domain);
}

#[test]
fn a_domain_is_closed_with_tables_that_are_parted() {
    let frames = TestFrames::default();
    let domain = domain(Levels::Four, &frames);
    leave_empty_tables(&domain, GIB);
    drop(reclaim(&domain));
    map(&domain, 0, PAGE).unwrap();
    close(domain);
}

#[test]
fn a_map_that_fails_leaves_all_but_marks_and_what_it_wanted_goes_later() {
    const IDLE: u64 = 1 << 53;
    for levels in ALL_LEVELS {
        let frames = TestFrames::default();
        let domain = domain(levels, &frames);
        map(&domain, 4 * GIB, PAGE).unwrap();
        leave_empty_tables(&domain, 0);
        let parted = reclaim(&domain);
        assert_eq!(parted.table_frames(), 2);
        let words = || {
            let unmarked = |words: [u64; 512]| words.map(|word| word & !IDLE);
            snapshot(&frames, domain.root(), levels.count())
                .into_iter()
                .map(|(frame, words)| (frame, unmarked(words)))
                .collect::<Vec<_>>()
        };
        let before = words();
        frames.allow(0);
        // Through the parted table, and on into one that is missing.
        let outcome = map(&domain, 2 * MIB - PAGE, 2 * PAGE);
        frames.allow(u64::MAX);
        assert_eq!(outcome, Err(MapError::OutOfFrames { missing: 1 }), "the parted tables count as there");
        assert_eq!(words(), before, "INV-11");
        complete(parted);
        let kept = domain.table_frames();
        complete(reclaim(&domain));
        assert!(domain.table_frames() < kept, "nobody wants them any more");
        assert_eq!(domain.table_frames(), u64::from(levels.count()));
        close(domain);
    }
}

/// Found by fuzzing: hardware that remembers what is absent went on doing so, though a table was there again.
#[test]
fn what_was_linked_again_is_told_until_somebody_says_that_it_was() {
    let frames = TestFrames::default();
    let domain = domain(Levels::Three, &frames);
    leave_empty_tables(&domain, 0);
    leave_empty_tables(&domain, 2 * MIB);
    let parted = reclaim(&domain);
    frames.allow(0);
    let outcome = map(&domain, 2 * MIB - PAGE, 2 * MIB + 2 * PAGE);
    frames.allow(u64::MAX);
    assert_eq!(outcome, Err(MapError::OutOfFrames { missing: 1 }));
    complete(parted);
    assert_eq!(domain.table_frames(), 4, "a map wanted them all");
    // Links again what leads there, and goes no further, since there is more below than it looks at.
    drop(domain.reclaim(Iova::new(0), PAGE).unwrap());
    let elsewhere = || domain.reclaim(Iova::new(8 * GIB), PAGE).unwrap();
    let told = |invalidation: &Invalidation<'_, _>| {
        invalidation.ranges().map(|range| (range.start, range.length)).collect::<Vec<_>>()
    };
    drop(elsewhere());
    let invalidation = elsewhere();
    assert_eq!(told(&invalidation), [(Iova::new(0), GIB)]);
    assert_eq!((invalidation.table_frames(), invalidation.leaf_only()), (0, false));
    complete(invalidation);
    assert!(elsewhere().is_empty());
    close(domain);
}

#[test]
fn after_a_reclaim_a_large_leaf_takes_the_place_of_a_table() {
    let frames = TestFrames::default();
    let config = DomainConfig { page_sizes: PageSizes::all(), ..DomainConfig::new(Levels::Four) };
    let domain = SecondStageDomain::new(config, &frames).unwrap();
    let size = |iova| domain.translate(Iova::new(iova)).unwrap().page_size;
    leave_empty_tables(&domain, 0);
    leave_empty_tables(&domain, GIB);
    map(&domain, 0, 2 * MIB).unwrap();
    assert_eq!(size(0), PAGE, "hardware may remember the empty table");
    let invalidation = domain.reclaim(Iova::new(GIB), GIB).unwrap();
    map(&domain, GIB, GIB).unwrap();
    assert_eq!([size(GIB), size(GIB + 2 * MIB)], [PAGE, 2 * MIB], "in the tables that hardware may remember");
    complete(invalidation);
    unmap(&domain, 0, 2 * MIB);
    unmap(&domain, GIB, GIB);
    complete(domain.reclaim(Iova::new(0), 2 * GIB).unwrap());
    assert_eq!(domain.table_frames(), 1);
    map(&domain, 0, 2 * GIB).unwrap();
    assert_eq!((size(0), size(GIB), domain.table_frames()), (GIB, GIB, 2));
    close(domain);
}

/// 16 TiB, a page in each table of the lowest level or in every so-and-so-manieth, mapped and unmapped again.
fn cycle<F: Format, A: TableFrames>(
    domain: &Domain<F, A>,
    stride: u64,
    batch: u64,
    live: impl Fn() -> u64,
) -> u64 {
    let mut peak = 0;
    for start in (0..16 * TIB).step_by((stride * batch) as usize) {
        for iova in (start..start + stride * batch).step_by(stride as usize) {
            // SAFETY: no device walks these tables.
            let told = unsafe { domain.map(Iova::new(iova), PhysAddr::new(0), PAGE, Permissions::all()) };
            assert!(told.unwrap().into_invalidation().is_none());
            complete(domain.unmap(Iova::new(iova), PAGE).unwrap());
        }
        peak = peak.max(live());
        complete(domain.reclaim(Iova::new(start), stride * batch).unwrap());
    }
    peak
}

#[test]
fn sixteen_tebibytes_in_small_maps_keep_no_more_tables_than_lie_between_two_reclaims() {
    // Each page in a table of its own; without reclaims there would be as many tables, and more above them.
    let (stride, batch) = (128 * MIB, 512);
    let frames = TestFrames::default();
    let second = domain(Levels::Four, &frames);
    let peak = cycle(&second, stride, batch, || frames.live());
    let tables = 16 * TIB / stride;
    let between = batch + batch * stride / GIB + 2 + 1;
    assert!(peak <= between, "{peak} of {tables} tables at the peak, {between} between two reclaims");
    assert_eq!((frames.live(), second.table_frames()), (1, 1), "the root");
    eprintln!("{tables} tables were used, {peak} frames at the peak");
    close(second);

    let config = DomainConfig {
        hardware: Hardware { coherent: false, ..Hardware::default() },
        ..DomainConfig::first_stage(Levels::Five)
    };
    let first = FirstStageDomain::new(config, FlushedFrames::new(&frames, NoHardware)).unwrap();
    let peak = cycle(&first, 16 * stride, batch, || frames.live());
    assert!(peak <= batch + batch * 16 * stride / GIB + 32 + 2, "{peak}");
    assert_eq!(first.table_frames(), 1, "the root");
    // SAFETY: no device walks these tables.
    unsafe { first.close().complete() };
    assert_eq!((frames.live(), frames.leaked_so_far()), (0, 0));
}
