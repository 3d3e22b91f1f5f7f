//! Input that no caller should give, and what comes of it: a typed error, and nothing has changed. `docs/reliability.md` lists all of it with
//! the tests, here and elsewhere.
#![cfg(not(loom))]

mod actions;
mod common;

use actions::unit::{ID, PAGE, close, complete};
use common::{TestHost, assert_accounts, interrupt, pool, tables::*};
use framepool::{Builder, FallbackPolicy, FixedRegion, Frame, PhysAddr, Request, Watermarks, vtd::*};
use std::{cell::Cell, fs, mem::MaybeUninit, path::Path, rc::Rc};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A domain of four levels whose hardware takes every leaf.
fn domain<F: Format>(frames: &TestFrames) -> Domain<F, &TestFrames> {
    let plain = match F::STAGE {
        Stage::First => DomainConfig::first_stage(Levels::Four),
        Stage::Second => DomainConfig::new(Levels::Four),
    };
    Domain::new(DomainConfig { page_sizes: PageSizes::all(), ..plain }, frames).unwrap()
}

/// Maps the range to its own addresses, but for the bits that no memory has.
fn map<F: Format, A: TableFrames>(domain: &Domain<F, A>, start: u64, length: u64) -> Result<(), MapError> {
    let target = PhysAddr::new(start & ((1 << 40) - 1));
    // SAFETY: no device walks these tables.
    unsafe { domain.map(Iova::new(start), target, length, Permissions::READ) }.map(drop)
}

fn end<F: Format>(frames: &TestFrames, domain: Domain<F, &TestFrames>) {
    // SAFETY: no hardware walks these tables.
    unsafe { domain.close().complete() };
    assert_eq!((frames.live(), frames.leaked_so_far()), (0, 0));
}

fn overlaps_change_nothing<F: Format>() {
    let frames = TestFrames::default();
    let domain = domain::<F>(&frames);
    // Leaves of each size, with room in front and behind.
    for (start, length) in [(16 * PAGE, 4 * PAGE), (4 * MIB, 2 * MIB), (4 * GIB, GIB)] {
        map(&domain, start, length).unwrap();
        let before = snapshot(&frames, domain.root(), 4);
        let end = start + length;
        let front = (start - PAGE, 2 * PAGE, start);
        let back = (end - PAGE, 2 * PAGE, end - PAGE);
        let middle = (start + PAGE, PAGE, start + PAGE);
        let same = (start, length, start);
        let around = (start - PAGE, length + 2 * PAGE, start);
        for (iova, length, taken) in [front, back, middle, same, around] {
            let refused = Err(MapError::AlreadyMapped { iova: Iova::new(taken) });
            assert_eq!(map(&domain, iova, length), refused, "{length:#x} bytes at {iova:#x}");
            assert_eq!(snapshot(&frames, domain.root(), 4), before, "INV-11");
        }
    }
    end(&frames, domain);
}

#[test]
fn a_map_that_overlaps_in_front_behind_or_in_the_middle_changes_nothing() {
    overlaps_change_nothing::<SecondStage>();
    overlaps_change_nothing::<FirstStage>();
}

fn parts_of_large_leaves_go<F: Format>() {
    for (start, length) in [(4 * MIB, 2 * MIB), (4 * GIB, GIB)] {
        for part in [start, start + length / 2, start + length - PAGE] {
            let frames = TestFrames::default();
            let domain = domain::<F>(&frames);
            map(&domain, start, length).unwrap();
            let tables = frames.live();
            // SAFETY: no hardware walks these tables.
            unsafe { domain.unmap(Iova::new(part), PAGE).unwrap().complete() };
            assert_eq!(frames.live() - tables, if length == GIB { 2 } else { 1 }, "split once at each level");
            let mapped: u64 = domain.mappings().map(|mapping| mapping.length).sum();
            assert_eq!(mapped, length - PAGE);
            for (iova, is_mapped) in
                [(part, false), (start, part != start), (start + length - 1, part + PAGE != start + length)]
            {
                let found = domain.translate(Iova::new(iova)).map(|at| at.target);
                assert_eq!(found, is_mapped.then_some(PhysAddr::new(iova)), "{iova:#x}");
            }
            // What was unmapped is unmapped no second time.
            let refused = domain.unmap(Iova::new(start), length).err();
            assert_eq!(refused, Some(UnmapError::NotMapped { iova: Iova::new(part) }));
            end(&frames, domain);
        }
    }
}

#[test]
fn a_page_of_a_large_leaf_is_unmapped_and_the_rest_of_the_leaf_stays() {
    parts_of_large_leaves_go::<SecondStage>();
    parts_of_large_leaves_go::<FirstStage>();
}

fn addresses_end<F: Format>(config: DomainConfig, width: u8) {
    let frames = TestFrames::default();
    let domain = Domain::<F, _>::new(config, &frames).unwrap();
    let beyond = 1 << width;
    map(&domain, beyond - PAGE, PAGE).unwrap();
    let before = snapshot(&frames, domain.root(), config.levels.count());
    for (start, length) in
        [(beyond, PAGE), (beyond - PAGE, 2 * PAGE), (u64::MAX - PAGE + 1, PAGE), (PAGE, u64::MAX - PAGE + 1)]
    {
        let iova = Iova::new(start);
        let error = RangeError::BeyondWidth { iova, length, width };
        assert_eq!(map(&domain, start, length), Err(MapError::Range(error)));
        assert_eq!(domain.unmap(iova, length).err(), Some(UnmapError::Range(error)));
        assert_eq!(domain.reclaim(iova, length).err(), Some(ReclaimError::Range(error)));
        // SAFETY: no device walks these tables.
        let protected = unsafe { domain.protect(iova, length, Permissions::READ) };
        assert_eq!(protected.err(), Some(ProtectError::Range(error)));
    }
    assert_eq!(domain.translate(Iova::new(beyond)), None);
    assert_eq!(snapshot(&frames, domain.root(), config.levels.count()), before);
    end(&frames, domain);
}

#[test]
fn addresses_beyond_39_48_and_57_bits_are_refused() {
    for (levels, width) in [(Levels::Three, 39), (Levels::Four, 48), (Levels::Five, 57)] {
        addresses_end::<SecondStage>(DomainConfig::new(levels), width);
    }
    for (levels, width) in [(Levels::Four, 47), (Levels::Five, 56)] {
        addresses_end::<FirstStage>(DomainConfig::first_stage(levels), width);
    }
}

#[test]
fn hardware_that_is_told_twice_to_forget_forgets_once_and_nothing_else() {
    let frames = TestFrames::default();
    let hardware = Hardware { page_selective: Some(9), ..Hardware::default() };
    let unit = ModelUnit::new(&frames, hardware);
    let config = DomainConfig {
        hardware,
        domain_id: Some(ID),
        host_address_width: 47,
        ..DomainConfig::new(Levels::Four)
    };
    let domain = SecondStageDomain::new(config, &unit).unwrap();
    unit.attach(ID, &domain);
    let (gone, stays) = (Iova::new(0), Iova::new(GIB));
    map(&domain, 0, 2 * MIB).unwrap();
    map(&domain, GIB, PAGE).unwrap();
    let look = |iova| unit.access(ID, iova, false);
    assert_eq!((look(gone), look(stays)), (Ok(PhysAddr::new(0)), Ok(PhysAddr::new(GIB))));
    let invalidation = domain.unmap(gone, 2 * MIB).unwrap();
    let queue: Vec<_> = invalidation.descriptors(Some(Wait::default())).collect();
    unit.submit(&queue);
    unit.submit(&queue);
    complete(&unit, Stage::Second, invalidation);
    assert_eq!(look(stays), Ok(PhysAddr::new(GIB)));
    assert!(matches!(look(gone), Err(Fault::NotPresent { .. })));
    unit.check();
    assert_eq!(unit.take_violations(), []);
    close(&unit, domain);
}

#[test]
fn a_pool_is_not_vacated_while_a_reservation_lives() {
    let pool = pool(Builder::new(16).watermarks(Watermarks { min: 0, low: 0, high: 16, max: 16 }), 16);
    let reservation = pool.reserve(5).unwrap();
    assert_eq!(pool.vacate().unwrap_err().frames_out(), 5);
    let frame = reservation.draw().unwrap();
    drop(reservation);
    assert_eq!(pool.vacate().unwrap_err().frames_out(), 1);
    assert_accounts(&pool, 1);
    drop(frame);
    pool.vacate().unwrap();
    assert_eq!(pool.close().unwrap().out(), 0);
}

/// Interrupts an allocation from a pool of eight frames of which `out` are out, where it asks for the `after`th time; what the handler and the
/// interrupted call got, or nothing if the handler did not come.
fn interrupted_allocation(out: usize, after: u8) -> Option<(bool, bool)> {
    let marks = Watermarks { min: 0, low: 0, high: 8, max: 8 };
    let builder = Builder::new(8).watermarks(marks).magazine_size(2).cpus(1).fallback(FallbackPolicy::Never);
    let pool = pool(builder, 8);
    let mut held: Vec<_> = (0..out).map(|_| pool.alloc().unwrap()).collect();
    let got = Rc::new(Cell::new(None));
    let (address, handlers) = (std::ptr::from_ref(&pool).expose_provenance(), Rc::clone(&got));
    interrupt::after(after, move || {
        // SAFETY: the handler is disarmed below, while the pool lives.
        let pool = unsafe { &*std::ptr::with_exposed_provenance::<common::TestPool>(address) };
        handlers.set(Some(pool.alloc().ok().map(Frame::into_raw)));
    });
    let frame = pool.alloc_with(Request::ORDINARY);
    interrupt::disarm();
    let theirs = got.take();
    // SAFETY: the handler laid it down, once.
    held.extend(theirs.flatten().map(|frame| unsafe { Frame::from_raw(&pool, frame) }));
    let outcome = theirs.map(|theirs| (theirs.is_some(), frame.is_ok()));
    held.extend(frame);
    assert_accounts(&pool, held.len() as u64);
    outcome
}

#[test]
fn a_handler_allocates_in_the_middle_of_an_allocation_at_full_and_at_empty() {
    for (out, expected) in [(0, [true, true]), (7, [true, false]), (8, [false, false])] {
        let mut came = 0;
        for after in 0..8 {
            if let Some((handler, interrupted)) = interrupted_allocation(out, after) {
                came += 1;
                let mut got = [handler, interrupted];
                got.sort_unstable_by(|one, other| other.cmp(one));
                assert_eq!(got, expected, "{out} frames out, interrupted at {after}");
            }
        }
        assert!(came > 0, "the handler has never come");
    }
}

#[test]
fn a_region_at_addresses_that_wrap_or_are_misaligned_makes_a_pool_without_those_frames() {
    let region = || {
        let memory: &'static mut [MaybeUninit<u8>] = Box::leak(Box::new_uninit_slice(9 * 4096));
        FixedRegion::new(memory).unwrap()
    };
    let frames = u64::from(region().frames());
    let marks = Watermarks { min: 0, low: 0, high: 8, max: 8 };
    let build = |base| {
        let builder = Builder::new(8).watermarks(marks).fallback(FallbackPolicy::Always);
        builder.build(region().at(PhysAddr::new(base)), TestHost::default())
    };
    for (base, good) in [(0, frames), (PAGE + 1, 0), (u64::MAX, 0), (u64::MAX - 2 * PAGE + 1, 1)] {
        let Ok(pool) = build(base) else {
            assert_eq!(good, 0, "{base:#x}");
            continue;
        };
        let taken: Vec<_> = std::iter::from_fn(|| pool.alloc().ok()).collect();
        assert_eq!(taken.len() as u64, good, "{base:#x}: {}", pool.stats());
        assert!(taken.iter().all(|frame| frame.phys_addr().is_aligned(PAGE)));
    }
}

/// The tests that the document names exist.
#[test]
fn the_document_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let rows = document.lines().filter(|line| line.starts_with('|'));
    let mut names = 0;
    for name in rows.flat_map(|row| row.split('`').skip(1).step_by(2)).filter(|name| name.contains("::")) {
        let (file, test) = name.split_once("::").unwrap();
        let path = if file.contains('/') { file.to_owned() } else { format!("tests/{file}.rs") };
        let text = fs::read_to_string(root.join(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let start = text.find(&format!("fn {test}(")).unwrap_or_else(|| panic!("{path} has no {test}"));
        assert!(text[..start].trim_end().ends_with(']'), "{test} in {path} is no test");
        names += 1;
    }
    assert!(names > 40, "the tables are there");
}
