//! The builder call by call: what it refuses, what it leaves unchanged, and when table frames come back.
#![cfg(not(loom))]

mod common;

use common::tables::{TestFrames, snapshot};
use framepool::{PhysAddr, vtd::*};
use std::sync::atomic::Ordering::SeqCst;

const ALL_LEVELS: [Levels; 3] = [Levels::Three, Levels::Four, Levels::Five];
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn domain(levels: Levels, page_sizes: PageSizes, frames: &TestFrames) -> SecondStageDomain<&TestFrames> {
    SecondStageDomain::new(DomainConfig { page_sizes, ..DomainConfig::new(levels) }, frames).unwrap()
}

fn map(domain: &SecondStageDomain<&TestFrames>, iova: u64, target: u64, length: u64) -> Result<(), MapError> {
    // SAFETY: no device walks these tables.
    unsafe { domain.map(Iova::new(iova), PhysAddr::new(target), length, Permissions::all()) }
}

fn close(domain: SecondStageDomain<&TestFrames>) {
    let frames = *domain.allocator();
    // SAFETY: no device walks these tables.
    unsafe { domain.close().complete() };
    assert_eq!((frames.live(), frames.leaked_so_far()), (0, 0), "every table frame is back");
}

fn complete(invalidation: Invalidation<'_, &TestFrames>) {
    // SAFETY: no device walks these tables.
    unsafe { invalidation.complete() };
}

#[test]
fn two_hundred_and_fifty_six_mebibytes_take_the_tables_that_arithmetic_says() {
    for (levels, expected) in [(Levels::Three, 130), (Levels::Four, 131), (Levels::Five, 132)] {
        let frames = TestFrames::default();
        let domain = domain(levels, PageSizes::empty(), &frames);
        map(&domain, GIB, GIB, 256 * MIB).unwrap();
        assert_eq!((domain.table_frames(), frames.live()), (expected, expected));
        close(domain);
    }
}

#[test]
fn leaves_are_as_large_as_alignment_and_hardware_allow() {
    // The tables below level 3 that a gibibyte takes.
    for (page_sizes, gibibyte, size) in
        [(PageSizes::empty(), 1 + 512, 4096), (PageSizes::SIZE_2M, 1, 2 * MIB), (PageSizes::all(), 0, GIB)]
    {
        let frames = TestFrames::default();
        let domain = domain(Levels::Four, page_sizes, &frames);
        map(&domain, GIB, 4 * GIB, GIB).unwrap();
        map(&domain, 2 * GIB, 9 * GIB, 4096).unwrap();
        let translation = domain.translate(Iova::new(GIB + 0x12_3456)).unwrap();
        assert_eq!((translation.target, translation.page_size), (PhysAddr::new(4 * GIB + 0x12_3456), size));
        assert_eq!(domain.translate(Iova::new(2 * GIB)).unwrap().page_size, 4096);
        assert_eq!(domain.table_frames(), 2 + gibibyte + 2, "root and level 3, the gibibyte, the page");
        assert_eq!(domain.mappings().count(), 2);
        close(domain);
    }
}

#[test]
fn misaligned_neighbours_of_a_large_leaf_get_small_ones() {
    let frames = TestFrames::default();
    let domain = domain(Levels::Three, PageSizes::all(), &frames);
    map(&domain, 2 * MIB - 4096, 10 * MIB - 4096, 4 * MIB + 8192).unwrap();
    let sizes = [2 * MIB - 4096, 2 * MIB, 4 * MIB, 6 * MIB]
        .map(|iova| domain.translate(Iova::new(iova)).unwrap().page_size);
    assert_eq!(sizes, [4096, 2 * MIB, 2 * MIB, 4096]);
    assert_eq!(domain.mappings().count(), 1, "one range, whatever its leaves");
    // The target is not aligned as the IOVA is: small leaves only.
    map(&domain, 8 * MIB, 32 * MIB + 4096, 2 * MIB).unwrap();
    assert_eq!(domain.translate(Iova::new(8 * MIB)).unwrap().page_size, 4096);
    close(domain);
}

#[test]
fn a_map_that_runs_out_at_any_point_leaves_the_tables_bit_for_bit() {
    for levels in ALL_LEVELS {
        for page_sizes in [PageSizes::empty(), PageSizes::SIZE_2M, PageSizes::all()] {
            let frames = TestFrames::default();
            let domain = domain(levels, page_sizes, &frames);
            map(&domain, 4 * MIB, 4 * MIB, 8192).unwrap();
            let before = snapshot(&frames, domain.root(), levels.count());
            let (live, counted) = (frames.live(), domain.table_frames());
            let wish = || map(&domain, GIB - 6 * MIB - 4096, 3 * GIB - 6 * MIB - 4096, 12 * MIB + 4096);
            let mut allowed = 0;
            loop {
                frames.allow(allowed);
                let outcome = wish();
                frames.allow(u64::MAX);
                if outcome.is_ok() {
                    break;
                }
                let MapError::OutOfFrames { missing } = outcome.unwrap_err() else { panic!("{outcome:?}") };
                assert!(missing > 0);
                assert_eq!(snapshot(&frames, domain.root(), levels.count()), before, "INV-11");
                assert_eq!((frames.live(), domain.table_frames()), (live, counted));
                allowed += 1;
                assert!(allowed < 100);
            }
            assert_eq!(domain.table_frames(), counted + allowed, "exactly as many frames as it takes");
            close(domain);
        }
    }
}

#[test]
fn a_split_that_runs_out_at_any_point_leaves_the_tables_bit_for_bit() {
    for levels in ALL_LEVELS {
        for (start, end) in
            [(4096, GIB - 4096), (2 * MIB, 4 * MIB), (0, 4096), (GIB - 4096, GIB), (4096, 8192)]
        {
            let frames = TestFrames::default();
            let domain = domain(levels, PageSizes::all(), &frames);
            map(&domain, 0, 0, GIB).unwrap();
            let before = snapshot(&frames, domain.root(), levels.count());
            let counted = domain.table_frames();
            let mut allowed = 0;
            let invalidation = loop {
                frames.allow(allowed);
                match domain.unmap(Iova::new(start), end - start) {
                    Ok(invalidation) => break invalidation,
                    Err(error) => assert!(matches!(error, UnmapError::OutOfFrames { .. }), "{error}"),
                }
                assert_eq!(snapshot(&frames, domain.root(), levels.count()), before, "INV-11");
                allowed += 1;
            };
            frames.allow(u64::MAX);
            assert_eq!(domain.table_frames() + invalidation.table_frames(), counted + allowed);
            assert!(!invalidation.leaf_only(), "a table took the place of a leaf");
            assert!(
                invalidation.ranges().any(|range| range.length == GIB),
                "hardware may hold the whole leaf"
            );
            complete(invalidation);
            for (iova, mapped) in
                [(start, false), (end - 4096, false), (start.wrapping_sub(4096), true), (end, true)]
            {
                let expected = (mapped && iova < GIB).then_some(PhysAddr::new(iova));
                assert_eq!(domain.translate(Iova::new(iova)).map(|at| at.target), expected, "{iova:#x}");
            }
            close(domain);
        }
    }
}

#[test]
fn every_misuse_is_named_and_changes_nothing() {
    let frames = TestFrames::default();
    let config =
        DomainConfig { address_width: 40, host_address_width: 50, ..DomainConfig::new(Levels::Four) };
    let domain = SecondStageDomain::new(config, &frames).unwrap();
    map(&domain, MIB, MIB, 8192).unwrap();
    let before = snapshot(&frames, domain.root(), 4);
    let iova = Iova::new;
    let cases = [
        (map(&domain, MIB, MIB, 0), MapError::Range(RangeError::Empty)),
        (map(&domain, 1, MIB, 4096), MapError::Range(RangeError::Misaligned { iova: iova(1), length: 4096 })),
        (map(&domain, 0, MIB, 4097), MapError::Range(RangeError::Misaligned { iova: iova(0), length: 4097 })),
        (
            map(&domain, (1 << 40) - 4096, MIB, 8192),
            MapError::Range(RangeError::BeyondWidth {
                iova: iova((1 << 40) - 4096),
                length: 8192,
                width: 40,
            }),
        ),
        (
            map(&domain, u64::MAX - 4095, MIB, 8192),
            MapError::Range(RangeError::BeyondWidth { iova: iova(u64::MAX - 4095), length: 8192, width: 40 }),
        ),
        (map(&domain, 0, 5, 4096), MapError::TargetMisaligned { target: PhysAddr::new(5) }),
        (
            map(&domain, 0, (1 << 50) - 4096, 8192),
            MapError::TargetBeyondWidth { target: PhysAddr::new((1 << 50) - 4096), length: 8192, width: 50 },
        ),
        (
            map(&domain, 0, u64::MAX - 4095, 8192),
            MapError::TargetBeyondWidth { target: PhysAddr::new(u64::MAX - 4095), length: 8192, width: 50 },
        ),
        (
            // SAFETY: no device walks these tables.
            unsafe { domain.map(iova(0), PhysAddr::new(0), 4096, Permissions::empty()) },
            MapError::NoPermissions,
        ),
        (map(&domain, MIB, MIB, 4096), MapError::AlreadyMapped { iova: iova(MIB) }),
        (map(&domain, MIB - 4096, 0, 8192), MapError::AlreadyMapped { iova: iova(MIB) }),
        (map(&domain, MIB + 4096, 0, 8192), MapError::AlreadyMapped { iova: iova(MIB + 4096) }),
        (map(&domain, 0, 0, GIB), MapError::AlreadyMapped { iova: iova(MIB) }),
    ];
    for (outcome, expected) in cases {
        assert_eq!(outcome, Err(expected));
    }
    let cases = [
        (domain.unmap(iova(MIB), 0), UnmapError::Range(RangeError::Empty)),
        (
            domain.unmap(iova(7), 4096),
            UnmapError::Range(RangeError::Misaligned { iova: iova(7), length: 4096 }),
        ),
        (
            domain.unmap(iova(0), u64::MAX - 4095),
            UnmapError::Range(RangeError::BeyondWidth { iova: iova(0), length: u64::MAX - 4095, width: 40 }),
        ),
        (domain.unmap(iova(MIB - 4096), 8192), UnmapError::NotMapped { iova: iova(MIB - 4096) }),
        (domain.unmap(iova(MIB), 12288), UnmapError::NotMapped { iova: iova(MIB + 8192) }),
        (domain.unmap(iova(GIB), 4096), UnmapError::NotMapped { iova: iova(GIB) }),
    ];
    for (outcome, expected) in cases {
        assert_eq!(outcome.err(), Some(expected));
    }
    assert_eq!(domain.translate(iova(1 << 40)), None);
    assert_eq!(domain.translate(iova(u64::MAX)), None);
    assert_eq!(snapshot(&frames, domain.root(), 4), before);
    close(domain);
}

/// An entry with nothing in it but the bits that say that it is there, alone in a map and among others.
#[test]
fn what_leads_to_address_zero_is_mapped_like_everything_else() {
    let frames = TestFrames::default();
    let domain = domain(Levels::Three, PageSizes::empty(), &frames);
    map(&domain, 0x1000, 0, 0x1000).unwrap();
    for (iova, length) in [(0x1000, 0x1000), (0, 0x2000), (0, 2 * MIB), (0, 64 * 0x1000)] {
        let refused = map(&domain, iova, 0x7000, length);
        assert_eq!(refused, Err(MapError::AlreadyMapped { iova: Iova::new(0x1000) }));
    }
    assert_eq!(domain.unmap(Iova::new(0), 0x2000).err(), Some(UnmapError::NotMapped { iova: Iova::new(0) }));
    complete(domain.unmap(Iova::new(0x1000), 0x1000).unwrap());
    assert_eq!(domain.translate(Iova::new(0x1000)), None);
    close(domain);
}

#[test]
fn a_domain_of_an_impossible_shape_is_refused() {
    let frames = TestFrames::default();
    let new = |config| SecondStageDomain::new(config, &frames).err();
    let three = DomainConfig::new(Levels::Three);
    let width = |width| Some(DomainError::AddressWidth { width, most: 39 });
    assert_eq!(new(DomainConfig { address_width: 40, ..three }), width(40));
    assert_eq!(new(DomainConfig { address_width: 12, ..three }), width(12));
    let host = |width| Some(DomainError::HostAddressWidth { width });
    assert_eq!(new(DomainConfig { host_address_width: 53, ..three }), host(53));
    assert_eq!(new(DomainConfig { host_address_width: 0, ..three }), host(0));
    let refused = new(DomainConfig { host_address_width: 32, ..three });
    assert!(
        matches!(refused, Some(DomainError::FrameBeyondWidth { .. })),
        "frames of this process lie above 4 GiB"
    );
    frames.allow(0);
    assert_eq!(new(three), Some(DomainError::OutOfFrames));
    assert_eq!((frames.live(), frames.leaked_so_far()), (0, 0));
}

#[test]
fn table_frames_come_back_only_through_the_completed_invalidation() {
    let frames = TestFrames::default();
    let domain = domain(Levels::Four, PageSizes::empty(), &frames);
    map(&domain, 2 * MIB, 0, 4 * MIB).unwrap();
    assert_eq!(frames.live(), 5);
    let invalidation = domain.unmap(Iova::new(2 * MIB), 4 * MIB).unwrap();
    assert_eq!((invalidation.table_frames(), invalidation.leaf_only(), domain.table_frames()), (2, false, 3));
    assert_eq!(frames.live(), 5, "INV-10: hardware may still walk them");
    complete(invalidation);
    assert_eq!(frames.live(), 3);

    map(&domain, 0, 0, 8192).unwrap();
    let invalidation = domain.unmap(Iova::new(0), 4096).unwrap();
    assert_eq!((invalidation.table_frames(), invalidation.leaf_only()), (0, true));
    assert_eq!(invalidation.ranges().collect::<Vec<_>>(), [IovaRange { start: Iova::new(0), length: 4096 }]);
    drop(invalidation);
    assert_eq!(frames.leaked_so_far(), 0, "nothing was in it");
    complete(domain.unmap(Iova::new(4096), 4096).unwrap());
    close(domain);
}

#[test]
fn what_is_dropped_instead_of_completed_leaks_and_says_so() {
    let frames = TestFrames::default();
    let shape = domain(Levels::Three, PageSizes::empty(), &frames);
    map(&shape, 0, 0, 4 * MIB).unwrap();
    drop(shape.unmap(Iova::new(0), 4 * MIB).unwrap());
    assert_eq!((frames.leaked_so_far(), frames.live()), (2, 4), "INV-10: they stay allocated for ever");
    drop(shape.close());
    assert_eq!((frames.leaked_so_far(), frames.live()), (4, 4));
    drop(domain(Levels::Five, PageSizes::empty(), &frames));
    assert_eq!(
        (frames.leaked_so_far(), frames.live()),
        (5, 5),
        "a domain that is dropped may still be walked"
    );
}

#[test]
fn invalidations_merge_and_coarsen() {
    let frames = TestFrames::default();
    let first = domain(Levels::Four, PageSizes::empty(), &frames);
    let other = domain(Levels::Four, PageSizes::empty(), &frames);
    for page in 0..64 {
        map(&first, page * 8192, 0, 4096).unwrap();
    }
    let mut merged = first.unmap(Iova::new(0), 4096).unwrap();
    for page in 1..8 {
        merged.merge(first.unmap(Iova::new(page * 8192), 4096).unwrap()).unwrap();
    }
    assert_eq!((merged.ranges().count(), merged.is_whole_domain(), merged.leaf_only()), (8, false, true));
    merged.merge(first.unmap(Iova::new(8 * 8192), 4096).unwrap()).unwrap();
    assert!(merged.is_whole_domain());
    map(&first, 4 * MIB, 0, 2 * MIB).unwrap();
    merged.merge(first.unmap(Iova::new(4 * MIB), 2 * MIB).unwrap()).unwrap();
    assert_eq!((merged.leaf_only(), merged.table_frames()), (false, 1));
    map(&other, 0, 0, 2 * MIB).unwrap();
    let foreign = merged.merge(other.unmap(Iova::new(0), 2 * MIB).unwrap()).unwrap_err();
    assert_eq!(foreign.table_frames(), 1, "another domain's frames are not mixed in");
    complete(foreign);
    complete(merged);
    assert_eq!(frames.leaked.load(SeqCst), 0);
    // SAFETY: no device walks these tables.
    unsafe { other.close().complete() };
    close(first);
}

#[test]
fn neighbouring_ranges_are_one_range() {
    let frames = TestFrames::default();
    let domain = domain(Levels::Three, PageSizes::empty(), &frames);
    map(&domain, 0, 0, 32 * 4096).unwrap();
    let mut merged = domain.unmap(Iova::new(0), 4096).unwrap();
    for page in 1..32 {
        merged.merge(domain.unmap(Iova::new(page * 4096), 4096).unwrap()).unwrap();
    }
    assert_eq!(merged.ranges().collect::<Vec<_>>(), [IovaRange { start: Iova::new(0), length: 32 * 4096 }]);
    complete(merged);
    close(domain);
}

#[test]
fn the_dump_merges_what_belongs_together() {
    let frames = TestFrames::default();
    let domain = domain(Levels::Three, PageSizes::all(), &frames);
    map(&domain, GIB - 2 * MIB, GIB - 2 * MIB, GIB + 4 * MIB).unwrap();
    // SAFETY: no device walks these tables.
    unsafe { domain.map(Iova::new(4096), PhysAddr::new(0), 4096, Permissions::READ).unwrap() };
    // SAFETY: as above.
    unsafe { domain.map(Iova::new(8192), PhysAddr::new(4096), 4096, Permissions::WRITE).unwrap() };
    let dump = domain.dump().to_string();
    let expected = "\
0x000000001000..0x000000002000 -> 0x000000000000     4 KiB  r-
0x000000002000..0x000000003000 -> 0x000000001000     4 KiB  -w
0x00003fe00000..0x000080200000 -> 0x00003fe00000  1028 MiB  rw
";
    assert_eq!(dump, expected);
    // The same as a tree: no table twice, no leaf outside its table.
    let tree = format!("{:#}", domain.dump());
    let expected = "\
0x000000000000  table of level 3, the root
  0x000000000000  table of level 2
    0x000000000000  table of level 1
      0x000000001000..0x000000002000 -> 0x000000000000  1 x 4 KiB  r-
      0x000000002000..0x000000003000 -> 0x000000001000  1 x 4 KiB  -w
    0x00003fe00000..0x000040000000 -> 0x00003fe00000  1 x 2 MiB  rw
  0x000040000000..0x000080000000 -> 0x000040000000  1 x 1 GiB  rw
  0x000080000000  table of level 2
    0x000080000000..0x000080200000 -> 0x000080000000  1 x 2 MiB  rw
";
    assert_eq!(tree, expected);
    assert_eq!(tree.matches("table").count() as u64, domain.table_frames());
    close(domain);
}
