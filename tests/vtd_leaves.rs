//! Operations on leaves, call by call: lists of pages, the interrupt range, rights, joining, accessed and dirty bits; what each refuses, and
//! what a failure in the middle leaves as it was.
#![cfg(not(loom))]

mod common;

use common::tables::{TestFrames, snapshot};
use framepool::{PhysAddr, vtd::*};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

type Second<'t> = SecondStageDomain<&'t TestFrames>;

fn domain(page_sizes: PageSizes, frames: &TestFrames) -> Second<'_> {
    SecondStageDomain::new(DomainConfig { page_sizes, ..DomainConfig::new(Levels::Four) }, frames).unwrap()
}

fn map<F: Format>(
    domain: &Domain<F, &TestFrames>,
    iova: u64,
    target: u64,
    length: u64,
) -> Result<(), MapError> {
    // SAFETY: no device walks these tables.
    unsafe { domain.map(Iova::new(iova), PhysAddr::new(target), length, Permissions::all()) }.map(drop)
}

fn map_pages(domain: &Second<'_>, iova: u64, pages: &[u64]) -> Result<(), MapError> {
    let pages: Vec<_> = pages.iter().copied().map(PhysAddr::new).collect();
    // SAFETY: no device walks these tables.
    unsafe { domain.map_pages(Iova::new(iova), &pages, Permissions::all()) }
}

fn close<F: Format>(domain: Domain<F, &TestFrames>) {
    let frames = *domain.allocator();
    // SAFETY: no device walks these tables.
    unsafe { domain.close().complete() };
    assert_eq!((frames.live(), frames.leaked_so_far()), (0, 0), "every table frame is back");
}

/// Calls `change` with room for 0, 1, 2 ... frames until it succeeds: until then the tables are bit for bit what they were. How many
/// frames it took.
fn fails_at_every_frame<F: Format, T, E>(
    domain: &Domain<F, &TestFrames>,
    mut change: impl FnMut() -> Result<T, E>,
    is_shortage: impl Fn(&E) -> bool,
) -> (u64, T) {
    let frames = *domain.allocator();
    let levels = domain.levels().count();
    let before = snapshot(frames, domain.root(), levels);
    let (live, counted) = (frames.live(), domain.table_frames());
    for allowed in 0..100 {
        frames.allow(allowed);
        let outcome = change();
        frames.allow(u64::MAX);
        match outcome {
            Ok(outcome) => return (allowed, outcome),
            Err(error) => assert!(is_shortage(&error)),
        }
        assert!(snapshot(frames, domain.root(), levels) == before, "INV-11");
        assert_eq!((frames.live(), domain.table_frames()), (live, counted));
    }
    panic!("a hundred frames are not enough");
}

#[test]
fn a_list_of_pages_goes_where_it_says_in_leaves_as_large_as_they_lie() {
    let frames = TestFrames::default();
    let domain = domain(PageSizes::all(), &frames);
    // A page, 2 MiB in a row and aligned, 2 MiB in a row but not aligned, and 2 MiB aligned with two pages exchanged.
    let row = |start: u64| (0..512).map(move |page| start + page * PAGE);
    let mut exchanged: Vec<u64> = row(32 * MIB).collect();
    exchanged.swap(7, 300);
    let pages: Vec<u64> =
        [0x5000].into_iter().chain(row(8 * MIB)).chain(row(16 * MIB + PAGE)).chain(exchanged).collect();
    let start = 2 * MIB - PAGE;
    map_pages(&domain, start, &pages).unwrap();
    for (iova, &page) in (start..).step_by(4096).zip(&pages) {
        let at = domain.translate(Iova::new(iova)).unwrap();
        let large = (2 * MIB..4 * MIB).contains(&iova);
        assert_eq!((at.target.as_u64(), at.page_size), (page, if large { 2 * MIB } else { PAGE }));
    }
    assert!(domain.translate(Iova::new(start - PAGE)).is_none());
    assert!(domain.translate(Iova::new(8 * MIB)).is_none());
    assert_eq!(domain.table_frames(), 3 + 3, "the large leaf saves the fourth of the last level");
    // A gibibyte, of which the list is as long.
    let gibibyte: Vec<u64> = (0..1 << 18).map(|page| 4 * GIB + page * PAGE).collect();
    map_pages(&domain, GIB, &gibibyte).unwrap();
    assert_eq!(domain.translate(Iova::new(GIB + 5 * PAGE)).unwrap().page_size, GIB);
    close(domain);
}

#[test]
fn a_list_that_cannot_be_mapped_changes_nothing() {
    let frames = TestFrames::default();
    let config = DomainConfig { host_address_width: 47, ..DomainConfig::new(Levels::Four) };
    let domain = SecondStageDomain::new(config, &frames).unwrap();
    map_pages(&domain, 2 * MIB, &[0x7000]).unwrap();
    let before = snapshot(&frames, domain.root(), 4);
    let target = PhysAddr::new;
    let taken = Iova::new(2 * MIB);
    let cases: [(u64, &[u64], MapError); 5] = [
        (0, &[], MapError::Range(RangeError::Empty)),
        (0, &[0x1000, 0x2800], MapError::TargetMisaligned { target: target(0x2800) }),
        (
            0,
            &[0x1000, 1 << 47],
            MapError::TargetBeyondWidth { target: target(1 << 47), length: PAGE, width: 47 },
        ),
        (
            0,
            &[0xFEDF_F000, 0xFEE0_0000],
            MapError::InterruptTarget { target: target(0xFEE0_0000), length: PAGE },
        ),
        (2 * MIB - PAGE, &[0x1000, 0x3000], MapError::AlreadyMapped { iova: taken }),
    ];
    for (iova, pages, error) in cases {
        assert_eq!(map_pages(&domain, iova, pages), Err(error), "{error}");
        assert!(snapshot(&frames, domain.root(), 4) == before, "{error}");
    }
    close(domain);
}

#[test]
fn a_list_of_pages_that_runs_out_of_frames_at_any_point_leaves_the_tables_bit_for_bit() {
    for page_sizes in [PageSizes::empty(), PageSizes::all()] {
        let frames = TestFrames::default();
        let domain = domain(page_sizes, &frames);
        map(&domain, 4 * MIB, 4 * MIB, PAGE).unwrap();
        // Around a border of 1 GiB, with a whole large leaf in the middle.
        let pages: Vec<u64> = (0..1200).map(|page| 6 * GIB - 300 * PAGE + page * PAGE).collect();
        let (taken, ()) = fails_at_every_frame(
            &domain,
            || map_pages(&domain, GIB - 300 * PAGE, &pages),
            |error| matches!(error, MapError::OutOfFrames { .. }),
        );
        let saved = if page_sizes.is_empty() { 0 } else { 1 };
        assert_eq!(taken, 1 + 1 + 2 - saved, "a level below the root for the second GiB, and last levels");
        close(domain);
    }
}

#[test]
fn no_leaf_leads_to_interrupts() {
    let frames = TestFrames::default();
    let second = domain(PageSizes::all(), &frames);
    for (target, length) in
        [(3 * GIB, GIB), (0xFEE0_0000, PAGE), (0xFEEF_F000, PAGE), (0xFEDF_F000, 2 * PAGE)]
    {
        let refused = MapError::InterruptTarget { target: PhysAddr::new(target), length };
        assert_eq!(map(&second, 8 * GIB, target, length), Err(refused));
    }
    // All but the range, each to itself: no large leaf over it.
    map(&second, 0, 0, 0xFEE0_0000).unwrap();
    map(&second, 0xFEF0_0000, 0xFEF0_0000, 8 * GIB - 0xFEF0_0000).unwrap();
    let sizes = [2 * GIB, 0xFEDF_F000, 0xFEF0_0000, 0xFF00_0000, 4 * GIB]
        .map(|iova| second.translate(Iova::new(iova)).unwrap().page_size);
    assert_eq!(sizes, [GIB, 2 * MIB, PAGE, 2 * MIB, GIB]);
    let counted = second.config().tables_for_memory(8 * GIB, 1);
    assert_eq!(counted, Ok(second.table_frames()));
    close(second);
    // As addresses they are nothing special to the tables.
    let config = DomainConfig { page_sizes: PageSizes::all(), ..DomainConfig::first_stage(Levels::Four) };
    let first = FirstStageDomain::new(config, &frames).unwrap();
    map(&first, 3 * GIB, 16 * GIB, GIB).unwrap();
    assert!(matches!(map(&first, 0, 3 * GIB, GIB), Err(MapError::InterruptTarget { .. })));
    close(first);
}
