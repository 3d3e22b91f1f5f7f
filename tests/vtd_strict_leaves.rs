//! Everything that changes leaves, against an ordered map of ranges and the strict model unit: lists of pages, rights, joining, dirty bits, leaves
//! up to 1 GiB and the parts that they are split into, beside maps, unmaps and the return of empty tables. No translation is ever other
//! than it should be, with no more invalidations than the builder asks for; no write goes unnoted.
//!
//! `STRICT_SEQUENCES` says how many sequences to try for each format and level count.
#![cfg(not(loom))]

mod actions;
mod common;

use actions::{leaves::*, unit::*};
use framepool::vtd::*;
use proptest::prelude::*;
use std::env;

fn operation() -> impl Strategy<Value = Operation> {
    let action = prop_oneof![
        4 => Just(Action::Map),
        2 => any::<bool>().prop_map(|swapped| Action::MapPages { swapped }),
        3 => Just(Action::Unmap),
        3 => Just(Action::Protect),
        2 => Just(Action::Join),
        2 => Just(Action::TakeDirty),
        1 => Just(Action::Reclaim),
    ];
    let pages = prop_oneof![
        4 => 1..8u64, 2 => 1..WINDOW, 3 => Just(LARGE / 2), 3 => Just(LARGE), 1 => Just(2 * LARGE), 1 => Just(GIB)
    ];
    let place = (0..WINDOWS.len(), prop_oneof![0..16u64, 250..270u64, 500..524u64, 0..WINDOW], pages);
    (action, prop::bool::weighted(0.8), place, any::<bool>(), 0..5u64, 1..4u8, 0..WINDOW).prop_map(
        |(action, mapped, (window, page, pages), aligned, target, permissions, look)| Operation {
            action,
            mapped,
            window,
            page,
            pages,
            aligned,
            target,
            permissions,
            look,
        },
    )
}

fn hardware() -> impl Strategy<Value = Hardware> {
    let masks = prop_oneof![Just(None), Just(Some(0)), Just(Some(9)), Just(Some(18)), Just(Some(30))];
    (any::<bool>(), any::<bool>(), masks).prop_map(|(coherent, caching_mode, page_selective)| Hardware {
        coherent,
        caching_mode,
        page_selective,
        accessed_dirty: coherent,
        ..Hardware::default()
    })
}

fn sequences() -> ProptestConfig {
    let cases = env::var("STRICT_SEQUENCES").ok().and_then(|number| number.parse().ok()).unwrap_or(24);
    ProptestConfig { failure_persistence: None, max_shrink_iters: 256, ..ProptestConfig::with_cases(cases) }
}

proptest! {
    #![proptest_config(sequences())]

    #[test]
    fn second_stage_of_three_levels_leaves_nothing_stale(
        unit in (0..4u8, hardware()),
        operations in prop::collection::vec(operation(), 1..16),
    ) {
        run::<SecondStage>(DomainConfig::new(Levels::Three), unit, &operations);
    }

    #[test]
    fn second_stage_of_four_levels_leaves_nothing_stale(
        unit in (0..4u8, hardware()),
        operations in prop::collection::vec(operation(), 1..16),
    ) {
        run::<SecondStage>(DomainConfig::new(Levels::Four), unit, &operations);
    }

    #[test]
    fn second_stage_of_five_levels_leaves_nothing_stale(
        unit in (0..4u8, hardware()),
        operations in prop::collection::vec(operation(), 1..16),
    ) {
        run::<SecondStage>(DomainConfig::new(Levels::Five), unit, &operations);
    }

    #[test]
    fn first_stage_of_four_levels_leaves_nothing_stale(
        unit in (0..4u8, hardware()),
        operations in prop::collection::vec(operation(), 1..16),
    ) {
        run::<FirstStage>(DomainConfig::first_stage(Levels::Four), unit, &operations);
    }

    #[test]
    fn first_stage_of_five_levels_leaves_nothing_stale(
        unit in (0..4u8, hardware()),
        operations in prop::collection::vec(operation(), 1..16),
    ) {
        run::<FirstStage>(DomainConfig::first_stage(Levels::Five), unit, &operations);
    }
}

/// Two halves of a large leaf, mapped one after the other and then joined.
fn join_two_halves(hardware: Hardware) {
    let half = |page| Operation {
        action: Action::Map,
        mapped: false,
        window: 0,
        page,
        pages: LARGE / 2,
        aligned: true,
        target: 1,
        permissions: 3,
        look: 0,
    };
    let join = Operation { action: Action::Join, pages: LARGE, ..half(0) };
    let unit = (PageSizes::SIZE_2M.bits(), hardware);
    run::<SecondStage>(DomainConfig::new(Levels::Three), unit, &[half(0), half(LARGE / 2), join]);
}

/// The unit follows the leaf, and not the table that came back.
#[test]
fn a_joined_leaf_is_written_back_where_hardware_does_not_snoop() {
    join_two_halves(Hardware { coherent: false, ..Hardware::default() });
}

/// It remembers where the table is, and is told page by page what to forget: the table as well.
#[test]
fn hardware_that_remembers_a_table_forgets_it_when_its_leaves_are_joined() {
    join_two_halves(Hardware { page_selective: Some(9), ..Hardware::default() });
}
