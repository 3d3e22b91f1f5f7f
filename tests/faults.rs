//! What goes wrong around a pool: sources that fail by any schedule, rings that are lost, a process that is forked or stopped, and a system that
//! refuses memory and threads for real. Each time the pool serves with what it has, says what happened, and recovers.
//! `docs/reliability.md` lists these faults and those that other tests inject.
#![cfg(not(loom))]

mod common;

use common::{Scripted, TestHost, assert_accounts, rings, set_cpu};
use framepool::{
    AllocError, AnonymousMemory, BuildError, Builder, FallbackPolicy, Frame, FramePool, FrameSource, Outcome,
    PhysAddr, Platform, SourceError, Watermarks,
};
use nix::{
    libc,
    sys::{
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
};
use std::{
    env,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    ptr::NonNull,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

fn builder(capacity: u32) -> Builder {
    let marks = Watermarks { min: 2, low: 8, high: 16, max: 24 };
    Builder::new(capacity).watermarks(marks).cpus(2).magazine_size(3).fallback(FallbackPolicy::Always)
}

/// Waits until `condition` holds, for at most ten seconds.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// INV-1 and INV-4, at rest.
fn assert_in_order<S: FrameSource, P: Platform>(pool: &FramePool<S, P>, in_use: u64) {
    let stats = pool.stats();
    assert_eq!(stats.in_use, in_use, "INV-1\n{stats}");
    assert_eq!(stats.owned, stats.in_use + stats.cached + stats.stock + stats.overflow, "INV-4\n{stats}");
}

/// Runs one test of this program in a process of its own, where it finds `FRAMEPOOL_FAULT` set.
fn alone(test: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env("FRAMEPOOL_FAULT", test);
    command
}

fn is_alone() -> bool {
    env::var_os("FRAMEPOOL_FAULT").is_some()
}

/// A source that fails where a bit of its schedule is set, a bit a request, and begins anew after the last.
#[derive(Debug)]
struct Scheduled {
    inner: Scripted,
    schedule: u8,
    requests: AtomicU32,
    refused: AtomicU32,
    refused_at_once: AtomicU32,
}

impl Scheduled {
    fn fails(&self) -> bool {
        self.schedule.rotate_right(self.requests.fetch_add(1, SeqCst) % 8) & 1 != 0
    }
}

// SAFETY: everything is the inner source's; failing is always allowed.
unsafe impl FrameSource for Scheduled {
    fn supply(&self, frames: &mut [PhysAddr]) -> Result<usize, SourceError> {
        if self.fails() {
            self.refused.fetch_add(1, SeqCst);
            return Err(SourceError::new("the schedule says so"));
        }
        self.inner.supply(frames)
    }
    fn try_supply(&self) -> Option<PhysAddr> {
        if self.fails() {
            self.refused_at_once.fetch_add(1, SeqCst);
            return None;
        }
        self.inner.try_supply()
    }
    unsafe fn reclaim(&self, frames: &[PhysAddr]) {
        // SAFETY: the caller's.
        unsafe { self.inner.reclaim(frames) }
    }
    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        self.inner.pointer(frame)
    }
    fn base(&self) -> PhysAddr {
        self.inner.base()
    }
}

#[test]
fn a_source_that_fails_by_any_schedule_is_counted_and_costs_no_frame() {
    let mut failed = (0, 0);
    for schedule in 0..=u8::MAX {
        let source = Scheduled {
            inner: Scripted::new(64),
            schedule: 0,
            requests: AtomicU32::new(0),
            refused: AtomicU32::new(0),
            refused_at_once: AtomicU32::new(0),
        };
        // The first frames come without a failure; the schedule begins behind them.
        let mut pool = builder(40).build(source, TestHost::default()).unwrap().close().unwrap();
        pool.schedule = schedule;
        pool.requests.store(0, SeqCst);
        let Ok(pool) = builder(40).build(pool, TestHost::default()) else { continue };
        let (before, refused) = (pool.stats(), pool.source().refused.load(SeqCst));
        let mut held = Vec::new();
        for round in 0..60 {
            for _ in 0..3 {
                held.extend(pool.alloc());
            }
            if round % 2 == 0 {
                let pass = pool.maintain();
                assert_eq!(
                    pass.retry_after.is_some(),
                    pass.outcome == Outcome::SourceFailed,
                    "{schedule:#b}"
                );
            }
            if round % 4 == 3 {
                let left = held.len() / 2;
                held.truncate(left);
            }
            assert_in_order(&pool, held.len() as u64);
        }
        let (stats, source) = (pool.stats(), pool.source());
        let failures = stats.source_failures - before.source_failures;
        let at_once = u64::from(source.refused_at_once.load(SeqCst));
        assert_eq!(failures, u64::from(source.refused.load(SeqCst) - refused), "{schedule:#b}: {stats}");
        assert!(stats.fallback_failed >= at_once, "{schedule:#b}: {stats}");
        failed = (failed.0 + failures, failed.1 + at_once);
        drop(held);
        assert_eq!(pool.close().unwrap().inner.out(), 0);
    }
    assert!(failed.0 > 200 && failed.1 > 50, "the schedules have hardly failed: {failed:?}");
}

#[test]
fn a_ring_that_is_lost_is_made_up_for_by_the_next_pass() {
    let pool = common::pool(builder(48).fallback(FallbackPolicy::Never), 48);
    let before = rings(&pool);
    let mut held: Vec<_> = std::iter::from_fn(|| pool.alloc().ok()).collect();
    assert_eq!(rings(&pool), before + 1, "INV-6: nobody answered, so nobody rings again");
    assert_eq!(pool.alloc().err(), Some(AllocError::ReserveOnly));
    set_cpu(&pool, 1);
    assert!(pool.alloc().is_err(), "it says so at once, and waits for nobody");
    // Somebody comes by, rung or not.
    assert_eq!(pool.maintain().outcome, Outcome::Done);
    held.extend(pool.alloc());
    assert_accounts(&pool, held.len() as u64);
    while rings(&pool) == before + 1 && held.len() < 40 {
        held.push(pool.alloc().unwrap());
    }
    assert_eq!(rings(&pool), before + 2, "the next crossing rings again");
}

#[test]
fn a_ring_that_is_taken_from_the_worker_costs_no_more_than_its_longest_sleep() {
    let pool =
        builder(128).fallback(FallbackPolicy::Never).start(AnonymousMemory::new(128).unwrap()).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // A second sleeper, which the contract of the doorbell forbids: it takes rings away, and lets the worker sleep through others.
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                pool.platform().doorbell().wait(Some(Duration::from_micros(50)));
            }
        });
        let mut held = Vec::new();
        for _ in 0..3 {
            held.extend(std::iter::from_fn(|| pool.alloc().ok()).take(20));
            let refills = pool.stats().refills;
            eventually("refilled", || pool.stats().refills > refills || pool.stats().stock >= 8);
        }
        stop.store(true, SeqCst);
        assert!(held.len() > 20, "more than the first fill");
    });
    eventually("at rest", || pool.stats().in_use == 0);
    // The worker may still sleep through the ring that asks it to stop: then the pool comes back, and nothing is lost.
    let start = Instant::now();
    let mut outcome = pool.close();
    while let Err(refused) = outcome {
        assert!(refused.frames_out() == 0 && start.elapsed() < Duration::from_secs(10));
        outcome = refused.into_pool().close();
    }
}

#[test]
fn the_child_of_a_fork_has_no_worker_and_serves_itself() {
    let pool = builder(64).fallback(FallbackPolicy::Never).start(AnonymousMemory::new(64).unwrap()).unwrap();
    eventually("the worker sleeps", || pool.stats().stock >= 8);
    thread::sleep(Duration::from_millis(50));
    // SAFETY: the child uses the pool, which is made for signal handlers, and leaves without running anybody's destructors.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let take_all = || std::iter::from_fn(|| pool.alloc().ok().map(Frame::into_raw)).count();
            let first = take_all();
            // Nobody answers the ring here, until the child does it itself.
            let refused = pool.alloc().err() == Some(AllocError::ReserveOnly);
            let done = pool.maintain().outcome == Outcome::Done;
            let second = take_all();
            let good = first >= 6 && refused && done && second >= 6;
            // SAFETY: leaves at once.
            unsafe { libc::_exit(if good { 0 } else { 1 }) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        }
    }
    assert_in_order(&pool, 0);
    let held: Vec<_> = (0..10).map(|_| pool.alloc().unwrap()).collect();
    eventually("the parent's worker goes on", || pool.stats().stock >= 8);
    drop(held);
    pool.close().unwrap();
}

/// For the process the clock jumps: what was soon is long over when it goes on.
#[test]
fn a_process_that_is_stopped_finds_its_timeouts_over_and_its_frames_in_place() {
    const TEST: &str = "a_process_that_is_stopped_finds_its_timeouts_over_and_its_frames_in_place";
    if !is_alone() {
        let mut child = alone(TEST).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.by_ref().any(|line| line.unwrap().contains("ready")), "the child waits");
        let id = Pid::from_raw(child.id() as i32);
        kill(id, Signal::SIGSTOP).unwrap();
        thread::sleep(Duration::from_millis(1500));
        kill(id, Signal::SIGCONT).unwrap();
        lines.for_each(drop);
        assert!(child.wait().unwrap().success());
        return;
    }
    let marks = Watermarks { min: 0, low: 4, high: 8, max: 8 };
    let builder = Builder::new(8).watermarks(marks).cpus(2).magazine_size(2).fallback(FallbackPolicy::Never);
    let pool = builder.start(AnonymousMemory::new(8).unwrap()).unwrap();
    let held: Vec<_> = (0..8).map(|_| pool.alloc().unwrap()).collect();
    thread::scope(|scope| {
        let short = scope.spawn(|| pool.alloc_blocking(Duration::from_millis(300)).map(drop));
        let long = scope.spawn(|| pool.alloc_blocking(Duration::from_secs(60)).map(drop));
        eventually("both wait", || pool.stats().waiters == 2);
        println!("ready");
        std::io::stdout().flush().unwrap();
        assert!(short.join().unwrap().is_err(), "its time is over");
        assert!(!long.is_finished(), "the other one's is not");
        let start = Instant::now();
        drop(held);
        assert!(long.join().unwrap().is_ok());
        assert!(start.elapsed() < Duration::from_secs(5), "the worker still answers");
    });
    assert_in_order(&pool, 0);
    pool.close().unwrap();
}

/// Lets this process have `more` bytes of address space than it has, or as much as it likes.
fn limit_memory(more: Option<u64>) {
    let used = || {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        status.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096
    };
    let soft = more.map_or(libc::RLIM_INFINITY, |more| used() + more);
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limit is a valid one, for this process.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
}

/// Where a test asks the system for memory: in a process of its own, with a limit.
fn with_limits(test: &str, body: fn()) {
    if is_alone() {
        body();
        limit_memory(None);
    } else {
        let output = alone(test).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}

/// A source that maps each piece of memory when it is asked, and unmaps none before it goes.
#[derive(Debug)]
struct Mapping {
    base: PhysAddr,
    pieces: Mutex<Vec<(usize, usize)>>,
    refused: AtomicU32,
}

const PIECE: usize = 16 * 4096;

impl Mapping {
    fn new() -> Self {
        let source = Self {
            base: PhysAddr::new(0),
            pieces: Mutex::new(Vec::with_capacity(64)),
            refused: AtomicU32::new(0),
        };
        // The kernel maps downwards from somewhere: the window reaches from far below.
        let first = source.map().unwrap() as u64;
        Self { base: PhysAddr::new((first - (1 << 42)) & !4095), ..source }
    }

    fn map(&self) -> Option<usize> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), PIECE, protection, flags, -1, 0) };
        (address != libc::MAP_FAILED).then_some(address as usize)
    }
}

// SAFETY: each frame of a piece is handed out once, since nothing is taken back; pieces stay mapped.
unsafe impl FrameSource for Mapping {
    fn supply(&self, frames: &mut [PhysAddr]) -> Result<usize, SourceError> {
        let mut pieces = self.pieces.lock().unwrap();
        let mut supplied = 0;
        for place in frames {
            if pieces.last().is_none_or(|(_, used)| *used == PIECE) {
                match self.map() {
                    Some(piece) => pieces.push((piece, 0)),
                    None if supplied > 0 => break,
                    None => {
                        self.refused.fetch_add(1, SeqCst);
                        return Err(SourceError::new("mmap failed"));
                    }
                }
            }
            let Some((start, used)) = pieces.last_mut() else { break };
            *place = PhysAddr::new((*start + *used) as u64);
            *used += 4096;
            supplied += 1;
        }
        Ok(supplied)
    }
    fn try_supply(&self) -> Option<PhysAddr> {
        None
    }
    unsafe fn reclaim(&self, _frames: &[PhysAddr]) {}
    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        NonNull::new(frame.as_u64() as *mut u8).unwrap()
    }
    fn base(&self) -> PhysAddr {
        self.base
    }
}

#[test]
fn a_source_whose_mmap_fails_is_left_alone_and_asked_again() {
    with_limits("a_source_whose_mmap_fails_is_left_alone_and_asked_again", || {
        let marks = Watermarks { min: 2, low: 32, high: 64, max: 1024 };
        let builder = Builder::new(1024).watermarks(marks).cpus(1).fallback(FallbackPolicy::Never);
        let pool = builder.build(Mapping::new(), TestHost::default()).unwrap();
        let mut held = Vec::with_capacity(1024);
        limit_memory(Some(1 << 20));
        let mut failed = 0;
        for _ in 0..40 {
            held.extend(std::iter::from_fn(|| pool.alloc().ok()).take(16));
            failed += u64::from(pool.maintain().outcome == Outcome::SourceFailed);
        }
        let stats = pool.stats();
        assert!(failed > 0 && stats.source_failures == failed, "{failed} failed passes\n{stats}");
        assert!(u64::from(pool.source().refused.load(SeqCst)) >= failed, "mmap has failed for real");
        assert!(pool.alloc().is_err() && stats.reserve == 2, "all but the reserve is out");
        assert_in_order(&pool, held.len() as u64);
        limit_memory(None);
        assert_eq!(pool.maintain().outcome, Outcome::Done);
        held.extend(std::iter::from_fn(|| pool.alloc().ok()).take(16));
        assert_eq!(pool.stats().in_use, held.len() as u64);
        for frame in &held {
            // SAFETY: the frame is ours.
            unsafe { frame.as_ptr().write_bytes(0x55, 4096) };
        }
    });
}

#[test]
fn a_source_and_a_worker_for_which_there_is_no_memory_are_refused() {
    with_limits("a_source_and_a_worker_for_which_there_is_no_memory_are_refused", || {
        let (small, scripted) = (AnonymousMemory::new(64).unwrap(), Scripted::new(64));
        limit_memory(Some(1 << 20));
        let refused = AnonymousMemory::new(1 << 20).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOMEM));
        let refused = Builder::new(1 << 24).build(scripted, TestHost::default()).map(drop);
        assert!(matches!(refused, Err(BuildError::NoHeap { .. })));
        // The source that went with the refused pool has given its address space back.
        limit_memory(Some(1 << 20));
        let refused = builder(64).start(small).map(drop);
        assert_eq!(refused, Err(BuildError::NoThread));
    });
}
