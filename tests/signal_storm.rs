//! A storm of signals on every thread of a pool: timers tens of microseconds apart interrupt the pool's operations at
//! arbitrary instructions, and the handlers use the same pool, balanced or not, map and unmap in a domain over it, and nest.
//!
//! Owner stamps prove that no frame was handed out twice, the accounts at the end that none was lost: a stamp in each data
//! frame, and one beside the pool for every frame, since a table has no room for one. The harness is as signal-safe as what it
//! tests: atomics only, and no memory from the heap in a handler. Too few signals inside an operation fail the test, since it
//! then has shown nothing. `FRAMEPOOL_STORM_SECONDS` sets the length (default 4, once for each way to own a cache).
#![cfg(not(loom))]

mod common;

use common::storm::{Harness, Random, THREADS, Timers};
use framepool::{
    AnonymousMemory, Builder, FallbackPolicy, Frame, FramePool, FrameSource, LinuxPlatform, PhysAddr,
    Request, Stats, Watermarks, WorkedPool,
    vtd::{DomainConfig, Iova, Levels, MapError, Permissions, SecondStageDomain, TableFrames, UnmapError},
};
use std::{
    ptr::NonNull,
    sync::{
        Barrier, OnceLock,
        atomic::{AtomicU8, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

type Pool = WorkedPool<AnonymousMemory>;
type Handle<'p> = Frame<'p, AnonymousMemory, LinuxPlatform>;

/// Frames of the pool: few, so that every tier is used all the time.
const CAPACITY: u32 = 384;
/// Frames that the handlers of a thread may keep between two signals.
const STASH: usize = 24;
/// Frames that a thread holds at most.
const HELD: usize = 80;
/// Ranges that each thread and its handlers map and unmap.
const RANGES: usize = 12;
/// Signals inside an operation without which the test has shown nothing.
const INSIDE_AT_LEAST: u64 = 10_000;

const PAGE: u64 = 4096;

/// What the handlers kept, as addresses with 0 for nothing; a handler takes and puts by single exchanges.
static STASHES: [[AtomicU64; STASH]; THREADS] = [const { [const { AtomicU64::new(0) }; STASH] }; THREADS];
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

static DOUBLED: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);
static ALLOCATED: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);
static MAPS: AtomicU64 = AtomicU64::new(0);
static UNMAPS: AtomicU64 = AtomicU64::new(0);

fn pool() -> &'static FramePool<AnonymousMemory, LinuxPlatform> {
    POOL.get().unwrap()
}

fn domain() -> &'static SecondStageDomain<Tables> {
    DOMAIN.get().unwrap()
}

/// Notes that `frame` is outside the pool, or inside again.
fn account(frame: PhysAddr, outside: bool) {
    let number = (frame.as_u64() - pool().source().base().as_u64()) / PAGE;
    if OWNED[number as usize].swap(outside.into(), SeqCst) == u8::from(outside) {
        DOUBLED.fetch_add(1, SeqCst);
    }
}

/// The pool as the allocator of tables, every frame accounted for.
struct Tables;

// SAFETY: all is the pool's, which keeps the contract; the accounts are atomics.
unsafe impl TableFrames for Tables {
    fn allocate(&self) -> Option<PhysAddr> {
        let frame = TableFrames::allocate(pool());
        frame.into_iter().for_each(|frame| account(frame, true));
        frame
    }
    unsafe fn free(&self, frame: PhysAddr) {
        account(frame, false);
        // The next owner finds no stamp.
        // SAFETY: the frame is the caller's, who gives it up.
        unsafe { stamp_at(self.pointer(frame)) }.store(0, SeqCst);
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

fn stamp<'f>(frame: &'f Handle<'_>) -> &'f AtomicU64 {
    // SAFETY: the frame is ours, as far as the pool says.
    unsafe { stamp_at(frame.as_ptr()) }
}

fn take(request: Request) -> Option<Handle<'static>> {
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

fn own(frame: &Handle<'_>) {
    account(frame.phys_addr(), true);
    if stamp(frame).swap(1, SeqCst) != 0 {
        DOUBLED.fetch_add(1, SeqCst);
    }
}

fn disown(frame: &Handle<'_>) {
    account(frame.phys_addr(), false);
    if stamp(frame).swap(0, SeqCst) != 1 {
        DOUBLED.fetch_add(1, SeqCst);
    }
}

fn give(frame: Handle<'static>) {
    disown(&frame);
    drop(frame);
}

/// Puts `frame` into the stash, and gives back what was there.
fn exchange(place: &AtomicU64, frame: Option<Handle<'static>>) {
    let new = frame.map_or(0, |frame| frame.into_raw().as_u64());
    let old = place.swap(new, SeqCst);
    if old != 0 {
        // SAFETY: the stash holds each address once, and the exchange took it out.
        give(unsafe { Frame::from_raw(pool(), PhysAddr::new(old)) });
    }
}

/// The range `range` of a thread: even ones are a few pages in tables that all threads share, odd ones all that one table maps,
/// so that mapping takes a table and unmapping gives it back. The target is the address itself.
fn range(thread: usize, range: usize) -> (Iova, u64) {
    let number = (range * THREADS + thread) as u64;
    if range.is_multiple_of(2) {
        (Iova::new(number * 8 * PAGE), 8 * PAGE)
    } else {
        (Iova::new((1 << 30) + (number << 21)), 1 << 21)
    }
}

/// Maps the range if it is not mapped, and the reverse, unless the code that was interrupted is at it.
fn toggle(thread: usize, number: usize) {
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

/// What a handler does: balanced, or taking more than it gives, or the reverse; from `random`.
fn handler(thread: usize, random: u64) {
    let places = &STASHES[thread];
    let place = |step: u64| &places[(random.wrapping_mul(step * 2 + 1) >> 33) as usize % STASH];
    match random % 6 {
        0 => take(Request::ORDINARY).map_or((), give),
        1 => (0..3).for_each(|step| exchange(place(step), take(Request::ORDINARY))),
        2 => (0..3).for_each(|step| exchange(place(step), None)),
        3 => exchange(place(0), take(Request::CRITICAL)),
        4 => {
            let mut frames = [const { None }; 4];
            if pool().alloc_bulk_exact(Request::ORDINARY, &mut frames).is_ok() {
                frames.iter().flatten().for_each(own);
                frames.iter().flatten().for_each(disown);
                pool().free_bulk(&mut frames);
            }
        }
        _ => toggle(thread, (random >> 17) as usize % RANGES),
    }
}

/// What a thread does between signals, each call of the pool marked as an operation.
fn ordinary_work(harness: &Harness, thread: usize, random: &mut Random, held: &mut Vec<Handle<'static>>) {
    for _ in 0..64 {
        let choice = random.next() % 16;
        if choice == 15 {
            let number = random.next() as usize % RANGES;
            harness.operation(thread, || toggle(thread, number));
        } else if held.len() < HELD && choice < 9 {
            if let Some(frame) = harness.operation(thread, || take(Request::ORDINARY)) {
                held.push(frame);
            }
        } else if !held.is_empty() {
            let frame = held.swap_remove(random.next() as usize % held.len());
            harness.operation(thread, || give(frame));
        }
    }
    if random.next().is_multiple_of(16) {
        held.drain(..).for_each(|frame| harness.operation(thread, || give(frame)));
    }
}

/// Compares every range with the domain, and unmaps it.
fn check_and_unmap_all() {
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
fn served(stats: &Stats) -> u64 {
    stats.cache_hits + stats.depot_hits + stats.steals + stats.reserve_hits + stats.fallback_taken
}

/// The statistics, exact once the worker has finished the pass that it is in.
fn at_rest() -> Stats {
    for _ in 0..200 {
        let stats = pool().stats();
        if stats.in_use == domain().table_frames() {
            return stats;
        }
        thread::sleep(Duration::from_millis(10));
    }
    pool().stats()
}

/// Runs this program once for each way in which a cache can be owned.
fn main() {
    match std::env::var("FRAMEPOOL_STORM_PLATFORM").as_deref() {
        Ok("claiming") => storm(LinuxPlatform::claiming()),
        Ok(_) => storm(LinuxPlatform::new()),
        Err(_) => {
            for platform in ["new", "claiming"] {
                let program = std::env::current_exe().unwrap();
                let mut command = std::process::Command::new(program);
                assert!(command.env("FRAMEPOOL_STORM_PLATFORM", platform).status().unwrap().success());
            }
        }
    }
}

fn storm(platform: LinuxPlatform) {
    let seconds =
        std::env::var("FRAMEPOOL_STORM_SECONDS").ok().and_then(|value| value.parse().ok()).unwrap_or(4);
    // Chains that go round would keep it from its end.
    nix::unistd::alarm::set(10 * seconds as u32 + 20);
    let owner = if platform.uses_restartable_sequences() { "restartable sequences" } else { "claim" };
    let watermarks = Watermarks { min: 8, low: 32, high: 128, max: 192 };
    let builder =
        Builder::new(CAPACITY).watermarks(watermarks).magazine_size(8).fallback(FallbackPolicy::Always);
    POOL.get_or_init(|| builder.start_on(platform, AnonymousMemory::new(CAPACITY).unwrap()).unwrap());
    DOMAIN.get_or_init(|| SecondStageDomain::new(DomainConfig::new(Levels::Four), Tables).unwrap());

    let harness = Harness::install(handler);
    let barrier = Barrier::new(THREADS);
    let end = Duration::from_secs(seconds);
    thread::scope(|scope| {
        for (thread, stash) in STASHES.iter().enumerate() {
            let (harness, barrier) = (&harness, &barrier);
            scope.spawn(move || {
                let mut random = Random::new(thread as u64 + 1);
                let mut held = Vec::with_capacity(HELD);
                barrier.wait();
                let timers = Timers::start(thread);
                let start = Instant::now();
                while start.elapsed() < end {
                    ordinary_work(harness, thread, &mut random, &mut held);
                }
                drop(timers);
                held.drain(..).for_each(give);
                stash.iter().for_each(|place| exchange(place, None));
            });
        }
    });
    check_and_unmap_all();

    let counts = harness.counts();
    let stats = at_rest();
    println!("signal storm: {seconds} s, {THREADS} threads, caches owned by {owner}");
    println!("  signals {}, inside an operation {}, nested {}", counts.signals, counts.inside, counts.nested);
    println!("  frames taken {}, refused {}", ALLOCATED.load(SeqCst), REFUSED.load(SeqCst));
    println!("  maps {}, unmaps {}", MAPS.load(SeqCst), UNMAPS.load(SeqCst));
    println!("{stats}");
    assert_eq!(DOUBLED.load(SeqCst), 0, "INV-1: a frame had two owners");
    assert_eq!(
        WRONG.load(SeqCst),
        0,
        "a map or an unmap failed that had to succeed, or tables were given up"
    );
    assert_eq!(stats.in_use, domain().table_frames(), "INV-1: a frame was lost");
    assert_eq!(stats.owned, stats.in_use + stats.cached + stats.stock + stats.overflow, "INV-4");
    let outside = OWNED.iter().filter(|owned| owned.load(SeqCst) != 0).count();
    assert_eq!(outside as u64, domain().table_frames(), "INV-1: the stamps and the domain agree");
    let out = pool().vacate().expect_err("the domain's tables are out").frames_out();
    assert_eq!(
        u64::from(out),
        domain().table_frames(),
        "INV-1: every other frame would go back to the source"
    );
    assert!(
        counts.inside >= INSIDE_AT_LEAST,
        "too few signals inside an operation: the storm has shown nothing"
    );
    assert_eq!(stats.freed + stats.in_use, served(&stats), "every operation was counted once");
    assert!(stats.collisions > 0 && stats.steals > 0, "not every way was taken");
    assert!(MAPS.load(SeqCst) > 1000 && UNMAPS.load(SeqCst) > 1000, "too little was mapped");
    println!("signal storm: 1 passed, 0 failed");
}
