//! Maps, unmaps, reclaims and tables built beforehand, against an ordered map of pages and the strict model unit: with no more invalidations
//! than the builder asks for, no translation is ever other than it should be.

use super::unit::*;
use crate::common::tables::TestFrames;
use arbitrary::{Arbitrary, Unstructured};
use framepool::{PhysAddr, vtd::*};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Arbitrary)]
pub struct Operation {
    pub unmap: bool,
    /// Takes the empty tables of the window out, before the operation and once more after it or, with 2, the same ones.
    #[arbitrary(with = |bytes: &mut Unstructured<'_>| bytes.int_in_range(0..=2))]
    pub reclaim: u8,
    /// Builds the tables for the range beforehand, or with 2 lets go of those of the window.
    #[arbitrary(with = |bytes: &mut Unstructured<'_>| bytes.int_in_range(0..=2))]
    pub built: u8,
    /// Unmaps what is mapped from the page on, up to the pages, rather than whatever is there.
    pub mapped: bool,
    /// Unmapped in two calls, the first of them for so many pages, with one invalidation.
    #[arbitrary(with = cut)]
    pub cut: u64,
    #[arbitrary(with = any_window)]
    pub window: usize,
    #[arbitrary(with = page)]
    pub page: u64,
    #[arbitrary(with = pages)]
    pub pages: u64,
    pub aligned: bool,
    #[arbitrary(with = target)]
    pub target: u64,
    #[arbitrary(with = rights)]
    pub permissions: u8,
    /// Where the device looks before and after, as a page of the window.
    #[arbitrary(with = anywhere)]
    pub look: u64,
}

/// Often no cut.
fn cut(bytes: &mut Unstructured<'_>) -> arbitrary::Result<u64> {
    match bytes.int_in_range(0..=3u8)? {
        0 | 1 => Ok(0),
        2 => bytes.int_in_range(1..=15),
        _ => anywhere(bytes),
    }
}

type Model = BTreeMap<u64, (u64, Permissions)>;
/// The device accesses `page`, and gets what the ordered map says.
fn look(unit: &Unit<'_>, model: &Model, page: u64) {
    for (write, needed) in [(false, Permissions::READ), (true, Permissions::WRITE)] {
        let got = unit.access(ID, Iova::new(page * PAGE + 0x128), write);
        match model.get(&page) {
            Some(&(target, permissions)) if permissions.contains(needed) => {
                assert_eq!(got, Ok(PhysAddr::new(target * PAGE + 0x128)));
            }
            Some(_) => assert_eq!(got, Err(Fault::Denied)),
            None => assert!(matches!(got, Err(Fault::NotPresent { .. })), "{:?}", got),
        }
    }
}

/// Does it all in a domain with these leaves, behind a unit with these properties.
pub fn run<F: Format>(
    config: DomainConfig,
    (page_sizes, hardware): (u8, Hardware),
    operations: &[Operation],
) {
    let page_sizes = PageSizes::from_bits_truncate(page_sizes);
    let config =
        DomainConfig { page_sizes, hardware, domain_id: Some(ID), host_address_width: HOST_WIDTH, ..config };
    let frames = TestFrames::default();
    let unit = ModelUnit::new(&frames, hardware);
    let domain = Domain::<CachingMode<F>, _>::new(config, &unit).unwrap();
    unit.attach(ID, &domain);
    let mut model = Model::new();
    for operation in operations {
        let window = window(config.levels, operation.window);
        let mut first = window + operation.page;
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
            window + operation.look,
        ];
        for page in looks {
            look(&unit, &model, page);
        }
        match operation.built {
            0 => {}
            1 => match domain.preallocate(iova, length) {
                Ok(told) => {
                    complete(&unit, F::STAGE, told);
                    unit.check();
                    assert_eq!(unit.take_violations(), []);
                }
                Err(error) => {
                    let MapError::AlreadyMapped { iova } = error else { panic!("{error}") };
                    let large = domain.translate(iova).is_some_and(|at| at.page_size > PAGE);
                    assert!(large, "{} at {}", error, iova);
                }
            },
            _ => domain.release(Iova::new(window * PAGE), WINDOW * PAGE).unwrap(),
        }
        let reclaim = || domain.reclaim(Iova::new(window * PAGE), WINDOW * PAGE).unwrap();
        let mut parted = (operation.reclaim > 0).then(reclaim);
        if operation.unmap {
            let hole = range.clone().find(|page| !model.contains_key(page));
            // In two calls only where both succeed.
            let cut = if hole.is_none() { operation.cut % pages * PAGE } else { 0 };
            let (start, rest) = (Iova::new(first * PAGE + cut), length - cut);
            let before = (cut > 0).then(|| domain.unmap(iova, cut).unwrap());
            match domain.unmap(start, rest) {
                Ok(mut invalidation) => {
                    assert_eq!(hole, None);
                    if let Some(before) = before {
                        invalidation.merge(before).unwrap();
                    }
                    model.retain(|page, _| !range.contains(page));
                    complete(&unit, F::STAGE, invalidation);
                }
                Err(error) => assert_eq!(
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
                    assert_eq!((taken, write_only, operation.target == 4), (None, false, false));
                    model.extend(
                        range.clone().zip(target..).map(|(page, target)| (page, (target, permissions))),
                    );
                    complete(&unit, F::STAGE, told);
                    // What is mapped is reached, though the unit may remember a table that was parted.
                    look(&unit, &model, first);
                    look(&unit, &model, range.end - 1);
                    assert_eq!(unit.take_violations(), []);
                }
                Err(MapError::WriteOnly) => assert!(write_only),
                Err(MapError::TargetBeyondWidth { .. }) => assert_eq!(operation.target, 4),
                Err(error) => assert_eq!(
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
        assert_eq!(unit.take_violations(), []);
        for page in looks {
            look(&unit, &model, page);
        }
        assert_eq!(unit.take_violations(), []);
    }
    close(&unit, domain);
}
