//! Tables whose words may say anything, followed as a unit follows them: from a request to a page. Every word is decoded, nothing
//! outside of what was given is read, and nothing panics.
#![cfg(not(loom))]

mod actions;
mod common;

use actions::tables::{Memory, check_word};
use common::tables::TestFrames;
use framepool::{PhysAddr, vtd::*};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn hostile_tables_are_followed_within_bounds(seed in 1..u64::MAX, requests in prop::collection::vec((any::<u16>(), 0..128u32, any::<u64>()), 64)) {
        let memory = Memory::new(seed);
        for (bits, pasid, iova) in requests {
            let (source, pasid) = (SourceId::from_bits(bits), Pasid::new(pasid).unwrap());
            prop_assert!(memory.legacy(source, iova).is_none_or(|entries| entries <= 5));
            prop_assert!(memory.scalable(source, pasid, iova).is_none_or(|entries| entries <= 10));
        }
    }

    #[test]
    fn any_word_decodes_at_any_level(word in any::<u64>(), sparse in any::<u64>(), level in 1..6u32) {
        for word in [word, word & sparse, word | sparse] {
            check_word::<FirstStage>(word, level);
            check_word::<SecondStage>(word, level);
        }
    }
}

/// The tests above would show nothing if hardly any request got far.
#[test]
fn some_requests_get_through_hostile_tables() {
    let (mut legacy, mut scalable) = ([0; 6], [0; 11]);
    for seed in 1..400 {
        let memory = Memory::new(0x9E37_79B9_7F4A_7C15u64.wrapping_mul(seed));
        for request in 0..256u16 {
            let source = SourceId::from_bits(request.wrapping_mul(0x6F4F));
            let iova = u64::from(request).wrapping_mul(0xD134_2543_DE82_EF95);
            if let Some(entries) = memory.legacy(source, iova) {
                legacy[entries as usize] += 1;
            }
            if let Some(entries) = memory.scalable(source, Pasid::new(request.into()).unwrap(), iova) {
                scalable[entries as usize] += 1;
            }
        }
    }
    assert!(legacy.iter().all(|&requests| requests > 0), "{legacy:?}");
    assert!(scalable[..9].iter().all(|&requests| requests > 0), "{scalable:?}");
}

/// Found by fuzzing: readers looked again for ever.
#[test]
fn words_that_look_like_those_of_detached_tables_do_not_hold_readers_up() {
    const LINK: u64 = 1 << 3;
    const END: u64 = 1 << 3 | 1 << 5;
    let frames = TestFrames::default();
    let domain = SecondStageDomain::new(DomainConfig::new(Levels::Three), &frames).unwrap();
    let (first, second) = (Iova::new(0), Iova::new(1 << 30));
    for iova in [first, second] {
        // SAFETY: no device walks these tables.
        unsafe { domain.map(iova, PhysAddr::new(0x1000), 0x2000, Permissions::READ).unwrap() };
    }
    let middle = PhysAddr::new(frames.words(domain.root())[0] & !0xFFF);
    let last = PhysAddr::new(frames.words(middle)[0] & !0xFFF);
    for (table, word) in [(last, END), (last, LINK), (middle, 0x5000 | LINK), (domain.root(), END)] {
        // SAFETY: the table is live, and nobody else is at it.
        unsafe { frames.pointer(table).cast::<u64>().write_volatile(word) };
        assert_eq!(domain.translate(first), None, "{word:#x} in {table}");
        assert!(domain.translate(second).is_some());
        let mapped: Vec<_> = domain.mappings().map(|mapping| mapping.length).collect();
        assert_eq!(mapped, if table == last { vec![0x1000, 0x2000] } else { vec![0x2000] });
        assert_eq!(domain.dump().to_string().lines().count(), mapped.len());
    }
    // SAFETY: no hardware walks these tables. Those that were cut off are lost.
    unsafe { domain.close().complete() };
    assert_eq!(frames.live(), 2);
}

/// Found by fuzzing: the address of a part of a leaf that has every bit overflowed.
#[test]
fn a_large_leaf_of_any_bits_is_split() {
    let frames = TestFrames::default();
    let config = DomainConfig { page_sizes: PageSizes::SIZE_2M, ..DomainConfig::new(Levels::Three) };
    let domain = SecondStageDomain::new(config, &frames).unwrap();
    // SAFETY: no device walks these tables.
    unsafe { domain.map(Iova::new(0), PhysAddr::new(0), 2 << 20, Permissions::READ).unwrap() };
    let middle = PhysAddr::new(frames.words(domain.root())[0] & !0xFFF);
    // SAFETY: the table is live, and nobody else is at it.
    unsafe { frames.pointer(middle).cast::<u64>().write_volatile(u64::MAX) };
    // SAFETY: no hardware walks these tables.
    unsafe { domain.unmap(Iova::new(0x3000), 0x1000).unwrap().complete() };
    let last = PhysAddr::new(frames.words(middle)[0] & !0xFFF);
    assert_eq!(frames.words(last)[3], 0);
    assert_eq!(domain.translate(Iova::new(0x3000)), None);
    assert!(domain.translate(Iova::new(0x2000)).is_some());
    // SAFETY: as above.
    unsafe { domain.close().complete() };
    assert_eq!(frames.live(), 0);
}
