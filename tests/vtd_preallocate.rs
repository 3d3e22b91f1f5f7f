//! Ranges whose tables are built beforehand: how many there are, that they stay, and that a map there takes none.
#![cfg(not(loom))]

mod common;

use common::tables::{NoHardware, TestFrames, snapshot};
use framepool::{PhysAddr, vtd::*};
use proptest::prelude::*;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const ALL_LEVELS: [Levels; 3] = [Levels::Three, Levels::Four, Levels::Five];

/// Maps to the same address.
fn map<F: Format, A: TableFrames>(domain: &Domain<F, A>, iova: u64, length: u64) -> Result<(), MapError> {
    // SAFETY: no device walks these tables.
    let told = unsafe { domain.map(Iova::new(iova), PhysAddr::new(iova), length, Permissions::all())? };
    told.into_invalidation().into_iter().for_each(complete);
    Ok(())
}

fn complete<A: TableFrames>(invalidation: Invalidation<'_, A>) {
    // SAFETY: no device walks these tables.
    unsafe { invalidation.complete() };
}

fn close<F: Format>(domain: Domain<F, &TestFrames>) {
    let frames = *domain.allocator();
    // SAFETY: no device walks these tables.
    unsafe { domain.close().complete() };
    assert_eq!((frames.live(), frames.leaked_so_far()), (0, 0), "every table frame is back");
}

#[test]
fn after_it_a_map_takes_no_frame_and_an_unmap_gives_none() {
    for levels in ALL_LEVELS {
        for page_sizes in [PageSizes::empty(), PageSizes::all()] {
            let frames = TestFrames::default();
            let config = DomainConfig { page_sizes, ..DomainConfig::new(levels) };
            let domain = SecondStageDomain::new(config, &frames).unwrap();
            let (start, length) = (GIB - 6 * MIB, 12 * MIB);
            domain.preallocate(Iova::new(start), length).unwrap();
            let built = config.tables_to_preallocate(Iova::new(start), length).unwrap();
            assert_eq!((domain.table_frames(), frames.live()), (built, built));
            frames.allow(0);
            for (iova, length) in
                [(start, length), (start + PAGE, PAGE), (GIB, 2 * MIB), (GIB - 4 * MIB, 8 * MIB)]
            {
                map(&domain, iova, length).unwrap();
                let half = (length / 2).next_multiple_of(PAGE);
                let parts = [(iova, half), (iova + half, length - half)];
                for (iova, length) in parts.into_iter().filter(|part| part.1 > 0) {
                    let invalidation = domain.unmap(Iova::new(iova), length).unwrap();
                    assert_eq!((invalidation.table_frames(), invalidation.leaf_only()), (0, true));
                    complete(invalidation);
                }
                assert!(domain.reclaim(Iova::new(0), 1 << 39).unwrap().is_empty());
            }
            assert_eq!((domain.table_frames(), domain.mappings().count()), (built, 0));
            domain.preallocate(Iova::new(start), length).expect("it is there already");
            close(domain);
        }
    }
}

#[test]
fn one_that_runs_out_at_any_point_leaves_the_tables_bit_for_bit() {
    for levels in ALL_LEVELS {
        let frames = TestFrames::default();
        let domain = SecondStageDomain::new(DomainConfig::new(levels), &frames).unwrap();
        map(&domain, GIB - PAGE, PAGE).unwrap();
        let before = snapshot(&frames, domain.root(), levels.count());
        let (live, counted) = (frames.live(), domain.table_frames());
        let mut allowed = 0;
        loop {
            frames.allow(allowed);
            let outcome = domain.preallocate(Iova::new(GIB - 6 * MIB), 12 * MIB);
            frames.allow(u64::MAX);
            let Err(error) = outcome else { break };
            assert!(matches!(error, MapError::OutOfFrames { missing } if missing > 0), "{error}");
            assert_eq!(snapshot(&frames, domain.root(), levels.count()), before, "INV-11");
            assert_eq!((frames.live(), domain.table_frames()), (live, counted));
            allowed += 1;
        }
        assert_eq!(allowed, 2 + 4, "two beside the table of the page, and four beyond it");
        assert_eq!(domain.table_frames(), counted + allowed, "exactly as many frames as it takes");
        close(domain);
    }
}

#[test]
fn what_is_wrong_is_named_and_changes_nothing() {
    let frames = TestFrames::default();
    let config = DomainConfig { page_sizes: PageSizes::all(), ..DomainConfig::new(Levels::Four) };
    let domain = SecondStageDomain::new(config, &frames).unwrap();
    map(&domain, 2 * MIB, 2 * MIB).unwrap();
    let before = snapshot(&frames, domain.root(), 4);
    for (iova, length, expected) in [
        (0, 0, MapError::Range(RangeError::Empty)),
        (1, PAGE, MapError::Range(RangeError::Misaligned { iova: Iova::new(1), length: PAGE })),
        (0, 4 * MIB, MapError::AlreadyMapped { iova: Iova::new(2 * MIB) }),
    ] {
        assert_eq!(domain.preallocate(Iova::new(iova), length), Err(expected));
    }
    assert_eq!(domain.release(Iova::new(0), 0), Err(RangeError::Empty));
    domain.release(Iova::new(0), GIB).unwrap();
    assert_eq!(snapshot(&frames, domain.root(), 4), before);
    close(domain);
}

#[test]
fn what_is_released_goes_like_any_other_and_what_another_range_needs_stays() {
    let frames = TestFrames::default();
    let config = DomainConfig { page_sizes: PageSizes::all(), ..DomainConfig::new(Levels::Four) };
    let domain = SecondStageDomain::new(config, &frames).unwrap();
    domain.preallocate(Iova::new(0), 4 * MIB).unwrap();
    domain.preallocate(Iova::new(8 * MIB), 2 * MIB).unwrap();
    domain.preallocate(Iova::new(GIB), 2 * MIB).unwrap();
    assert_eq!(domain.table_frames(), 1 + 1 + 2 + 4);
    domain.release(Iova::new(0), 4 * MIB).unwrap();
    domain.release(Iova::new(GIB), GIB).unwrap();
    map(&domain, 0, 2 * MIB).unwrap();
    let invalidation = domain.unmap(Iova::new(0), 2 * MIB).unwrap();
    assert_eq!(invalidation.table_frames(), 1, "as any unmap of all that a table covers");
    complete(invalidation);
    complete(domain.reclaim(Iova::new(0), 2 * GIB).unwrap());
    assert_eq!(domain.table_frames(), 4, "those of the range that is kept");
    frames.allow(0);
    map(&domain, 8 * MIB, 2 * MIB).unwrap();
    frames.allow(u64::MAX);
    complete(domain.unmap(Iova::new(8 * MIB), 2 * MIB).unwrap());
    map(&domain, 0, GIB).unwrap();
    let invalidation = domain.unmap(Iova::new(0), GIB).unwrap();
    assert_eq!(invalidation.table_frames(), 0, "also of all that the table above covers");
    complete(invalidation);
    domain.release(Iova::new(8 * MIB), PAGE).unwrap();
    complete(domain.reclaim(Iova::new(0), 2 * GIB).unwrap());
    map(&domain, 0, GIB).unwrap();
    assert_eq!(domain.table_frames(), 2, "a large leaf took their place");
    close(domain);
}

#[test]
fn it_takes_tables_over_that_a_reclaim_was_about_to_return() {
    let frames = TestFrames::default();
    let hardware = Hardware { coherent: false, caching_mode: true, ..Hardware::default() };
    let config = DomainConfig { hardware, ..DomainConfig::new(Levels::Three) };
    let domain =
        Domain::<CachingMode<SecondStage>, _>::new(config, FlushedFrames::new(&frames, NoHardware)).unwrap();
    map(&domain, 0, PAGE).unwrap();
    complete(domain.unmap(Iova::new(0), PAGE).unwrap());
    let parted = domain.reclaim(Iova::new(0), GIB).unwrap();
    assert_eq!(parted.table_frames(), 2);
    frames.allow(0);
    let told = domain.preallocate(Iova::new(0), 2 * MIB).unwrap();
    assert!(!told.is_empty() && !told.leaf_only(), "a unit may remember that there was none");
    complete(told);
    complete(parted);
    assert_eq!(domain.table_frames(), 3);
    // SAFETY: no device walks these tables.
    unsafe { domain.close().complete() };
    assert_eq!((frames.live(), frames.leaked_so_far()), (0, 0));
}

/// Ranges near borders of every level, a page to 20 MiB long.
fn range() -> impl Strategy<Value = (u64, u64)> {
    let near = prop_oneof![Just(16 * MIB), Just(GIB), Just(512 * GIB - 64 * MIB)];
    (near, -3000..3000i64, 1..5000u64)
        .prop_map(|(near, pages, length)| (near.wrapping_add_signed(pages * PAGE as i64), length * PAGE))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn exactly_as_many_are_built_as_sizing_says(five in any::<bool>(), ranges in prop::collection::vec(range(), 1..4)) {
        let frames = TestFrames::default();
        let config = DomainConfig::first_stage(if five { Levels::Five } else { Levels::Four });
        let domain = FirstStageDomain::new(DomainConfig { page_sizes: PageSizes::all(), ..config }, &frames).unwrap();
        for (number, &(iova, length)) in ranges.iter().enumerate() {
            domain.preallocate(Iova::new(iova), length).unwrap();
            if number == 0 {
                prop_assert_eq!(Ok(domain.table_frames()), domain.config().tables_to_preallocate(Iova::new(iova), length));
            }
        }
        frames.allow(0);
        let built = domain.table_frames();
        for &(iova, length) in &ranges {
            map(&domain, iova, length).unwrap();
            complete(domain.unmap(Iova::new(iova), length).unwrap());
        }
        prop_assert!(domain.reclaim(Iova::new(0), GIB).unwrap().is_empty());
        prop_assert_eq!(domain.table_frames(), built);
        frames.allow(u64::MAX);
        for &(iova, length) in &ranges {
            domain.release(Iova::new(iova), length).unwrap();
        }
        complete(domain.reclaim(Iova::new(0), 1 << domain.config().address_width).unwrap());
        prop_assert_eq!(domain.table_frames(), 1);
        close(domain);
    }
}
