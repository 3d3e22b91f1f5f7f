//! A storm of signals on every thread of a pool: timers tens of microseconds apart interrupt the pool's operations at
//! arbitrary instructions, and the handlers use the same pool, balanced or not, and nest.
//!
//! Owner stamps in the frames prove that no frame was handed out twice, the accounts at the end that none was lost. The harness
//! is as signal-safe as what it tests: atomics only, and no memory from the heap in a handler. Too few signals inside
//! an operation fail the test, since it then has shown nothing. `FRAMEPOOL_STORM_SECONDS` sets the length (default 6).
#![cfg(not(loom))]

mod common;

use common::storm::{Harness, Random, THREADS, Timers};
use framepool::{
    AnonymousMemory, Builder, FallbackPolicy, Frame, LinuxPlatform, PhysAddr, Request, Watermarks, WorkedPool,
};
use std::{
    sync::{
        Barrier,
        atomic::{AtomicU64, Ordering::SeqCst},
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
const HELD: usize = 64;
/// Signals inside an operation without which the test has shown nothing.
const INSIDE_AT_LEAST: u64 = 10_000;

/// What the handlers kept, as addresses with 0 for nothing; a handler takes and puts by single exchanges.
static STASHES: [[AtomicU64; STASH]; THREADS] = [const { [const { AtomicU64::new(0) }; STASH] }; THREADS];
static POOL: AtomicU64 = AtomicU64::new(0);

static DOUBLED: AtomicU64 = AtomicU64::new(0);
static ALLOCATED: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);

fn pool() -> &'static Pool {
    // SAFETY: `main` stores a leaked pool before the first signal.
    unsafe { &*(POOL.load(SeqCst) as *const Pool) }
}

/// The owner stamp of a frame: its second word.
fn stamp<'f>(frame: &'f Handle<'_>) -> &'f AtomicU64 {
    // SAFETY: the frame is ours, as far as the pool says; that nobody else thinks so is what the stamp checks, atomically.
    unsafe { &*frame.as_ptr().as_ptr().cast::<AtomicU64>().add(1) }
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
    if stamp(frame).swap(1, SeqCst) != 0 {
        DOUBLED.fetch_add(1, SeqCst);
    }
}

fn disown(frame: &Handle<'_>) {
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

/// What a handler does: balanced, or taking more than it gives, or the reverse; from `random`.
fn handler(thread: usize, random: u64) {
    let places = &STASHES[thread];
    let place = |step: u64| &places[(random.wrapping_mul(step * 2 + 1) >> 33) as usize % STASH];
    match random % 5 {
        0 => take(Request::ORDINARY).map_or((), give),
        1 => (0..3).for_each(|step| exchange(place(step), take(Request::ORDINARY))),
        2 => (0..3).for_each(|step| exchange(place(step), None)),
        3 => exchange(place(0), take(Request::CRITICAL)),
        _ => {
            let mut frames = [const { None }; 4];
            if pool().alloc_bulk_exact(Request::ORDINARY, &mut frames).is_ok() {
                frames.iter().flatten().for_each(own);
                frames.iter().flatten().for_each(disown);
                pool().free_bulk(&mut frames);
            }
        }
    }
}

/// What a thread does between signals, each call of the pool marked as an operation.
fn ordinary_work(harness: &Harness, thread: usize, random: &mut Random, held: &mut Vec<Handle<'static>>) {
    for _ in 0..64 {
        if held.len() < HELD && random.next() % 5 < 3 {
            if let Some(frame) = harness.operation(thread, || take(Request::ORDINARY)) {
                held.push(frame);
            }
        } else if !held.is_empty() {
            let frame = held.swap_remove(random.next() as usize % held.len());
            harness.operation(thread, || give(frame));
        }
    }
    if random.next() % 16 == 0 {
        held.drain(..).for_each(|frame| harness.operation(thread, || give(frame)));
    }
}

fn main() {
    let seconds =
        std::env::var("FRAMEPOOL_STORM_SECONDS").ok().and_then(|value| value.parse().ok()).unwrap_or(6);
    let watermarks = Watermarks { min: 8, low: 32, high: 128, max: 192 };
    let builder =
        Builder::new(CAPACITY).watermarks(watermarks).magazine_size(8).fallback(FallbackPolicy::Always);
    let pool_here = Box::leak(Box::new(builder.start(AnonymousMemory::new(CAPACITY).unwrap()).unwrap()));
    POOL.store(&raw const *pool_here as u64, SeqCst);

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

    let counts = harness.counts();
    let stats = pool().stats();
    println!("signal storm: {seconds} s, {THREADS} threads");
    println!("  signals {}, inside an operation {}, nested {}", counts.signals, counts.inside, counts.nested);
    println!("  frames taken {}, refused {}", ALLOCATED.load(SeqCst), REFUSED.load(SeqCst));
    println!("{stats}");
    assert_eq!(DOUBLED.load(SeqCst), 0, "INV-1: a frame had two owners");
    assert_eq!(stats.in_use, 0, "INV-1: a frame was lost");
    assert_eq!(stats.owned, stats.cached + stats.stock + stats.overflow, "INV-4");
    pool().vacate().expect("INV-1: every frame goes back to the source");
    assert_eq!(pool().stats().owned, 0);
    assert!(
        counts.inside >= INSIDE_AT_LEAST,
        "too few signals inside an operation: the storm has shown nothing"
    );
    assert!(stats.collisions > 0 && stats.steals > 0, "not every way was taken");
    println!("signal storm: 1 passed, 0 failed");
}
