//! Several threads map and unmap ranges of one domain that share tables: no lock, no difference from each one's model.
#![cfg(not(loom))]

mod common;

use common::{assert_settles, storm::Random, tables::TestFrames};
use framepool::{AnonymousMemory, Builder, FramePool, LinuxPlatform, PhysAddr, vtd::*};
use std::{
    collections::BTreeMap,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

const THREADS: u64 = 4;
const PAGE: u64 = 4096;

/// Each thread owns every fourth run of 64 pages of the window, so that all share every table, and tables above them.
fn page_of(thread: u64, run: u64, page: u64) -> u64 {
    (run * THREADS + thread) * 64 + page
}

fn work<A: TableFrames>(domain: &SecondStageDomain<A>, thread: u64, end: Instant) -> u64 {
    let mut random = Random::new(thread);
    let mut model: BTreeMap<u64, u64> = BTreeMap::new();
    let mut operations = 0;
    while Instant::now() < end {
        for _ in 0..64 {
            let run = random.next() % 64 * (1 << (random.next() % 16));
            let first = page_of(thread, run, random.next() % 60);
            let pages = random.next() % 4 + 1;
            let (iova, length) = (Iova::new(first * PAGE), pages * PAGE);
            let range = first..first + pages;
            if range.clone().all(|page| model.contains_key(&page)) {
                let invalidation = domain.unmap(iova, length).unwrap();
                // SAFETY: no device walks these tables.
                unsafe { invalidation.complete() };
                model.retain(|page, _| !range.contains(page));
            } else if range.clone().all(|page| !model.contains_key(&page)) {
                let target = random.next() % (1 << 30);
                // SAFETY: no device walks these tables, and every thread has its own pages.
                unsafe {
                    domain.map(iova, PhysAddr::new(target * PAGE), length, Permissions::all()).unwrap()
                };
                model.extend(range.clone().zip(target..));
            }
            for page in range {
                let at = domain.translate(Iova::new(page * PAGE)).map(|at| at.target.as_u64() / PAGE);
                assert_eq!(at, model.get(&page).copied(), "thread {thread}, page {page:#x}");
            }
            operations += 1;
        }
    }
    for (&page, &target) in &model {
        assert_eq!(domain.translate(Iova::new(page * PAGE)).unwrap().target.as_u64() / PAGE, target);
        // SAFETY: no device walks these tables.
        unsafe { domain.unmap(Iova::new(page * PAGE), PAGE).unwrap().complete() };
    }
    operations
}

fn race<A: TableFrames + Sync>(domain: &SecondStageDomain<A>) {
    let barrier = Barrier::new(THREADS as usize);
    let operations: u64 = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    work(domain, thread, Instant::now() + Duration::from_secs(1))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(operations > 1000);
    assert_eq!(domain.mappings().count(), 0, "every thread has unmapped what it mapped");
}

#[test]
fn threads_that_share_tables_do_not_disturb_each_other() {
    let frames = TestFrames::default();
    let domain = SecondStageDomain::new(DomainConfig::new(Levels::Five), &frames).unwrap();
    race(&domain);
    assert_eq!(frames.live(), domain.table_frames(), "the losers of every race gave their frames back");
    // SAFETY: no device walks these tables.
    unsafe { domain.close().complete() };
    assert_eq!((frames.live(), frames.leaked_so_far()), (0, 0));
}

#[test]
fn threads_that_share_tables_of_a_pool_give_every_frame_back() {
    let pool = Builder::new(4096).start(AnonymousMemory::new(4096).unwrap()).unwrap();
    let shared: &FramePool<AnonymousMemory, LinuxPlatform> = &pool;
    let domain = SecondStageDomain::new(DomainConfig::new(Levels::Four), shared).unwrap();
    race(&domain);
    assert_settles(&pool, domain.table_frames());
    // SAFETY: no device walks these tables.
    unsafe { domain.close().complete() };
    assert_settles(&pool, 0);
    assert_eq!(pool.stats().table_frames_leaked, 0);
    pool.close().unwrap();
}
