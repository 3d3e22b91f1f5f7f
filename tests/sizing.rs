//! Sizing against the builder: what is counted beforehand is what is taken, to the frame.
#![cfg(not(loom))]

mod common;

use common::tables::TestFrames;
use framepool::{PhysAddr, Watermarks, vtd::*};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const PAGE: u64 = 4096;

/// Maps the ranges one by one and says how many table frames the domain has then.
fn taken<F: Format>(config: DomainConfig, ranges: &[(u64, u64, u64)]) -> u64 {
    let frames = TestFrames::default();
    let domain = Domain::<F, _>::new(config, &frames).unwrap();
    for &(iova, target, length) in ranges {
        // SAFETY: no device walks these tables.
        unsafe { domain.map(Iova::new(iova), PhysAddr::new(target), length, Permissions::all()).unwrap() };
    }
    let tables = domain.table_frames();
    assert_eq!(tables, frames.live());
    // SAFETY: no device walks these tables.
    unsafe { domain.close().complete() };
    tables
}

fn config() -> impl Strategy<Value = (DomainConfig, Stage)> {
    let levels = prop_oneof![Just(Levels::Three), Just(Levels::Four), Just(Levels::Five)];
    (levels, 0..4u8, any::<bool>()).prop_map(|(levels, page_sizes, first)| {
        let page_sizes = PageSizes::from_bits_truncate(page_sizes);
        if first && levels != Levels::Three {
            (DomainConfig { page_sizes, ..DomainConfig::first_stage(levels) }, Stage::First)
        } else {
            (DomainConfig { page_sizes, ..DomainConfig::new(levels) }, Stage::Second)
        }
    })
}

prop_compose! {
    /// A range near a boundary of some level, from one page to some MiB long, or to some GiB if the leaves will be large; the target
    /// alike aligned to some power of two.
    fn wish()
        ((config, stage) in config(), alike in 12..34u32)
        (config in Just(config), stage in Just(stage), alike in Just(alike), level in 1..=5u32, boundary in any::<u64>(),
            before in 0..2048u64,
            magnitude in 0..if alike >= 21 && config.page_sizes.contains(PageSizes::SIZE_2M) { 22 } else { 13_u32 },
            fraction in any::<u64>(), elsewhere in any::<u64>())
        -> (DomainConfig, Stage, u64, u64, u64)
    {
        let aperture = 1 << config.address_width;
        let length = ((1 << magnitude) + fraction % (1 << magnitude)) * PAGE;
        let shift = (12 + 9 * (level - 1)).min(u32::from(config.address_width));
        let boundary = ((boundary % aperture) >> shift) << shift;
        let start = boundary.saturating_sub(before * PAGE).min(aperture - length);
        let target = (((elsewhere % (1 << 50)) >> alike) << alike) + (start & ((1 << alike) - 1));
        // No target meets the interrupt range; what is 4 GiB further is aligned alike.
        let clear = target >= INTERRUPT_RANGE.end || target + length <= INTERRUPT_RANGE.start;
        let target = if clear { target } else { target + 4 * GIB };
        (config, stage, start, target, length)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn the_tables_of_a_range_are_those_that_the_builder_takes((config, stage, iova, target, length) in wish()) {
        let sized = config.tables_for(Iova::new(iova), PhysAddr::new(target), length).unwrap();
        let taken = match stage {
            Stage::First => taken::<FirstStage>(config, &[(iova, target, length)]),
            Stage::Second => taken::<SecondStage>(config, &[(iova, target, length)]),
        };
        prop_assert_eq!(sized, taken);
        prop_assert!(sized <= config.tables_at_most(length).unwrap());
    }

    #[test]
    fn some_range_of_a_length_takes_the_most(
        (config, _) in config(), magnitude in 0..45u32, fraction in any::<u64>(), starts in prop::collection::vec(any::<u64>(), 8)
    ) {
        let small = DomainConfig { page_sizes: PageSizes::empty(), ..config };
        let aperture = 1 << config.address_width;
        let length = (((1 << magnitude) + fraction % (1 << magnitude)) * PAGE).min(aperture);
        let most = config.tables_at_most(length).unwrap();
        let takes = |start: u64| small.tables_for(Iova::new(start), PhysAddr::new(0), length).unwrap();
        for start in starts {
            prop_assert!(takes(start % (aperture - length + 1) / PAGE * PAGE) <= most);
        }
        let across = |level: u32| (1_u64 << (12 + 9 * (level - 1))) - PAGE;
        let reached = (1..=config.levels.count()).map(across).chain([0]).filter(|start| start + length <= aperture).map(takes).max();
        prop_assert_eq!(reached, Some(most));
    }
}

#[test]
fn two_hundred_and_fifty_six_mebibytes_of_small_pages_take_130_131_and_132() {
    const THREE: Result<u64, RangeError> =
        DomainConfig::new(Levels::Three).tables_for(Iova::new(GIB), PhysAddr::new(GIB), 256 * MIB);
    assert_eq!(THREE, Ok(130));
    for (levels, expected) in [(Levels::Four, 131), (Levels::Five, 132)] {
        let config = DomainConfig::new(levels);
        assert_eq!(config.tables_for(Iova::new(GIB), PhysAddr::new(GIB), 256 * MIB), Ok(expected));
        assert_eq!(taken::<SecondStage>(config, &[(GIB, GIB, 256 * MIB)]), expected);
    }
}

#[test]
fn queues_whose_ranges_lie_across_boundaries_take_all_that_was_counted() {
    let config = DomainConfig::new(Levels::Four);
    // The first 256 lie across boundaries of 512 GiB, and touch every table of level 3; the others across boundaries of 1 GiB.
    let across = |segment: u64| match segment {
        0..256 => (2 * segment + 1) * 512 * GIB - PAGE,
        _ => (segment / 200 * 512 + 2 * (segment % 200) + 3) * GIB - PAGE,
    };
    let ranges: Vec<_> = (0..1024).map(|segment| (across(segment), 0, 2 * PAGE)).collect();
    assert_eq!(config.tables_for_queues(64, 16, 2 * PAGE), Ok(1 + 512 + 2048 + 2048));
    assert_eq!(taken::<SecondStage>(config, &ranges), 1 + 512 + 2048 + 2048);
    let packed: Vec<_> = (0..1024).map(|segment| (segment * 3 * PAGE, 0, 2 * PAGE)).collect();
    assert_eq!(taken::<SecondStage>(config, &packed), 1 + 1 + 1 + 6);
}

#[test]
fn memory_takes_the_same_tables_for_each_device() {
    for page_sizes in (0..4).map(PageSizes::from_bits_truncate) {
        let config = DomainConfig { page_sizes, ..DomainConfig::new(Levels::Three) };
        let (hole, end) = (INTERRUPT_RANGE.start, INTERRUPT_RANGE.end);
        for memory in [3 * GIB + 5 * MIB, hole, hole + MIB / 2, end, end + PAGE, 4 * GIB + 5 * MIB] {
            let behind = memory.saturating_sub(end);
            let ranges = [(0, 0, memory.min(hole)), (end, end, behind)];
            let one = taken::<SecondStage>(config, &ranges[..if behind > 0 { 2 } else { 1 }]);
            assert_eq!(config.tables_for_memory(memory, 7), Ok(7 * one));
        }
    }
}

#[test]
fn what_no_domain_can_have_is_refused() {
    let config = DomainConfig::new(Levels::Three);
    let beyond = RangeError::BeyondWidth { iova: Iova::new(0), length: 513 * GIB, width: 39 };
    assert_eq!(config.tables_for(Iova::new(0), PhysAddr::new(0), 513 * GIB), Err(beyond));
    assert_eq!(config.tables_at_most(513 * GIB), Err(beyond));
    assert_eq!(config.tables_for_queues(1, 1, 0), Err(RangeError::Empty));
    assert_eq!(config.tables_for_memory(513 * GIB, 0), Err(beyond));
    assert_eq!(
        Watermarks::for_memory(&config, 1),
        Err(RangeError::Misaligned { iova: Iova::new(0), length: 1 })
    );
    let wide = DomainConfig { address_width: 200, ..config };
    assert!(wide.tables_for(Iova::new(0), PhysAddr::new(0), GIB).is_ok(), "no shape makes it panic");
}

#[test]
fn the_widest_domains_are_counted_too() {
    let config = DomainConfig::new(Levels::Five);
    assert_eq!(config.tables_at_most(1 << 57), Ok(1 + (1 << 9) + (1 << 18) + (1 << 27) + (1 << 36)));
    assert_eq!(config.tables_for_queues(u32::MAX, u32::MAX, 1 << 57), config.tables_at_most(1 << 57));
    let marks = Watermarks::for_memory(&config, 1 << 57).unwrap();
    assert_eq!(marks, Watermarks { min: 0, low: u32::MAX, high: u32::MAX, max: u32::MAX });
}
