//! The pool under test, in every state that its caches can be in, and what is done to it.

use framepool::{
    AnonymousMemory, Builder, FallbackPolicy, Frame, FramePool, LinuxPlatform, PhysAddr, Request, Stats,
    Watermarks,
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use std::{
    collections::HashSet,
    hint::black_box,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

pub(crate) type Pool = FramePool<AnonymousMemory, LinuxPlatform>;
type Handle = Frame<'static, AnonymousMemory, LinuxPlatform>;

/// Few, so that the caches of two CPUs, the depot and both sides' hands are full or empty in many ways.
pub(crate) const FRAMES: u32 = 24;
pub(crate) const MAGAZINE: u32 = 2;
/// The CPU on which everything happens, but for what migrates.
pub(crate) const HOME: usize = 0;
/// Where the handler moves the thread.
pub(crate) const ELSEWHERE: usize = 1;

static POOL: OnceLock<Pool> = OnceLock::new();
/// Frames in the handler's hands, as addresses, 0 for none.
static STASH: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
/// Frames that were taken, and that came back, by whomever.
static TAKEN: AtomicU64 = AtomicU64::new(0);
static GIVEN: AtomicU64 = AtomicU64::new(0);

/// A pool with a single slot, which no sequence enters: a CPU other than the first has a number beyond it.
pub(crate) fn without_slots() -> Pool {
    let marks = Watermarks { min: 0, low: 0, high: FRAMES, max: FRAMES };
    let builder = Builder::new(FRAMES).watermarks(marks).magazine_size(MAGAZINE).cpus(1);
    builder.build(AnonymousMemory::new(FRAMES).unwrap(), LinuxPlatform::new()).unwrap()
}

/// Takes a frame and gives it back, with instances of the sequences of its own.
#[inline(never)]
pub(crate) fn take_and_give(pool: &Pool) {
    drop(black_box(pool).alloc().unwrap());
}

pub(crate) fn build() {
    let marks = Watermarks { min: 0, low: 0, high: FRAMES, max: FRAMES };
    let builder = Builder::new(FRAMES)
        .watermarks(marks)
        .magazine_size(MAGAZINE)
        .cpus(LinuxPlatform::possible_cpus() + 1);
    let builder = builder.fallback(FallbackPolicy::Never);
    let pool = builder.build(AnonymousMemory::new(FRAMES).unwrap(), LinuxPlatform::new()).unwrap();
    assert!(POOL.set(pool).is_ok());
}

pub(crate) fn pool() -> &'static Pool {
    POOL.get().unwrap()
}

/// Moves the thread to a CPU. One system call, fit for a handler.
pub(crate) fn move_to(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &set).unwrap();
}

/// Where frames are before an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Situation {
    /// In this CPU's cache.
    pub(crate) cached: u32,
    /// In the depot, at least.
    pub(crate) stock: u32,
    /// In the cache of another CPU.
    pub(crate) elsewhere: u32,
}

/// Frames that the interrupted side holds.
#[derive(Debug, Default)]
pub(crate) struct World {
    held: Vec<Handle>,
}

impl World {
    /// Every frame out of the pool.
    pub(crate) fn empty(&mut self) {
        empty_stash();
        while let Ok(frame) = pool().alloc() {
            TAKEN.fetch_add(1, SeqCst);
            self.held.push(frame);
        }
    }

    fn give_one(&mut self) {
        GIVEN.fetch_add(1, SeqCst);
        drop(self.held.pop().unwrap());
    }

    /// Brings about a situation, with two frames in the handler's hands and all others held.
    pub(crate) fn arrange(&mut self, Situation { cached, stock, elsewhere }: Situation) {
        self.empty();
        for place in STASH.iter().take(2) {
            place.store(self.held.pop().unwrap().into_raw().as_u64(), SeqCst);
        }
        if elsewhere > 0 {
            move_to(ELSEWHERE);
            (0..elsewhere).for_each(|_| self.give_one());
            move_to(HOME);
        }
        let full = 2 * MAGAZINE + elsewhere;
        while pool().stats().stock < u64::from(stock)
            || (stock > 0 && pool().stats().cached < u64::from(full))
        {
            self.give_one();
        }
        while pool().stats().cached < u64::from(cached + elsewhere) {
            self.give_one();
        }
        while pool().stats().cached > u64::from(cached + elsewhere) {
            TAKEN.fetch_add(1, SeqCst);
            self.held.push(pool().alloc().unwrap());
        }
        assert_eq!(pool().stats().cached, u64::from(cached + elsewhere));
    }

    /// INV-1 and INV-4 at rest: every frame is somewhere, once, and every operation was counted once.
    pub(crate) fn check(&mut self, before: &Stats, what: &dyn std::fmt::Debug) {
        let stats = pool().stats();
        let stash = STASH.iter().filter(|place| place.load(SeqCst) != 0).count();
        let out = (self.held.len() + stash) as u64;
        assert_eq!(stats.in_use, out, "INV-1: {what:?}\n{stats}");
        assert_eq!(
            stats.owned,
            stats.in_use + stats.cached + stats.stock + stats.overflow,
            "INV-4: {what:?}\n{stats}"
        );
        let served = |stats: &Stats| stats.cache_hits + stats.depot_hits + stats.steals;
        assert_eq!(served(&stats) - served(before), TAKEN.load(SeqCst), "counted once: {what:?}\n{stats}");
        assert_eq!(stats.freed - before.freed, GIVEN.load(SeqCst), "counted once: {what:?}\n{stats}");
        self.empty();
        let addresses: HashSet<PhysAddr> = self.held.iter().map(Frame::phys_addr).collect();
        assert_eq!((addresses.len(), self.held.len()), (FRAMES as usize, FRAMES as usize), "INV-1: {what:?}");
    }

    /// Brings about a situation without stock; the frames in the cache of this CPU, and those in the other one.
    pub(crate) fn arrange_known(&mut self, situation: Situation) -> (HashSet<PhysAddr>, HashSet<PhysAddr>) {
        self.arrange(situation);
        let home = self.next_frames(situation.cached);
        move_to(ELSEWHERE);
        let elsewhere = self.next_frames(situation.elsewhere);
        move_to(HOME);
        assert!(home.is_disjoint(&elsewhere), "each CPU has a cache of its own");
        (home, elsewhere)
    }

    /// The addresses of the frames that come out of this CPU's cache next; they go back.
    pub(crate) fn next_frames(&mut self, count: u32) -> HashSet<PhysAddr> {
        let frames: Vec<_> = (0..count).map(|_| pool().alloc().unwrap()).collect();
        frames.iter().map(Frame::phys_addr).collect()
    }

    pub(crate) fn last(&self) -> PhysAddr {
        self.held.last().unwrap().phys_addr()
    }
}

/// Forgets what was counted; the statistics from which to count.
pub(crate) fn start_counting() -> Stats {
    TAKEN.store(0, SeqCst);
    GIVEN.store(0, SeqCst);
    pool().stats()
}

fn empty_stash() {
    for place in &STASH {
        let frame = place.swap(0, SeqCst);
        if frame != 0 {
            GIVEN.fetch_add(1, SeqCst);
            // SAFETY: the stash holds each address once.
            drop(unsafe { Frame::from_raw(pool(), PhysAddr::new(frame)) });
        }
    }
}

/// What the statistics say when an operation begins that the handler moves to another CPU, and when it does so.
static AT_START: AtomicU64 = AtomicU64::new(0);
static AT_MOVE: AtomicU64 = AtomicU64::new(0);

fn frames_moved() -> u64 {
    let stats = pool().stats();
    stats.cache_hits + stats.freed
}

pub(crate) fn start_moving() {
    AT_START.store(frames_moved(), SeqCst);
}

pub(crate) fn move_elsewhere() {
    AT_MOVE.store(frames_moved(), SeqCst);
    move_to(ELSEWHERE);
}

/// Whether the operation had taken or given its frame when the handler moved it.
pub(crate) fn had_moved_a_frame() -> bool {
    AT_MOVE.load(SeqCst) != AT_START.load(SeqCst)
}

// What the handler does.

fn pop() {
    let Ok(frame) = pool().alloc() else { return };
    let frame = frame.into_raw().as_u64();
    let free = STASH.iter().find(|place| place.compare_exchange(0, frame, SeqCst, SeqCst).is_ok());
    if free.is_some() {
        TAKEN.fetch_add(1, SeqCst);
    } else {
        std::process::abort();
    }
}

fn push() {
    let Some(frame) = STASH.iter().map(|place| place.swap(0, SeqCst)).find(|&frame| frame != 0) else {
        return;
    };
    GIVEN.fetch_add(1, SeqCst);
    // SAFETY: the stash holds each address once, and the exchange took it out.
    drop(unsafe { Frame::from_raw(pool(), PhysAddr::new(frame)) });
}

fn nothing() {}

/// Everything that may happen in the middle of an operation. None of it leaves the stash larger than it is.
pub(crate) const ACTIONS: [(&str, fn()); 9] = [
    ("nothing", nothing),
    ("pop", pop),
    ("push", push),
    ("pop, pop", || (pop(), pop()).1),
    ("push, push", || (push(), push()).1),
    ("pop, push", || (pop(), push()).1),
    ("push, pop", || (push(), pop()).1),
    ("pop, pop, push, pop", || (pop(), pop(), push(), pop()).3),
    ("drain by shutting every gate", || drop(pool().vacate())),
];

// What is interrupted: each a function of its own, with its own instances of the sequences.

#[inline(never)]
fn alloc(world: &mut World) {
    if let Ok(frame) = black_box(pool()).alloc() {
        TAKEN.fetch_add(1, SeqCst);
        world.held.push(frame);
    }
}

#[inline(never)]
fn free(world: &mut World) {
    if let Some(frame) = world.held.pop() {
        GIVEN.fetch_add(1, SeqCst);
        drop(frame);
    }
}

#[inline(never)]
fn alloc_bulk(world: &mut World) {
    let mut frames = [const { None }; 3];
    if let Ok(count) = black_box(pool()).alloc_bulk(Request::ORDINARY, &mut frames) {
        TAKEN.fetch_add(count as u64, SeqCst);
    }
    world.held.extend(frames.into_iter().flatten());
}

#[inline(never)]
fn free_bulk(world: &mut World) {
    let mut frames = [world.held.pop(), world.held.pop(), world.held.pop()];
    GIVEN.fetch_add(frames.iter().flatten().count() as u64, SeqCst);
    black_box(pool()).free_bulk(&mut frames);
}

/// An operation by its name.
pub(crate) type Operation = (&'static str, fn(&mut World));

pub(crate) const OPERATIONS: [Operation; 4] =
    [("alloc", alloc), ("free", free), ("alloc_bulk", alloc_bulk), ("free_bulk", free_bulk)];
