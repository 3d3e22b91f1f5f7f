//! The entries that lead to a domain, bit by bit and back, and from words that may say anything.
#![cfg(not(loom))]

use framepool::{PhysAddr, vtd::*};
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
    }
}
