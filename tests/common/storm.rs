//! The harness of the signal storms: timers, handlers, and counts that are themselves signal-safe.

use nix::{
    sys::{
        signal::{SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction},
        time::TimeSpec,
        timer::{Expiration, Timer, TimerSetTimeFlags},
    },
    time::ClockId,
    unistd::gettid,
};
use std::{
    cell::Cell,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

pub const THREADS: usize = 4;

/// Two signals that do not mask each other, so that handlers nest.
const SIGNALS: [Signal; 2] = [Signal::SIGUSR1, Signal::SIGUSR2];

/// One that others send.
pub const SENT: Signal = Signal::SIGURG;

thread_local! {
    /// Which thread of the storm this is. Constant at first and without a destructor, hence safe to read in a handler.
    static THREAD: Cell<usize> = const { Cell::new(usize::MAX) };
}

static HANDLER: AtomicUsize = AtomicUsize::new(0);
static INSIDE: [AtomicBool; THREADS] = [const { AtomicBool::new(false) }; THREADS];
static DEPTH: [AtomicU32; THREADS] = [const { AtomicU32::new(0) }; THREADS];
static SEED: AtomicU64 = AtomicU64::new(0x9E37_79B9_7F4A_7C15);
static SIGNALLED: AtomicU64 = AtomicU64::new(0);
static SIGNALLED_INSIDE: AtomicU64 = AtomicU64::new(0);
static NESTED: AtomicU64 = AtomicU64::new(0);

/// What a handler runs: the thread's number and a random number.
pub type Body = fn(usize, u64);

/// What the storm came to.
#[derive(Debug)]
pub struct Counts {
    pub signals: u64,
    pub inside: u64,
    pub nested: u64,
}

/// The installed handlers.
#[derive(Debug)]
pub struct Harness(());

impl Harness {
    pub fn install(body: Body) -> Self {
        HANDLER.store(body as usize, SeqCst);
        for signal in SIGNALS.into_iter().chain([SENT]) {
            let action = SigAction::new(SigHandler::Handler(handle), SaFlags::SA_RESTART, SigSet::empty());
            // SAFETY: the handler is signal-safe: atomics, the pool, and a thread-local without initialisation.
            unsafe { sigaction(signal, &action) }.unwrap();
        }
        Self(())
    }

    /// Runs one operation of the main program, marked so that handlers know that they landed in it.
    pub fn operation<T>(&self, thread: usize, operation: impl FnOnce() -> T) -> T {
        INSIDE[thread].store(true, SeqCst);
        let outcome = operation();
        INSIDE[thread].store(false, SeqCst);
        outcome
    }

    pub fn counts(&self) -> Counts {
        Counts {
            signals: SIGNALLED.load(SeqCst),
            inside: SIGNALLED_INSIDE.load(SeqCst),
            nested: NESTED.load(SeqCst),
        }
    }
}

extern "C" fn handle(_signal: i32) {
    let thread = THREAD.get();
    if thread >= THREADS {
        return;
    }
    SIGNALLED.fetch_add(1, SeqCst);
    if INSIDE[thread].load(SeqCst) {
        SIGNALLED_INSIDE.fetch_add(1, SeqCst);
    }
    if DEPTH[thread].fetch_add(1, SeqCst) > 0 {
        NESTED.fetch_add(1, SeqCst);
    }
    let random = Random::new(SEED.fetch_add(0x9E37_79B9_7F4A_7C15, SeqCst)).next();
    // SAFETY: `install` stored a `Body` before the first signal.
    let body: Body = unsafe { std::mem::transmute(HANDLER.load(SeqCst)) };
    body(thread, random);
    DEPTH[thread].fetch_sub(1, SeqCst);
}

/// The timers of one thread, which stop when this goes.
#[derive(Debug)]
pub struct Timers(#[allow(dead_code, reason = "held for its destructor")] Vec<Timer>);

impl Timers {
    /// Starts a timer for each signal, some tens of microseconds apart, different for each thread.
    pub fn start(thread: usize) -> Self {
        THREAD.set(thread);
        let timer = |(index, signal): (usize, Signal)| {
            let notify = SigevNotify::SigevThreadId { signal, thread_id: gettid().as_raw(), si_value: 0 };
            let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify)).unwrap();
            let interval = Duration::from_nanos(23_000 + 7_100 * thread as u64 + 11_300 * index as u64);
            timer
                .set(Expiration::Interval(TimeSpec::from_duration(interval)), TimerSetTimeFlags::empty())
                .unwrap();
            timer
        };
        Self(SIGNALS.into_iter().enumerate().map(timer).collect())
    }
}

/// A small generator of random numbers (Steele and others, SplitMix64, 2014).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}
