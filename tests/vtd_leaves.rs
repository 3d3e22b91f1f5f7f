//! Operations on leaves, call by call: lists of pages, the interrupt range, rights, joining, accessed and dirty bits; what each refuses, and
//! what a failure in the middle leaves as it was.
#![cfg(not(loom))]

mod common;

use common::tables::{NoHardware, TestFrames, snapshot};
use framepool::{
    PhysAddr,
    vtd::{context::PasidEntry, *},
};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

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

fn protect<'d, 't, F: Format>(
    domain: &'d Domain<F, &'t TestFrames>,
    iova: u64,
    length: u64,
    permissions: Permissions,
) -> Result<Invalidation<'d, &'t TestFrames>, ProtectError> {
    // SAFETY: no device walks these tables.
    unsafe { domain.protect(Iova::new(iova), length, permissions) }
}

fn complete(invalidation: Invalidation<'_, &TestFrames>) {
    // SAFETY: no device walks these tables.
    unsafe { invalidation.complete() };
}

/// The leaf for `iova`, as it stands in its table.
fn leaf_of<'t, F: Format>(domain: &Domain<F, &'t TestFrames>, iova: u64) -> &'t AtomicU64 {
    let (mut frame, mut level) = (domain.root(), domain.levels().count());
    loop {
        let frames = *domain.allocator();
        // SAFETY: tables are atomics, and nobody unmaps anything here.
        let words = unsafe { frames.pointer(frame).cast::<[AtomicU64; 512]>().as_ref() };
        let word = &words[(iova >> (3 + 9 * level) & 511) as usize];
        match F::decode(word.load(SeqCst), level) {
            Entry::Table(below) => (frame, level) = (below, level - 1),
            Entry::Leaf { .. } => return word,
            Entry::Empty => panic!("{iova:#x} is not mapped"),
        }
    }
}

fn tracking(page_sizes: PageSizes, frames: &TestFrames) -> Second<'_> {
    let hardware = Hardware { accessed_dirty: true, page_selective: Some(18), ..Hardware::default() };
    let config =
        DomainConfig { page_sizes, hardware, accessed_dirty: true, ..DomainConfig::new(Levels::Four) };
    SecondStageDomain::new(config, frames).unwrap()
}

const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;

#[test]
fn rights_change_where_they_are_said_to_and_nothing_else_does() {
    let frames = TestFrames::default();
    let domain = tracking(PageSizes::all(), &frames);
    map(&domain, GIB, 4 * GIB, GIB + 4 * MIB + PAGE).unwrap();
    // The last page of the gibibyte, a whole leaf of 2 MiB, and a page of the next.
    let large = leaf_of(&domain, GIB).fetch_or(ACCESSED | DIRTY, SeqCst);
    assert!(large & 1 << 7 != 0);
    leaf_of(&domain, 2 * GIB + 4 * MIB).fetch_or(DIRTY, SeqCst);
    let told = protect(&domain, 2 * GIB - PAGE, PAGE + 2 * MIB + PAGE, Permissions::READ).unwrap();
    assert!(!told.leaf_only() && told.least_mask() == 18 && told.table_frames() == 0);
    let ranges: Vec<_> = told.ranges().map(|range| (range.start.as_u64(), range.length)).collect();
    assert_eq!(ranges, [(GIB, GIB + 4 * MIB)], "hardware may hold the leaves that were split");
    complete(told);
    let expected = [
        (GIB, GIB - PAGE, Permissions::all()),
        (2 * GIB - PAGE, 2 * MIB + 2 * PAGE, Permissions::READ),
        (2 * GIB + 2 * MIB + PAGE, 2 * MIB, Permissions::all()),
    ];
    let found: Vec<_> = domain.mappings().map(|at| (at.iova.as_u64(), at.length, at.permissions)).collect();
    assert_eq!(found, expected);
    assert!(domain.mappings().all(|at| at.target.as_u64() == at.iova.as_u64() + 3 * GIB));
    assert_eq!(domain.translate(Iova::new(2 * GIB)).unwrap().page_size, 2 * MIB, "whole leaves stay whole");
    // Every part has the bits that the whole had.
    for iova in [GIB, 2 * GIB - 2 * PAGE, 2 * GIB - PAGE] {
        assert_eq!(leaf_of(&domain, iova).load(SeqCst) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
    }
    let told = protect(&domain, 2 * GIB + 4 * MIB, PAGE, Permissions::WRITE).unwrap();
    assert!(told.leaf_only() && told.least_mask() == 0);
    assert_eq!(
        told.ranges().next().unwrap(),
        IovaRange { start: Iova::new(2 * GIB + 4 * MIB), length: PAGE }
    );
    assert_eq!(leaf_of(&domain, 2 * GIB + 4 * MIB).load(SeqCst) & 0xFFF, DIRTY | 2);
    complete(told);
    // Nothing to be changed, nothing to be told, nothing to be split.
    let tables = domain.table_frames();
    let told = protect(&domain, 2 * GIB + PAGE, PAGE, Permissions::READ).unwrap();
    assert!(told.is_empty() && domain.table_frames() == tables);
    complete(told);
    // What grows is told too, and only where it has grown.
    let told = protect(&domain, 2 * GIB - 8 * PAGE, 8 * PAGE, Permissions::all()).unwrap();
    assert!(told.leaf_only());
    let ranges: Vec<_> = told.ranges().map(|range| (range.start.as_u64(), range.length)).collect();
    assert_eq!(ranges, [(2 * GIB - PAGE, PAGE)]);
    complete(told);
    close(domain);
}

#[test]
fn rights_that_cannot_change_do_not() {
    let frames = TestFrames::default();
    let domain = domain(PageSizes::all(), &frames);
    map(&domain, 0, 0, 4 * MIB).unwrap();
    let before = snapshot(&frames, domain.root(), 4);
    let hole = ProtectError::NotMapped { iova: Iova::new(4 * MIB) };
    let misaligned = RangeError::Misaligned { iova: Iova::new(1), length: PAGE };
    for (iova, length, permissions, error) in [
        (PAGE, 4 * MIB, Permissions::READ, hole),
        (0, 0, Permissions::READ, ProtectError::Range(RangeError::Empty)),
        (1, PAGE, Permissions::READ, ProtectError::Range(misaligned)),
        (0, PAGE, Permissions::empty(), ProtectError::NoPermissions),
    ] {
        assert_eq!(protect(&domain, iova, length, permissions).err(), Some(error), "{error}");
        assert!(snapshot(&frames, domain.root(), 4) == before, "{error}");
    }
    close(domain);
    let first = FirstStageDomain::new(DomainConfig::first_stage(Levels::Four), &frames).unwrap();
    map(&first, 0, 0, PAGE).unwrap();
    assert_eq!(protect(&first, 0, PAGE, Permissions::WRITE).err(), Some(ProtectError::WriteOnly));
    complete(protect(&first, 0, PAGE, Permissions::READ).unwrap());
    assert_eq!(leaf_of(&first, 0).load(SeqCst), 0x65, "not writable; accessed and dirty stay");
    close(first);
}

#[test]
fn a_change_of_rights_that_runs_out_of_frames_at_any_point_leaves_the_tables_bit_for_bit() {
    for levels in [Levels::Three, Levels::Four, Levels::Five] {
        for (start, end) in [(PAGE, 2 * GIB - PAGE), (2 * MIB, 4 * MIB), (0, PAGE), (GIB - PAGE, GIB + PAGE)]
        {
            let frames = TestFrames::default();
            let config = DomainConfig { page_sizes: PageSizes::all(), ..DomainConfig::new(levels) };
            let domain = SecondStageDomain::new(config, &frames).unwrap();
            map(&domain, 0, 0, 2 * GIB).unwrap();
            let tables = domain.table_frames();
            let (taken, told) = fails_at_every_frame(
                &domain,
                || protect(&domain, start, end - start, Permissions::READ),
                |error| matches!(error, ProtectError::OutOfFrames { .. }),
            );
            assert!(taken > 0);
            assert_eq!(domain.table_frames(), tables + taken);
            complete(told);
            close(domain);
        }
    }
}

/// The pages of a bitmap.
fn pages(bitmap: &[u64]) -> Vec<u64> {
    (0..64 * bitmap.len() as u64).filter(|bit| bitmap[(bit / 64) as usize] >> (bit % 64) & 1 != 0).collect()
}

#[test]
fn what_was_written_is_read_once_in_bits_of_pages() {
    let frames = TestFrames::default();
    let domain = tracking(PageSizes::SIZE_2M, &frames);
    map(&domain, 2 * MIB - 70 * PAGE, 10 * MIB - 70 * PAGE, 70 * PAGE + 4 * MIB).unwrap();
    let start = 2 * MIB - 72 * PAGE;
    let length = 72 * PAGE + 2 * MIB + 5 * PAGE;
    let mut bitmap = [0; 10];
    let told = domain.take_dirty(Iova::new(start), length, &mut bitmap).unwrap();
    assert!(told.is_empty() && bitmap == [0; 10], "nothing was written");
    complete(told);
    for page in [2, 3, 64, 71] {
        leaf_of(&domain, start + page * PAGE).fetch_or(DIRTY, SeqCst);
    }
    leaf_of(&domain, start + 5 * PAGE).fetch_or(ACCESSED, SeqCst);
    // A whole large leaf in the range, and one that reaches beyond it.
    leaf_of(&domain, 2 * MIB).fetch_or(DIRTY | ACCESSED, SeqCst);
    leaf_of(&domain, 4 * MIB).fetch_or(DIRTY, SeqCst);
    for round in 0..2 {
        let mut bitmap = [0; 10];
        let told = domain.take_dirty(Iova::new(start), length, &mut bitmap).unwrap();
        let beyond = 72 + 512..72 + 512 + 5;
        if round == 0 {
            let expected: Vec<u64> = [2, 3, 64, 71].into_iter().chain(72..72 + 512).chain(beyond).collect();
            assert_eq!(pages(&bitmap), expected);
            assert!(told.leaf_only() && told.least_mask() == 9);
            let ranges: Vec<_> = told.ranges().map(|range| (range.start.as_u64(), range.length)).collect();
            assert_eq!(ranges, [(start + 2 * PAGE, 70 * PAGE + 2 * MIB)]);
        } else {
            assert_eq!(pages(&bitmap), beyond.collect::<Vec<_>>(), "it may stand for a page behind");
            assert!(told.is_empty());
        }
        complete(told);
    }
    let mut accessed = [1; 10];
    complete(domain.take_accessed(Iova::new(start), length, &mut accessed).unwrap());
    let also: Vec<u64> = pages(&accessed).into_iter().filter(|page| page % 64 != 0 || *page == 128).collect();
    assert!(also.starts_with(&[5, 73 - 1]) && also.contains(&(72 + 511)) && !also.contains(&2));
    assert!((0..10).all(|word| accessed[word] & 1 != 0), "what was set stays set");
    close(domain);
}

#[test]
fn accesses_are_read_only_where_hardware_notes_them() {
    let frames = TestFrames::default();
    let mut bitmap = [0];
    let plain = domain(PageSizes::empty(), &frames);
    let not_noted = Some(AccessedDirtyError::NotNoted);
    assert_eq!(plain.take_dirty(Iova::new(0), PAGE, &mut bitmap).err(), not_noted);
    close(plain);
    let hardware = Hardware { accessed_dirty: true, coherent: false, ..Hardware::default() };
    let wish = DomainConfig { accessed_dirty: true, ..DomainConfig::new(Levels::Four) };
    let refused = |config| SecondStageDomain::new(config, &frames).err();
    assert_eq!(refused(wish), Some(DomainError::NoAccessedDirty), "no such unit");
    assert_eq!(refused(DomainConfig { hardware, ..wish }), Some(DomainError::NoAccessedDirty), "no snooping");
    let domain = tracking(PageSizes::empty(), &frames);
    let short = AccessedDirtyError::BitmapTooShort { words: 2 };
    assert_eq!(domain.take_accessed(Iova::new(0), 65 * PAGE, &mut bitmap).err(), Some(short));
    assert!(domain.take_accessed(Iova::new(0), 64 * PAGE, &mut bitmap).is_ok());
    let entry = PasidEntry::second_stage(&domain, DomainId::FIRST);
    let context::PasidTranslation::SecondStage(tables) = entry.translation else { panic!() };
    assert!(tables.accessed_dirty, "what the domain wants to read is what hardware is told to note");
    close(domain);
    // The first stage always; there, unless hardware has to write what nobody would see.
    let config = DomainConfig::first_stage(Levels::Four);
    let first = FirstStageDomain::new(config, &frames).unwrap();
    map(&first, 0, 0, PAGE).unwrap();
    complete(first.take_dirty(Iova::new(0), PAGE, &mut bitmap).unwrap());
    assert_eq!((bitmap, leaf_of(&first, 0).load(SeqCst)), ([1], 0x27));
    close(first);
    let flushed = FlushedFrames::new(&frames, NoHardware);
    let config = DomainConfig { hardware: Hardware { coherent: false, ..hardware }, ..config };
    let first = FirstStageDomain::new(config, &flushed).unwrap();
    assert_eq!(first.take_dirty(Iova::new(0), PAGE, &mut bitmap).err(), not_noted);
    // SAFETY: no device walks these tables.
    unsafe { first.close().complete() };
}

fn join<F: Format, A: TableFrames>(domain: &Domain<F, A>, iova: u64, length: u64) -> Invalidation<'_, A> {
    // SAFETY: nobody else uses the domain.
    unsafe { domain.join(Iova::new(iova), length).unwrap() }
}

#[test]
fn tables_of_leaves_in_a_row_become_leaves() {
    let frames = TestFrames::default();
    let domain = domain(PageSizes::all(), &frames);
    // 2 MiB in two calls; 2 MiB with other rights in the middle; 2 MiB with a page that lies elsewhere; 2 MiB not aligned; half of 2 MiB.
    for start in [0, MIB] {
        map(&domain, start, 64 * MIB + start, MIB).unwrap();
    }
    map(&domain, 2 * MIB, 66 * MIB, 2 * MIB).unwrap();
    complete(protect(&domain, 3 * MIB, PAGE, Permissions::READ).unwrap());
    map(&domain, 4 * MIB, 68 * MIB, 2 * MIB - PAGE).unwrap();
    map(&domain, 6 * MIB - PAGE, 12 * MIB, PAGE).unwrap();
    map(&domain, 6 * MIB, 100 * MIB + PAGE, 2 * MIB).unwrap();
    map(&domain, 8 * MIB, 72 * MIB, MIB).unwrap();
    let before = snapshot(&frames, domain.root(), 4);
    // Only tables of which the range has all.
    let none = join(&domain, PAGE, 16 * MIB);
    assert!(none.is_empty() && snapshot(&frames, domain.root(), 4) == before);
    complete(none);
    let (tables, mappings) = (domain.table_frames(), domain.dump().to_string());
    let told = join(&domain, 0, GIB);
    assert_eq!((told.table_frames(), told.leaf_only(), told.least_mask()), (1, false, 9));
    assert_eq!(told.ranges().next().unwrap(), IovaRange { start: Iova::new(0), length: 2 * MIB });
    assert_eq!((domain.table_frames(), frames.live()), (tables - 1, tables));
    complete(told);
    assert_eq!((domain.dump().to_string(), frames.live()), (mappings, tables - 1));
    assert_eq!(leaf_of(&domain, 0).load(SeqCst), (64 * MIB) | 0x83);
    // With the rights again, two more.
    complete(protect(&domain, 3 * MIB, PAGE, Permissions::all()).unwrap());
    let told = join(&domain, 0, GIB);
    assert_eq!(told.table_frames(), 1);
    complete(told);
    close(domain);
}

/// For a start that is not aligned, the parts of a large leaf would be these pages: each has the bits of the start beside those of its
/// number.
#[test]
fn pages_that_lie_like_the_parts_of_a_misaligned_leaf_stay_pages() {
    let frames = TestFrames::default();
    for (level, start) in [(2, 100 * MIB + PAGE), (3, 4 * GIB + 2 * MIB)] {
        let domain = domain(PageSizes::all(), &frames);
        let part = if level == 2 { PAGE } else { 2 * MIB };
        for index in 0..512 {
            map(&domain, index * part, start | (index * part), part).unwrap();
        }
        let before = snapshot(&frames, domain.root(), 4);
        let told = join(&domain, 0, 512 * part);
        assert!(told.is_empty() && snapshot(&frames, domain.root(), 4) == before, "at level {level}");
        complete(told);
        close(domain);
    }
}

#[test]
fn a_gibibyte_in_pages_becomes_one_leaf_and_comes_apart_again() {
    for page_sizes in [PageSizes::all(), PageSizes::SIZE_2M, PageSizes::SIZE_1G, PageSizes::empty()] {
        let frames = TestFrames::default();
        let small = domain(page_sizes, &frames);
        for start in (0..GIB).step_by(MIB as usize) {
            map(&small, start, 2 * GIB + start, MIB).unwrap();
        }
        let (tables, dump) = (small.table_frames(), small.dump().to_string());
        // All frames wait in one value, made of two.
        let mut told = join(&small, 0, GIB / 2);
        told.merge(join(&small, 0, GIB)).unwrap();
        let expected = match page_sizes {
            sizes if sizes == PageSizes::all() => 513,
            sizes if sizes == PageSizes::SIZE_2M => 512,
            // From pages of 4 KiB to 1 GiB there is no step.
            _ => 0,
        };
        assert_eq!((told.table_frames(), small.table_frames()), (expected, tables - expected));
        complete(told);
        assert_eq!((frames.live(), small.dump().to_string()), (tables - expected, dump));
        complete(small.unmap(Iova::new(PAGE), GIB - PAGE).unwrap());
        assert_eq!(small.mappings().count(), 1);
        close(small);
    }
    // What is dropped leaks, and says so.
    let frames = TestFrames::default();
    let small = domain(PageSizes::SIZE_2M, &frames);
    for start in [0, MIB] {
        map(&small, start, start, MIB).unwrap();
    }
    drop(join(&small, 0, 2 * MIB));
    assert_eq!(frames.leaked_so_far(), 1);
    // SAFETY: no device walks these tables.
    unsafe { small.close().complete() };
}

#[test]
fn a_joined_leaf_has_been_accessed_and_written_as_far_as_hardware_may() {
    let frames = TestFrames::default();
    let domain = tracking(PageSizes::SIZE_2M, &frames);
    for (start, permissions) in
        [(0, Permissions::all()), (2 * MIB, Permissions::READ), (4 * MIB, Permissions::READ)]
    {
        for half in [start, start + MIB] {
            map(&domain, half, half, MIB).unwrap();
        }
        complete(protect(&domain, start, 2 * MIB, permissions).unwrap());
    }
    // Written while it was writable.
    leaf_of(&domain, 5 * MIB).fetch_or(DIRTY, SeqCst);
    let told = join(&domain, 0, 6 * MIB);
    assert_eq!(told.table_frames(), 3);
    complete(told);
    let bits = [0, 2 * MIB, 4 * MIB].map(|iova| leaf_of(&domain, iova).load(SeqCst) & (ACCESSED | DIRTY));
    assert_eq!(bits, [ACCESSED | DIRTY, ACCESSED, ACCESSED | DIRTY]);
    close(domain);
}

#[test]
fn what_is_joined_is_mapped_at_every_moment_for_hardware_that_remembers_the_tables() {
    let frames = TestFrames::default();
    let hardware = Hardware { page_selective: Some(18), ..Hardware::default() };
    let unit = ModelUnit::new(&frames, hardware);
    let config = DomainConfig {
        page_sizes: PageSizes::all(),
        hardware,
        domain_id: Some(DomainId::FIRST),
        ..DomainConfig::new(Levels::Three)
    };
    let domain = SecondStageDomain::new(config, &unit).unwrap();
    unit.attach(DomainId::FIRST, &domain);
    for start in (0..8 * MIB).step_by(MIB as usize) {
        // SAFETY: the model unit reads no page.
        unsafe { domain.map(Iova::new(start), PhysAddr::new(GIB + start), MIB, Permissions::all()).unwrap() };
    }
    // The unit remembers the tables, and no page.
    let page = |number: u64| Iova::new(number * PAGE);
    for table in 0..4 {
        unit.access(DomainId::FIRST, page(512 * table + 300), true).unwrap();
    }
    let told = join(&domain, 0, 8 * MIB);
    assert_eq!(told.table_frames(), 4);
    for number in (0..2048).step_by(3) {
        let target = PhysAddr::new(GIB + number * PAGE);
        assert_eq!(unit.access(DomainId::FIRST, page(number), true), Ok(target), "page {number}");
    }
    let stale = |violation: &Violation| matches!(violation, Violation::StaleTable { .. });
    assert!(unit.take_violations().iter().all(stale), "it uses the old tables, and may");
    unit.submit(&told.descriptors(Some(Wait::default())).collect::<Vec<_>>());
    // SAFETY: the only device is the model, which has forgotten what it was told to forget.
    unsafe { told.complete() };
    for number in (0..2048).step_by(3) {
        let target = PhysAddr::new(GIB + number * PAGE);
        assert_eq!(unit.access(DomainId::FIRST, page(number), true), Ok(target), "page {number}");
    }
    unit.check();
    assert_eq!(unit.take_violations(), []);
}
