//! The builder against an ordered map of pages: any sequence of maps, unmaps and reclaims, dense enough that they meet.
#![cfg(not(loom))]

mod common;

use common::tables::{TestFrames, snapshot};
use framepool::{PhysAddr, vtd::*};
use proptest::prelude::*;
use std::collections::BTreeMap;

const PAGE: u64 = 4096;
/// Windows in which everything happens, in pages: at the start, and around the borders of 1 GiB and of 512 GiB.
const WINDOWS: [u64; 3] = [0, (1 << 18) - 768, (1 << 27) - 576];
const WINDOW: u64 = 1536;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reclaim {
    No,
    /// Those of the whole domain, complete before the operation.
    All,
    /// Those of the window, complete only after the operation.
    Window,
    /// Those of the window, never complete.
    Dropped,
}

#[derive(Clone, Debug)]
struct Operation {
    unmap: bool,
    /// Takes empty tables out before.
    reclaim: Reclaim,
    window: usize,
    page: u64,
    pages: u64,
    aligned: bool,
    target: u64,
    permissions: u8,
}

fn operation() -> impl Strategy<Value = Operation> {
    let pages = prop_oneof![4 => 1..8u64, 2 => 1..WINDOW, 1 => Just(512), 1 => Just(1024)];
    let reclaim = prop_oneof![
        4 => Just(Reclaim::No),
        1 => Just(Reclaim::All),
        2 => Just(Reclaim::Window),
        1 => Just(Reclaim::Dropped),
    ];
    ((any::<bool>(), reclaim), 0..WINDOWS.len(), 0..WINDOW, pages, any::<bool>(), 0..4u64, 1..4u8).prop_map(
        |((unmap, reclaim), window, page, pages, aligned, target, permissions)| Operation {
            unmap,
            reclaim,
            window,
            page,
            pages,
            aligned,
            target,
            permissions,
        },
    )
}

type Model = BTreeMap<u64, (u64, Permissions)>;

/// The model's mappings, neighbours merged.
fn merged(model: &Model) -> Vec<Mapping> {
    let mut all: Vec<Mapping> = Vec::new();
    for (&page, &(target, permissions)) in model {
        let (iova, target) = (Iova::new(page * PAGE), PhysAddr::new(target * PAGE));
        match all.last_mut() {
            Some(last)
                if last.iova.as_u64() + last.length == iova.as_u64()
                    && last.target.as_u64() + last.length == target.as_u64()
                    && last.permissions == permissions =>
            {
                last.length += PAGE;
            }
            _ => all.push(Mapping { iova, target, length: PAGE, permissions }),
        }
    }
    all
}

/// How many tables from `root` down are empty.
fn empty_tables(frames: &TestFrames, root: PhysAddr, levels: u32) -> u64 {
    let tables = snapshot(frames, root, levels);
    tables.iter().filter(|(_, words)| words.iter().all(|&word| word == 0)).count() as u64
}

fn check<F: Format>(
    config: DomainConfig,
    page_sizes: PageSizes,
    operations: &[Operation],
) -> Result<(), TestCaseError> {
    let frames = TestFrames::default();
    let domain = Domain::<F, _>::new(DomainConfig { page_sizes, ..config }, &frames).unwrap();
    let mut model = Model::new();
    for operation in operations {
        // 512 GiB is where three levels end.
        let window = if config.levels == Levels::Three { operation.window % 2 } else { operation.window };
        let mut first = WINDOWS[window] + operation.page;
        if operation.aligned {
            first &= !511;
        }
        let range = first..first + operation.pages;
        let (iova, length) = (Iova::new(first * PAGE), operation.pages * PAGE);
        let of_window = || domain.reclaim(Iova::new(WINDOWS[window] * PAGE), WINDOW * PAGE).unwrap();
        let mut pending = None;
        match operation.reclaim {
            Reclaim::No => {}
            Reclaim::Window => pending = Some(of_window()),
            Reclaim::Dropped => drop(of_window()),
            Reclaim::All => {
                let invalidation = domain.reclaim(Iova::new(0), 1 << config.address_width).unwrap();
                let (before, parted) = (domain.table_frames(), invalidation.table_frames());
                // SAFETY: no device walks these tables.
                unsafe { invalidation.complete() };
                prop_assert_eq!(domain.table_frames(), before - parted);
                let empty = empty_tables(&frames, domain.root(), config.levels.count());
                prop_assert_eq!(empty, u64::from(model.is_empty()), "the root only");
            }
        }
        if operation.unmap {
            let hole = range.clone().find(|page| !model.contains_key(page));
            match domain.unmap(iova, length) {
                Ok(invalidation) => {
                    prop_assert_eq!(hole, None);
                    model.retain(|page, _| !range.contains(page));
                    prop_assert_eq!(frames.live(), domain.table_frames() + invalidation.table_frames());
                    // SAFETY: no device walks these tables.
                    unsafe { invalidation.complete() };
                }
                Err(error) => {
                    prop_assert_eq!(
                        Some(error),
                        hole.map(|page| UnmapError::NotMapped { iova: Iova::new(page * PAGE) })
                    );
                }
            }
        } else {
            let target = (operation.target << 18) + if operation.target == 0 { 1 } else { first & 511 };
            let permissions = Permissions::from_bits_truncate(operation.permissions);
            let taken = range.clone().find(|page| model.contains_key(page));
            let write_only = F::STAGE == Stage::First && permissions == Permissions::WRITE;
            // SAFETY: no device walks these tables.
            match unsafe { domain.map(iova, PhysAddr::new(target * PAGE), length, permissions) } {
                Err(MapError::WriteOnly) => prop_assert!(write_only),
                Ok(told) => {
                    prop_assert!(told.into_invalidation().is_none());
                    prop_assert_eq!((taken, write_only), (None, false));
                    model.extend(
                        range.clone().zip(target..).map(|(page, target)| (page, (target, permissions))),
                    );
                }
                Err(error) => {
                    prop_assert_eq!(
                        Some(error),
                        taken.map(|page| MapError::AlreadyMapped { iova: Iova::new(page * PAGE) })
                    );
                }
            }
        }
        if let Some(invalidation) = pending {
            // SAFETY: no device walks these tables.
            unsafe { invalidation.complete() };
        }
        for page in first.saturating_sub(2)..range.end + 2 {
            let at = domain
                .translate(Iova::new(page * PAGE + 0x123))
                .map(|at| (at.target.as_u64(), at.permissions));
            let expected =
                model.get(&page).map(|&(target, permissions)| (target * PAGE + 0x123, permissions));
            prop_assert_eq!(at, expected, "page {:#x}", page);
        }
        prop_assert_eq!(frames.live(), domain.table_frames());
    }
    prop_assert_eq!(domain.mappings().collect::<Vec<_>>(), merged(&model));
    // SAFETY: no device walks these tables.
    unsafe { domain.close().complete() };
    prop_assert_eq!((frames.live(), frames.leaked_so_far()), (0, 0));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn second_stage_of_three_levels_agrees_with_the_model(
        large in 0..4u8,
        operations in prop::collection::vec(operation(), 0..40),
    ) {
        check::<SecondStage>(DomainConfig::new(Levels::Three), PageSizes::from_bits_truncate(large), &operations)?;
    }

    #[test]
    fn second_stage_of_four_levels_agrees_with_the_model(
        large in 0..4u8,
        operations in prop::collection::vec(operation(), 0..40),
    ) {
        check::<SecondStage>(DomainConfig::new(Levels::Four), PageSizes::from_bits_truncate(large), &operations)?;
    }

    #[test]
    fn second_stage_of_five_levels_agrees_with_the_model(
        large in 0..4u8,
        operations in prop::collection::vec(operation(), 0..40),
    ) {
        check::<SecondStage>(DomainConfig::new(Levels::Five), PageSizes::from_bits_truncate(large), &operations)?;
    }

    #[test]
    fn first_stage_of_four_levels_agrees_with_the_model(
        large in 0..4u8,
        operations in prop::collection::vec(operation(), 0..40),
    ) {
        check::<FirstStage>(DomainConfig::first_stage(Levels::Four), PageSizes::from_bits_truncate(large), &operations)?;
    }

    #[test]
    fn first_stage_of_five_levels_agrees_with_the_model(
        large in 0..4u8,
        operations in prop::collection::vec(operation(), 0..40),
    ) {
        check::<FirstStage>(DomainConfig::first_stage(Levels::Five), PageSizes::from_bits_truncate(large), &operations)?;
    }
}
