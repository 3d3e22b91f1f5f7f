//! What the hardware is told: which pages, in which blocks, under which id, and that it is told of new mappings where it must be.
#![cfg(not(loom))]

mod common;

use common::tables::TestFrames;
use framepool::{PhysAddr, vtd::*};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const ID: Option<DomainId> = DomainId::new(7);

type Told<'t> = Domain<CachingMode<SecondStage>, &'t TestFrames>;

fn domain(page_selective: Option<u8>, caching_mode: bool, frames: &TestFrames) -> Told<'_> {
    let hardware = Hardware { page_selective, caching_mode, drain_writes: true, ..Hardware::default() };
    let config = DomainConfig {
        page_sizes: PageSizes::all(),
        hardware,
        domain_id: ID,
        ..DomainConfig::new(Levels::Four)
    };
    Domain::new(config, frames).unwrap()
}

fn map<'t>(domain: &'t Told<'_>, iova: u64, length: u64) -> Invalidation<'t, &'t TestFrames> {
    // SAFETY: no device walks these tables.
    unsafe { domain.map(Iova::new(iova), PhysAddr::new(iova), length, Permissions::all()).unwrap() }
}

/// Start and address mask of each block, or nothing for the whole domain.
fn blocks(invalidation: &Invalidation<'_, &TestFrames>) -> Option<Vec<(u64, u8)>> {
    let requests: Vec<_> = invalidation.requests().collect();
    if requests == [None] {
        return None;
    }
    let block = |pages: Option<Pages>| {
        let pages = pages.expect("the whole domain alone, or none");
        assert_eq!(pages.leaf_only, invalidation.leaf_only());
        (pages.block.start().as_u64(), pages.block.mask())
    };
    Some(requests.into_iter().map(block).collect())
}

fn close(domain: Told<'_>) {
    let frames = *domain.allocator();
    // SAFETY: no device walks these tables.
    unsafe { domain.close().complete() };
    assert_eq!((frames.live(), frames.leaked_so_far()), (0, 0));
}

#[test]
fn a_large_leaf_is_forgotten_by_a_block_that_is_not_smaller() {
    for (largest, iova, length, expected) in [
        (18, 0x20_0000, 2 * MIB, Some(vec![(0x20_0000, 9)])),
        (9, 0x20_0000, 2 * MIB, Some(vec![(0x20_0000, 9)])),
        (8, 0x20_0000, 2 * MIB, None),
        (18, GIB, GIB, Some(vec![(GIB, 18)])),
        (17, GIB, GIB, None),
        (18, GIB - PAGE, GIB + PAGE, Some(vec![(GIB - PAGE, 0), (GIB, 18)])),
        (8, PAGE, 4 * PAGE, Some(vec![(PAGE, 0), (2 * PAGE, 1), (4 * PAGE, 0)])),
        (0, PAGE, 4 * PAGE, Some([1, 2, 3, 4].map(|page| (page * PAGE, 0)).to_vec())),
        (0, PAGE, 5 * PAGE, None),
        // Five blocks are too many: one around them.
        (9, PAGE, 30 * PAGE, Some(vec![(0, 5)])),
    ] {
        let frames = TestFrames::default();
        let domain = domain(Some(largest), false, &frames);
        assert!(map(&domain, iova, length).is_empty(), "nothing was remembered");
        // A neighbour keeps the tables.
        assert!(map(&domain, iova + length, PAGE).is_empty());
        let invalidation = domain.unmap(Iova::new(iova), length).unwrap();
        assert_eq!(blocks(&invalidation), expected, "{length:#x} from {iova:#x}, largest {largest}");
        assert!(invalidation.leaf_only() && !invalidation.needs_write_buffer_flush_only());
        // SAFETY: no device walks these tables.
        unsafe { invalidation.complete() };
        close(domain);
    }
}

#[test]
fn a_table_that_is_taken_out_is_forgotten_with_all_that_it_covered() {
    let frames = TestFrames::default();
    for (largest, expected) in [(18, Some(vec![(2 * MIB, 9)])), (8, None)] {
        let domain = domain(Some(largest), false, &frames);
        let small = DomainConfig { page_sizes: PageSizes::empty(), ..domain.config() };
        close(domain);
        let domain = Told::new(small, &frames).unwrap();
        assert!(map(&domain, 2 * MIB, 2 * MIB).is_empty());
        let invalidation = domain.unmap(Iova::new(2 * MIB), 2 * MIB).unwrap();
        assert_eq!((blocks(&invalidation), invalidation.leaf_only()), (expected, false));
        assert_eq!(invalidation.table_frames(), 1);
        // SAFETY: no device walks these tables.
        unsafe { invalidation.complete() };
        close(domain);
    }
}

#[test]
fn a_leaf_that_is_split_is_forgotten_as_a_whole() {
    let frames = TestFrames::default();
    let domain = domain(Some(18), false, &frames);
    assert!(map(&domain, GIB, GIB).is_empty());
    let invalidation = domain.unmap(Iova::new(GIB + 4 * MIB + PAGE), PAGE).unwrap();
    assert_eq!((blocks(&invalidation), invalidation.leaf_only()), (Some(vec![(GIB, 18)]), false));
    // SAFETY: no device walks these tables.
    unsafe { invalidation.complete() };
    close(domain);
}

#[test]
fn the_id_of_the_domain_is_named_or_everything_goes() {
    let frames = TestFrames::default();
    let shape = domain(Some(9), false, &frames);
    let (config, done) = (shape.config(), Wait { interrupt: true, ..Wait::default() });
    close(shape);
    let block = PageBlock::new(Iova::new(PAGE), 0).unwrap();
    let iotlb = |selection| Descriptor::Iotlb { selection, drain_reads: false, drain_writes: true };
    let pages = Pages { block, leaf_only: true };
    let id = ID.unwrap();
    for (domain_id, page_selective, forget, forget_first_stage) in [
        (ID, Some(9), iotlb(IotlbSelection::Pages(id, pages)), Some(Some(pages))),
        (ID, None, iotlb(IotlbSelection::Domain(id)), Some(None)),
        (None, Some(9), iotlb(IotlbSelection::All), None),
    ] {
        let hardware = Hardware { page_selective, ..config.hardware };
        let domain = Told::new(DomainConfig { domain_id, hardware, ..config }, &frames).unwrap();
        assert!(map(&domain, PAGE, 2 * PAGE).is_empty());
        let invalidation = domain.unmap(Iova::new(PAGE), PAGE).unwrap();
        assert_eq!(invalidation.domain_id(), domain_id);
        let descriptors: Vec<_> = invalidation.descriptors(Some(done)).collect();
        assert_eq!(descriptors, [forget, Descriptor::Wait(done)], "the wait is last");
        let pasid = Pasid::new(9).unwrap();
        let forget =
            forget_first_stage.map_or(forget, |pages| Descriptor::PasidIotlb { domain: id, pasid, pages });
        let descriptors: Vec<_> = invalidation.pasid_descriptors(pasid, Some(done)).collect();
        assert_eq!(descriptors, [forget, Descriptor::Wait(done)]);
        // SAFETY: no device walks these tables.
        unsafe { invalidation.complete() };
        close(domain);
    }
}

#[test]
fn hardware_that_remembers_what_was_not_there_is_told_of_new_mappings() {
    let frames = TestFrames::default();
    let told = domain(Some(9), true, &frames);
    let invalidation = map(&told, PAGE, PAGE);
    assert_eq!(blocks(&invalidation), Some(vec![(PAGE, 0)]));
    assert!(!invalidation.leaf_only(), "that a table was not there is remembered too");
    assert!(!invalidation.needs_write_buffer_flush_only());
    // SAFETY: no device walks these tables.
    unsafe { invalidation.complete() };
    let invalidation = map(&told, 2 * MIB, 2 * MIB);
    assert_eq!((blocks(&invalidation), invalidation.least_mask()), (Some(vec![(2 * MIB, 9)]), 9));
    // SAFETY: no device walks these tables.
    unsafe { invalidation.complete() };

    let hardware = Hardware { caching_mode: false, write_buffer_flush: true, ..told.config().hardware };
    let buffered = Told::new(DomainConfig { hardware, ..told.config() }, &frames).unwrap();
    let mut invalidation = map(&buffered, PAGE, 2 * PAGE);
    assert!(invalidation.needs_write_buffer_flush_only() && !invalidation.is_empty());
    assert_eq!(blocks(&invalidation), Some(vec![(PAGE, 0), (2 * PAGE, 0)]), "which does it as well");
    invalidation.merge(buffered.unmap(Iova::new(PAGE), PAGE).unwrap()).unwrap();
    assert!(!invalidation.needs_write_buffer_flush_only());
    // SAFETY: no device walks these tables.
    unsafe { invalidation.complete() };
    let config = buffered.config();
    assert_eq!(SecondStageDomain::new(config, &frames).err(), Some(DomainError::MapsUntold));
    assert_eq!(SecondStageDomain::new(told.config(), &frames).err(), Some(DomainError::MapsUntold));
    // SAFETY: no device walks these tables.
    unsafe { buffered.close().complete() };
    close(told);
}
