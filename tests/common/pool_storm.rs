//! The storm of signals on a pool, whatever its host: see `signal_storm.rs` and `pinned_storm.rs`, which include it.

use crate::{
    Host,
    common::{
        Scripted,
        storm::{Harness, Random, THREADS, Timers},
    },
    world::*,
};
use framepool::{
    Builder, FallbackPolicy, Frame, FramePool, PhysAddr, Request, Watermarks,
    vtd::{DomainConfig, Levels, SecondStageDomain},
};
use std::{
    sync::{
        Barrier,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

/// Frames that the handlers of a thread may keep between two signals.
const STASH: usize = 24;
/// Frames that a thread holds at most.
const HELD: usize = 80;
/// Signals inside an operation without which the test has shown nothing.
const INSIDE_AT_LEAST: u64 = 10_000;

/// What the handlers kept, as addresses with 0 for nothing; a handler takes and puts by single exchanges.
static STASHES: [[AtomicU64; STASH]; THREADS] = [const { [const { AtomicU64::new(0) }; STASH] }; THREADS];
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

/// The storm on `platform`, whose caches are owned by `owner`; each thread has what `enter` gives it.
pub(crate) fn storm<T>(
    platform: Host,
    owner: &str,
    enter: impl Fn(&'static FramePool<Scripted, Host>) -> T + Sync,
) {
    let seconds =
        std::env::var("FRAMEPOOL_STORM_SECONDS").ok().and_then(|value| value.parse().ok()).unwrap_or(4);
    // Chains that go round would keep it from its end.
    nix::unistd::alarm::set(10 * seconds as u32 + 20);
    let watermarks = Watermarks { min: 8, low: 32, high: 128, max: 192 };
    let builder =
        Builder::new(CAPACITY).watermarks(watermarks).magazine_size(8).fallback(FallbackPolicy::Always);
    begin(
        || builder.start_on(platform, Scripted::new(CAPACITY)).unwrap(),
        || SecondStageDomain::new(DomainConfig::new(Levels::Four), Tables).unwrap(),
    );

    let harness = Harness::install(handler);
    let barrier = Barrier::new(THREADS);
    let end = Duration::from_secs(seconds);
    thread::scope(|scope| {
        for (thread, stash) in STASHES.iter().enumerate() {
            let (harness, barrier, enter) = (&harness, &barrier, &enter);
            scope.spawn(move || {
                let _entered = enter(pool());
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
    assert_eq!(outside(), domain().table_frames(), "INV-1: the stamps and the domain agree");
    assert_eq!(
        kept_from_source(),
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
