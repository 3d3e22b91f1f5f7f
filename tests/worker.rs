//! The worker thread: rung when it is wanted, patient with its source, and gone when the pool goes.
#![cfg(not(loom))]

mod common;

use common::{Scripted, assert_settles};
use framepool::{
    AnonymousMemory, Builder, FallbackPolicy, FrameSource, PhysAddr, SourceError, Watermarks, WorkedPool,
};
use std::{
    ptr::NonNull,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

const MARKS: Watermarks = Watermarks { min: 4, low: 16, high: 64, max: 96 };

fn builder() -> Builder {
    Builder::new(256).watermarks(MARKS).cpus(2).magazine_size(4).fallback(FallbackPolicy::Never)
}

/// Waits until `condition` holds, for at most ten seconds.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_worker_refills_when_the_stock_falls_below_low_and_trims_above_max() {
    let pool = builder().start(Scripted::new(256)).unwrap();
    let mut frames: Vec<_> = (0..52).map(|_| pool.alloc().unwrap()).collect();
    eventually("refilled", || pool.stats().refills == 2 && pool.stats().stock >= 16);
    while frames.len() < 200 {
        frames.extend(pool.alloc());
    }
    drop(frames);
    eventually("trimmed", || pool.stats().stock <= 96 && pool.stats().trimmed > 0);
    assert_settles(&pool, 0);
    assert_eq!(pool.stats().reserve, 4);
    assert_eq!(pool.close().unwrap().out(), 0);
}

#[test]
fn the_worker_backs_off_from_a_source_that_fails_and_comes_back_to_it() {
    let pool = builder().start(Scripted::new(256)).unwrap();
    pool.source().failing.store(true, SeqCst);
    let frames: Vec<_> = (0..56).map(|_| pool.alloc().unwrap()).collect();
    eventually("failed", || pool.stats().source_failures >= 3);
    let rings = pool.stats().rings;
    assert!(rings <= 1 + pool.stats().source_failures, "INV-6: at most one ring for each pass");
    pool.source().failing.store(false, SeqCst);
    eventually("recovered", || pool.stats().stock >= 16);
    drop(frames);
}

/// A source that hangs in `supply` until it is let go, and says when it is dropped.
#[derive(Debug)]
struct Hanging {
    inner: Scripted,
    hang: AtomicBool,
    hanging: AtomicU32,
    gate: Arc<Gate>,
    dropped: Arc<AtomicBool>,
}

// SAFETY: everything is the inner source's.
unsafe impl FrameSource for Hanging {
    fn supply(&self, frames: &mut [PhysAddr]) -> Result<usize, SourceError> {
        if self.hang.load(SeqCst) {
            self.hanging.fetch_add(1, SeqCst);
            let mut open = self.gate.0.lock().unwrap();
            while !*open {
                open = self.gate.1.wait(open).unwrap();
            }
        }
        self.inner.supply(frames)
    }
    fn try_supply(&self) -> Option<PhysAddr> {
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

impl Drop for Hanging {
    fn drop(&mut self) {
        assert_eq!(self.inner.out(), 0, "INV-12");
        self.dropped.store(true, SeqCst);
    }
}

/// What the source hangs at until it is opened.
type Gate = (Mutex<bool>, Condvar);

fn hanging() -> (WorkedPool<Hanging>, Arc<Gate>, Arc<AtomicBool>) {
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let dropped = Arc::new(AtomicBool::new(false));
    let source = Hanging {
        inner: Scripted::new(256),
        hang: AtomicBool::new(false),
        hanging: AtomicU32::new(0),
        gate: Arc::clone(&gate),
        dropped: Arc::clone(&dropped),
    };
    let pool = builder().start(source).unwrap();
    pool.source().hang.store(true, SeqCst);
    let frames: Vec<_> = (0..56).map(|_| pool.alloc().unwrap()).collect();
    eventually("hangs", || pool.source().hanging.load(SeqCst) == 1);
    drop(frames);
    (pool, gate, dropped)
}

fn open(gate: &Gate) {
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
}

#[test]
fn a_pool_is_dropped_at_once_while_its_source_hangs_and_cleaned_up_when_it_comes_back() {
    let (pool, gate, dropped) = hanging();
    assert!(pool.alloc().is_ok(), "the pool serves while the source hangs");
    let start = Instant::now();
    drop(pool);
    assert!(start.elapsed() < Duration::from_secs(5), "dropping does not wait for the source");
    assert!(!dropped.load(SeqCst), "the worker still uses the source");
    open(&gate);
    eventually("the worker lets go of the source", || dropped.load(SeqCst));
}

#[test]
fn a_pool_whose_source_hangs_is_not_closed_but_given_back() {
    let (pool, gate, _) = hanging();
    let refused = pool.close().unwrap_err();
    assert_eq!(refused.frames_out(), 0);
    let pool = refused.into_pool();
    open(&gate);
    eventually("the worker goes on", || pool.stats().stock >= 16);
    assert_eq!(pool.close().unwrap().inner.out(), 0);
}

#[test]
fn closing_with_frames_out_gives_the_pool_back_with_a_worker() {
    let pool = builder().start(Scripted::new(256)).unwrap();
    let address = pool.alloc().unwrap().into_raw();
    let pool = pool.close().map_err(|refused| (refused.frames_out(), refused.into_pool())).unwrap_err();
    assert_eq!(pool.0, 1);
    let pool = pool.1;
    let frames: Vec<_> = (0..56).map(|_| pool.alloc().unwrap()).collect();
    eventually("refilled by the new worker", || pool.stats().stock >= 16);
    drop(frames);
    // SAFETY: the address came from `into_raw` above.
    drop(unsafe { framepool::Frame::from_raw(&pool, address) });
    assert_eq!(pool.close().unwrap().out(), 0);
}

/// A source that panics as often as it is told, then works.
#[derive(Debug)]
struct Panics {
    inner: AnonymousMemory,
    supply: AtomicU32,
    reclaim: AtomicU32,
}

fn panic_if_told(times: &AtomicU32) {
    if times.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
        // As a panic, without the words on the terminal.
        std::panic::resume_unwind(Box::new("the source panics"));
    }
}

// SAFETY: everything is the inner source's; frames that it panicked over it keeps.
unsafe impl FrameSource for Panics {
    fn supply(&self, frames: &mut [PhysAddr]) -> Result<usize, SourceError> {
        panic_if_told(&self.supply);
        self.inner.supply(frames)
    }
    fn try_supply(&self) -> Option<PhysAddr> {
        self.inner.try_supply()
    }
    unsafe fn reclaim(&self, frames: &[PhysAddr]) {
        panic_if_told(&self.reclaim);
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
fn the_worker_survives_a_source_that_panics_and_says_so() {
    let marks = Watermarks { min: 2, low: 8, high: 16, max: 32 };
    let source = Panics {
        inner: AnonymousMemory::new(128).unwrap(),
        supply: AtomicU32::new(0),
        reclaim: AtomicU32::new(0),
    };
    let builder =
        Builder::new(128).watermarks(marks).cpus(1).magazine_size(4).fallback(FallbackPolicy::Never);
    let pool = builder.start(source).unwrap();
    let settled = |panics| {
        eventually("panics", || pool.stats().source_panics >= panics);
        eventually("goes on", || pool.stats().stock >= 8 && pool.stats().stock <= 32);
        eventually("INV-4", || {
            let stats = pool.stats();
            stats.owned == stats.in_use + stats.cached + stats.stock + stats.overflow
        });
        assert_eq!(pool.stats().source_panics, panics, "it was left alone, and then asked again");
    };
    pool.source().supply.store(3, SeqCst);
    let mut frames: Vec<_> = std::iter::from_fn(|| pool.alloc().ok()).take(16).collect();
    settled(3);
    while frames.len() < 100 {
        match pool.alloc() {
            Ok(frame) => frames.push(frame),
            Err(_) => std::thread::yield_now(),
        }
    }
    pool.source().reclaim.store(1, SeqCst);
    drop(frames);
    settled(4);
    assert_settles(&pool, 0);
    pool.close().unwrap();
}
