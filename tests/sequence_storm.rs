//! A storm on restartable sequences alone: threads that do nothing but take and give, interrupted by signals whose handlers do the
//! same, preempted by each other, moved between CPUs all the time, and robbed by another thread that shuts the gates of all caches
//! and drains them.
//!
//! Every frame has a word that says whether it is out. `FRAMEPOOL_STORM_SECONDS` sets the length (default 4).
#![cfg(not(loom))]

mod common;

use common::storm::{Harness, Random, THREADS, Timers};
use framepool::{
    AnonymousMemory, Builder, FallbackPolicy, Frame, FramePool, FrameSource, LinuxPlatform, PhysAddr,
    Watermarks,
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::{Pid, alarm, gettid},
};
use std::{
    sync::{
        Barrier, OnceLock,
        atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

type Pool = FramePool<AnonymousMemory, LinuxPlatform>;

/// Fewer than the threads want, so that the depot is empty now and then and they steal.
const FRAMES: u32 = 40;
const HELD: usize = 9;
const STASH: usize = 4;

static POOL: OnceLock<Pool> = OnceLock::new();
/// Whether each frame is out.
static OUT: [AtomicU8; FRAMES as usize] = [const { AtomicU8::new(0) }; FRAMES as usize];
/// What the handlers of each thread keep, as addresses, 0 for nothing.
static STASHES: [[AtomicU64; STASH]; THREADS] = [const { [const { AtomicU64::new(0) }; STASH] }; THREADS];
static DOUBLED: AtomicU64 = AtomicU64::new(0);
static TAKEN: AtomicU64 = AtomicU64::new(0);

fn pool() -> &'static Pool {
    POOL.get().unwrap()
}

fn mark(frame: PhysAddr, out: u8) {
    let number = (frame.as_u64() - pool().source().base().as_u64()) / pool().frame_size() as u64;
    if OUT[number as usize].swap(out, SeqCst) == out {
        DOUBLED.fetch_add(1, SeqCst);
    }
}

fn take() -> u64 {
    let Ok(frame) = pool().alloc() else { return 0 };
    let frame = frame.into_raw();
    mark(frame, 1);
    TAKEN.fetch_add(1, SeqCst);
    frame.as_u64()
}

fn give(frame: u64) {
    if frame != 0 {
        mark(PhysAddr::new(frame), 0);
        // SAFETY: `take` laid the frame down as this address, and whoever calls has it once.
        drop(unsafe { Frame::from_raw(pool(), PhysAddr::new(frame)) });
    }
}

/// Takes or gives a few, hardly ever as many as it takes.
fn handler(thread: usize, random: u64) {
    for (step, place) in STASHES[thread].iter().enumerate() {
        let frame = if random >> step & 1 == 0 { take() } else { 0 };
        give(place.swap(frame, SeqCst));
    }
}

fn work(harness: &Harness, thread: usize, random: &mut Random, held: &mut [u64; HELD]) {
    for _ in 0..256 {
        let place = &mut held[random.next() as usize % HELD];
        let frame = core::mem::take(place);
        *place = harness.operation(thread, || {
            if frame == 0 {
                take()
            } else {
                give(frame);
                0
            }
        });
    }
}

/// Takes what lies in all caches, and shuts their gates one after the other and opens them again, with what they hold and without.
fn rob(stop: &AtomicBool) -> u64 {
    let mut rounds = 0;
    let mut loot = Vec::with_capacity(FRAMES as usize);
    while !stop.load(SeqCst) {
        // As many as there are, lest it goes on for ever when a frame comes out twice.
        loot.extend(std::iter::repeat_with(take).take_while(|&frame| frame != 0).take(FRAMES as usize));
        loot.drain(..).for_each(give);
        assert!(pool().vacate().is_err(), "one frame is always out");
        if rounds % 8 == 0 {
            (0..=LinuxPlatform::possible_cpus()).filter(|&cpu| pool().drain_cpu(cpu).is_ok()).count();
        }
        rounds += 1;
    }
    rounds
}

/// Moves the threads from CPU to CPU.
fn migrate(stop: &AtomicBool, threads: &[AtomicI32; THREADS]) -> u64 {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap()).collect();
    let mut moves = 0;
    while !stop.load(SeqCst) {
        for thread in threads {
            let mut set = CpuSet::new();
            set.set(cpus[moves as usize % cpus.len()]).unwrap();
            // A thread that is gone is moved no more.
            let _ = sched_setaffinity(Pid::from_raw(thread.load(SeqCst)), &set);
            moves += 1;
        }
        thread::sleep(Duration::from_micros(50));
    }
    moves
}

fn main() {
    let seconds =
        std::env::var("FRAMEPOOL_STORM_SECONDS").ok().and_then(|value| value.parse().ok()).unwrap_or(4);
    // Chains that go round would keep it from its end.
    alarm::set(10 * seconds as u32 + 20);
    let marks = Watermarks { min: 0, low: 0, high: FRAMES, max: FRAMES };
    let builder = Builder::new(FRAMES).watermarks(marks).magazine_size(4).fallback(FallbackPolicy::Never);
    let builder = builder.cpus(LinuxPlatform::possible_cpus() + 1);
    let pool = builder.build(AnonymousMemory::new(FRAMES).unwrap(), LinuxPlatform::new()).unwrap();
    let pool = POOL.get_or_init(|| pool);
    let kept = pool.alloc().unwrap();

    let harness = Harness::install(handler);
    let (stop, barrier) = (AtomicBool::new(false), Barrier::new(THREADS + 1));
    let ids = [const { AtomicI32::new(0) }; THREADS];
    let end = Duration::from_secs(seconds);
    let (rounds, moves) = thread::scope(|scope| {
        let workers: Vec<_> = STASHES
            .iter()
            .enumerate()
            .map(|(thread, stash)| {
                let (harness, barrier, ids) = (&harness, &barrier, &ids);
                scope.spawn(move || {
                    let (mut random, mut held) = (Random::new(thread as u64 + 1), [0; HELD]);
                    ids[thread].store(gettid().as_raw(), SeqCst);
                    barrier.wait();
                    let timers = Timers::start(thread);
                    let start = Instant::now();
                    while start.elapsed() < end {
                        work(harness, thread, &mut random, &mut held);
                    }
                    drop(timers);
                    held.into_iter().for_each(give);
                    stash.iter().for_each(|place| give(place.swap(0, SeqCst)));
                })
            })
            .collect();
        barrier.wait();
        let robber = scope.spawn(|| rob(&stop));
        let migrator = scope.spawn(|| migrate(&stop, &ids));
        let ends: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        stop.store(true, SeqCst);
        let counts = (robber.join().unwrap(), migrator.join().unwrap());
        assert!(ends.iter().all(Result::is_ok), "a worker failed");
        counts
    });
    drop(kept);

    let (counts, stats) = (harness.counts(), pool.stats());
    println!("sequence storm: {seconds} s, {THREADS} threads");
    println!("  signals {}, inside an operation {}, nested {}", counts.signals, counts.inside, counts.nested);
    println!(
        "  frames taken {}, all gates shut {rounds} times, threads moved {moves} times",
        TAKEN.load(SeqCst)
    );
    println!("{stats}");
    assert_eq!(DOUBLED.load(SeqCst), 0, "INV-1: a frame had two owners");
    assert_eq!(stats.in_use, 0, "INV-1: a frame was lost\n{stats}");
    assert_eq!(
        stats.freed,
        stats.cache_hits + stats.depot_hits + stats.steals,
        "every operation is counted once"
    );
    assert_eq!(stats.freed, TAKEN.load(SeqCst) + 1, "every operation is counted once");
    pool.vacate().unwrap();
    assert_eq!(pool.stats().owned, 0, "INV-1: every frame went back to the source");
    assert!(stats.steals > 0 && rounds > 20 && moves > 20, "not enough happened");
    assert!(counts.inside >= 2_000, "too few signals inside an operation: the storm has shown nothing");
    println!("sequence storm: 1 passed, 0 failed");
}
