//! Nothing allocates from the heap once a pool is built, whatever is done to it.
#![cfg(not(loom))]

mod common;

use common::{assert_accounts, pool, set_cpu};
use framepool::{
    Builder, FallbackPolicy, PhysAddr, Request, Watermarks,
    vtd::{DomainConfig, Iova, Levels, PageSizes, Permissions, SecondStageDomain},
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
        let _ = pool.alloc_bulk(request, &mut frames);
        assert!(pool.alloc_with(request).is_err() || round > 0);
        pool.maintain();
        pool.free_bulk(&mut frames);
        drop(pool.alloc());
        pool.maintain();
        pool.source().failing.store(round % 5 == 0, SeqCst);
        let _ = pool.stats();
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
