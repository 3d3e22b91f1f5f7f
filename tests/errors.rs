//! What errors say: something that tells each from all others of its type, with every number that it carries.
#![cfg(not(loom))]

use framepool::{
    AllocError, BuildError, FrameSize, PhysAddr, PinError, SourceError, Watermarks,
    vtd::{context::*, *},
};
use std::{collections::HashSet, error::Error};

/// Each error with what its words must contain, put apart by `|`.
fn say<E: Error, const N: usize>(errors: [(E, &str); N]) {
    let mut texts = HashSet::new();
    for (error, parts) in errors {
        let text = error.to_string();
        assert!(text.len() > 15, "{error:?} says {text:?}");
        for part in parts.split('|') {
            assert!(text.contains(part), "{error:?} says {text:?} without {part:?}");
        }
        assert!(texts.insert(text), "{error:?} says what another one says");
    }
}

const IOVA: Iova = Iova::new(0x5000);
const TARGET: PhysAddr = PhysAddr::new(0x1_2345_6000);
const RANGE: RangeError = RangeError::BeyondWidth { iova: IOVA, length: 0x7000, width: 39 };

#[test]
fn those_of_ranges_and_domains() {
    say([
        (RangeError::Empty, ""),
        (RangeError::Misaligned { iova: Iova::new(0x5123), length: 0x7000 }, "0x5123|0x7000"),
        (RANGE, "0x5000|0x7000|39"),
    ]);
    say([
        (DomainError::TooFewLevels { levels: Levels::Three }, "3"),
        (DomainError::AddressWidth { width: 60, most: 57 }, "60|57"),
        (DomainError::HostAddressWidth { width: 61 }, "61|52"),
        (DomainError::NoSnoopControl, "snoop"),
        (DomainError::NoAccessedDirty, "access"),
        (DomainError::NoFlush, "FlushedFrames"),
        (DomainError::MapsUntold, "CachingMode"),
        (DomainError::OutOfFrames, "frame"),
        (DomainError::FrameBeyondWidth { frame: TARGET }, "0x123456000"),
    ]);
}

#[test]
fn those_of_maps_unmaps_and_rights() {
    say([
        (MapError::Range(RANGE), "0x5000|0x7000|39"),
        (MapError::TargetMisaligned { target: PhysAddr::new(0x123) }, "0x123"),
        (MapError::TargetBeyondWidth { target: TARGET, length: 0x9000, width: 36 }, "0x123456000|0x9000|36"),
        (MapError::InterruptTarget { target: TARGET, length: 0x9000 }, "0x123456000|0x9000|interrupt"),
        (MapError::NoPermissions, ""),
        (MapError::WriteOnly, "writ"),
        (MapError::AlreadyMapped { iova: IOVA }, "0x5000"),
        (MapError::NotServed { reason: AllocError::TimedOut }, ""),
        (MapError::OutOfFrames { missing: 77 }, "77"),
        (MapError::FrameBeyondWidth { frame: TARGET }, "0x123456000"),
    ]);
    say([
        (UnmapError::Range(RANGE), "0x5000|0x7000|39"),
        (UnmapError::NotMapped { iova: IOVA }, "0x5000|unmap"),
        (UnmapError::OutOfFrames { missing: 77 }, "77"),
        (UnmapError::FrameBeyondWidth { frame: TARGET }, "0x123456000"),
    ]);
    say([
        (ProtectError::Range(RANGE), "0x5000|0x7000|39"),
        (ProtectError::NoPermissions, ""),
        (ProtectError::WriteOnly, "writ"),
        (ProtectError::NotMapped { iova: IOVA }, "0x5000|protect"),
        (ProtectError::OutOfFrames { missing: 77 }, "77"),
        (ProtectError::FrameBeyondWidth { frame: TARGET }, "0x123456000"),
    ]);
    say([(TooFewFrames { missing: 77 }, "77")]);
    say([
        (AccessedDirtyError::Range(RANGE), "0x5000"),
        (AccessedDirtyError::NotNoted, ""),
        (AccessedDirtyError::BitmapTooShort { words: 77 }, "77"),
    ]);
    say([(ReclaimError::Range(RANGE), "0x5000"), (ReclaimError::InProgress, "invalidation")]);
}

#[test]
fn those_of_devices() {
    let (source, pasid) = (SourceId::from_bits(0x12FB), Pasid::new(77).unwrap());
    say([
        (AttachError::TableBeyondWidth { table: TARGET, width: 36 }, "0x123456000|36"),
        (AttachError::Occupied { source }, "12:1f.3"),
        (AttachError::NotAttached { source }, "12:1f.3"),
        (AttachError::PasidOccupied { source, pasid }, "12:1f.3|77"),
        (AttachError::PasidNotAttached { source, pasid }, "12:1f.3|77"),
        (AttachError::PasidBeyondDirectory { pasid }, "77"),
        (AttachError::NoFlush, "snoop"),
        (AttachError::OutOfFrames, "frame"),
    ]);
    say([
        (CapabilityError::NoUnit, ""),
        (CapabilityError::NoSuchStage { unit: 3, stage: Stage::First, mode: TranslationMode::Legacy }, "3"),
        (CapabilityError::NoSuchLevels { unit: 4, levels: Levels::Five, most: Some(Levels::Three) }, "4|5|3"),
        (CapabilityError::NoSuchLevels { unit: 4, levels: Levels::Five, most: None }, "4|5"),
    ]);
    say([(DomainIdNotTaken(DomainId::new(77).unwrap()), "77")]);
}

#[test]
fn those_of_pools() {
    say([
        (AllocError::Exhausted, ""),
        (AllocError::ReserveOnly, ""),
        (AllocError::FallbackFailed, ""),
        (AllocError::TooManyReservations, "reserv"),
        (AllocError::BeyondCapacity, ""),
        (AllocError::OverQuota, "limit"),
        (AllocError::TimedOut, ""),
        (AllocError::Closed, "close"),
    ]);
    let watermarks = Watermarks { min: 71, low: 72, high: 73, max: 74 };
    let (pool, source) = (FrameSize::Size4K, FrameSize::Size2M);
    say([
        (BuildError::CapacityZero, ""),
        (BuildError::CapacityTooLarge { capacity: 771 }, "771"),
        (BuildError::Watermarks { watermarks, capacity: 775 }, "71|72|73|74|775"),
        (BuildError::Initial { initial: 771, min: 772, capacity: 773 }, "771|772|773"),
        (BuildError::Guarantees { guarantees: 771, most: 772 }, "771|772"),
        (BuildError::Cpus { cpus: 771 }, "771|4096"),
        (BuildError::Depots { depots: 771, cpus: 772 }, "771|772"),
        (BuildError::MagazineSize { magazine_size: 771 }, "771|4095"),
        (BuildError::TooManyMagazines { magazine_size: 771 }, "771"),
        (BuildError::MemoryTooSmall { given: 771, needed: 772 }, "771|772"),
        (BuildError::NoHeap { needed: 771 }, "771"),
        (BuildError::BaseMisaligned, "multiple"),
        (BuildError::FrameSize { pool, source }, "4 KiB|2 MiB"),
        (BuildError::BeyondLimit { base: TARGET, limit: PhysAddr::new(0x777) }, "0x123456000|0x777"),
        (BuildError::SourceExhausted { wanted: 771, got: 772 }, "771|772"),
        (BuildError::NoThread, "thread"),
    ]);
    say([
        (PinError::AllInUse, ""),
        (PinError::Pinned, ""),
        (PinError::TooManyPools, "pool"),
        (PinError::NoHeap, "heap"),
    ]);
    say([(SourceError::new("the reason why"), "the reason why")]);
}
