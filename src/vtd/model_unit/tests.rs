//! Each rule of the unit, with tables written by hand.

use super::*;
use crate::{
    sync::atomic::{AtomicU64, Ordering},
    vtd::{Levels, PageBlock, PageSizes, Pasid},
};
use std::boxed::Box;

const ID: DomainId = DomainId::FIRST;
const MIB: u64 = 1 << 20;

#[repr(align(4096))]
struct Page([AtomicU64; 512]);

/// Frame n is at 0x1000 * (n + 1), so that entries are easy to read.
struct Heap {
    pages: Vec<Box<Page>>,
    next: AtomicU64,
}

impl Heap {
    fn new() -> Self {
        let page = || Box::new(Page([const { AtomicU64::new(0) }; 512]));
        Self { pages: (0..8).map(|_| page()).collect(), next: AtomicU64::new(0) }
    }
}

#[allow(unsafe_code, reason = "keeps the contract of an allocator")]
// SAFETY: each page is handed out once.
unsafe impl TableFrames for Heap {
    fn allocate(&self) -> Option<PhysAddr> {
        // Ordering: Relaxed; the tests have one thread.
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        (next < 8).then(|| PhysAddr::new(0x1000 * (next + 1)))
    }

    unsafe fn free(&self, _frame: PhysAddr) {}

    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        NonNull::from(&self.pages[(frame.as_u64() / 0x1000 - 1) as usize].0).cast()
    }
}

/// A unit with three levels of tables at 0x1000, 0x2000 and 0x3000, and one more at 0x4000.
fn unit(hardware: Hardware, stage: Stage) -> ModelUnit<Heap> {
    let unit = ModelUnit::new(Heap::new(), hardware);
    for frame in [0x1000, 0x2000, 0x3000, 0x4000] {
        assert_eq!(unit.allocate(), Some(PhysAddr::new(frame)));
        flush(&unit, frame, 4096);
    }
    let config = DomainConfig {
        page_sizes: PageSizes::all(),
        host_address_width: 46,
        ..DomainConfig::new(Levels::Three)
    };
    unit.attach_tables(ID, stage, PhysAddr::new(0x1000), config);
    unit
}

const PLAIN: Hardware = Hardware { page_selective: Some(18), ..Hardware::SNOOPING };

fn second_stage() -> ModelUnit<Heap> {
    let unit = unit(PLAIN, Stage::Second);
    write(&unit, 0x1000, 0, 0x2003);
    write(&unit, 0x2000, 0, 0x3003);
    write(&unit, 0x3000, 5, 0x9003);
    unit
}

fn write(unit: &ModelUnit<Heap>, frame: u64, index: usize, entry: u64) {
    // Ordering: Relaxed; the tests have one thread.
    unit.frames.pages[(frame / 0x1000 - 1) as usize].0[index].store(entry, Ordering::Relaxed);
}

#[allow(unsafe_code, reason = "the hook takes a pointer")]
fn flush(unit: &ModelUnit<Heap>, address: u64, bytes: usize) {
    let start = unit.pointer(PhysAddr::new(address & !4095));
    // SAFETY: all in one page of the heap.
    unsafe { unit.flush(start.add((address & 4095) as usize), bytes) }
}

#[allow(unsafe_code, reason = "the unit watches what goes back")]
fn free(unit: &ModelUnit<Heap>, frame: u64) {
    // SAFETY: the heap does nothing with it.
    unsafe { unit.free(PhysAddr::new(frame)) }
}

fn read(unit: &ModelUnit<Heap>, iova: u64) -> Result<u64, Fault> {
    unit.access(ID, Iova::new(iova), false).map(PhysAddr::as_u64)
}

fn absent<T>(level: u32) -> Result<T, Fault> {
    Err(Fault::NotPresent { level })
}

fn pages(domain: DomainId, start: u64, mask: u8, leaf_only: bool) -> Descriptor {
    let pages = Pages { block: PageBlock::new(Iova::new(start), mask).unwrap(), leaf_only };
    let selection = IotlbSelection::Pages(domain, pages);
    Descriptor::Iotlb { selection, drain_reads: false, drain_writes: false }
}

fn iotlb(selection: IotlbSelection) -> Descriptor {
    Descriptor::Iotlb { selection, drain_reads: false, drain_writes: false }
}

fn invalidate(unit: &ModelUnit<Heap>, descriptor: Descriptor) {
    assert_eq!(unit.submit(&[descriptor, Descriptor::Wait(Wait::default())]), [Wait::default()]);
}

#[test]
fn a_translation_is_kept_until_its_pages_are_invalidated_and_waited_for() {
    let forgets = [
        (iotlb(IotlbSelection::All), true),
        (iotlb(IotlbSelection::Domain(ID)), true),
        (iotlb(IotlbSelection::Domain(DomainId::new(2).unwrap())), false),
        (pages(ID, 0x5000, 0, true), true),
        (pages(ID, 0, 3, true), true),
        (pages(ID, 0x4000, 0, true), false),
        (pages(ID, 0x8000, 3, true), false),
        (pages(DomainId::new(2).unwrap(), 0x5000, 0, true), false),
        (Descriptor::PasidIotlb { domain: ID, pasid: Pasid::new(0).unwrap(), pages: None }, false),
    ];
    for (descriptor, forgotten) in forgets {
        let unit = second_stage();
        assert_eq!(read(&unit, 0x5123), Ok(0x9123));
        write(&unit, 0x3000, 5, 0xA003);
        assert_eq!(unit.submit(&[descriptor]), [], "nothing was waited for");
        assert_eq!(unit.cached(), (1, 2));
        assert_eq!(unit.submit(&[Descriptor::Wait(Wait::default())]), [Wait::default()]);
        assert_eq!(read(&unit, 0x5123), Ok(if forgotten { 0xA123 } else { 0x9123 }), "{descriptor:?}");
        let stale = |violation: &Violation| {
            let &Violation::StaleTranslation { domain: ID, iova, cached, written } = violation else {
                return false;
            };
            let target = |at: Option<super::super::Translation>| at.unwrap().target.as_u64();
            (iova.as_u64(), target(cached), target(written)) == (0x5123, 0x9123, 0xA123)
        };
        let violations = unit.take_violations();
        assert_eq!((violations.len(), violations.iter().all(stale)), (usize::from(!forgotten), true));
    }
}

#[test]
fn a_check_finds_what_no_device_has_used() {
    let unit = second_stage();
    assert_eq!(read(&unit, 0x5000), Ok(0x9000));
    unit.check();
    assert_eq!(unit.take_violations(), []);
    // Fewer rights.
    write(&unit, 0x3000, 5, 0x9001);
    unit.check();
    assert!(matches!(unit.take_violations()[..], [Violation::StaleTranslation { .. }]));
    unit.check();
    assert_eq!((unit.take_violations(), unit.found()), (std::vec![], 1), "reported once");
    assert_eq!(unit.access(ID, Iova::new(0x5000), true), Err(Fault::Denied));
}

#[test]
fn a_large_page_takes_a_mask_of_its_own_size() {
    for (start, mask, forgotten) in
        [(0x20_0000, 0, false), (0x20_0000, 8, false), (0x20_0000, 9, true), (0, 10, true)]
    {
        let unit = second_stage();
        write(&unit, 0x2000, 1, 0x80_0083);
        assert_eq!(read(&unit, 2 * MIB + 0x1234), Ok(0x80_1234));
        write(&unit, 0x2000, 1, 0);
        invalidate(&unit, pages(ID, start, mask, true));
        assert_eq!(read(&unit, 2 * MIB), if forgotten { absent(2) } else { Ok(0x80_0000) }, "mask {mask}");
        assert_eq!(unit.take_violations().len(), usize::from(!forgotten));
    }
}

#[test]
fn a_large_page_of_which_a_part_has_gone_is_stale_there() {
    let unit = second_stage();
    write(&unit, 0x2000, 1, 0x80_0083);
    assert_eq!(read(&unit, 2 * MIB), Ok(0x80_0000));
    for index in 0..512 {
        write(&unit, 0x4000, index, 0x80_0003 + 0x1000 * index as u64);
    }
    write(&unit, 0x2000, 1, 0x4003);
    unit.check();
    assert_eq!(unit.take_violations(), [], "the same, in smaller pages");
    write(&unit, 0x4000, 7, 0);
    unit.check();
    let violations = unit.take_violations();
    assert!(
        matches!(violations[..], [Violation::StaleTranslation { iova, written: None, .. }] if iova.as_u64() == 0x20_7000)
    );
}

#[test]
fn entries_that_name_tables_are_kept_under_the_leaf_only_hint() {
    for (leaf_only, block) in [(true, 0), (false, 0), (false, 3)] {
        let unit = second_stage();
        assert_eq!(read(&unit, 0x5000), Ok(0x9000));
        write(&unit, 0x4000, 5, 0xB003);
        write(&unit, 0x2000, 0, 0x4003);
        invalidate(&unit, pages(ID, if block == 0 { 0x5000 } else { 0 }, block, leaf_only));
        assert_eq!(read(&unit, 0x5000), Ok(if leaf_only { 0x9000 } else { 0xB000 }));
        let stale = Violation::StaleTable {
            domain: ID,
            iova: Iova::new(0),
            level: 2,
            cached: Some(PhysAddr::new(0x3000)),
            written: Some(PhysAddr::new(0x4000)),
        };
        assert_eq!(unit.take_violations(), if leaf_only { std::vec![stale] } else { std::vec![] });
    }
    // Found by a check as well.
    let unit = second_stage();
    assert_eq!(read(&unit, 0x5000), Ok(0x9000));
    write(&unit, 0x1000, 0, 0);
    invalidate(&unit, pages(ID, 0, 18, true));
    unit.check();
    let violations = unit.take_violations();
    let levels =
        violations.iter().filter(|found| matches!(found, Violation::StaleTable { written: None, .. }));
    assert_eq!((levels.count(), violations.len()), (2, 2));
}

#[test]
fn absence_is_remembered_in_caching_mode_only_and_for_the_second_stage_only() {
    for (caching_mode, stage) in [(false, Stage::Second), (true, Stage::Second), (true, Stage::First)] {
        let unit = unit(Hardware { caching_mode, ..PLAIN }, stage);
        let remembers = caching_mode && stage == Stage::Second;
        let present = if stage == Stage::First { 0x27 } else { 0x3 };
        write(&unit, 0x1000, 0, 0x2000 | present);
        assert_eq!(read(&unit, 0x5000), absent(2));
        write(&unit, 0x3000, 5, 0x9000 | present);
        write(&unit, 0x2000, 0, 0x3000 | present);
        assert_eq!(read(&unit, 0x5000), if remembers { absent(1) } else { Ok(0x9000) });
        assert_eq!(unit.take_violations().len(), usize::from(remembers));
        if remembers {
            // The page is no longer remembered; that there was no table for it is, until an invalidation of more than leaves.
            invalidate(&unit, pages(ID, 0x5000, 0, true));
            assert_eq!(read(&unit, 0x5000), absent(2));
            assert!(matches!(
                unit.take_violations()[..],
                [Violation::StaleTable { cached: None, level: 2, .. }]
            ));
            assert_eq!(read(&unit, 0x5000), Ok(0x9000));
        }
    }
    let unit = unit(Hardware { caching_mode: true, ..PLAIN }, Stage::Second);
    assert_eq!(read(&unit, 0x5000), absent(3));
    write(&unit, 0x2000, 0, 0x3003);
    write(&unit, 0x3000, 5, 0x9003);
    write(&unit, 0x1000, 0, 0x2003);
    invalidate(&unit, pages(ID, 0x5000, 0, false));
    unit.check();
    assert_eq!((read(&unit, 0x5000), unit.take_violations()), (Ok(0x9000), std::vec![]));
}

#[test]
fn a_unit_that_does_not_snoop_sees_lines_as_of_their_last_flush() {
    let unit = unit(Hardware { coherent: false, ..PLAIN }, Stage::Second);
    write(&unit, 0x3000, 5, 0x9003);
    write(&unit, 0x2000, 0, 0x3003);
    write(&unit, 0x1000, 0, 0x2003);
    for (address, level) in [(0x1000, 3), (0x2000, 2), (0x3028, 1)] {
        assert_eq!(read(&unit, 0x5000), absent(level));
        let iova = Iova::new(if level == 1 { 0x5000 } else { 0 });
        let written = [0x9003, 0x3003, 0x2003][level as usize - 1];
        let missing = Violation::MissingFlush { domain: ID, iova, level, seen: 0, written };
        assert_eq!(unit.take_violations(), [missing]);
        unit.check();
        assert_eq!(unit.take_violations().len(), level as usize, "this one and those below");
        flush(&unit, address, 8);
    }
    assert_eq!(read(&unit, 0x5000), Ok(0x9000));
    // A line is 64 bytes: entry 7 is in that of entry 5, entry 8 is not.
    write(&unit, 0x3000, 7, 0xA003);
    write(&unit, 0x3000, 8, 0xB003);
    flush(&unit, 0x3028, 8);
    assert_eq!((read(&unit, 0x7000), read(&unit, 0x8000)), (Ok(0xA000), absent(1)));
    assert_eq!(unit.take_violations().len(), 1);
    // What hardware ignores need not be flushed.
    write(&unit, 0x3000, 5, 1 << 52 | 0x9003);
    flush(&unit, 0x3040, 8);
    unit.check();
    assert_eq!(unit.take_violations(), []);
}

#[test]
fn what_is_in_a_new_table_is_unknown_until_it_is_flushed() {
    let unit = unit(Hardware { coherent: false, ..PLAIN }, Stage::Second);
    assert_eq!(unit.allocate(), Some(PhysAddr::new(0x5000)));
    write(&unit, 0x1000, 1, 0x5003);
    flush(&unit, 0x1000, 16);
    unit.check();
    assert_eq!(unit.take_violations().len(), 512, "none of its lines");
    assert!(matches!(read(&unit, 1 << 30), Err(Fault::BadEntry { level: 2, .. })));
}

#[test]
fn a_table_goes_back_after_the_unit_has_forgotten_it() {
    let early = |frame, level| Violation::FreedTooEarly {
        frame: PhysAddr::new(frame),
        domain: ID,
        iova: Iova::new(0),
        level,
    };
    for (descriptor, expected) in [
        (None, std::vec![early(0x3000, 1)]),
        (Some(pages(ID, 0, 9, true)), std::vec![early(0x3000, 1)]),
        (Some(pages(ID, 0, 9, false)), std::vec![]),
    ] {
        let unit = second_stage();
        assert_eq!(read(&unit, 0x5000), Ok(0x9000));
        write(&unit, 0x2000, 0, 0);
        if let Some(descriptor) = descriptor {
            invalidate(&unit, descriptor);
        }
        free(&unit, 0x3000);
        assert_eq!(unit.take_violations(), expected);
    }
    let unit = second_stage();
    free(&unit, 0x1000);
    assert_eq!(unit.take_violations(), [early(0x1000, 3)], "the root of an attached domain");
    let unit = second_stage();
    free(&unit, 0x3000);
    assert_eq!(read(&unit, 0x5000), Err(Fault::NoTable { level: 1 }), "still linked");
    unit.check();
    let violations = unit.take_violations();
    assert!(
        violations.iter().any(|found| matches!(found, Violation::NoTable { level: 1, .. })),
        "{violations:?}"
    );
}

#[test]
fn entries_that_hardware_refuses_are_reported_where_they_are_met() {
    let problem = EntryProblem::Reserved { bits: 1 << 11 };
    let bad =
        |level, entry, problem| Violation::BadEntry { domain: ID, iova: Iova::new(0), level, entry, problem };
    let unit = second_stage();
    write(&unit, 0x2000, 0, 0x3803);
    assert_eq!(read(&unit, 0x5000), Err(Fault::BadEntry { level: 2, problem }));
    assert_eq!(unit.take_violations(), [bad(2, 0x3803, problem)]);
    unit.check();
    assert_eq!(unit.take_violations(), [bad(2, 0x3803, problem)]);
    write(&unit, 0x1000, 0, 1 << 46 | 3);
    unit.submit(&[iotlb(IotlbSelection::All), Descriptor::Wait(Wait::default())]);
    unit.check();
    assert_eq!(unit.take_violations(), [bad(3, 1 << 46 | 3, EntryProblem::BeyondHostWidth { width: 46 })]);
}

#[test]
fn an_access_faults_beyond_the_width_without_rights_and_without_tables() {
    let unit = second_stage();
    assert_eq!(read(&unit, 1 << 39), Err(Fault::BeyondWidth));
    assert_eq!(read(&unit, u64::MAX), Err(Fault::BeyondWidth));
    let other = DomainId::new(2).unwrap();
    assert_eq!(unit.access(other, Iova::new(0), false), Err(Fault::NoDomain));
    write(&unit, 0x3000, 6, 0x9001);
    write(&unit, 0x3000, 7, 0x9002);
    assert_eq!(unit.access(ID, Iova::new(0x6000), true), Err(Fault::Denied));
    assert_eq!(unit.access(ID, Iova::new(0x7000), true), Ok(PhysAddr::new(0x9000)));
    assert_eq!(read(&unit, 0x7000), Err(Fault::Denied));
    // The rights of all levels together.
    write(&unit, 0x1000, 0, 0x2001);
    invalidate(&unit, iotlb(IotlbSelection::Domain(ID)));
    assert_eq!(unit.access(ID, Iova::new(0x5000), true), Err(Fault::Denied));
    assert_eq!(unit.take_violations(), []);
}

#[test]
fn a_first_stage_is_invalidated_by_its_pasid() {
    let pasid =
        |number, pages| Descriptor::PasidIotlb { domain: ID, pasid: Pasid::new(number).unwrap(), pages };
    let some =
        |start, leaf_only| Some(Pages { block: PageBlock::new(Iova::new(start), 0).unwrap(), leaf_only });
    for (descriptor, left) in [
        (pages(ID, 0x5000, 0, false), (1, 2)),
        (pasid(1, None), (1, 2)),
        (pasid(0, some(0x6000, true)), (1, 2)),
        (pasid(0, some(0x5000, true)), (0, 2)),
        (pasid(0, some(0x5000, false)), (0, 0)),
        (pasid(0, None), (0, 0)),
        (iotlb(IotlbSelection::Domain(ID)), (0, 0)),
    ] {
        let unit = unit(PLAIN, Stage::First);
        write(&unit, 0x1000, 0, 0x2027);
        write(&unit, 0x2000, 0, 0x3027);
        write(&unit, 0x3000, 5, 0x9067);
        assert_eq!(read(&unit, 0x5008), Ok(0x9008));
        invalidate(&unit, descriptor);
        assert_eq!(unit.cached(), left, "{descriptor:?}");
    }
}

#[test]
fn a_mask_that_the_unit_does_not_have_is_refused() {
    for (page_selective, mask) in [(None, 0), (Some(9), 10)] {
        let unit = unit(Hardware { page_selective, ..PLAIN }, Stage::Second);
        let descriptor = pages(ID, 0, mask, false);
        invalidate(&unit, descriptor);
        assert_eq!(unit.take_violations(), [Violation::RefusedInvalidation { descriptor }]);
    }
}

#[test]
fn what_was_cached_for_a_detached_domain_is_stale() {
    let unit = second_stage();
    assert_eq!(read(&unit, 0x5000), Ok(0x9000));
    unit.detach(ID);
    assert_eq!(read(&unit, 0x5000), Err(Fault::NoDomain));
    unit.check();
    assert_eq!(unit.take_violations().len(), 3);
    let unit = second_stage();
    assert_eq!(read(&unit, 0x5000), Ok(0x9000));
    unit.detach(ID);
    invalidate(&unit, iotlb(IotlbSelection::Domain(ID)));
    unit.check();
    assert_eq!(unit.take_violations(), []);
}
