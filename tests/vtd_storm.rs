//! Threads and the handlers that interrupt them map, unmap, look up and reclaim disjoint ranges that share tables, in a domain of each
//! stage over one pool, each range against its model: no difference, and every frame comes back.
//!
//! The model of a range is one word, so that a handler can have it: what is mapped there, or that somebody is at it.
//! `FRAMEPOOL_VTD_STORM_SECONDS` sets the length (default 5).
#![cfg(not(loom))]

mod common;

use common::{
    storm::{Harness, Random, THREADS, Timers},
    tables::NoHardware,
};
use framepool::{
    AnonymousMemory, Builder, FallbackPolicy, FramePool, LinuxPlatform, PhysAddr, Watermarks, WorkedPool,
    vtd::*,
};
use std::{
    sync::{
        Barrier, OnceLock,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

type Pool = FramePool<AnonymousMemory, LinuxPlatform>;
type Second = SecondStageDomain<&'static Pool>;
type First = FirstStageDomain<FlushedFrames<&'static Pool, NoHardware>>;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Frames of the pool: not enough for all tables at once.
const CAPACITY: u32 = 128;
/// Ways in which a range lies among the tables.
const KINDS: usize = 5;
/// Ranges of each thread in each domain.
const RANGES: usize = 4 * KINDS;
/// Signals inside an operation without which the test has shown nothing.
const INSIDE_AT_LEAST: u64 = 10_000;

/// What is mapped in each range: 0 for nothing, [`BUSY`], or the target, [`MAPPED`] and the rights.
static MODELS: [[[AtomicU64; RANGES]; THREADS]; 2] =
    [const { [const { [const { AtomicU64::new(0) }; RANGES] }; THREADS] }; 2];
const BUSY: u64 = 1;
const MAPPED: u64 = 1 << 3;

/// The range that each thread has toggled last, and may be at: there a handler does most harm.
static LAST: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];

static POOL: OnceLock<WorkedPool<AnonymousMemory>> = OnceLock::new();
static SECOND: OnceLock<Second> = OnceLock::new();
static FIRST: OnceLock<First> = OnceLock::new();

static WRONG: AtomicU64 = AtomicU64::new(0);
static MAPS: AtomicU64 = AtomicU64::new(0);
static SHORT: AtomicU64 = AtomicU64::new(0);
static RECLAIMS: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);

fn wrong() {
    WRONG.fetch_add(1, SeqCst);
}

/// The tables for ranges of the last kind are built beforehand.
const BUILT: (u64, u64) = (128 * GIB, (RANGES / KINDS * THREADS) as u64 * 16 * PAGE);

/// Where a range lies. No two have a page in common, but all have tables in common.
fn range(thread: usize, number: usize) -> (u64, u64) {
    let place = (number / KINDS * THREADS + thread) as u64;
    match number % KINDS {
        // Beside the others in one table.
        0 => (place * 8 * PAGE, 5 * PAGE),
        // All of a table, or a large leaf.
        1 => (GIB + place * 2 * MIB, 2 * MIB),
        // Alone in tables of two levels.
        2 => (4 * GIB + place * GIB, 2 * PAGE),
        // Over the border of tables, of which others need the other half.
        3 => (64 * GIB + place * 2 * MIB + 2 * MIB - 2 * PAGE, 4 * PAGE),
        _ => (BUILT.0 + place * 16 * PAGE, 16 * PAGE),
    }
}

/// What a model says of a page.
fn expected(model: u64, offset: u64) -> Option<(u64, Permissions)> {
    (model & MAPPED != 0)
        .then(|| ((model & !(PAGE - 1)) + offset, Permissions::from_bits_truncate(model as u8 & 3)))
}

/// Compares some pages of a range, or all, with its model.
fn look<F: Format, A: TableFrames>(domain: &Domain<F, A>, (iova, length): (u64, u64), model: u64, step: u64) {
    for offset in (0..length).step_by((step * PAGE) as usize).chain([length - PAGE]) {
        let at = domain.translate(Iova::new(iova + offset));
        if at.map(|at| (at.target.as_u64(), at.permissions)) != expected(model, offset) {
            wrong();
        }
    }
}

fn complete<A: TableFrames>(invalidation: Invalidation<'_, A>) {
    // SAFETY: no device walks these tables.
    unsafe { invalidation.complete() };
}

/// Maps a range if it is not mapped, and the reverse, unless the code that was interrupted is at it.
fn toggle<F: Format, A: TableFrames>(domain: &Domain<F, A>, thread: usize, random: u64) {
    let number = random as usize % RANGES;
    let place = &MODELS[usize::from(F::STAGE == Stage::First)][thread][number];
    let before = place.swap(BUSY, SeqCst);
    if before == BUSY {
        return;
    }
    LAST[thread].store(number as u64, SeqCst);
    let (iova, length) = range(thread, number);
    look(domain, (iova, length), before, 64);
    let after = if before == 0 {
        // Aligned as a large leaf must be, or not.
        let target = ((random >> 16) % 1024 * 2 * MIB) + if random >> 40 & 1 == 0 { 0 } else { PAGE };
        let rights = 1 | (random >> 41 & 1) << 1;
        let permissions = Permissions::from_bits_truncate(rights as u8);
        // SAFETY: no device walks these tables, and the model makes the range ours.
        match unsafe { domain.map(Iova::new(iova), PhysAddr::new(target), length, permissions) } {
            Ok(_) => {
                MAPS.fetch_add(1, SeqCst);
                target | MAPPED | rights
            }
            Err(MapError::OutOfFrames { .. }) if number % KINDS != KINDS - 1 => {
                SHORT.fetch_add(1, SeqCst);
                0
            }
            Err(_) => {
                wrong();
                0
            }
        }
    } else {
        // In pieces, so that tables become empty; the first may split a large leaf.
        let cut = if random >> 42 & 1 == 0 { length } else { PAGE };
        match domain.unmap(Iova::new(iova), cut) {
            Ok(invalidation) => {
                complete(invalidation);
                if cut < length {
                    domain.unmap(Iova::new(iova + cut), length - cut).map_or_else(|_| wrong(), complete);
                }
                0
            }
            Err(UnmapError::OutOfFrames { .. }) => before,
            Err(_) => {
                wrong();
                before
            }
        }
    };
    look(domain, (iova, length), after, 64);
    place.store(after, SeqCst);
}

/// Takes empty tables out; `meanwhile` runs before hardware is said to have forgotten them.
fn reclaim<F: Format, A: TableFrames>(
    domain: &Domain<F, A>,
    iova: u64,
    length: u64,
    meanwhile: impl FnOnce(),
) {
    match domain.reclaim(Iova::new(iova), length) {
        Ok(invalidation) => {
            meanwhile();
            RECLAIMS.fetch_add(1, SeqCst);
            // Some are dropped: the next one finds what they have parted.
            if !RECLAIMS.load(SeqCst).is_multiple_of(16) {
                complete(invalidation);
            }
        }
        Err(ReclaimError::InProgress) => drop(REFUSED.fetch_add(1, SeqCst)),
        Err(_) => wrong(),
    }
}

/// What a handler does.
fn handler(thread: usize, random: u64) {
    fn act<F: Format, A: TableFrames>(domain: &Domain<F, A>, thread: usize, random: u64) {
        let (iova, length) = range(thread, LAST[thread].load(SeqCst) as usize);
        let around = iova & !(2 * MIB - 1);
        match random >> 54 & 63 {
            0..8 => reclaim(domain, around, 2 * MIB, || ()),
            8 => reclaim(domain, around, 4 * MIB, || toggle(domain, thread, random >> 8)),
            9..16 => toggle(domain, thread, random),
            16..20 => drop(domain.translate(Iova::new(iova + length))),
            20 => drop(domain.mappings().next()),
            _ => {}
        }
    }
    match random >> 60 & 1 {
        0 => act(SECOND.get().unwrap(), thread, random),
        _ => act(FIRST.get().unwrap(), thread, random),
    }
}

/// What a thread does between signals.
fn work<F: Format, A: TableFrames>(domain: &Domain<F, A>, thread: usize, random: &mut Random) {
    for _ in 0..32 {
        toggle(domain, thread, random.next());
    }
    if !random.next().is_multiple_of(4) {
        return;
    }
    let (iova, _) = range(thread, random.next() as usize % RANGES);
    let (start, length) = match random.next() % 8 {
        0 => (0, 1 << domain.config().address_width),
        _ => (iova & !(GIB - 1), GIB),
    };
    reclaim(domain, start, length, || {
        for _ in 0..4 {
            toggle(domain, thread, random.next());
        }
    });
}

/// Compares everything with the models and unmaps it; then only what was built beforehand is left, and then nothing.
fn end<F: Format, A: TableFrames>(domain: &Domain<F, A>) {
    let all = 1 << domain.config().address_width;
    for (thread, models) in MODELS[usize::from(F::STAGE == Stage::First)].iter().enumerate() {
        for (number, model) in models.iter().enumerate() {
            let (place, model) = (range(thread, number), model.load(SeqCst));
            assert_ne!(model, BUSY);
            look(domain, place, model, 1);
            if model != 0 {
                complete(domain.unmap(Iova::new(place.0), place.1).unwrap());
            }
        }
    }
    assert_eq!(domain.mappings().count(), 0, "nothing was mapped that no range has");
    let built = domain.config().tables_to_preallocate(Iova::new(BUILT.0), BUILT.1).unwrap();
    for _ in 0..2 {
        complete(domain.reclaim(Iova::new(0), all).unwrap());
    }
    assert_eq!((domain.table_frames(), domain.maintain()), (built, 0), "V9: every empty table is back");
    domain.release(Iova::new(BUILT.0), BUILT.1).unwrap();
    complete(domain.reclaim(Iova::new(0), all).unwrap());
    assert_eq!(domain.table_frames(), 1, "the root");
}

#[test]
fn threads_and_handlers_that_share_tables_do_not_disturb_each_other() {
    let seconds =
        std::env::var("FRAMEPOOL_VTD_STORM_SECONDS").ok().and_then(|value| value.parse().ok()).unwrap_or(5);
    // Chains that go round would keep it from its end.
    nix::unistd::alarm::set(10 * seconds as u32 + 20);
    let watermarks = Watermarks { min: 0, low: 16, high: 64, max: 96 };
    let builder =
        Builder::new(CAPACITY).watermarks(watermarks).magazine_size(8).fallback(FallbackPolicy::Always);
    let pool: &'static Pool =
        POOL.get_or_init(|| builder.start(AnonymousMemory::new(CAPACITY).unwrap()).unwrap());
    let config = DomainConfig { page_sizes: PageSizes::all(), ..DomainConfig::new(Levels::Four) };
    let second = SECOND.get_or_init(|| SecondStageDomain::new(config, pool).unwrap());
    let config = DomainConfig {
        page_sizes: PageSizes::all(),
        hardware: Hardware { coherent: false, ..Hardware::default() },
        ..DomainConfig::first_stage(Levels::Five)
    };
    let first =
        FIRST.get_or_init(|| FirstStageDomain::new(config, FlushedFrames::new(pool, NoHardware)).unwrap());
    second.preallocate(Iova::new(BUILT.0), BUILT.1).unwrap();
    first.preallocate(Iova::new(BUILT.0), BUILT.1).unwrap();

    let harness = Harness::install(handler);
    let barrier = Barrier::new(THREADS);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (harness, barrier) = (&harness, &barrier);
            scope.spawn(move || {
                let mut random = Random::new(thread as u64 + 1);
                barrier.wait();
                let timers = Timers::start(thread);
                let start = Instant::now();
                while start.elapsed() < Duration::from_secs(seconds) {
                    harness.operation(thread, || work(second, thread, &mut random));
                    harness.operation(thread, || work(first, thread, &mut random));
                }
                drop(timers);
            });
        }
    });
    let counts = harness.counts();
    let stats = [second.stats(), first.stats()];
    println!(
        "table storm: {seconds} s, {THREADS} threads, {} signals inside, {} nested",
        counts.inside, counts.nested
    );
    println!("  {} maps, {} too short of frames", MAPS.load(SeqCst), SHORT.load(SeqCst));
    println!("  {} reclaims, {} refused", RECLAIMS.load(SeqCst), REFUSED.load(SeqCst));
    println!("  second stage: {}\n  first stage: {}", stats[0], stats[1]);
    end(second);
    end(first);
    assert_eq!(
        WRONG.load(SeqCst),
        0,
        "a page was not what the model says, or a call failed that had to succeed"
    );
    assert!(
        counts.inside >= INSIDE_AT_LEAST,
        "too few signals inside an operation: the storm has shown nothing"
    );
    assert!(MAPS.load(SeqCst) > 500 && stats.iter().all(|stats| stats.reclaimed > 20), "too little was done");
    // Two roots; the worker may be in the middle of a pass.
    let stats = (0..200).map(|_| pool.stats()).find(|stats| {
        thread::sleep(Duration::from_millis(1));
        stats.in_use == 2
    });
    assert!(stats.is_some_and(|stats| stats.table_frames_leaked == 0), "INV-1: {}", pool.stats());
}
