//! What the tests share: a host whose CPU number is set by hand, and a source that follows a script.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test uses its part")]

pub mod interrupt;
pub mod storm;
pub mod tables;

use framepool::{
    AnonymousMemory, Builder, Claim, Frame, FramePool, FrameSource, PhysAddr, Platform, SourceError,
};
use std::{
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

#[derive(Debug, Default)]
pub struct TestHost {
    pub cpu: AtomicUsize,
    pub rings: AtomicUsize,
}

impl Platform for TestHost {
    type Ownership = Claim;
    fn ownership(&self) -> &Claim {
        &Claim
    }
    fn current_cpu(&self) -> usize {
        interrupt::may_come();
        self.cpu.load(SeqCst)
    }
    fn ring(&self) {
        interrupt::may_come();
        self.rings.fetch_add(1, SeqCst);
    }
}

/// Anonymous memory that can be told to fail, and counts what it was asked.
#[derive(Debug)]
pub struct Scripted {
    pub memory: AnonymousMemory,
    pub failing: AtomicBool,
    /// Whether it says that its frames are zero, which they are.
    pub zeroed: bool,
    pub supplied: AtomicU32,
    pub tried: AtomicU32,
    pub reclaimed: AtomicU32,
}

impl Scripted {
    pub fn new(frames: u32) -> Self {
        Self {
            memory: AnonymousMemory::new(frames).unwrap(),
            failing: AtomicBool::new(false),
            zeroed: true,
            supplied: AtomicU32::new(0),
            tried: AtomicU32::new(0),
            reclaimed: AtomicU32::new(0),
        }
    }

    /// Frames that the source has handed out and not got back.
    pub fn out(&self) -> u32 {
        self.supplied.load(SeqCst) - self.reclaimed.load(SeqCst)
    }
}

// SAFETY: everything is the inner source's, which keeps the contract; failing is always allowed.
unsafe impl FrameSource for Scripted {
    fn supply(&self, frames: &mut [PhysAddr]) -> Result<usize, SourceError> {
        interrupt::may_come();
        if self.failing.load(SeqCst) {
            return Err(SourceError::new("the script says so"));
        }
        let supplied = self.memory.supply(frames)?;
        self.supplied.fetch_add(supplied as u32, SeqCst);
        Ok(supplied)
    }
    fn try_supply(&self) -> Option<PhysAddr> {
        self.tried.fetch_add(1, SeqCst);
        if self.failing.load(SeqCst) {
            return None;
        }
        let frame = self.memory.try_supply()?;
        self.supplied.fetch_add(1, SeqCst);
        Some(frame)
    }
    unsafe fn reclaim(&self, frames: &[PhysAddr]) {
        interrupt::may_come();
        self.reclaimed.fetch_add(frames.len() as u32, SeqCst);
        // SAFETY: the frames are the inner source's, see above.
        unsafe { self.memory.reclaim(frames) }
    }
    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        interrupt::may_come();
        self.memory.pointer(frame)
    }
    fn supplies_zeroed(&self) -> bool {
        self.zeroed
    }
    fn base(&self) -> PhysAddr {
        self.memory.base()
    }
}

pub type TestPool = FramePool<Scripted, TestHost>;

/// A pool of the builder's shape over a source of twice its capacity.
pub fn pool(builder: Builder, source_frames: u32) -> TestPool {
    builder.build(Scripted::new(source_frames), TestHost::default()).unwrap()
}

pub fn set_cpu(pool: &TestPool, cpu: usize) {
    pool.platform().cpu.store(cpu, SeqCst);
}

pub fn rings(pool: &TestPool) -> usize {
    pool.platform().rings.load(SeqCst)
}

/// Leaves something in every byte of a frame.
pub fn soil(frame: &Frame<'_, Scripted, TestHost>) {
    // SAFETY: the frame is ours.
    unsafe { frame.as_ptr().write_bytes(0xAA, 4096) };
}

pub fn is_zero<S: FrameSource>(frame: &Frame<'_, S, TestHost>) -> bool {
    // SAFETY: the frame is ours, and initialised: its memory came zeroed from the system.
    unsafe { frame.as_ptr().cast::<[u64; 512]>().read() }.iter().all(|&word| word == 0)
}

/// INV-4, at rest: every frame that the pool owns is in use or in exactly one place of the pool, and the source agrees.
pub fn assert_accounts(pool: &TestPool, in_use: u64) {
    let stats = pool.stats();
    assert_eq!(stats.in_use, in_use, "INV-1: frames in use\n{stats}");
    assert_eq!(
        stats.owned,
        stats.in_use + stats.cached + stats.stock + stats.overflow + stats.promised,
        "INV-4: every frame is somewhere\n{stats}"
    );
    assert_eq!(u64::from(pool.source().out()), stats.owned, "the source and the pool agree\n{stats}");
}

/// INV-1 beside a worker, whose frames count as out until its pass is over.
pub fn assert_settles<S: FrameSource, P: Platform>(pool: &FramePool<S, P>, in_use: u64) {
    let end = Instant::now() + Duration::from_secs(10);
    while pool.stats().in_use != in_use {
        assert!(Instant::now() < end, "INV-1: {in_use} frames are in use\n{}", pool.stats());
        thread::sleep(Duration::from_millis(1));
    }
}
