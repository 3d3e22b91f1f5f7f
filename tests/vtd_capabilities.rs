//! The capability registers, field by field, and domains made from them: none may write what its unit refuses.
#![cfg(not(loom))]

mod common;

use common::tables::{NoHardware, TestFrames};
use framepool::{PhysAddr, vtd::*};
use proptest::prelude::*;

/// What QEMU 7.2 reports.
const QEMU: (u64, u64) = (0x00d2_008c_222f_0606, 0x00f0_0f4a);
const ALL_LEVELS: [Levels; 3] = [Levels::Three, Levels::Four, Levels::Five];

#[test]
fn the_registers_of_an_emulated_unit_say_what_its_kernel_printed() {
    let unit = Capabilities::from_registers(QEMU.0, QEMU.1);
    assert_eq!(unit.domain_ids(), 65_536);
    assert_eq!(ALL_LEVELS.map(|levels| unit.takes(Stage::Second, levels)), [true, true, false]);
    assert_eq!(unit.most_levels(Stage::First), None);
    assert_eq!(unit.guest_address_width(), 48);
    assert_eq!(unit.address_width(Stage::Second, Levels::Three), 39);
    assert_eq!(unit.page_sizes(Stage::Second), PageSizes::all());
    assert_eq!(
        (unit.page_selective(), unit.fault_records(), unit.fault_records_offset()),
        (Some(18), 1, 0x220)
    );
    assert!(unit.drains_reads() && unit.drains_writes() && unit.queued_invalidation() && unit.pass_through());
    assert!(
        unit.interrupt_remapping() && !unit.device_tlb() && !unit.snoop_control() && !unit.scalable_mode()
    );
    assert!(!unit.caching_mode() && !unit.needs_write_buffer_flush() && !unit.zero_length_reads());
    assert!(!unit.snoops_tables() && !unit.snoops_walks(TranslationMode::Scalable));
    assert_eq!(unit.iotlb_registers_offset(), 0xF0);
    assert_eq!(unit.pasid_bits(), None);
}

#[test]
fn address_widths_are_the_lesser_of_levels_and_unit() {
    // Two reset values from data sheets: 39-bit tables with 36 bits of address and a write buffer, and with 39 bits.
    let narrow = Capabilities::from_registers(0x00C0_0000_2023_0272, 0);
    assert_eq!(
        (narrow.address_width(Stage::Second, Levels::Three), narrow.needs_write_buffer_flush()),
        (36, true)
    );
    assert_eq!((narrow.page_selective(), narrow.page_sizes(Stage::Second)), (None, PageSizes::empty()));
    let wide = Capabilities::from_registers(0x00C9_0080_2066_0262, 0);
    assert_eq!((wide.address_width(Stage::Second, Levels::Three), wide.page_selective()), (39, Some(9)));
    // First stage: one bit less. 57 bits of address and 5 levels take FS5LP.
    let scalable = 1 << 43 | 1 << 47;
    let first = |capability: u64| Capabilities::from_registers(capability | 56 << 16, scalable);
    assert_eq!(first(0).most_levels(Stage::First), Some(Levels::Four));
    assert_eq!(first(1 << 60).most_levels(Stage::First), Some(Levels::Five));
    assert_eq!(first(0).address_width(Stage::First, Levels::Four), 47);
    assert_eq!(first(0).page_sizes(Stage::First), PageSizes::SIZE_2M);
    assert_eq!(first(1 << 56).page_sizes(Stage::First), PageSizes::all());
    assert!(!first(0).has_second_stage(TranslationMode::Scalable), "SSTS is clear");
}

#[test]
fn coherency_is_that_of_the_mode() {
    let paging_only = Capabilities::from_registers(0, 1 << 48);
    assert!(!paging_only.snoops_tables() && !paging_only.snoops_walks(TranslationMode::Legacy));
    assert!(paging_only.snoops_walks(TranslationMode::Scalable));
    let tables_only = Capabilities::from_registers(0, 1);
    assert!(tables_only.snoops_tables() && tables_only.snoops_walks(TranslationMode::Legacy));
    assert!(!tables_only.snoops_walks(TranslationMode::Scalable));
}

#[test]
fn a_domain_behind_several_units_has_what_they_have_in_common() {
    let strong = Capabilities::from_registers(0x00d2_008c_222f_0606 | 1 << 11, 0x00f0_0fcb);
    let weak = Capabilities::from_registers(0x00C9_0080_2066_0262 | 1 << 7, 0);
    let make = |units: &[Capabilities]| {
        DomainConfig::from_capabilities::<SecondStage>(Levels::Three, TranslationMode::Legacy, 39, units)
    };
    let both = make(&[strong, weak]).unwrap();
    assert_eq!(Ok(both), make(&[weak, strong]));
    assert_eq!((both.page_sizes, both.address_width), (PageSizes::empty(), 39));
    assert_eq!(
        both.hardware,
        Hardware {
            coherent: false,
            caching_mode: true,
            write_buffer_flush: false,
            page_selective: Some(9),
            drain_reads: true,
            drain_writes: true,
            snoop_control: false,
            accessed_dirty: false,
        }
    );
    assert!(make(&[strong]).unwrap().hardware.snoop_control);
    assert_eq!(make(&[]), Err(CapabilityError::NoUnit));
    let four = |mode, units: &[Capabilities]| {
        DomainConfig::from_capabilities::<SecondStage>(Levels::Four, mode, 39, units)
    };
    assert_eq!(
        four(TranslationMode::Legacy, &[strong, weak]),
        Err(CapabilityError::NoSuchLevels { unit: 1, levels: Levels::Four, most: Some(Levels::Three) })
    );
    assert_eq!(
        four(TranslationMode::Scalable, &[strong]),
        Err(CapabilityError::NoSuchStage { unit: 0, stage: Stage::Second, mode: TranslationMode::Scalable })
    );
}

#[test]
fn a_first_stage_domain_has_half_of_the_addresses_and_its_own_rights() {
    let frames = TestFrames::default();
    let refused = |config| FirstStageDomain::new(config, &frames).unwrap_err();
    assert_eq!(
        refused(DomainConfig::first_stage(Levels::Three)),
        DomainError::TooFewLevels { levels: Levels::Three }
    );
    assert_eq!(refused(DomainConfig::new(Levels::Four)), DomainError::AddressWidth { width: 48, most: 47 });
    assert_eq!(frames.live(), 0);
    let domain = FirstStageDomain::new(DomainConfig::first_stage(Levels::Four), &frames).unwrap();
    // SAFETY: no device walks these tables.
    let map =
        |iova, permissions| unsafe { domain.map(Iova::new(iova), PhysAddr::new(0x5000), 4096, permissions) };
    assert_eq!(map(0x1000, Permissions::WRITE), Err(MapError::WriteOnly));
    assert_eq!(map(0x1000, Permissions::empty()), Err(MapError::NoPermissions));
    assert!(matches!(map(1 << 47, Permissions::READ), Err(MapError::Range(RangeError::BeyondWidth { .. }))));
    assert_eq!(map((1 << 47) - 4096, Permissions::READ), Ok(()));
    let at = domain.translate(Iova::new((1 << 47) - 1)).unwrap();
    assert_eq!((at.target, at.permissions), (PhysAddr::new(0x5FFF), Permissions::READ));
    close(domain);
}

#[test]
fn forced_snooping_is_in_every_leaf_and_only_where_the_unit_has_it() {
    let frames = TestFrames::default();
    let mut config =
        DomainConfig { force_snoop: true, page_sizes: PageSizes::all(), ..DomainConfig::new(Levels::Three) };
    let refused = SecondStageDomain::new(config, &frames);
    assert_eq!(refused.unwrap_err(), DomainError::NoSnoopControl);
    assert_eq!(frames.live(), 0);
    config.hardware.snoop_control = true;
    let domain = SecondStageDomain::new(config, &frames).unwrap();
    // SAFETY: no device walks these tables.
    unsafe { domain.map(Iova::new(0x20_0000), PhysAddr::new(0x20_0000), 0x40_1000, Permissions::READ) }
        .unwrap();
    complete(domain.unmap(Iova::new(0x20_0000), 0x1000).unwrap());
    let mut leaves = 0;
    each_entry(&frames, domain.root(), 3, &mut |entry, level| {
        let is_leaf = level == 1 || entry & 0x80 != 0;
        leaves += u64::from(is_leaf);
        assert_eq!(entry & 1 << 11 != 0, is_leaf, "{entry:#x} at level {level}");
    });
    assert_eq!(leaves, 511 + 1 + 1, "what is left of the leaf that was split, a large one, a small one");
    close(domain);
}

fn complete(invalidation: Invalidation<'_, &TestFrames>) {
    // SAFETY: no device walks these tables.
    unsafe { invalidation.complete() };
}

fn close<F: Format>(domain: Domain<F, &TestFrames>) {
    // SAFETY: no device walks these tables.
    unsafe { domain.close().complete() };
}

/// Every entry that is present, with its level.
fn each_entry(frames: &TestFrames, table: PhysAddr, level: u32, seen: &mut impl FnMut(u64, u32)) {
    for entry in frames.words(table).into_iter().filter(|entry| entry & 3 != 0) {
        seen(entry, level);
        if level > 1 && entry & 0x80 == 0 {
            each_entry(frames, PhysAddr::new(entry & 0x000F_FFFF_FFFF_F000), level - 1, seen);
        }
    }
}

/// What the specification says that an entry must not have set, for a unit with these registers: in the second stage in legacy
/// mode, in the first in scalable mode without XD.
fn reserved(stage: Stage, capability: u64, extended: u64, level: u32, entry: u64) -> u64 {
    let leaf = level == 1 || level <= 3 && entry & 0x80 != 0;
    let low_address = if leaf { ((1 << (9 * (level - 1))) - 1) << 12 } else { 0 };
    let beyond = 0x000F_8000_0000_0000;
    let has = |register: u64, bit: u32| register >> bit & 1 == 1;
    let size = match (stage, level) {
        (Stage::Second, 2) if !has(capability, 34) => 0x80,
        (Stage::Second, 3) if !has(capability, 35) => 0x80,
        (Stage::First, 3) if !has(capability, 56) => 0x80,
        (_, 4 | 5) => 0x80,
        _ => 0,
    };
    let others = match stage {
        Stage::First => 1 << 63,
        Stage::Second if !leaf => 0x800 | 1 << 62,
        Stage::Second => (1 - (extended >> 7 & 1)) << 11 | (1 - (extended >> 2 & 1)) << 62,
    };
    entry & (low_address | beyond | size | others)
}

/// What a first-stage entry must have set: present, for users, accessed, and dirty if it is a leaf that can be written; the unit
/// would otherwise have to write to it.
fn missing(stage: Stage, level: u32, entry: u64) -> u64 {
    let leaf = level == 1 || level <= 3 && entry & 0x80 != 0;
    match stage {
        Stage::First if leaf && entry & 2 != 0 => !entry & 0x65,
        Stage::First => !entry & 0x25,
        Stage::Second => 0,
    }
}

/// An address, another, a number of pages, and their size as a power of two.
type Wish = (u64, u64, u64, u32);

fn wishes() -> impl Strategy<Value = Vec<Wish>> {
    let size = prop_oneof![Just(12u32), Just(21), Just(30)];
    prop::collection::vec((any::<u64>(), any::<u64>(), 1..3u64, size), 1..4)
}

/// Maps `wishes` in a domain made for a unit with these registers, and looks at every entry that comes of it.
fn check_unit<F: Format>(
    (capability, extended): (u64, u64),
    levels: Levels,
    force_snoop: bool,
    wishes: &[Wish],
) -> Result<(), TestCaseError> {
    let has = |register: u64, bit: u32| register >> bit & 1 == 1;
    let unit = Capabilities::from_registers(capability, extended);
    let (mode, takes, sign) = match F::STAGE {
        Stage::Second => (TranslationMode::Legacy, has(capability, 6 + levels.count()), 0),
        Stage::First => {
            let has_stage = has(extended, 43) && has(extended, 47);
            let deep = levels == Levels::Four || levels == Levels::Five && has(capability, 60);
            (TranslationMode::Scalable, has_stage && deep, 1)
        }
    };
    // The frames of the test lie below 2^47.
    let config = DomainConfig::from_capabilities::<F>(levels, mode, 47, &[unit]);
    prop_assert_eq!(config.is_ok(), takes);
    let Ok(config) = config else { return Ok(()) };
    let width = u32::min(levels.address_width().into(), (capability >> 16 & 0x3F) as u32 + 1) - sign;
    let frames = TestFrames::default();
    let flushed = FlushedFrames::new(&frames, NoHardware);
    let config = DomainConfig { force_snoop, ..config };
    let untold = match Domain::<F, _>::new(config, flushed) {
        // SAFETY: no device walks these tables.
        Ok(plain) => unsafe {
            plain.close().complete();
            false
        },
        Err(error) => error == DomainError::MapsUntold,
    };
    let domain = match Domain::<CachingMode<F>, _>::new(config, flushed) {
        Ok(domain) => domain,
        Err(DomainError::AddressWidth { .. }) => {
            prop_assert!(width < 13);
            return Ok(());
        }
        Err(error) => {
            prop_assert_eq!(error, DomainError::NoSnoopControl);
            prop_assert!(force_snoop && (F::STAGE == Stage::First || !has(extended, 7)));
            return Ok(());
        }
    };
    let tells = has(capability, 4) || F::STAGE == Stage::Second && has(capability, 7);
    prop_assert_eq!(untold, tells);
    for &(iova, target, count, size) in wishes {
        // Half of the addresses are beyond the unit's width by a bit.
        let iova = iova >> size << size & ((1 << (width + 1)) - 1);
        let (target, length) = (target & ((1 << 48) - (1 << size)), count << size);
        // SAFETY: no device walks these tables.
        match unsafe { domain.map(Iova::new(iova), PhysAddr::new(target), length, Permissions::all()) } {
            Ok(told) => {
                prop_assert!(iova + length <= 1 << width && target + length <= 1 << 47);
                prop_assert_eq!(told.is_empty(), !tells);
                // SAFETY: no device walks these tables.
                unsafe { told.complete() };
            }
            Err(MapError::Range(_)) => prop_assert!(iova + length > 1 << width),
            Err(MapError::TargetBeyondWidth { .. }) => prop_assert!(target + length > 1 << 47),
            Err(MapError::InterruptTarget { .. }) => {
                prop_assert!(target < INTERRUPT_RANGE.end && target + length > INTERRUPT_RANGE.start);
            }
            Err(error) => prop_assert!(matches!(error, MapError::AlreadyMapped { .. }), "{}", error),
        }
    }
    let mut refused = Vec::new();
    each_entry(&frames, domain.root(), levels.count(), &mut |entry, level| {
        let wrong = reserved(F::STAGE, capability, extended, level, entry) | missing(F::STAGE, level, entry);
        if wrong != 0 {
            refused.push((level, entry));
        }
    });
    prop_assert_eq!(refused, []);
    // SAFETY: no device walks these tables.
    unsafe { domain.close().complete() };
    assert_eq!((frames.live(), frames.leaked_so_far()), (0, 0));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn a_second_stage_domain_writes_nothing_that_its_unit_refuses(
        registers in any::<(u64, u64)>(),
        levels in 0..3usize,
        force_snoop in any::<bool>(),
        wishes in wishes(),
    ) {
        check_unit::<SecondStage>(registers, ALL_LEVELS[levels], force_snoop, &wishes)?;
    }

    #[test]
    fn a_first_stage_domain_writes_nothing_that_its_unit_refuses(
        (capability, extended) in any::<(u64, u64)>(),
        levels in 0..3usize,
        wishes in wishes(),
    ) {
        let has_first_stage = extended | 1 << 43 | 1 << 47;
        check_unit::<FirstStage>((capability, has_first_stage), ALL_LEVELS[levels], false, &wishes)?;
        check_unit::<FirstStage>((capability, extended), ALL_LEVELS[levels], true, &wishes)?;
    }

    #[test]
    fn decoding_any_registers_gives_what_the_fields_can_say(capability in any::<u64>(), extended in any::<u64>()) {
        let unit = Capabilities::from_registers(capability, extended);
        prop_assert!((16..=65_536).contains(&unit.domain_ids()));
        prop_assert!((1..=64).contains(&unit.guest_address_width()));
        prop_assert!(unit.page_selective().is_none_or(|mask| mask < 64));
        prop_assert!(unit.pasid_bits().is_none_or(|bits| bits <= 32));
        for levels in ALL_LEVELS {
            for stage in [Stage::First, Stage::Second] {
                prop_assert!(unit.address_width(stage, levels) <= levels.address_width());
            }
        }
    }
}
