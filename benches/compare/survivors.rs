//! Who survives a storm of signals whose handler uses the pool that it interrupts: fine, a frame handed out twice, a crash, or a hang.
//!
//! Each implementation runs in a process of its own, which this program starts with its name and ends after a while if it does not end
//! itself. The handler leaves a net change behind, so that an implementation that survives balanced handlers by luck does not pass.
//! One that passes has not been proved right.

mod common;

use common::implementations::*;
use nix::{
    sys::{
        signal::{SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction},
        timer::{Expiration, Timer, TimerSetTimeFlags},
    },
    time::ClockId,
};
use serde_json::{Value, json};
use std::{
    cell::UnsafeCell,
    env,
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio, exit},
    ptr::null_mut,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

/// How often a signal comes.
const INTERVAL: Duration = Duration::from_micros(50);
/// How long the storm goes on, and after what time a process is taken to hang.
const STORM: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(12);
/// Frames that are not out all the time: few, so that they run out, and both ends of a queue meet.
const LEFT: usize = 64;
/// Frames that the handler keeps at most.
const KEPT: usize = 8;
/// Numbers of frames that are told apart.
const NUMBERS: usize = 1 << 24;
/// How a process that found a frame handed out twice ends.
const DUPLICATE: i32 = 3;

/// What the thread and its handler share.
struct Storm<I: Reentrant + 'static> {
    pool: I,
    held: Vec<AtomicU8>,
    inside: AtomicBool,
    signals: AtomicU64,
    signals_inside: AtomicU64,
    duplicates: AtomicU64,
    /// The handler's own: signals of one number do not nest.
    kept: UnsafeCell<[Option<I::Token<'static>>; KEPT]>,
}

impl<I: Reentrant + 'static> Storm<I> {
    fn take(&'static self) -> Option<I::Token<'static>> {
        let token = self.pool.take_anywhere()?;
        if self.held[I::number(&token) % NUMBERS].swap(1, SeqCst) != 0 {
            self.duplicates.fetch_add(1, SeqCst);
        }
        Some(token)
    }

    fn give(&'static self, token: I::Token<'static>) {
        self.held[I::number(&token) % NUMBERS].store(0, SeqCst);
        self.pool.give_anywhere(token);
    }
}

/// The storm of this process.
static STORMING: AtomicPtr<()> = AtomicPtr::new(null_mut());

extern "C" fn on_signal<I: Reentrant + 'static>(_: i32) {
    // SAFETY: set before the timer was armed, to a storm of this type that lives as long as the process.
    let storm: &'static Storm<I> = unsafe { &*STORMING.load(SeqCst).cast() };
    let number = storm.signals.fetch_add(1, SeqCst);
    if storm.inside.load(SeqCst) {
        storm.signals_inside.fetch_add(1, SeqCst);
    }
    // SAFETY: used by this handler only, which does not interrupt itself.
    let kept = unsafe { &mut *storm.kept.get() };
    // Takes for some signals, gives for as many: between two of them the pool has changed.
    for place in kept.iter_mut().skip((number % 2) as usize).step_by(2) {
        match place.take() {
            Some(token) => storm.give(token),
            None => *place = storm.take(),
        }
    }
}

/// The storm itself, in a process of its own. Does not come back.
fn storm<I: Reentrant + 'static>() {
    let Some(pool) = I::new() else { exit(0) };
    let storm: &'static Storm<I> = Box::leak(Box::new(Storm {
        pool,
        held: (0..NUMBERS).map(|_| AtomicU8::new(0)).collect(),
        inside: AtomicBool::new(false),
        signals: AtomicU64::new(0),
        signals_inside: AtomicU64::new(0),
        duplicates: AtomicU64::new(0),
        kept: UnsafeCell::new([const { None }; KEPT]),
    }));
    let thread = storm.pool.enter();
    let out: Vec<_> = (LEFT..common::FRAMES as usize).filter_map(|_| storm.take()).collect();
    STORMING.store(std::ptr::from_ref(storm).cast_mut().cast(), SeqCst);
    let action = SigAction::new(SigHandler::Handler(on_signal::<I>), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: what the handler does to the pool is what is being looked at; all else in it is lock-free.
    unsafe { sigaction(Signal::SIGALRM, &action) }.expect("a handler");
    let event = SigEvent::new(SigevNotify::SigevSignal { signal: Signal::SIGALRM, si_value: 0 });
    let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, event).expect("a timer");
    timer.set(Expiration::Interval(INTERVAL.into()), TimerSetTimeFlags::empty()).expect("an interval");
    let (start, mut pairs) = (Instant::now(), 0_u64);
    let mut tokens = Vec::with_capacity(64);
    while start.elapsed() < STORM {
        storm.inside.store(true, SeqCst);
        tokens.extend((0..64).map_while(|_| storm.take()));
        tokens.drain(..).for_each(|token| storm.give(token));
        storm.inside.store(false, SeqCst);
        pairs += 64;
    }
    drop(timer);
    let [signals, inside, duplicates] =
        [&storm.signals, &storm.signals_inside, &storm.duplicates].map(|counter| counter.load(SeqCst));
    println!("{}", json!({ "pairs": pairs, "signals": signals, "inside": inside, "duplicates": duplicates }));
    // Nothing of the pool is dropped: what is left of it may be anything.
    std::mem::forget((thread, out));
    exit(if duplicates > 0 { DUPLICATE } else { 0 });
}

/// Runs the storm of `name` in a process of its own, and says how it ended.
fn outcome(name: &str) -> Value {
    let program = env::current_exe().expect("this program");
    let mut child = Command::new(program)
        .args(["--storm", name])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a process");
    let start = Instant::now();
    let status = loop {
        match child.try_wait().expect("a child") {
            Some(status) => break Some(status),
            None if start.elapsed() > PATIENCE => break None,
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    let ended = match status {
        None => {
            child.kill().expect("a child");
            "hang".to_owned()
        }
        Some(status) => match (status.code(), status.signal()) {
            (Some(0), _) => "fine".to_owned(),
            (Some(DUPLICATE), _) => "a frame twice".to_owned(),
            (Some(101), _) => "panic".to_owned(),
            (Some(code), _) => format!("ends with {code}"),
            (None, signal) => format!("killed by signal {}", signal.unwrap_or(0)),
        },
    };
    let output = child.wait_with_output().map(|output| output.stdout).unwrap_or_default();
    let counts: Value = serde_json::from_slice(&output).unwrap_or(Value::Null);
    println!("{name:<22} {ended:<22} {counts}");
    json!({ "implementation": name, "outcome": ended, "counts": counts })
}

fn main() {
    let arguments: Vec<String> = env::args().collect();
    let child =
        arguments.iter().position(|argument| argument == "--storm").and_then(|at| arguments.get(at + 1));
    let mut results = Vec::new();
    macro_rules! each {
        ($($implementation:ty),*) => {$(
            let name = <$implementation as Implementation>::NAME;
            match child {
                Some(child) if child == name => storm::<$implementation>(),
                Some(_) => {}
                None => results.push(outcome(name)),
            }
        )*};
    }
    each!(Rseq, Claim, Pinned, Slitter, ArrayQueue, SegQueue, MutexVec);
    each!(Heapless, ObjectPool, FrameAlloc, Buddy, Mimalloc, Jemalloc);
    if child.is_none() {
        common::leave("survivors", &results.into());
    }
}
