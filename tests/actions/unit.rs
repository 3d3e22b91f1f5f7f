//! What the actions on tables share: where they happen, the strict model unit behind a domain, and how its tables come to an end.

use super::{leaves, maps};
use crate::common::tables::TestFrames;
use arbitrary::{Arbitrary, Unstructured};
use framepool::vtd::*;

pub const PAGE: u64 = 4096;
/// A gibibyte, and 2 MiB, in pages.
pub const GIB: u64 = 1 << 18;
pub const LARGE: u64 = 512;
/// Windows in which everything happens, in pages: at the start, and around the borders of 1 GiB and of 512 GiB.
pub const WINDOWS: [u64; 3] = [0, GIB - 768, (1 << 27) - 576];
pub const WINDOW: u64 = 1536;
/// Targets beyond this are refused. Addresses of this process are within.
pub const HOST_WIDTH: u8 = 47;
pub const ID: DomainId = DomainId::FIRST;

pub type Unit<'f> = ModelUnit<&'f TestFrames>;

/// The first page of a window; 512 GiB is where three levels end.
pub fn window(levels: Levels, number: usize) -> u64 {
    WINDOWS[if levels == Levels::Three { number % 2 } else { number }]
}

/// Does what a change has left to be done, and no more than the builder asks for.
pub fn complete(unit: &Unit<'_>, stage: Stage, invalidation: Invalidation<'_, &Unit<'_>>) {
    let wait = Some(Wait::default());
    let queue: Vec<_> = match stage {
        Stage::First => invalidation.pasid_descriptors(Pasid::default(), wait).collect(),
        Stage::Second => invalidation.descriptors(wait).collect(),
    };
    unit.submit(&queue);
    // SAFETY: the only device is the model, which has forgotten what it was told to forget.
    unsafe { invalidation.complete() };
}

/// Takes the domain apart, after which nothing of it is left.
pub fn close<F: Format>(unit: &Unit<'_>, domain: Domain<F, &Unit<'_>>) {
    unit.detach(ID);
    let all =
        Descriptor::Iotlb { selection: IotlbSelection::Domain(ID), drain_reads: false, drain_writes: false };
    unit.submit(&[all, Descriptor::Wait(Wait::default())]);
    // SAFETY: the model has forgotten the domain.
    unsafe { domain.close().complete() };
    unit.check();
    assert_eq!(unit.take_violations(), []);
    assert_eq!((unit.frames().live(), unit.frames().leaked_so_far()), (0, 0));
}

/// The properties of units that change what a driver has to do.
pub fn hardware(bytes: &mut Unstructured<'_>) -> arbitrary::Result<Hardware> {
    let masks = [None, Some(0), Some(8), Some(9), Some(18), Some(30)];
    let coherent = bytes.arbitrary()?;
    Ok(Hardware {
        coherent,
        caching_mode: bytes.arbitrary()?,
        page_selective: *bytes.choose(&masks)?,
        accessed_dirty: coherent && bytes.arbitrary()?,
        ..Hardware::default()
    })
}

/// A page of a window, often near the start or near a border of tables.
pub fn page(bytes: &mut Unstructured<'_>) -> arbitrary::Result<u64> {
    match bytes.int_in_range(0..=3u8)? {
        0 => bytes.int_in_range(0..=15),
        1 => bytes.int_in_range(250..=269),
        2 => bytes.int_in_range(500..=523),
        _ => bytes.int_in_range(0..=WINDOW - 1),
    }
}

/// A number of pages, mostly small, sometimes that of a large leaf, of half a one, or of two.
pub fn pages(bytes: &mut Unstructured<'_>) -> arbitrary::Result<u64> {
    match bytes.int_in_range(0..=15u8)? {
        0 => Ok(2 * LARGE),
        1 | 2 => Ok(LARGE),
        3 => Ok(LARGE / 2),
        4 => bytes.int_in_range(1..=WINDOW - 1),
        _ => bytes.int_in_range(1..=7),
    }
}

/// One of the windows.
pub fn any_window(bytes: &mut Unstructured<'_>) -> arbitrary::Result<usize> {
    bytes.int_in_range(0..=WINDOWS.len() - 1)
}

/// Rights, never none.
pub fn rights(bytes: &mut Unstructured<'_>) -> arbitrary::Result<u8> {
    bytes.int_in_range(1..=3)
}

/// One of the targets that the actions make addresses of.
pub fn target(bytes: &mut Unstructured<'_>) -> arbitrary::Result<u64> {
    bytes.int_in_range(0..=4)
}

/// Any page of a window.
pub fn anywhere(bytes: &mut Unstructured<'_>) -> arbitrary::Result<u64> {
    bytes.int_in_range(0..=WINDOW - 1)
}

/// Any bytes as what happens to a domain of the stage.
fn stage<F: Format>(bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let kind = u8::arbitrary(bytes)?;
    let plain = match (F::STAGE, kind % 3) {
        (Stage::First, number) => {
            DomainConfig::first_stage([Levels::Four, Levels::Five][usize::from(number % 2)])
        }
        (Stage::Second, number) => {
            DomainConfig::new([Levels::Three, Levels::Four, Levels::Five][usize::from(number)])
        }
    };
    let unit = (u8::arbitrary(bytes)? % 4, hardware(bytes)?);
    if kind & 128 == 0 {
        maps::run::<F>(plain, unit, &super::rest(bytes, 12));
    } else {
        leaves::run::<F>(plain, unit, &super::rest(bytes, 12));
    }
    Ok(())
}

/// Any bytes as what happens to a domain in the second-stage format.
pub fn second_stage(bytes: &[u8]) {
    let _ = stage::<SecondStage>(&mut Unstructured::new(bytes));
}

/// Any bytes as what happens to a domain in the first-stage format.
pub fn first_stage(bytes: &[u8]) {
    let _ = stage::<FirstStage>(&mut Unstructured::new(bytes));
}
