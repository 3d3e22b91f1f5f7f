//! Nothing allocates from the heap once a pool is built, whatever is done to it.
#![cfg(not(loom))]

mod common;

use common::{assert_accounts, pool, set_cpu};
use framepool::{
    Builder, FallbackPolicy, PhysAddr, Request, Watermarks,
    vtd::{context::*, *},
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::atomic::Ordering::SeqCst,
};

struct Counting;

thread_local! {
    /// Of this thread; constant at first and without a destructor, since the allocator itself counts here.
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: the system's allocator, counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

#[test]
fn nothing_touches_the_heap_after_construction() {
    let marks = Watermarks { min: 4, low: 16, high: 32, max: 48 };
    let builder =
        Builder::new(64).cpus(2).magazine_size(4).watermarks(marks).fallback(FallbackPolicy::Budget(3));
    let pool = pool(builder, 64);
    let mut frames = [const { None }; 64];
    let before = CALLS.get();
    for round in 0..200 {
        set_cpu(&pool, round % 3);
        let request = if round % 2 == 0 { Request::CRITICAL } else { Request::ORDINARY };
        let request = if round % 3 == 0 { request.zeroed() } else { request };
        let _ = pool.alloc_bulk(request, &mut frames);
        assert!(pool.alloc_with(request).is_err() || round > 0);
        pool.maintain();
        pool.free_bulk(&mut frames);
        drop(pool.alloc());
        pool.maintain();
        pool.source().failing.store(round % 5 == 0, SeqCst);
        let _ = (pool.stats(), pool.drain_cpu(round % 2), pool.shrink_to(60));
        if round % 50 == 49 {
            pool.vacate().unwrap();
        }
    }
    let after = CALLS.get();
    assert_accounts(&pool, 0);
    assert_eq!(after, before, "heap calls after construction");
}

#[test]
fn the_builder_touches_no_heap_at_all() {
    let pool = pool(Builder::new(64).cpus(2).magazine_size(4), 64);
    let before = CALLS.get();
    let config = DomainConfig { page_sizes: PageSizes::SIZE_2M, ..DomainConfig::new(Levels::Four) };
    let domain = SecondStageDomain::new(config, &pool).unwrap();
    let (iova, length) = (Iova::new((1 << 39) - 0x1000), 0x40_2000);
    for _ in 0..100 {
        // SAFETY: no device walks these tables.
        unsafe { domain.map(iova, PhysAddr::new(0x1F_F000), length, Permissions::all()) }.unwrap();
        assert!(domain.translate(iova).is_some());
        assert_eq!(domain.mappings().count(), 1);
        let mut invalidation = domain.unmap(Iova::new(1 << 39), 0x1000).unwrap();
        invalidation.merge(domain.unmap(iova, 0x1000).unwrap()).unwrap();
        invalidation.merge(domain.unmap(Iova::new((1 << 39) + 0x1000), length - 0x2000).unwrap()).unwrap();
        // SAFETY: as above.
        unsafe { invalidation.complete() };
    }
    // SAFETY: as above.
    unsafe { domain.close().complete() };
    let after = CALLS.get();
    assert_accounts(&pool, 0);
    assert_eq!(after, before, "heap calls of the builder");
}

#[test]
fn the_way_to_a_domain_touches_no_heap_at_all() {
    const DMAR: &[u8] = include_bytes!("../examples/traces/DMAR.bin");
    let pool = pool(Builder::new(64).cpus(2).magazine_size(4), 64);
    // A unit that snoops, with the first stage in scalable mode.
    let unit = Capabilities::from_registers(0x00d2_008c_222f_0606, 0x0000_8800_00f0_0f4b);
    let before = CALLS.get();
    let table = Dmar::parse(DMAR).unwrap();
    let width = table.host_address_width();
    let devices = table.hardware_units().next().unwrap().scopes.filter_map(|scope| scope.source_id());
    let config =
        DomainConfig::from_capabilities::<SecondStage>(Levels::Four, TranslationMode::Legacy, width, &[unit]);
    let domain = SecondStageDomain::new(config.unwrap(), &pool).unwrap();
    let first_stage = FirstStageDomain::new(DomainConfig::first_stage(Levels::Four), &pool).unwrap();
    let ids = DomainIds::<4>::new(unit.domain_ids());
    let legacy = LegacyTables::new(unit, width, &pool).unwrap();
    let scalable = ScalableTables::new(unit, width, &pool).unwrap();
    for device in devices {
        let id = ids.take().unwrap();
        let entry = ContextEntry::new(ContextTranslation::by(&domain), id);
        // What a domain that does not flush needs, this unit does not have.
        let in_pasid = PasidEntry { snooped_walks: false, ..PasidEntry::first_stage(&first_stage, id) };
        assert_eq!(scalable.attach_device(device, DeviceConfig::default()).unwrap().steps().count(), 0);
        // SAFETY: no device walks these tables, and the test has one thread.
        unsafe {
            assert_eq!(legacy.attach(device, entry).unwrap().steps().count(), 0);
            assert_eq!(scalable.attach(device, Pasid::ZERO, in_pasid).unwrap().steps().count(), 0);
            for descriptor in scalable.detach(device, Pasid::ZERO).unwrap().change().steps() {
                assert_eq!(Descriptor::decode(descriptor.encode()), Ok(descriptor));
            }
            legacy.detach(device).unwrap().complete();
            scalable.detach_device(device).unwrap().complete();
        }
        ids.give(id).unwrap();
    }
    // SAFETY: as above.
    unsafe {
        legacy.close().complete();
        scalable.close().complete();
        domain.close().complete();
        first_stage.close().complete();
    }
    let after = CALLS.get();
    assert_accounts(&pool, 0);
    assert_eq!(after, before, "heap calls on the way to a domain");
}
