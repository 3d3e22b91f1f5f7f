//! The entries that lead to a domain, bit by bit and back, and from words that may say anything.
#![cfg(not(loom))]

mod common;

use common::tables::{NoHardware, TestFrames};
use framepool::{PhysAddr, vtd::context::*, vtd::*};
use proptest::prelude::*;

const ALL_LEVELS: [Levels; 3] = [Levels::Three, Levels::Four, Levels::Five];

fn id(id: u16) -> DomainId {
    DomainId::new(id).unwrap()
}

#[test]
fn legacy_entries_have_the_bits_of_the_specification() {
    let table = PhysAddr::new(0x000F_FEDC_BA98_7000);
    assert_eq!(RootEntry { context_table: table }.encode(), Ok([0x000F_FEDC_BA98_7001, 0]));
    for (levels, width) in ALL_LEVELS.into_iter().zip(1..) {
        for device_tlb in [false, true] {
            let translation = ContextTranslation::SecondStage { root: table, levels, device_tlb };
            let entry = ContextEntry::new(translation, id(0xABCD));
            let low = 0x000F_FEDC_BA98_7001 | u64::from(device_tlb) << 2;
            assert_eq!(entry.encode(), Ok([low, 0xAB_CD00 | width]));
            let silent = ContextEntry { faults_disabled: true, ..entry };
            assert_eq!(silent.encode(), Ok([low | 2, 0xAB_CD00 | width]));
        }
        let through = ContextEntry::new(ContextTranslation::PassThrough { most_levels: levels }, id(1));
        assert_eq!(through.encode(), Ok([0x9, 0x100 | width]));
    }
}

#[test]
fn tables_that_no_entry_can_name_are_refused() {
    for table in [0x1008, 0x10_0000_0000_0800, 1 << 52, u64::MAX].map(PhysAddr::new) {
        let error = if table.is_aligned(4096) {
            EntryError::BeyondWidth { table }
        } else {
            EntryError::Misaligned { table }
        };
        assert_eq!(RootEntry { context_table: table }.encode(), Err(error), "{error}");
        let translation =
            ContextTranslation::SecondStage { root: table, levels: Levels::Four, device_tlb: false };
        assert_eq!(ContextEntry::new(translation, id(1)).encode(), Err(error));
    }
}

#[test]
fn every_reserved_bit_of_a_legacy_entry_is_refused() {
    let present = [0x1000 | 1, 0];
    check_reserved(present, RootEntry::decode, [0x000F_FFFF_FFFF_F001, 0]);
    check_reserved([0x1000 | 1, 0x101], ContextEntry::decode, [0x000F_FFFF_FFFF_F00F, 0xFF_FF7F]);
    for (words, error) in [
        ([0x100D, 0x101], EntryError::Value { field: "TT", value: 3 }),
        ([0x1001, 0x100], EntryError::Value { field: "AW", value: 0 }),
        ([0x1001, 0x104], EntryError::Value { field: "AW", value: 4 }),
        ([0x1001, 0x001], EntryError::Value { field: "DID", value: 0 }),
    ] {
        assert_eq!(ContextEntry::decode(words), Err(error), "{error}");
    }
    assert!(ContextEntry::decode([0x1001, 0x179]).unwrap().is_some(), "bits 6 to 3 are ignored");
    assert_eq!(ContextEntry::decode([!1, !0]), Ok(None), "nothing counts in what is not present");
}

#[test]
fn scalable_entries_have_the_bits_of_the_specification() {
    let table = PhysAddr::new(0x000F_FEDC_BA98_7000);
    assert_eq!(ScalableRootEntry { context_table: table }.encode(), Ok(0x000F_FEDC_BA98_7001));
    let directory = PasidDirectoryEntry { pasid_table: table, faults_disabled: true };
    assert_eq!(directory.encode(), Ok(0x000F_FEDC_BA98_7003));
    for (pasid_bits, size) in (13..=20).zip(0..) {
        let plain = ScalableContextEntry::new(table, pasid_bits);
        assert_eq!(plain.encode(), Ok([0x000F_FEDC_BA98_7001 | size << 9, 0, 0, 0]));
        let full = ScalableContextEntry {
            default_pasid: Pasid::new(0xA_BCDE).unwrap(),
            default_supervisor: true,
            pasids: true,
            device_tlb: true,
            page_requests: true,
            faults_disabled: true,
            ..plain
        };
        assert_eq!(full.encode(), Ok([0x000F_FEDC_BA98_701F | size << 9, 0x1A_BCDE, 0, 0]));
    }
    for pasid_bits in [0, 12, 21, 255] {
        let error = EntryError::Value { field: "PDTS", value: pasid_bits.into() };
        assert_eq!(ScalableContextEntry::new(table, pasid_bits).encode(), Err(error));
    }
}

#[test]
fn pasid_entries_have_the_bits_of_the_specification() {
    let (one, two) = (PhysAddr::new(0x1000), PhysAddr::new(0x2000));
    let first =
        |levels, all| FirstStageRoot { root: one, levels, supervisor_requests: all, write_protect: all };
    let second = |levels, accessed_dirty| SecondStageRoot { root: two, levels, accessed_dirty };
    let cases = [
        (PasidTranslation::FirstStage(first(Levels::Four, false)), 0x49, 0x1000),
        (PasidTranslation::FirstStage(first(Levels::Five, true)), 0x4D, 0x1015),
        (PasidTranslation::SecondStage(second(Levels::Three, false)), 0x2085, 0),
        (PasidTranslation::SecondStage(second(Levels::Five, true)), 0x228D, 0),
        (PasidTranslation::Nested(first(Levels::Four, true), second(Levels::Four, false)), 0x20C9, 0x1011),
        (PasidTranslation::PassThrough { most_levels: Levels::Four }, 0x109, 0),
    ];
    for (translation, low, high) in cases {
        let plain = PasidEntry::new(translation, id(0xABCD));
        assert_eq!(plain.encode(), Ok([low, 0xABCD, high, 0, 0, 0, 0, 0]), "{translation:?}");
        assert_eq!(PasidEntry::decode(plain.encode().unwrap()), Ok(Some(plain)));
        let full = PasidEntry { snooped_walks: true, force_snoop: true, faults_disabled: true, ..plain };
        assert_eq!(full.encode(), Ok([low | 2, 0x180_ABCD, high, 0, 0, 0, 0, 0]));
        assert_eq!(PasidEntry::decode(full.encode().unwrap()), Ok(Some(full)));
    }
    let shallow = PasidEntry::new(PasidTranslation::FirstStage(first(Levels::Three, false)), id(1));
    assert!(matches!(shallow.encode(), Err(EntryError::Value { value: 3, .. })));
}

#[test]
fn every_reserved_bit_of_a_scalable_entry_is_refused() {
    const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
    check_reserved([0x1001], |[word]| ScalableRootEntry::decode(word), [ADDRESS | 1]);
    check_reserved([0x1001], |[word]| PasidDirectoryEntry::decode(word), [ADDRESS | 3]);
    check_reserved([0x1001, 0, 0, 0], ScalableContextEntry::decode, [ADDRESS | 0xE1F, 0x1F_FFFF, 0, 0]);
    let pasid = [0x2089, 7, 0, 0, 0, 0, 0, 0];
    check_reserved(pasid, PasidEntry::decode, [ADDRESS | 0x3DF, 0x180_FFFF, ADDRESS | 0x1D, 0, 0, 0, 0, 0]);
    for (low, tag, high, error) in [
        (0x2009, 7, 0, EntryError::Value { field: "PGTT", value: 0 }),
        (0x2149, 7, 0, EntryError::Value { field: "PGTT", value: 5 }),
        (0x2081, 7, 0, EntryError::Value { field: "AW", value: 0 }),
        (0x49, 7, 0x1008, EntryError::Value { field: "FSPM", value: 2 }),
        (0x2089, 0, 0, EntryError::Value { field: "DID", value: 0 }),
    ] {
        assert_eq!(PasidEntry::decode([low, tag, high, 0, 0, 0, 0, 0]), Err(error), "{error}");
    }
    assert_eq!(PasidEntry::decode([!1; 8]), Ok(None), "nothing counts in what is not present");
}

#[test]
fn entries_made_from_domains_name_them() {
    let frames = TestFrames::default();
    let second = SecondStageDomain::new(DomainConfig::new(Levels::Three), &frames).unwrap();
    let entry = ContextEntry::new(ContextTranslation::by(&second), id(9));
    assert_eq!(entry.encode(), Ok([second.root().as_u64() | 1, 0x901]));
    let entry = PasidEntry::second_stage(&second, id(9));
    let root = second.root().as_u64();
    assert_eq!(entry.encode(), Ok([root | 0x85, 1 << 23 | 9, 0, 0, 0, 0, 0, 0]), "it does not flush");
    let mut config = DomainConfig::first_stage(Levels::Five);
    config.hardware.coherent = false;
    let first = FirstStageDomain::new(config, FlushedFrames::new(&frames, NoHardware)).unwrap();
    let root = first.root().as_u64();
    assert_eq!(PasidEntry::first_stage(&first, id(9)).encode(), Ok([0x4D, 9, root | 4, 0, 0, 0, 0, 0]));
    // SAFETY: no device walks these tables.
    unsafe { (first.close().complete(), second.close().complete()) };
}

/// Sets each bit of an entry that is fine: those outside `used` must be refused by name.
fn check_reserved<const N: usize, T: core::fmt::Debug + PartialEq>(
    fine: [u64; N],
    decode: impl Fn([u64; N]) -> Result<T, EntryError>,
    used: [u64; N],
) {
    assert!(decode(fine).is_ok());
    for word in 0..N {
        for bit in 0..64 {
            let mut words = fine;
            words[word] |= 1 << bit;
            if used[word] >> bit & 1 == 0 {
                assert_eq!(decode(words), Err(EntryError::Reserved { word, bits: 1 << bit }), "bit {bit}");
            } else {
                let outcome = decode(words);
                assert!(!matches!(outcome, Err(EntryError::Reserved { .. })), "bit {bit}: {outcome:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn decoding_random_words_never_panics_and_is_exact(words in any::<[u64; 8]>(), sparse in any::<[u64; 8]>()) {
        const IGNORED: u64 = 0x78;
        let clipped: [u64; 8] = core::array::from_fn(|word| words[word] & sparse[word]);
        for [low, high, ..] in [words, clipped] {
            for [low, high] in [[low, high], [low & 0x000F_FFFF_FFFF_F00F | 1, high & 0xFF_FF7F], [low & 0x000F_FFFF_FFFF_F001, 0]] {
                if let Ok(Some(entry)) = RootEntry::decode([low, high]) {
                    prop_assert_eq!(entry.encode(), Ok([low, high]));
                }
                if let Ok(Some(entry)) = ContextEntry::decode([low, high]) {
                    let [encoded, second] = entry.encode().unwrap();
                    prop_assert_eq!(second, high & !IGNORED);
                    if let ContextTranslation::SecondStage { .. } = entry.translation {
                        prop_assert_eq!(encoded, low);
                    }
                    prop_assert_eq!(ContextEntry::decode([encoded, second]), Ok(Some(entry)));
                }
            }
        }
        let allowed = [0x000F_FFFF_FFFF_F3DF, 0x180_FFFF, 0x000F_FFFF_FFFF_F01D, 0, 0, 0, 0, 0];
        let likely = core::array::from_fn(|word| words[word] & allowed[word] | u64::from(word == 0));
        for words in [words, clipped, likely] {
            if let Ok(Some(entry)) = PasidEntry::decode(words) {
                let encoded = entry.encode().unwrap();
                prop_assert_eq!(encoded[1], words[1]);
                prop_assert_eq!(PasidEntry::decode(encoded), Ok(Some(entry)));
                if let PasidTranslation::Nested(..) = entry.translation {
                    prop_assert_eq!(encoded, words);
                }
            }
            let [first, second, ..] = words;
            for words in [[first, second, 0, 0], [first & !0x1E0, second & 0x1F_FFFF, 0, 0]] {
                if let Ok(Some(entry)) = ScalableContextEntry::decode(words) {
                    prop_assert_eq!(entry.encode(), Ok(words));
                }
            }
            for word in words {
                if let Ok(Some(entry)) = ScalableRootEntry::decode(word & !0xFFE) {
                    prop_assert_eq!(entry.encode(), Ok(word & !0xFFE));
                }
                if let Ok(Some(entry)) = PasidDirectoryEntry::decode(word & !0xFFC) {
                    prop_assert_eq!(entry.encode(), Ok(word & !0xFFC));
                }
            }
        }
    }
}
