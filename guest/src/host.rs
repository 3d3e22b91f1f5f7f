//! The host layer: all that framepool asks of a kernel, in one file to copy. A source over physical memory, this CPU's number, a
//! doorbell.
//!
//! Kernel code is not preempted in a call of the pool here, so a CPU's cache belongs to that CPU ([`Pinned`]): no locked instruction on the
//! fast path. A kernel that cannot promise that takes [`Claim`], as the feature `claim` does, for which the number of the CPU is a hint.
//!
//! The source stands for a kernel's page allocator: a bitmap behind a lock. A thread that refills the pool waits for the lock, and is
//! not preempted while it holds it; the pool's non-sleeping request takes it only if it is free, because the code that was
//! interrupted may hold it. The pool itself never waits for anybody.

use core::{
    arch::asm,
    cell::UnsafeCell,
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};
#[cfg(feature = "claim")]
use framepool::Claim;
use framepool::{
    FramePool, FrameSource, PhysAddr, Platform, SourceError,
    vtd::{CacheLineFlush, FlushedFrames},
};
#[cfg(not(feature = "claim"))]
use framepool::{Pinned, PinnedContext};
use x86_64::{VirtAddr, registers::model_specific::GsBase};

const FRAME_SIZE: u64 = 4096;
/// The most CPUs that can have data of their own.
const CPUS: usize = 8;
/// The most frames that the source manages: 128 MiB.
const FRAMES: usize = 32 << 10;

/// What each CPU has for itself, found through its GS segment.
#[repr(C)]
pub struct CpuLocal {
    number: UnsafeCell<usize>,
    /// How many locks the thread of this CPU holds. Another thread may take its place only when it is 0.
    locks_held: UnsafeCell<usize>,
}

// SAFETY: each CPU reaches only its own.
unsafe impl Sync for CpuLocal {}

static LOCALS: [CpuLocal; CPUS] =
    [const { CpuLocal { number: UnsafeCell::new(0), locks_held: UnsafeCell::new(0) } }; CPUS];

impl CpuLocal {
    /// Gives the CPU that runs this code, whose APIC has the number `cpu`, its own data.
    pub fn install(cpu: usize) {
        GsBase::write(VirtAddr::from_ptr(&LOCALS[cpu]));
        Self::set_number(cpu);
    }

    /// Lets this CPU pass for another one, between two calls of the pool: so a machine with one CPU can fill and empty the caches of
    /// several.
    pub fn set_number(cpu: usize) {
        // SAFETY: GS points to this CPU's data, whose first word is the number.
        unsafe { asm!("mov gs:[0], {}", in(reg) cpu, options(nostack, preserves_flags)) }
    }

    /// The number of this CPU: one load.
    #[inline(always)]
    pub fn number() -> usize {
        let cpu;
        // SAFETY: as in `set_number`.
        unsafe { asm!("mov {}, gs:[0]", out(reg) cpu, options(nostack, preserves_flags, readonly)) };
        cpu
    }

    /// Whether the thread that runs on this CPU, or was interrupted on it, may be preempted: it holds no lock.
    pub fn may_preempt() -> bool {
        let held: usize;
        // SAFETY: GS points to this CPU's data, whose second word counts locks.
        unsafe { asm!("mov {}, gs:[8]", out(reg) held, options(nostack, preserves_flags, readonly)) };
        held == 0
    }

    /// Runs `work`, in a thread, with preemption off.
    pub fn without_preemption<R>(work: impl FnOnce() -> R) -> R {
        Self::count_lock();
        let result = work();
        Self::discount_lock();
        result
    }

    /// Counts a lock that is about to be tried. One instruction, so a handler on this CPU never finds it half done.
    fn count_lock() {
        // SAFETY: as in `may_preempt`.
        unsafe { asm!("inc qword ptr gs:[8]", options(nostack)) }
    }

    fn discount_lock() {
        // SAFETY: as in `may_preempt`.
        unsafe { asm!("dec qword ptr gs:[8]", options(nostack)) }
    }
}

/// How a CPU's cache is owned.
#[cfg(not(feature = "claim"))]
pub type Ownership = Pinned<ThisCpu>;
#[cfg(feature = "claim")]
pub type Ownership = Claim;

#[cfg(not(feature = "claim"))]
const OWNERSHIP: Ownership = Pinned::new(ThisCpu);
#[cfg(feature = "claim")]
const OWNERSHIP: Ownership = Claim;

/// Whether each CPU holds its cache: others ask for it, and one that goes away drains it first.
pub const CACHES_ARE_HELD: bool = cfg!(not(feature = "claim"));

/// The cache of a context is that of the CPU on which it runs.
#[cfg(not(feature = "claim"))]
pub struct ThisCpu;

// SAFETY: each CPU has a number of its own, and passes for another only between two calls. What comes in the middle of a call on it are
// handlers, which return; and in the sweep a refill thread that gives the CPU back only when its pass is over, which nests like a handler.
#[cfg(not(feature = "claim"))]
unsafe impl PinnedContext for ThisCpu {
    #[inline(always)]
    fn slot(&self) -> Option<usize> {
        Some(CpuLocal::number())
    }
}

/// The kernel as the pool sees it.
pub struct Kernel {
    ownership: Ownership,
    refill_wanted: AtomicBool,
    rings: AtomicU32,
}

impl Kernel {
    pub const fn new() -> Self {
        Self { ownership: OWNERSHIP, refill_wanted: AtomicBool::new(false), rings: AtomicU32::new(0) }
    }

    /// Whether the pool has asked for maintenance since the last call. A kernel that schedules threads makes its refill thread
    /// runnable in [`ring`](Platform::ring) instead, by whatever it may call from an NMI.
    pub fn take_refill_wanted(&self) -> bool {
        // Ordering: Acquire pairs with the Release in `ring`.
        self.refill_wanted.swap(false, Ordering::Acquire)
    }

    /// How often the doorbell was rung.
    pub fn rings(&self) -> u32 {
        // Ordering: Relaxed; a figure for tests.
        self.rings.load(Ordering::Relaxed)
    }
}

impl Platform for Kernel {
    type Ownership = Ownership;

    #[inline(always)]
    fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    #[inline(always)]
    fn current_cpu(&self) -> usize {
        CpuLocal::number()
    }

    fn ring(&self) {
        // Ordering: Relaxed; a figure for tests.
        self.rings.fetch_add(1, Ordering::Relaxed);
        // Ordering: Release, to the Acquire in `take_refill_wanted`: the level that asked for the refill is seen.
        self.refill_wanted.store(true, Ordering::Release);
    }
}

/// Physical memory that is mapped at its own address: a bitmap of frames behind a lock.
pub struct PhysicalMemory {
    base: u64,
    frames: usize,
    locked: AtomicBool,
    used: UnsafeCell<Bitmap>,
    /// How many frames are out.
    out: AtomicU32,
    /// Frames that came back without having been out.
    strays: AtomicU32,
}

/// Which frames are out: one bit each. No word before `first` has a frame that is not.
struct Bitmap {
    words: [u64; FRAMES / 64],
    first: usize,
}

// SAFETY: the bitmap is touched only under the lock.
unsafe impl Sync for PhysicalMemory {}

/// The lock, held.
struct Held<'m>(&'m PhysicalMemory);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Ordering: Release publishes the bitmap to the Acquire of the next holder.
        self.0.locked.store(false, Ordering::Release);
        CpuLocal::discount_lock();
    }
}

impl Held<'_> {
    fn bitmap(&mut self) -> &mut Bitmap {
        // SAFETY: the lock is held as long as this borrow lives.
        unsafe { &mut *self.0.used.get() }
    }

    fn take(&mut self) -> Option<PhysAddr> {
        let frames = self.0.frames;
        let bitmap = self.bitmap();
        while bitmap.words.get(bitmap.first) == Some(&u64::MAX) {
            bitmap.first += 1;
        }
        let word = bitmap.words.get_mut(bitmap.first)?;
        let bit = word.trailing_ones() as usize;
        let frame = bitmap.first * 64 + bit;
        if frame >= frames {
            return None;
        }
        *word |= 1 << bit;
        // Ordering: Relaxed; a figure for tests.
        self.0.out.fetch_add(1, Ordering::Relaxed);
        Some(PhysAddr::new(self.0.base + frame as u64 * FRAME_SIZE))
    }

    fn give(&mut self, frame: PhysAddr) {
        let number = (frame.as_u64().wrapping_sub(self.0.base) / FRAME_SIZE) as usize;
        let mask = 1 << (number % 64);
        let bitmap = self.bitmap();
        match bitmap.words.get_mut(number / 64) {
            Some(word) if *word & mask != 0 => {
                *word &= !mask;
                bitmap.first = bitmap.first.min(number / 64);
                // Ordering: Relaxed; a figure for tests.
                self.0.out.fetch_sub(1, Ordering::Relaxed);
            }
            _ => {
                // Ordering: Relaxed; a figure for tests.
                self.0.strays.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl PhysicalMemory {
    /// The frames from `start` on, `length` bytes of them, which the firmware says are memory and nobody else uses.
    ///
    /// # Safety
    /// That memory exists, is mapped at its own address, and belongs to the caller, who gives it up.
    pub const unsafe fn new(start: u64, length: u64) -> Self {
        let base = start.next_multiple_of(FRAME_SIZE);
        let frames = ((start + length).saturating_sub(base) / FRAME_SIZE) as usize;
        Self {
            base,
            frames: if frames < FRAMES { frames } else { FRAMES },
            locked: AtomicBool::new(false),
            used: UnsafeCell::new(Bitmap { words: [0; FRAMES / 64], first: 0 }),
            out: AtomicU32::new(0),
            strays: AtomicU32::new(0),
        }
    }

    /// How many frames are out, and how many came back that were not.
    pub fn audit(&self) -> (u32, u32) {
        // Ordering: Relaxed; figures for tests.
        (self.out.load(Ordering::Relaxed), self.strays.load(Ordering::Relaxed))
    }

    fn try_lock(&self) -> Option<Held<'_>> {
        CpuLocal::count_lock();
        // Ordering: Acquire pairs with the Release of the last holder. Relaxed on failure: nothing is read.
        if self.locked.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            CpuLocal::discount_lock();
            return None;
        }
        Some(Held(self))
    }

    fn lock(&self) -> Held<'_> {
        loop {
            if let Some(held) = self.try_lock() {
                return held;
            }
            core::hint::spin_loop();
        }
    }
}

// SAFETY: a frame is out as long as its bit is set, and belongs to nobody else; memory is mapped at its own address all the
// time; `try_supply` never waits for the lock.
unsafe impl FrameSource for &PhysicalMemory {
    fn supply(&self, frames: &mut [PhysAddr]) -> Result<usize, SourceError> {
        let mut held = self.lock();
        let mut supplied = 0;
        for (place, frame) in frames.iter_mut().zip(core::iter::from_fn(|| held.take())) {
            *place = frame;
            supplied += 1;
        }
        if supplied == 0 { Err(SourceError::new("physical memory is used up")) } else { Ok(supplied) }
    }

    fn try_supply(&self) -> Option<PhysAddr> {
        self.try_lock()?.take()
    }

    unsafe fn reclaim(&self, frames: &[PhysAddr]) {
        let mut held = self.lock();
        for &frame in frames {
            held.give(frame);
        }
    }

    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        NonNull::new(frame.as_u64() as *mut u8).unwrap_or(NonNull::dangling())
    }

    fn base(&self) -> PhysAddr {
        PhysAddr::new(self.base)
    }
}

/// The pool of this kernel.
pub type Pool = FramePool<&'static PhysicalMemory, Kernel>;

/// The pool as an allocator of tables for a unit that does not snoop. On a machine whose units all snoop, the pool itself is one.
pub type Tables = FlushedFrames<&'static Pool, CacheLineFlush>;
