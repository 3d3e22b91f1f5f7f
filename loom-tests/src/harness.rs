//! A host with CPU numbers, a source of real memory, contents that are watched: for the models, and for the schedules of shuttle-tests.
//!
//! An interrupt is a second thread with the same CPU number: every nested call is one of its interleavings. That covers
//! safety; that nothing waits for the code it interrupted is the business of the stepping tests of the crate itself.

use framepool::{
    Builder, Claim, Doorbell, FallbackPolicy, Frame, FramePool, FrameSource, PhysAddr, PinnedContext,
    Platform, SlotOwnership, SourceError, Watermarks,
    internals::{cell::UnsafeCell, nesting, sequence},
};
use loom::{
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering},
    thread::JoinHandle,
};
use std::{
    cell::Cell,
    future::Future,
    pin::pin,
    ptr::NonNull,
    sync::Mutex,
    task::{Context, Poll, Wake, Waker},
};

const FRAME: u64 = 4096;

loom::thread_local! {
    static CPU: Cell<usize> = Cell::new(0);
}

/// Runs `body` on a thread of the model that stands for the CPU `cpu`.
pub fn on_cpu<T: Send + 'static>(cpu: usize, body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    loom::thread::spawn(move || {
        CPU.with(|current| current.set(cpu));
        sequence::run_on(cpu);
        body()
    })
}

/// Runs `body` as an interrupt on the CPU `cpu`, of level 1, or of level 2, which interrupts those of level 1 as well.
pub fn interrupt_on<T: Send + 'static>(
    cpu: usize,
    level: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    on_cpu(cpu, move || nesting::interrupt(level, body))
}

/// The slot of each CPU is its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThisCpu;

// SAFETY: of the threads of a model that stand for one CPU, one is not an interrupt.
unsafe impl PinnedContext for ThisCpu {
    fn slot(&self) -> Option<usize> {
        Some(CPU.with(Cell::get))
    }
}

/// A host that counts its rings, with one of the ways to own a slot. It may have a bell that somebody answers.
#[derive(Debug, Default)]
pub struct Host<O = Claim> {
    ownership: O,
    rings: Mutex<usize>,
    bell: Option<Doorbell>,
}

impl<O> Host<O> {
    pub fn new(ownership: O) -> Self {
        Self { ownership, rings: Mutex::new(0), bell: None }
    }

    pub fn with_bell(ownership: O) -> Self {
        Self { bell: Some(Doorbell::new()), ..Self::new(ownership) }
    }

    pub fn rings(&self) -> usize {
        *self.rings.lock().unwrap()
    }
}

impl<O: SlotOwnership> Platform for Host<O> {
    type Ownership = O;
    fn ownership(&self) -> &O {
        &self.ownership
    }
    fn current_cpu(&self) -> usize {
        CPU.with(Cell::get)
    }
    fn ring(&self) {
        *self.rings.lock().unwrap() += 1;
        if let Some(bell) = &self.bell {
            bell.ring();
        }
    }
}

/// One frame's memory.
#[derive(Clone, Debug)]
#[repr(C, align(4096))]
struct Page([u8; FRAME as usize]);

/// A source of `frames` frames that remembers which are out. Its own lock is invisible to the model; that the pool touches the
/// contents of a frame is not.
#[derive(Debug)]
pub struct Source {
    out: Mutex<Vec<bool>>,
    memory: NonNull<Page>,
    touched: Vec<UnsafeCell<()>>,
}

// SAFETY: the memory is reached through frames only, each of which has one owner.
unsafe impl Send for Source {}
// SAFETY: as for `Send`.
unsafe impl Sync for Source {}

impl Source {
    pub fn new(frames: usize) -> Self {
        let pages = vec![Page([0; FRAME as usize]); frames].into_boxed_slice();
        Self {
            out: Mutex::new(vec![false; frames]),
            memory: NonNull::from(Box::leak(pages)).cast(),
            touched: (0..frames).map(|_| UnsafeCell::new(())).collect(),
        }
    }

    /// Frames that are out.
    pub fn out(&self) -> usize {
        self.out.lock().unwrap().iter().filter(|&&out| out).count()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let frames = self.out.lock().unwrap().len();
        // SAFETY: `new` leaked a box of this length, and the source goes only when no frame is out.
        drop(unsafe { Box::from_raw(core::ptr::slice_from_raw_parts_mut(self.memory.as_ptr(), frames)) });
    }
}

// SAFETY: a frame is out at most once, which `reclaim` checks, and all of it is mapped.
unsafe impl FrameSource for Source {
    fn supply(&self, frames: &mut [PhysAddr]) -> Result<usize, SourceError> {
        let mut supplied = 0;
        for (place, frame) in frames.iter_mut().zip(core::iter::from_fn(|| self.try_supply())) {
            *place = frame;
            supplied += 1;
        }
        Ok(supplied)
    }
    fn try_supply(&self) -> Option<PhysAddr> {
        let mut out = self.out.lock().unwrap();
        let number = out.iter().position(|out| !out)?;
        out[number] = true;
        Some(PhysAddr::new(number as u64 * FRAME))
    }
    unsafe fn reclaim(&self, frames: &[PhysAddr]) {
        let mut out = self.out.lock().unwrap();
        for frame in frames {
            let was_out = std::mem::take(&mut out[(frame.as_u64() / FRAME) as usize]);
            assert!(was_out, "INV-1: {frame} came back twice");
        }
    }
    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        let number = (frame.as_u64() / FRAME) as usize;
        // Whoever asks is about to touch the frame: loom reports it if somebody else is, unordered.
        self.touched[number].with_mut(|_| ());
        // SAFETY: every frame of this source has one page.
        unsafe { self.memory.add(number) }.cast()
    }
}

pub type Pool<O = Claim> = FramePool<Source, Host<O>>;

/// A pool and the contents of its frames, as loom watches them: two owners at once, or an owner who does not see what the
/// one before wrote, fail the model.
#[derive(Debug)]
pub struct Watched<O: SlotOwnership = Claim> {
    pub pool: Pool<O>,
    contents: Vec<UnsafeCell<u32>>,
}

// SAFETY: the contents are reached by the owner of the frame only; that this is so is what loom checks.
unsafe impl<O: SlotOwnership> Sync for Watched<O> {}
// SAFETY: as for `Sync`.
unsafe impl<O: SlotOwnership> Send for Watched<O> {}

/// A pool of `frames` frames in magazines of `magazine`, all fetched at construction, `min` of them into the reserve.
pub fn pool(cpus: usize, magazine: u32, frames: u32, min: u32) -> Arc<Watched> {
    pool_on(Claim, cpus, magazine, frames, min)
}

/// The same, with `ownership` as the way to own a slot.
pub fn pool_on<O: SlotOwnership>(
    ownership: O,
    cpus: usize,
    magazine: u32,
    frames: u32,
    min: u32,
) -> Arc<Watched<O>> {
    let watermarks = Watermarks { min, low: min, high: frames, max: frames };
    let builder = Builder::new(frames).watermarks(watermarks).cpus(cpus).magazine_size(magazine);
    on_host(Host::new(ownership), builder.fallback(FallbackPolicy::Never), frames)
}

pub fn watched(builder: Builder, frames: u32) -> Arc<Watched> {
    on_host(Host::new(Claim), builder, frames)
}

/// The same on a host with `ownership` as the way to own a slot.
pub fn watched_on<O: SlotOwnership>(ownership: O, builder: Builder, frames: u32) -> Arc<Watched<O>> {
    on_host(Host::new(ownership), builder, frames)
}

/// As [`pool`], on a host whose bell is heard by [`Watched::wait_for`].
pub fn pool_with_bell<O: SlotOwnership>(
    ownership: O,
    cpus: usize,
    magazine: u32,
    frames: u32,
) -> Arc<Watched<O>> {
    let watermarks = Watermarks { min: 0, low: 0, high: frames, max: frames };
    let builder = Builder::new(frames).watermarks(watermarks).cpus(cpus).magazine_size(magazine);
    on_host(Host::with_bell(ownership), builder.fallback(FallbackPolicy::Never), frames)
}

fn on_host<O: SlotOwnership>(host: Host<O>, builder: Builder, frames: u32) -> Arc<Watched<O>> {
    let pool = builder.build(Source::new(frames as usize), host).unwrap();
    Arc::new(Watched { pool, contents: (0..frames).map(|_| UnsafeCell::new(0)).collect() })
}

/// The same pool, for what a thread of the model borrows from it.
///
/// # Safety
/// Nothing that was borrowed from it outlives `watched`.
pub unsafe fn forever(watched: &Arc<Watched>) -> &'static Watched {
    // SAFETY: the caller keeps the pool alive for as long as anything is borrowed from it.
    unsafe { &*Arc::as_ptr(watched) }
}

impl<O: SlotOwnership> Watched<O> {
    /// Uses a frame as its owner would: reads and writes all of it.
    pub fn touch(&self, frame: &Frame<'_, Source, Host<O>>) {
        self.touch_at(frame.phys_addr());
    }

    /// As `touch`, for a frame by its address.
    pub fn touch_at(&self, frame: PhysAddr) {
        let number = (frame.as_u64() / FRAME) as usize;
        // SAFETY: the frame is ours; loom reports it if somebody else thinks the same.
        self.contents[number].with_mut(|content| unsafe { *content += 1 });
    }

    /// Uses a frame and leaves something in it.
    pub fn soil(&self, frame: &Frame<'_, Source, Host<O>>) {
        self.touch(frame);
        // SAFETY: the frame is ours.
        unsafe { frame.as_ptr().write_bytes(0xAA, FRAME as usize) };
    }

    /// INV-9: takes a zeroed frame, looks at all of it, soils it and gives it back; whether there was one.
    pub fn take_zeroed_and_soil(&self) -> bool {
        self.pool.alloc_zeroed().is_ok_and(|frame| {
            self.assert_zero(&frame);
            self.soil(&frame);
            true
        })
    }

    pub fn assert_zero(&self, frame: &Frame<'_, Source, Host<O>>) {
        // SAFETY: the frame is ours.
        let bytes = unsafe { frame.as_ptr().cast::<[u8; FRAME as usize]>().read() };
        assert!(bytes.iter().all(|&byte| byte == 0), "INV-9: {frame:?}");
    }

    /// Polls `future` whenever it is woken, and answers the bell in between, as executor and worker in one. Nothing is looked at
    /// without a ring or a wake-up, so that one which is lost leaves this thread asleep for ever, which loom reports.
    pub fn wait_for<T>(&self, future: impl Future<Output = T>) -> T {
        let alarm = std::sync::Arc::new(Alarm::default());
        let waker = Waker::from(std::sync::Arc::clone(&alarm));
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(outcome) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return outcome;
            }
            while !alarm.is_woken() {
                self.answer_bell();
            }
        }
    }

    /// What the worker does for those who wait: sleeps until the bell rings, and then serves them.
    pub fn answer_bell(&self) {
        let mut look_again = false;
        if let Some(bell) = &self.pool.platform().bell {
            bell.wait(None);
            look_again = self.pool.serve_waiters();
        }
        while look_again {
            loom::thread::yield_now();
            look_again = self.pool.serve_waiters();
        }
    }

    /// Takes a frame, uses it, and gives it back; whether there was one.
    pub fn take_and_give(&self) -> bool {
        self.pool.alloc().is_ok_and(|frame| {
            self.touch(&frame);
            true
        })
    }

    /// INV-1 and INV-4 at rest: every frame can be had, each once, and the accounts agree.
    pub fn assert_complete(&self, frames: usize) {
        let stats = self.pool.stats();
        assert_eq!(stats.owned, stats.in_use + stats.cached + stats.stock + stats.overflow, "INV-4: {stats}");
        assert_eq!((stats.in_use, stats.promised, stats.waiters), (0, 0, 0), "INV-1: {stats}");
        let taken: Vec<_> = core::iter::from_fn(|| self.pool.alloc_with(framepool::Request::CRITICAL).ok())
            .take(frames + 1)
            .collect();
        taken.iter().for_each(|frame| self.touch(frame));
        assert_eq!(taken.len(), frames, "INV-1: every frame once\n{stats}");
        let stats = self.pool.stats();
        assert_eq!(
            (stats.stock, stats.clean),
            (0, 0),
            "INV-4: nothing is counted that is not there\n{stats}"
        );
    }
}

/// A waker, invisible to the model: who waits is told by the bell.
#[derive(Debug, Default)]
pub struct Alarm(std::sync::atomic::AtomicBool);

impl Alarm {
    /// Whether it was woken since this was last asked.
    pub fn is_woken(&self) -> bool {
        self.0.swap(false, std::sync::atomic::Ordering::SeqCst)
    }
}

impl Wake for Alarm {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

/// Counts what happened, visibly to the model.
#[derive(Debug, Default)]
pub struct Count(AtomicUsize);

impl Count {
    pub fn add(&self) {
        // Ordering: Relaxed; read after the threads were joined.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn get(&self) -> usize {
        // Ordering: Relaxed; as above.
        self.0.load(Ordering::Relaxed)
    }
}
