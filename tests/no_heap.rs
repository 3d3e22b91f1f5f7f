//! Nothing allocates from the heap once a pool is built, whatever is done to it.
#![cfg(not(loom))]

mod common;

use common::{assert_accounts, pool, set_cpu};
use framepool::{Builder, FallbackPolicy, Request, Watermarks};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

struct Counting;

static CALLS: AtomicU64 = AtomicU64::new(0);

// SAFETY: the system's allocator, counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, SeqCst);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        CALLS.fetch_add(1, SeqCst);
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
    let before = CALLS.load(SeqCst);
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
    let after = CALLS.load(SeqCst);
    assert_accounts(&pool, 0);
    assert_eq!(after, before, "heap calls after construction");
}
