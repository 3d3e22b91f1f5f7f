//! The builder against an ordered map of pages and the strict model unit: any sequence of maps, unmaps, reclaims and accesses, with no more
//! invalidations than the builder asks for, and no translation that is not what it should be.
//!
//! `STRICT_SEQUENCES` says how many sequences to try for each format and level count.
#![cfg(not(loom))]

mod actions;
mod common;

use actions::{maps::*, unit::*};
use framepool::vtd::*;
use proptest::prelude::*;
use std::env;

fn operation() -> impl Strategy<Value = Operation> {
    let pages = prop_oneof![4 => 1..8u64, 2 => 1..WINDOW, 2 => Just(512), 1 => Just(1024)];
    let place = (0..WINDOWS.len(), prop_oneof![0..16u64, 500..524u64, 0..WINDOW], pages, any::<bool>());
    let cut = prop_oneof![2 => Just(0), 1 => 1..16u64, 1 => 0..WINDOW];
    let reclaim = prop_oneof![3 => Just(0), 2 => Just(1), 1 => Just(2)];
    let built = prop_oneof![6 => Just(0), 1 => Just(1), 1 => Just(2)];
    let unmap = (any::<bool>(), prop::bool::weighted(0.8), cut, reclaim, built);
    (unmap, place, 0..5u64, 1..4u8, 0..WINDOW).prop_map(
        |(
            (unmap, mapped, cut, reclaim, built),
            (window, page, pages, aligned),
            target,
            permissions,
            look,
        )| {
            Operation {
                unmap,
                reclaim,
                built,
                mapped,
                cut,
                window,
                page,
                pages,
                aligned,
                target,
                permissions,
                look,
            }
        },
    )
}

/// The properties of units that change what a driver has to do.
fn hardware() -> impl Strategy<Value = Hardware> {
    let masks =
        prop_oneof![Just(None), Just(Some(0)), Just(Some(8)), Just(Some(9)), Just(Some(18)), Just(Some(30))];
    (any::<bool>(), any::<bool>(), masks).prop_map(|(coherent, caching_mode, page_selective)| Hardware {
        coherent,
        caching_mode,
        page_selective,
        ..Hardware::default()
    })
}

fn sequences() -> ProptestConfig {
    let cases = env::var("STRICT_SEQUENCES").ok().and_then(|number| number.parse().ok()).unwrap_or(150);
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
