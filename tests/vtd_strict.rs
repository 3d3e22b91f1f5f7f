//! The builder against an ordered map of pages and the strict model unit: any sequence of maps, unmaps, reclaims and accesses, with no more
//! invalidations than the builder asks for, and no translation that is not what it should be.
//!
//! `STRICT_SEQUENCES` says how many sequences to try for each format and level count.
#![cfg(not(loom))]

mod common;

use common::tables::TestFrames;
use framepool::{PhysAddr, vtd::*};
use proptest::prelude::*;
use std::{collections::BTreeMap, env};

const PAGE: u64 = 4096;
/// Windows in which everything happens, in pages: at the start, and around the borders of 1 GiB and of 512 GiB.
const WINDOWS: [u64; 3] = [0, (1 << 18) - 768, (1 << 27) - 576];
const WINDOW: u64 = 1536;
/// Targets beyond this are refused. Addresses of this process are within.
const HOST_WIDTH: u8 = 47;
const ID: DomainId = DomainId::FIRST;

#[derive(Clone, Debug)]
struct Operation {
    unmap: bool,
    /// Takes the empty tables of the window out, before the operation and once more after it or, with 2, the same ones.
    reclaim: u8,
    /// Builds the tables for the range beforehand, or with 2 lets go of those of the window.
    built: u8,
    /// Unmaps what is mapped from the page on, up to the pages, rather than whatever is there.
    mapped: bool,
    /// Unmapped in two calls, the first of them for so many pages, with one invalidation.
    cut: u64,
    window: usize,
    page: u64,
    pages: u64,
    aligned: bool,
    target: u64,
    permissions: u8,
    /// Where the device looks before and after, as a page of the window.
    look: u64,
}

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

type Model = BTreeMap<u64, (u64, Permissions)>;
type Unit<'f> = ModelUnit<&'f TestFrames>;

/// Does what a change has left to be done, and no more than the builder asks for.
fn complete(unit: &Unit<'_>, stage: Stage, invalidation: Invalidation<'_, &Unit<'_>>) {
    let wait = Some(Wait::default());
    let queue: Vec<_> = match stage {
        Stage::First => invalidation.pasid_descriptors(Pasid::default(), wait).collect(),
        Stage::Second => invalidation.descriptors(wait).collect(),
    };
    unit.submit(&queue);
    // SAFETY: the only device is the model, which has forgotten what it was told to forget.
    unsafe { invalidation.complete() };
}

/// The device accesses `page`, and gets what the ordered map says.
fn look(unit: &Unit<'_>, model: &Model, page: u64) -> Result<(), TestCaseError> {
    for (write, needed) in [(false, Permissions::READ), (true, Permissions::WRITE)] {
        let got = unit.access(ID, Iova::new(page * PAGE + 0x128), write);
        match model.get(&page) {
            Some(&(target, permissions)) if permissions.contains(needed) => {
                prop_assert_eq!(got, Ok(PhysAddr::new(target * PAGE + 0x128)));
            }
            Some(_) => prop_assert_eq!(got, Err(Fault::Denied)),
            None => prop_assert!(matches!(got, Err(Fault::NotPresent { .. })), "{:?}", got),
        }
    }
    Ok(())
}

fn check<F: Format>(
    config: DomainConfig,
    (page_sizes, hardware): (u8, Hardware),
    operations: &[Operation],
) -> Result<(), TestCaseError> {
    let page_sizes = PageSizes::from_bits_truncate(page_sizes);
    let config =
        DomainConfig { page_sizes, hardware, domain_id: Some(ID), host_address_width: HOST_WIDTH, ..config };
    let frames = TestFrames::default();
    let unit = ModelUnit::new(&frames, hardware);
    let domain = Domain::<CachingMode<F>, _>::new(config, &unit).unwrap();
    unit.attach(ID, &domain);
    let mut model = Model::new();
    for operation in operations {
        // 512 GiB is where three levels end.
        let window = if config.levels == Levels::Three { operation.window % 2 } else { operation.window };
        let mut first = WINDOWS[window] + operation.page;
        if operation.aligned {
            first &= !511;
        }
        let mut pages = operation.pages;
        if operation.unmap && operation.mapped {
            first = model.range(first..).next().map_or(first, |(&page, _)| page);
            let end = (first..first + pages).find(|page| !model.contains_key(page));
            pages = end.map_or(pages, |end| end - first).max(1);
        }
        let range = first..first + pages;
        let (iova, length) = (Iova::new(first * PAGE), pages * PAGE);
        let looks = [
            first.saturating_sub(1),
            first,
            first + pages / 2,
            range.end - 1,
            range.end,
            WINDOWS[window] + operation.look,
        ];
        for page in looks {
            look(&unit, &model, page)?;
        }
        match operation.built {
            0 => {}
            1 => match domain.preallocate(iova, length) {
                Ok(told) => {
                    complete(&unit, F::STAGE, told);
                    unit.check();
                    prop_assert_eq!(unit.take_violations(), []);
                }
                Err(error) => {
                    let MapError::AlreadyMapped { iova } = error else { panic!("{error}") };
                    let large = domain.translate(iova).is_some_and(|at| at.page_size > PAGE);
                    prop_assert!(large, "{} at {}", error, iova);
                }
            },
            _ => domain.release(Iova::new(WINDOWS[window] * PAGE), WINDOW * PAGE).unwrap(),
        }
        let reclaim = || domain.reclaim(Iova::new(WINDOWS[window] * PAGE), WINDOW * PAGE).unwrap();
        let mut parted = (operation.reclaim > 0).then(reclaim);
        if operation.unmap {
            let hole = range.clone().find(|page| !model.contains_key(page));
            // In two calls only where both succeed.
            let cut = if hole.is_none() { operation.cut % pages * PAGE } else { 0 };
            let (start, rest) = (Iova::new(first * PAGE + cut), length - cut);
            let before = (cut > 0).then(|| domain.unmap(iova, cut).unwrap());
            match domain.unmap(start, rest) {
                Ok(mut invalidation) => {
                    prop_assert_eq!(hole, None);
                    if let Some(before) = before {
                        invalidation.merge(before).unwrap();
                    }
                    model.retain(|page, _| !range.contains(page));
                    complete(&unit, F::STAGE, invalidation);
                }
                Err(error) => prop_assert_eq!(
                    Some(error),
                    hole.map(|page| UnmapError::NotMapped { iova: Iova::new(page * PAGE) })
                ),
            }
        } else {
            let mut target = (operation.target << 18) + if operation.target == 0 { 1 } else { first & 511 };
            if operation.target == 4 {
                target += (1 << (HOST_WIDTH - 12)) - (4 << 18);
            }
            let permissions = Permissions::from_bits_truncate(operation.permissions);
            let taken = range.clone().find(|page| model.contains_key(page));
            let write_only = F::STAGE == Stage::First && permissions == Permissions::WRITE;
            // SAFETY: the model unit reads no page.
            match unsafe { domain.map(iova, PhysAddr::new(target * PAGE), length, permissions) } {
                Ok(told) => {
                    prop_assert_eq!((taken, write_only, operation.target == 4), (None, false, false));
                    model.extend(
                        range.clone().zip(target..).map(|(page, target)| (page, (target, permissions))),
                    );
                    complete(&unit, F::STAGE, told);
                    // What is mapped is reached, though the unit may remember a table that was parted.
                    look(&unit, &model, first)?;
                    look(&unit, &model, range.end - 1)?;
                    prop_assert_eq!(unit.take_violations(), []);
                }
                Err(MapError::WriteOnly) => prop_assert!(write_only),
                Err(MapError::TargetBeyondWidth { .. }) => prop_assert_eq!(operation.target, 4),
                Err(error) => prop_assert_eq!(
                    Some(error),
                    taken.map(|page| MapError::AlreadyMapped { iova: Iova::new(page * PAGE) })
                ),
            }
        }
        if operation.reclaim == 1 {
            // Dropped; the next one tells of the same tables.
            parted = None;
            parted.get_or_insert_with(reclaim);
        }
        if let Some(invalidation) = parted {
            complete(&unit, F::STAGE, invalidation);
        }
        // At rest before the device looks again: what it has cached, and what it could walk to.
        unit.check();
        prop_assert_eq!(unit.take_violations(), []);
        for page in looks {
            look(&unit, &model, page)?;
        }
        prop_assert_eq!(unit.take_violations(), []);
    }
    unit.detach(ID);
    let all =
        Descriptor::Iotlb { selection: IotlbSelection::Domain(ID), drain_reads: false, drain_writes: false };
    unit.submit(&[all, Descriptor::Wait(Wait::default())]);
    // SAFETY: the model has forgotten the domain.
    unsafe { domain.close().complete() };
    unit.check();
    prop_assert_eq!(unit.take_violations(), []);
    prop_assert_eq!((frames.live(), frames.leaked_so_far()), (0, 0));
    Ok(())
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
        check::<SecondStage>(DomainConfig::new(Levels::Three), unit, &operations)?;
    }

    #[test]
    fn second_stage_of_four_levels_leaves_nothing_stale(
        unit in (0..4u8, hardware()),
        operations in prop::collection::vec(operation(), 1..16),
    ) {
        check::<SecondStage>(DomainConfig::new(Levels::Four), unit, &operations)?;
    }

    #[test]
    fn second_stage_of_five_levels_leaves_nothing_stale(
        unit in (0..4u8, hardware()),
        operations in prop::collection::vec(operation(), 1..16),
    ) {
        check::<SecondStage>(DomainConfig::new(Levels::Five), unit, &operations)?;
    }

    #[test]
    fn first_stage_of_four_levels_leaves_nothing_stale(
        unit in (0..4u8, hardware()),
        operations in prop::collection::vec(operation(), 1..16),
    ) {
        check::<FirstStage>(DomainConfig::first_stage(Levels::Four), unit, &operations)?;
    }

    #[test]
    fn first_stage_of_five_levels_leaves_nothing_stale(
        unit in (0..4u8, hardware()),
        operations in prop::collection::vec(operation(), 1..16),
    ) {
        check::<FirstStage>(DomainConfig::first_stage(Levels::Five), unit, &operations)?;
    }
}
