//! The path that frees memory: it must go on when nobody else can, and with a reserve of the documented size it does.
#![cfg(not(loom))]

use framepool::{
    AnonymousMemory, Builder, FallbackPolicy, Frame, LinuxPlatform, Request, Watermarks, WorkedPool,
};
use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

const CAPACITY: u32 = 64;
/// Contexts that are on the path that frees memory at once, and what each takes before it gives any back.
const HOLDERS: u32 = 3;
const FRAMES: u32 = 4;

type Pool = WorkedPool<AnonymousMemory>;
type Handle<'p> = Frame<'p, AnonymousMemory, LinuxPlatform>;

/// A pool whose frames are all in it, with a reserve for so many holders.
fn pool(holders: u32) -> Pool {
    let burst = Watermarks { min: 0, low: 0, high: CAPACITY - 12, max: CAPACITY - 12 };
    let marks = burst.with_reserve(holders, FRAMES);
    let builder = Builder::new(CAPACITY).watermarks(marks).initial(CAPACITY).magazine_size(4);
    builder.fallback(FallbackPolicy::Never).start(AnonymousMemory::new(CAPACITY).unwrap()).unwrap()
}

fn take_all<'p>(pool: &'p Pool, request: Request) -> Vec<Handle<'p>> {
    std::iter::from_fn(|| pool.alloc_with(request).ok()).collect()
}

/// Two ordinary callers take whatever they can get, all the time and without giving any back; whoever is critical gets every frame
/// of the reserve, every time.
#[test]
fn a_critical_caller_succeeds_min_times_every_time_while_others_exhaust_the_pool() {
    let pool = pool(HOLDERS);
    let stop = AtomicBool::new(false);
    let taken = AtomicUsize::new(0);
    thread::scope(|scope| {
        let take_and_hold = || {
            let mut held = Vec::new();
            while !stop.load(SeqCst) {
                let more = take_all(&pool, Request::ORDINARY);
                taken.fetch_add(more.len(), SeqCst);
                held.extend(more);
            }
            held
        };
        let callers = [scope.spawn(take_and_hold), scope.spawn(take_and_hold)];
        while taken.load(SeqCst) < (CAPACITY - HOLDERS * FRAMES) as usize {
            thread::yield_now();
        }
        for round in 0..5_000 {
            let critical = take_all(&pool, Request::CRITICAL);
            assert_eq!(critical.len() as u32, HOLDERS * FRAMES, "INV-5, round {round}: {}", pool.stats());
        }
        stop.store(true, SeqCst);
        // Both hold what they took until neither takes any more.
        drop(callers.map(|caller| caller.join().unwrap()));
    });
    assert_eq!(taken.into_inner() as u32, CAPACITY - HOLDERS * FRAMES, "INV-5: not one of the reserve");
}

/// Pages in memory, each in a frame, and writers that swap them out: to write a page out takes some frames first (for the tables that
/// map it to the disk), and only then its own frame is free. The pool is full of pages. Whether all pages get written.
fn swap_out_everything(pool: &Pool) -> bool {
    let mut pages = VecDeque::new();
    // The worker may have some frames in its hands, or bring back what it has trimmed.
    while pages.len() as u32 + pool.watermarks().min < CAPACITY {
        pages.extend(take_all(pool, Request::ORDINARY));
    }
    let end = Instant::now() + Duration::from_secs(2);
    let share = pages.len().div_ceil(HOLDERS as usize);
    let mut shares: Vec<_> = (0..HOLDERS).map(|_| Vec::new()).collect();
    for (index, page) in pages.into_iter().enumerate() {
        shares[index / share].push(page);
    }
    thread::scope(|scope| {
        let writers: Vec<_> =
            shares.into_iter().map(|pages| scope.spawn(move || write_out(pool, pages, end))).collect();
        writers.into_iter().all(|writer| writer.join().unwrap())
    })
}

/// Writes pages out one by one; whether it got through before `end`. What it frees, others take at once for new pages.
fn write_out<'p>(pool: &'p Pool, pages: Vec<Handle<'p>>, end: Instant) -> bool {
    let mut new_pages = Vec::new();
    for page in pages {
        let mut tables = Vec::new();
        while (tables.len() as u32) < FRAMES {
            match pool.alloc_with(Request::CRITICAL) {
                Ok(table) => tables.push(table),
                Err(_) if Instant::now() > end => return false,
                Err(_) => thread::yield_now(),
            }
        }
        drop((page, tables));
        new_pages.extend(pool.alloc());
    }
    true
}

#[test]
fn swapping_goes_on_with_a_reserve_of_the_documented_size_and_stands_still_without() {
    for _ in 0..3 {
        assert!(swap_out_everything(&pool(HOLDERS)), "holders × frames: nobody waits for ever");
    }
    assert!(!swap_out_everything(&pool(0)), "without a reserve nobody gets the first frame");
}
