//! What the storms do and check: a pool whose every frame is accounted for, outside of it and inside, and a domain over it whose ranges are
//! mapped and unmapped. The program says in `Host` on which host. All of it may be called in a signal handler: atomics only, and no memory from the heap.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each program uses its part")]

use crate::{
    Host,
    common::{Scripted, storm::THREADS},
};
use framepool::{
    Frame, FramePool, FrameSource, PhysAddr, Request, Stats, WorkedPool,
    vtd::{Iova, MapError, Permissions, SecondStageDomain, TableFrames, UnmapError},
};
use std::{
    ptr::NonNull,
    sync::{
        OnceLock,
        atomic::{
            AtomicU8, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread,
    time::Duration,
};

pub type Pool = WorkedPool<Scripted, Host>;
pub type Handle<'p> = Frame<'p, Scripted, Host>;

/// Frames of the pool: few, so that every tier is used all the time.
pub const CAPACITY: u32 = 384;
/// Ranges that each thread and its handlers map and unmap.
pub const RANGES: usize = 12;
const PAGE: u64 = 4096;
/// What stands in a table frame that was given back: present, and to a place where nothing is mapped.
const POISON: u64 = 0xAAAA_AAAA_AAAA_AAAA;

/// Whether each frame has an owner outside the pool.
static OWNED: [AtomicU8; CAPACITY as usize] = [const { AtomicU8::new(0) }; CAPACITY as usize];
/// Whether each range is mapped.
static STATES: [[AtomicU8; RANGES]; THREADS] =
    [const { [const { AtomicU8::new(UNMAPPED) }; RANGES] }; THREADS];

const UNMAPPED: u8 = 0;
const MAPPED: u8 = 1;
/// Somebody is at it.
const BUSY: u8 = 2;

static POOL: OnceLock<Pool> = OnceLock::new();
static DOMAIN: OnceLock<SecondStageDomain<Tables>> = OnceLock::new();

/// Frames that had two owners, or went back when they had none.
pub static DOUBLED: AtomicU64 = AtomicU64::new(0);
/// Maps and unmaps that failed and had to succeed, and tables that were given up.
pub static WRONG: AtomicU64 = AtomicU64::new(0);
/// Translations to where nothing was ever mapped.
pub static STALE: AtomicU64 = AtomicU64::new(0);
pub static ALLOCATED: AtomicU64 = AtomicU64::new(0);
pub static REFUSED: AtomicU64 = AtomicU64::new(0);
pub static MAPS: AtomicU64 = AtomicU64::new(0);
pub static UNMAPS: AtomicU64 = AtomicU64::new(0);

/// Sets the stage, once.
pub fn begin(pool: impl FnOnce() -> Pool, domain: impl FnOnce() -> SecondStageDomain<Tables>) {
    POOL.get_or_init(pool);
    DOMAIN.get_or_init(domain);
}

pub fn pool() -> &'static FramePool<Scripted, Host> {
    POOL.get().unwrap()
}

pub fn domain() -> &'static SecondStageDomain<Tables> {
    DOMAIN.get().unwrap()
}

/// Notes that `frame` is outside the pool, or inside again.
pub fn account(frame: PhysAddr, outside: bool) {
    let number = (frame.as_u64() - pool().source().base().as_u64()) / PAGE;
    if OWNED[number as usize].swap(outside.into(), SeqCst) == u8::from(outside) {
        DOUBLED.fetch_add(1, SeqCst);
    }
}

/// The pool as the allocator of tables, every frame accounted for.
#[derive(Debug)]
pub struct Tables;

// SAFETY: all is the pool's, which keeps the contract; the accounts are atomics.
unsafe impl TableFrames for Tables {
    fn allocate(&self) -> Option<PhysAddr> {
        let frame = TableFrames::allocate(pool());
        frame.into_iter().for_each(|frame| account(frame, true));
        frame
    }
    unsafe fn free(&self, frame: PhysAddr) {
        account(frame, false);
        // SAFETY: the frame is the caller's, who gives it up.
        let words = unsafe { self.pointer(frame).cast::<[AtomicU64; 512]>().as_ref() };
        words.iter().for_each(|word| word.store(POISON, Relaxed));
        // The next owner finds no stamp.
        words[1].store(0, SeqCst);
        // SAFETY: the caller's.
        unsafe { TableFrames::free(pool(), frame) }
    }
    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        pool().source().pointer(frame)
    }
    fn leaked(&self, frames: u64) {
        WRONG.fetch_add(frames, SeqCst);
    }
}

/// The owner stamp of a frame: its second word.
///
/// # Safety
/// `start` points to a frame of the pool.
unsafe fn stamp_at<'f>(start: NonNull<u8>) -> &'f AtomicU64 {
    // SAFETY: the frame is mapped; that only its owner writes there is what the stamp checks, atomically.
    unsafe { &*start.as_ptr().cast::<AtomicU64>().add(1) }
}

pub fn take(request: Request) -> Option<Handle<'static>> {
    let frame = pool().alloc_with(request).ok();
    match &frame {
        Some(frame) => {
            ALLOCATED.fetch_add(1, SeqCst);
            own(frame);
        }
        None => {
            REFUSED.fetch_add(1, SeqCst);
        }
    }
    frame
}

pub fn own(frame: &Handle<'_>) {
    own_at(frame.phys_addr(), frame.as_ptr());
}

pub fn disown(frame: &Handle<'_>) {
    disown_at(frame.phys_addr(), frame.as_ptr());
}

/// The same for a frame of any kind of handle: its address, and where it is.
pub fn own_at(frame: PhysAddr, start: NonNull<u8>) {
    account(frame, true);
    // SAFETY: the frame is the caller's, as far as the pool says.
    if unsafe { stamp_at(start) }.swap(1, SeqCst) != 0 {
        DOUBLED.fetch_add(1, SeqCst);
    }
}

/// The reverse.
pub fn disown_at(frame: PhysAddr, start: NonNull<u8>) {
    account(frame, false);
    // SAFETY: as above.
    if unsafe { stamp_at(start) }.swap(0, SeqCst) != 1 {
        DOUBLED.fetch_add(1, SeqCst);
    }
}

pub fn give(frame: Handle<'static>) {
    disown(&frame);
    drop(frame);
}

/// The range `range` of a thread: a few pages in tables that all threads share, or all that one table maps, so that mapping takes a table and
/// unmapping gives it back, or a few pages in a table of their own, which stays until it is reclaimed. The target is the address itself.
pub fn range(thread: usize, range: usize) -> (Iova, u64) {
    let number = (range * THREADS + thread) as u64;
    match range % 4 {
        1 => (Iova::new((1 << 30) + (number << 21)), 1 << 21),
        3 => (Iova::new((2 << 30) + (number << 21)), 8 * PAGE),
        _ => (Iova::new(number * 8 * PAGE), 8 * PAGE),
    }
}

/// Maps the range if it is not mapped, and the reverse, unless the code that was interrupted is at it.
pub fn toggle(thread: usize, number: usize) {
    let state = &STATES[thread][number];
    let before = state.swap(BUSY, SeqCst);
    let (iova, length) = range(thread, number);
    let after = match before {
        UNMAPPED => {
            // SAFETY: no device walks these tables, and the state makes the range ours.
            match unsafe { domain().map(iova, PhysAddr::new(iova.as_u64()), length, Permissions::READ) } {
                Ok(()) => {
                    MAPS.fetch_add(1, SeqCst);
                    MAPPED
                }
                Err(MapError::OutOfFrames { .. }) => UNMAPPED,
                Err(_) => wrong(UNMAPPED),
            }
        }
        MAPPED => match domain().unmap(iova, length) {
            Ok(invalidation) => {
                // SAFETY: no device walks these tables.
                unsafe { invalidation.complete() };
                UNMAPS.fetch_add(1, SeqCst);
                UNMAPPED
            }
            Err(UnmapError::OutOfFrames { .. }) => MAPPED,
            Err(_) => wrong(MAPPED),
        },
        _ => return,
    };
    state.store(after, SeqCst);
}

fn wrong(state: u8) -> u8 {
    WRONG.fetch_add(1, SeqCst);
    state
}

/// Compares every range with the domain, and unmaps it.
pub fn check_and_unmap_all() {
    for (thread, states) in STATES.iter().enumerate() {
        for (number, state) in states.iter().enumerate() {
            let (iova, length) = range(thread, number);
            let mapped = state.load(SeqCst) == MAPPED;
            for page in (iova.as_u64()..iova.as_u64() + length).step_by(PAGE as usize) {
                let at = domain().translate(Iova::new(page));
                let expected = mapped.then_some((PhysAddr::new(page), Permissions::READ));
                assert_eq!(at.map(|at| (at.target, at.permissions)), expected, "{page:#x}");
            }
            if mapped {
                toggle(thread, number);
            }
        }
    }
    assert_eq!(domain().mappings().count(), 0, "nothing was mapped that no range has");
}

/// Allocations that were served, by whatever tier.
pub fn served(stats: &Stats) -> u64 {
    stats.cache_hits + stats.depot_hits + stats.steals + stats.reserve_hits + stats.fallback_taken
}

/// The statistics, exact once the worker has finished the pass that it is in.
pub fn at_rest() -> Stats {
    for _ in 0..200 {
        let stats = pool().stats();
        if stats.in_use == domain().table_frames() {
            return stats;
        }
        thread::sleep(Duration::from_millis(10));
    }
    pool().stats()
}

/// How many frames would not go back to the source, when all others do; asked again while the worker is in a pass.
pub fn kept_from_source() -> u64 {
    for _ in 0..200 {
        match pool().vacate() {
            Err(refused) if refused.frames_out() == 0 => thread::sleep(Duration::from_millis(10)),
            Err(refused) => return u64::from(refused.frames_out()),
            Ok(()) => break,
        }
    }
    0
}

/// How many frames the accounts have outside the pool.
pub fn outside() -> u64 {
    OWNED.iter().filter(|owned| owned.load(SeqCst) != 0).count() as u64
}
