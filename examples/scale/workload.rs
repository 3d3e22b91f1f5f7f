//! What the CPUs do: the workloads, each on the real pool, over memory that is never touched.

use crate::{
    line::{Layout, NANOSECOND, Time},
    machine::{self, Extent, Measured},
};
use clap::ValueEnum;
use framepool_injected::{
    AllocError, Builder, Claim, FallbackPolicy, Frame, FramePool, FrameSource, PhysAddr, Platform,
    SourceError, Watermarks,
};
use std::{
    collections::VecDeque,
    error::Error,
    ptr::NonNull,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
};

/// Frames of a batch.
const BATCH: usize = 1024;
/// Pairs of take and give after which a CPU says how far it is, and lets others catch up.
const STEP: usize = 32;
/// How many pairs each CPU does, and how many lines travel for each, before the part of a run that counts, and in it.
const EXTENTS: (Extent, Extent) =
    (Extent { pairs: 2 * BATCH as u64, lines: 500 }, Extent { pairs: 6 * BATCH as u64, lines: 1000 });
/// So few CPUs do as much as so many.
const CPUS_LEAST: u64 = 128;
/// The most frames that a CPU of the random walk has.
const DEEPEST: u64 = 4096;
/// Frames between a producer and its consumer.
const QUEUE: usize = 256;
/// How long one of them waits before it looks again: first this long, then twice as long, up to the second.
const POLL: (Time, Time) = (200 * NANOSECOND, 50_000 * NANOSECOND);
/// How long a CPU that finds no frame waits before it asks again.
const PATIENCE: Time = 1000 * NANOSECOND;
/// From a ring to the worker's pass.
const WAKE_UP: Time = 5000 * NANOSECOND;
/// What the host's allocator takes for a frame.
const SUPPLY: Time = 100 * NANOSECOND;

/// A workload: what each CPU does, without a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// Takes a frame and gives it back.
    Pair,
    /// Takes 1,024 frames, then gives all back; each CPU is at another point of that at first.
    Batch,
    /// Half of the CPUs take frames, the other half, in the other half of the machine, give them back.
    ProducerConsumer,
    /// Takes or gives frames until it has a number drawn at random, up to 4,096; the pool starts with less than that may need.
    Walk,
}

impl Workload {
    pub(crate) const ALL: [Self; 4] = [Self::Pair, Self::Batch, Self::ProducerConsumer, Self::Walk];

    /// As file names have it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Pair => "pair",
            Self::Batch => "batch",
            Self::ProducerConsumer => "producer_consumer",
            Self::Walk => "walk",
        }
    }

    /// A sentence for the document.
    pub(crate) const fn description(self) -> &'static str {
        match self {
            Self::Pair => "Each CPU takes a frame and gives it back, again and again.",
            Self::Batch => {
                "Each CPU takes 1,024 frames, then gives all back, again and again; each begins at another point of that."
            }
            Self::ProducerConsumer => {
                "Half of the CPUs take frames, the other half, in the other half of the machine, give them back: every frame goes through \
                 the depot. One of them is a frame's taker and one its giver, so a pair takes the time of two CPUs; the queue between \
                 them costs nothing."
            }
            Self::Walk => {
                "Each CPU takes or gives frames until it has a number drawn at random, up to 4,096, and then draws the next. The pool starts \
                 with less than that may need, and the worker fetches the rest."
            }
        }
    }

    /// CPUs that it needs at least.
    pub(crate) const fn least_cpus(self) -> usize {
        if matches!(self, Self::ProducerConsumer) { 2 } else { 1 }
    }

    /// Frames that the pool has at first, for each CPU.
    const fn initial(self) -> u32 {
        match self {
            Self::Walk => DEEPEST as u32 * 7 / 8,
            _ => 4 * BATCH as u32,
        }
    }
}

/// The pool's host: the machine that is simulated.
struct Simulated {
    worker: usize,
    rung: AtomicBool,
    asleep: AtomicBool,
}

impl Platform for Simulated {
    type Ownership = Claim;

    fn ownership(&self) -> &Claim {
        &Claim
    }

    fn current_cpu(&self) -> usize {
        machine::current()
    }

    fn ring(&self) {
        self.rung.store(true, Relaxed);
        if self.asleep.swap(false, Relaxed) {
            machine::wake(self.worker, WAKE_UP);
        }
    }
}

impl Simulated {
    /// Sleeps until the bell has been rung; whether it was.
    fn await_ring(&self) -> bool {
        if !self.rung.load(Relaxed) {
            self.asleep.store(true, Relaxed);
            machine::sleep();
        }
        self.rung.swap(false, Relaxed)
    }
}

/// Frames of which nobody ever uses a byte: numbers that take time.
struct Numbers {
    next: AtomicU32,
}

const FRAME_SHIFT: u32 = 12;

// SAFETY: each frame is handed out once. No memory is behind any; the pool only looks at what is in a frame when it runs out of
// magazines, clears or poisons one, and `pointer` ends the program then.
unsafe impl FrameSource for Numbers {
    fn supply(&self, frames: &mut [PhysAddr]) -> Result<usize, SourceError> {
        for frame in frames.iter_mut() {
            *frame = PhysAddr::new(u64::from(self.next.fetch_add(1, Relaxed)) << FRAME_SHIFT);
        }
        machine::spend(SUPPLY * frames.len() as Time);
        Ok(frames.len())
    }

    fn try_supply(&self) -> Option<PhysAddr> {
        None
    }

    unsafe fn reclaim(&self, _frames: &[PhysAddr]) {}

    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        panic!("nothing is behind {frame:?}")
    }
}

type Pool = FramePool<Numbers, Simulated>;
type Frames<'p> = Vec<Frame<'p, Numbers, Simulated>>;

/// Where one CPU puts what another takes, with the time from which on it is there.
type Queue<'p> = Mutex<VecDeque<(Time, Frame<'p, Numbers, Simulated>)>>;

/// What is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) workload: Workload,
    pub(crate) layout: Layout,
    pub(crate) magazine_size: u32,
    /// How many depots the pool has, each near CPUs with neighbouring numbers.
    pub(crate) depots: usize,
}

impl Run {
    /// Simulates it.
    pub(crate) fn measure(self) -> Result<Measured, Box<dyn Error>> {
        let Self { workload, layout, magazine_size, depots } = self;
        let cpus = layout.cpus as u32;
        let capacity = cpus * 8 * BATCH as u32;
        let initial = cpus * workload.initial();
        let marks = Watermarks { min: 0, low: cpus * 256, high: capacity, max: capacity };
        let host =
            Simulated { worker: layout.cpus, rung: AtomicBool::new(false), asleep: AtomicBool::new(false) };
        let pool = Builder::new(capacity)
            .cpus(layout.cpus)
            .depots(depots)
            .watermarks(marks)
            .initial(initial)
            .magazine_size(magazine_size)
            .fallback(FallbackPolicy::Never)
            .build(Numbers { next: AtomicU32::new(0) }, host)?;
        let of_all = |each: Extent| Extent {
            pairs: each.pairs * u64::from(cpus),
            lines: each.lines * u64::from(cpus).max(CPUS_LEAST),
        };
        if workload == Workload::ProducerConsumer {
            gather_with_consumers(&pool, layout.cpus)?;
        }
        let queues: Vec<Queue<'_>> = (0..layout.cpus / 2).map(|_| Queue::default()).collect();
        let hands: Vec<_> =
            (0..layout.cpus).map(|cpu| Mutex::new(Hands::prepared(&pool, workload, cpu))).collect();
        let measured = machine::run(
            layout,
            (of_all(EXTENTS.0), of_all(EXTENTS.1)),
            |cpu| {
                let mut hands = hands[cpu].lock().unwrap_or_else(PoisonError::into_inner);
                match workload {
                    Workload::Pair => pairs(&pool),
                    Workload::Batch => batches(&pool, &mut hands),
                    Workload::Walk => walk(&pool, &mut hands),
                    Workload::ProducerConsumer => match cpu.checked_sub(queues.len()) {
                        None => produce(&pool, &queues[cpu]),
                        Some(producer) => consume(&queues[producer]),
                    },
                }
            },
            || maintain(&pool),
        );
        drop((queues, hands));
        let stats = pool.stats();
        if stats.in_use > 0 {
            return Err(format!("{self:?}: the pool lost frames:\n{stats}").into());
        }
        pool.close().map_err(|error| format!("{self:?}: {error}"))?;
        measured.ok_or_else(|| format!("{self:?}: ended before the part that counts").into())
    }
}

/// The worker.
fn maintain(pool: &Pool) {
    while machine::goes_on() {
        if pool.platform().await_ring() {
            pool.maintain();
        }
    }
}

/// What a CPU has, and what it makes up its mind by.
struct Hands<'p> {
    frames: Frames<'p>,
    random: u64,
}

impl<'p> Hands<'p> {
    /// With what the CPU `cpu` has at first.
    fn prepared(pool: &'p Pool, workload: Workload, cpu: usize) -> Self {
        let mut random = cpu as u64;
        let most = match workload {
            Workload::Batch => BATCH as u64,
            Workload::Walk => DEEPEST,
            Workload::Pair | Workload::ProducerConsumer => 0,
        };
        let count = draw(&mut random) % (most + 1);
        let mut frames =
            machine::prepare(cpu, || (0..=count).filter_map(|_| pool.alloc().ok()).collect::<Frames<'p>>());
        machine::prepare(cpu, || frames.truncate(count as usize));
        Self { frames, random }
    }
}

/// Brings all frames to where consumers give them back, as they are after a while.
fn gather_with_consumers(pool: &Pool, cpus: usize) -> Result<(), AllocError> {
    let count = pool.stats().owned as usize;
    let mut frames =
        (0..count).map(|_| machine::prepare(0, || pool.alloc())).collect::<Result<Frames<'_>, _>>()?;
    let consumers = cpus / 2..cpus;
    let share = count.div_ceil(consumers.len());
    consumers.for_each(|cpu| machine::prepare(cpu, || frames.truncate(frames.len().saturating_sub(share))));
    Ok(())
}

/// A frame, after a while if there is none.
fn take(pool: &Pool) -> Option<Frame<'_, Numbers, Simulated>> {
    loop {
        match pool.alloc() {
            Ok(frame) => return Some(frame),
            Err(_) if machine::goes_on() => machine::spend(PATIENCE),
            Err(_) => return None,
        }
    }
}

fn pairs(pool: &Pool) {
    while machine::progress(STEP as u64) {
        (0..STEP).for_each(|_| drop(take(pool)));
    }
}

/// Takes or gives frames until there are `target`; whether the run goes on.
fn approach<'p>(pool: &'p Pool, frames: &mut Frames<'p>, target: usize) -> bool {
    while frames.len() != target {
        let steps = frames.len().abs_diff(target).min(2 * STEP);
        if frames.len() < target {
            frames.extend((0..steps).map_while(|_| take(pool)));
        } else {
            frames.truncate(frames.len() - steps);
        }
        if !machine::progress(STEP as u64) {
            return false;
        }
    }
    true
}

fn batches<'p>(pool: &'p Pool, hands: &mut Hands<'p>) {
    let mut target = if draw(&mut hands.random) & 1 == 0 { 0 } else { BATCH };
    while approach(pool, &mut hands.frames, target) {
        target = BATCH - target;
    }
}

fn walk<'p>(pool: &'p Pool, hands: &mut Hands<'p>) {
    loop {
        let target = draw(&mut hands.random) % (DEEPEST + 1);
        if !approach(pool, &mut hands.frames, target as usize) {
            return;
        }
    }
}

/// The next number of a sequence at random (SplitMix64).
fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

fn produce<'p>(pool: &'p Pool, queue: &Queue<'p>) {
    let queue = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    while machine::progress(0) {
        for _ in 0..STEP {
            poll(|| (queue().len() < QUEUE).then_some(()));
            let Some(frame) = take(pool) else { return };
            let since = machine::now();
            queue().push_back((since, frame));
        }
    }
}

/// Looks again and again for what `look` finds, until the run is over.
fn poll<T>(look: impl Fn() -> Option<T>) -> Option<T> {
    let mut pause = POLL.0;
    loop {
        let found = look();
        if found.is_some() || !machine::goes_on() {
            return found;
        }
        machine::spend(pause);
        pause = (2 * pause).min(POLL.1);
    }
}

fn consume(queue: &Queue<'_>) {
    let next = || {
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        let is_there = queue.front().is_some_and(|(since, _)| *since <= machine::now());
        if is_there { queue.pop_front() } else { None }
    };
    while machine::progress(STEP as u64) {
        (0..STEP).for_each(|_| drop(poll(next)));
    }
}
