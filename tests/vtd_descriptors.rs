//! Descriptors of the invalidation queue, bit by bit and back, and the cutting of ranges into blocks of pages.
#![cfg(not(loom))]

use framepool::{PhysAddr, vtd::*};
use proptest::prelude::*;

const DOMAIN: u16 = 0x1234;

fn id() -> DomainId {
    DomainId::new(DOMAIN).unwrap()
}

fn block(start: u64, mask: u8) -> PageBlock {
    PageBlock::new(Iova::new(start), mask).unwrap()
}

#[test]
fn descriptors_have_the_bits_of_the_specification() {
    let device = SourceId::new(0x56, 0x0F, 1).unwrap();
    let pages = |leaf_only| Pages { block: block(0xABC0_0000, 10), leaf_only };
    let pasid = Pasid::new(0xF_1234).unwrap();
    let iotlb = |selection| Descriptor::Iotlb { selection, drain_reads: false, drain_writes: false };
    let of_device = |domain, functions| {
        Descriptor::ContextCache(ContextSelection::Device { domain, source: device, functions })
    };
    let device_tlb = |block, queue_depth| DeviceTlb {
        source: device,
        physical_function: SourceId::from_bits(0x9ABC),
        queue_depth,
        block,
    };
    let in_pasid = |device, all_pasids| Descriptor::PasidDeviceTlb { device, pasid, all_pasids };
    let status = StatusWrite::new(PhysAddr::new(0x7000_0004), 0xC0FF_EE00);
    let cases = [
        (Descriptor::ContextCache(ContextSelection::All), 0x11, 0),
        (Descriptor::ContextCache(ContextSelection::Domain(id())), 0x1234_0021, 0),
        (of_device(Some(id()), FunctionMask::One), 0x5679_1234_0031, 0),
        (of_device(None, FunctionMask::Eight), 0x3_5679_0000_0031, 0),
        (Descriptor::PasidCache(PasidSelection::All), 0x37, 0),
        (Descriptor::PasidCache(PasidSelection::Domain(id())), 0x1234_0007, 0),
        (Descriptor::PasidCache(PasidSelection::Pasid(id(), pasid)), 0xF_1234_1234_0017, 0),
        (iotlb(IotlbSelection::All), 0x12, 0),
        (iotlb(IotlbSelection::Domain(id())), 0x1234_0022, 0),
        (iotlb(IotlbSelection::Pages(id(), pages(true))), 0x1234_0032, 0xABC0_004A),
        (
            Descriptor::Iotlb {
                selection: IotlbSelection::Pages(id(), pages(false)),
                drain_reads: true,
                drain_writes: true,
            },
            0x1234_00F2,
            0xABC0_000A,
        ),
        (Descriptor::PasidIotlb { domain: id(), pasid, pages: None }, 0xF_1234_1234_0026, 0),
        (
            Descriptor::PasidIotlb { domain: id(), pasid, pages: Some(pages(true)) },
            0xF_1234_1234_0036,
            0xABC0_004A,
        ),
        (Descriptor::DeviceTlb(device_tlb(block(0x5000, 0), 5)), 0x9AB0_5679_0005_C003, 0x5000),
        (Descriptor::DeviceTlb(device_tlb(block(0x8000, 3), 5)), 0x9AB0_5679_0005_C003, 0xB001),
        (Descriptor::DeviceTlb(device_tlb(PageBlock::ALL, 0)), 0x9AB0_5679_0000_C003, 0x7FFF_FFFF_FFFF_F001),
        (in_pasid(device_tlb(block(0x8000, 1), 31), false), 0x9ABF_1234_5679_C1F8, 0x8800),
        (in_pasid(device_tlb(block(0x8000, 0), 1), true), 0x9ABF_1234_5679_C018, 0x8001),
        (Descriptor::Wait(Wait { fence: true, ..Wait::default() }), 0x45, 0),
        (Descriptor::Wait(Wait { status, ..Wait::default() }), 0xC0FF_EE00_0000_0025, 0x7000_0004),
        (
            Descriptor::Wait(Wait { status: None, interrupt: true, fence: true, drain_page_requests: true }),
            0xD5,
            0,
        ),
    ];
    for (descriptor, low, high) in cases {
        assert_eq!(descriptor.encode(), [low, high, 0, 0], "{descriptor:?}");
        assert_eq!(Descriptor::decode([low, high, 0, 0]), Ok(descriptor));
        let narrow = (!descriptor.is_wide()).then_some([low, high]);
        assert_eq!(descriptor.encode_narrow(), narrow, "{descriptor:?}");
    }
    assert_eq!(StatusWrite::new(PhysAddr::new(2), 0), None);
    assert_eq!(
        Descriptor::DeviceTlb(device_tlb(block(0, 0), 32)).encode(),
        Descriptor::DeviceTlb(device_tlb(block(0, 0), 0)).encode(),
        "32 is the most, and written as 0"
    );
}

#[test]
fn what_hardware_would_refuse_is_named() {
    for (words, error) in [
        ([0x0, 0, 0, 0], DescriptorError::Kind { kind: 0 }),
        ([0x201, 0, 0, 0], DescriptorError::Kind { kind: 0x11 }),
        ([0x01, 0, 0, 0], DescriptorError::Value { field: "G", value: 0 }),
        ([0x27, 0, 0, 0], DescriptorError::Value { field: "G", value: 2 }),
        ([0x22, 0, 0, 0], DescriptorError::Value { field: "DID", value: 0 }),
        ([0x1_0032, 0x1001, 0, 0], DescriptorError::Value { field: "AM", value: 1 }),
        ([0x1_0032, 53, 0, 0], DescriptorError::Value { field: "AM", value: 53 }),
        ([0x1_0022, 0x1000, 0, 0], DescriptorError::Reserved { word: 1, bits: 0x1000 }),
        ([0x111, 0, 0, 0], DescriptorError::Reserved { word: 0, bits: 0x100 }),
        ([0x25, 0x1002, 0, 0], DescriptorError::Reserved { word: 1, bits: 2 }),
        ([0x11, 0, 0, 1], DescriptorError::Reserved { word: 3, bits: 1 }),
        ([0x3, !0xFFE, 0, 0], DescriptorError::Value { field: "ADDR", value: !0xFFF }),
    ] {
        assert_eq!(Descriptor::decode(words), Err(error), "{error}");
    }
}

/// Pages of the range.
fn range(first: u64, pages: u64) -> IovaRange {
    IovaRange { start: Iova::new(first << 12), length: pages << 12 }
}

/// Ranges at all scales, often touching the boundaries of large leaves.
fn any_range() -> impl Strategy<Value = (u64, u64)> {
    let near = |shift: u32| {
        (0..1u64 << 20, -3i64..4).prop_map(move |(at, by)| (at << shift).saturating_add_signed(by))
    };
    let first = prop_oneof![0..1u64 << 36, near(9), near(18)];
    (first, prop_oneof![1..2048u64, 1..1u64 << 20, (1..512u64).prop_map(|large| large << 9)])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn decoding_random_words_never_panics_and_is_exact(words in any::<[u64; 4]>(), kind in 0..10u64, sparse in any::<[u64; 2]>()) {
        let clipped = [kind | words[0] & 0xF00F_FFFF_FFFF_00F0 & sparse[0], words[1] & !0xFA0 & sparse[1], 0, 0];
        for words in [words, clipped, [clipped[0] & !0xFF00, clipped[1] & !0xFFE, 0, 0]] {
            if let Ok(descriptor) = Descriptor::decode(words) {
                prop_assert_eq!(descriptor.encode(), words);
            }
        }
    }

    #[test]
    fn blocks_cover_a_range_exactly((first, pages) in any_range(), largest in 0..52u8) {
        let mut next = first;
        let mut masks = Vec::new();
        for block in Blocks::new(range(first, pages), largest.max(9)) {
            prop_assert_eq!(block.start().as_u64(), next << 12, "no gap, no overlap");
            prop_assert!(block.mask() <= largest.max(9));
            prop_assert_eq!(next & ((1 << block.mask()) - 1), 0, "naturally aligned");
            prop_assert_eq!(block.last().as_u64() + 1, (next + (1 << block.mask())) << 12);
            prop_assert!(PageBlock::new(block.start(), block.mask()) == Some(block));
            masks.push(block.mask());
            next += 1 << block.mask();
        }
        prop_assert_eq!(next, first + pages);
        // The fewest: no two neighbours of the same size make a block that is allowed.
        let mut at = first;
        for pair in masks.windows(2) {
            let mask = pair[0];
            prop_assert!(pair[0] != pair[1] || mask == largest.max(9) || at >> mask & 1 == 1);
            at += 1 << mask;
        }
    }

    #[test]
    fn blocks_never_cut_a_leaf((first, pages) in any_range(), leaf in prop_oneof![Just(9u8), Just(18)], mamv in 0..40u8) {
        let selection = Selection::of(range(first, pages), Some(mamv), leaf, 64);
        let Selection::Pages(blocks) = selection else { return Ok(()) };
        prop_assert!(mamv >= leaf);
        for block in blocks {
            // A leaf that lies in the range as a whole lies in one block, or in none.
            let leaf_start = block.start().as_u64() >> 12 & !((1 << leaf) - 1);
            if leaf_start >= first && leaf_start + (1 << leaf) <= first + pages {
                prop_assert!(block.mask() >= leaf, "{:?} cuts the leaf at page {:#x}", block, leaf_start);
            }
        }
    }

    #[test]
    fn a_selection_covers_its_range_within_its_means(
        (first, pages) in any_range(),
        page_selective in prop::option::of(0..40u8),
        leaf in prop_oneof![Just(0u8), Just(9), Just(18)],
        most in 0..20usize,
    ) {
        let range = range(first, pages);
        match Selection::of(range, page_selective, leaf, most) {
            Selection::Domain => {}
            Selection::Pages(blocks) => {
                let largest = page_selective.unwrap();
                prop_assert!(blocks.clone().count() <= most && leaf <= largest);
                let (mut covered, mut at) = (0, None);
                for block in blocks.clone() {
                    prop_assert!(block.mask() <= largest);
                    prop_assert!(at.is_none_or(|at| at == block.start().as_u64()));
                    at = Some(block.last().as_u64() + 1);
                    covered += 1u64 << block.mask();
                }
                let start = blocks.clone().next().unwrap().start().as_u64();
                prop_assert!(start <= range.start.as_u64() && at.unwrap() >= range.start.as_u64() + range.length);
                prop_assert!(covered >= pages);
                prop_assert!(covered == pages || blocks.count() == 1, "exact, or one block around");
            }
        }
    }

    #[test]
    fn the_covering_block_is_the_smallest((first, pages) in any_range()) {
        let range = range(first, pages);
        let (start, last) = (range.start, Iova::new(range.start.as_u64() + range.length - 1));
        let around = PageBlock::covering(range);
        prop_assert!(around.contains(start) && around.contains(last));
        if let Some(smaller) = around.mask().checked_sub(1) {
            let size = 4096 << smaller;
            prop_assert!(start.as_u64() / size != last.as_u64() / size);
        }
    }
}
