//! The one facade over `core::sync::atomic` and loom: no other file names either, but for `sync/injection.rs`, which makes
//! each access a point at which the injection tests may interrupt, and of which an observer is told, in their build of the crate. In the
//! build for the tests that try schedules at random (`shuttle-tests`) `loom` is shuttle, which has the same interface but for cells:
//! `sync/cell.rs`.
//!
//! Loom checks every access that goes through [`atomic`] and [`cell`], so that exclusive ownership of a magazine
//! or of a slot is a thing the models verify rather than assume. Counters that steer nothing go through
//! [`counter`] and stay invisible to loom: each would only multiply the interleavings.

#[cfg(loom)]
pub(crate) mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
}

#[cfg(framepool_injection)]
#[allow(unsafe_code, reason = "an action is called through a bare pointer")]
pub mod injection;
#[cfg(framepool_injection)]
pub(crate) use injection::atomic;

#[cfg(not(any(loom, framepool_injection)))]
pub(crate) mod atomic {
    pub(crate) use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
}

/// Memory that one context at a time may write.
#[cfg(all(loom, not(framepool_shuttle)))]
pub mod cell {
    pub use loom::cell::UnsafeCell;
}

#[cfg(framepool_shuttle)]
pub mod cell;

#[cfg(not(loom))]
pub(crate) mod cell {
    /// `core::cell::UnsafeCell` with loom's interface, so that one source serves both.
    #[derive(Debug)]
    #[repr(transparent)]
    pub(crate) struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(core::cell::UnsafeCell::new(value))
        }

        #[inline(always)]
        #[cfg_attr(framepool_injection, track_caller)]
        pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
            #[cfg(framepool_injection)]
            super::injection::access(self, super::injection::AccessKind::Load);
            read(self.0.get())
        }

        #[inline(always)]
        #[cfg_attr(framepool_injection, track_caller)]
        pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
            #[cfg(framepool_injection)]
            super::injection::access(self, super::injection::AccessKind::Store);
            write(self.0.get())
        }
    }
}

/// Stores `value`, with Release, into a word that only the caller may change: others exchange what marks it as taken for the
/// same mark, which changes nothing.
///
/// One plain store. Loom has no way to order a plain store behind the exchange of another context that read the value
/// before it (C++20 \[atomics.order\] 10 forces that order), so under loom it is an exchange too.
#[inline(always)]
pub(crate) fn hand_over(word: &atomic::AtomicU64, value: u64) {
    // Ordering: Release publishes everything that was done under the mark to the Acquire exchange of the next owner.
    #[cfg(any(not(loom), framepool_shuttle))]
    word.store(value, atomic::Ordering::Release);
    #[cfg(all(loom, not(framepool_shuttle)))]
    word.swap(value, atomic::Ordering::Release);
}

/// Writes `value` into a word that is 0, with everything after it ordered behind the write; whether it was 0.
///
/// The full barrier is what a locked instruction is on x86-64, where a fence would be a second one; a compiler fence keeps the
/// compiler from moving anything across (crossbeam-epoch pins in the same way).
#[cfg(feature = "vtd")]
#[inline(always)]
pub(crate) fn occupy(word: &atomic::AtomicU64, value: u64) -> bool {
    use atomic::Ordering;
    // Ordering: SeqCst, so that together with the fence no later access is seen before this write. Relaxed on failure: nothing
    // is read.
    let occupied = word.compare_exchange(0, value, Ordering::SeqCst, Ordering::Relaxed).is_ok();
    // Ordering: SeqCst; the partner is the fence in `vtd/walkers.rs: stamp`.
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
    #[cfg(not(all(target_arch = "x86_64", not(loom))))]
    atomic::fence(Ordering::SeqCst);
    occupied
}

/// Writes `value` into a word as into any other, so that several of them may become one access.
///
/// # Safety
/// Nobody else accesses the word at the same time.
#[cfg(feature = "vtd")]
#[inline(always)]
#[allow(unsafe_code, reason = "core has no such access")]
pub(crate) unsafe fn write_alone(word: &atomic::AtomicU64, value: u64) {
    // Ordering: Relaxed; nobody looks.
    #[cfg(any(loom, framepool_injection))]
    word.store(value, atomic::Ordering::Relaxed);
    // SAFETY: the word is there, and the caller's alone.
    #[cfg(not(any(loom, framepool_injection)))]
    unsafe {
        word.as_ptr().write(value);
    }
}

/// A number that differs between contexts that run at the same time, as far as possible: where their stacks are. Under loom all
/// contexts get the same, so that they meet.
#[cfg(feature = "vtd")]
#[inline(always)]
pub(crate) fn context() -> usize {
    #[cfg(loom)]
    return 0;
    #[cfg(not(loom))]
    {
        /// No two stacks are nearer than this, but for handlers on the stack of what they interrupt.
        const STACK_SHIFT: u32 = 14;
        let local = 0u8;
        core::ptr::from_ref(&local).addr() >> STACK_SHIFT
    }
}

/// Restartable sequences as loom sees the kernel's part of them: a CPU runs one sequence at a time, and a sequence that has
/// been ended, by the next one on its CPU or by the barrier, takes no further step.
///
/// A thread of a model stands for a context on the CPU that [`run_on`](sequence::run_on) names.
#[cfg(loom)]
pub mod sequence {
    use core::cell::Cell;
    use loom::sync::Mutex;

    loom::thread_local! {
        static CPU: Cell<usize> = Cell::new(0);
    }

    /// From here on this thread of the model is on the CPU `cpu`; none of the CPUs has a number that large for one without a
    /// registration.
    pub fn run_on(cpu: usize) {
        CPU.with(|current| current.set(cpu));
    }

    pub(crate) fn current_cpu() -> usize {
        CPU.with(Cell::get)
    }

    /// How many sequences have begun or been ended on each CPU.
    #[derive(Debug)]
    pub(crate) struct Cpus([Mutex<u64>; 2]);

    /// One sequence.
    #[derive(Debug)]
    pub(crate) struct Sequence<'c> {
        epoch: &'c Mutex<u64>,
        began: u64,
        cpu: usize,
    }

    impl Cpus {
        pub(crate) fn new() -> Self {
            Self([Mutex::new(0), Mutex::new(0)])
        }

        /// Begins a sequence on this CPU, which ends the one in progress there.
        pub(crate) fn begin(&self) -> Option<Sequence<'_>> {
            let cpu = current_cpu();
            let epoch = self.0.get(cpu)?;
            Some(Sequence { epoch, began: advance(epoch)?, cpu })
        }

        /// Ends the sequence in progress on `cpu`: the barrier.
        pub(crate) fn end(&self, cpu: usize) {
            self.0.get(cpu).and_then(advance);
        }
    }

    impl Sequence<'_> {
        pub(crate) fn cpu(&self) -> usize {
            self.cpu
        }

        /// Does `access`, unless the sequence has been ended.
        pub(crate) fn step<T>(&self, access: impl FnOnce() -> T) -> Option<T> {
            let epoch = self.epoch.lock().ok()?;
            (*epoch == self.began).then(access)
        }
    }

    fn advance(epoch: &Mutex<u64>) -> Option<u64> {
        let mut epoch = epoch.lock().ok()?;
        *epoch += 1;
        Some(*epoch)
    }
}

/// Contexts of one owner that nest: one that interrupts another ends before that one goes on (`raw/pinned.rs`).
#[cfg(not(loom))]
pub(crate) mod nesting {
    /// One access to what the contexts of an owner share: between any two of them an interrupt may come.
    #[inline(always)]
    pub(crate) fn step<T>(access: impl FnOnce() -> T) -> T {
        access()
    }

    /// Keeps the compiler from moving accesses across: all that is needed where program order is one.
    #[inline(always)]
    pub(crate) fn fence() {
        // Ordering: SeqCst, towards an interrupt on the same CPU only; no instruction.
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
    }
}

/// Contexts of one owner that nest, as loom sees it: a thread of a model that is an interrupt lets nobody whom it may interrupt take
/// a step until it has ended. It begins between any two of their steps.
#[cfg(loom)]
pub mod nesting {
    use super::sequence::current_cpu;
    use core::cell::Cell;
    use loom::sync::{Mutex, MutexGuard};
    use std::vec::Vec;

    /// Interrupts that can be interrupted, and the one that cannot.
    const LEVELS: usize = 2;

    loom::lazy_static! {
        /// For each CPU and level of interrupts: held by an interrupt of that level while it runs, and by whoever it may interrupt
        /// for one step.
        static ref RUNNING: [[Mutex<()>; LEVELS]; 2] =
            core::array::from_fn(|_| core::array::from_fn(|_| Mutex::new(())));
    }

    loom::thread_local! {
        static LEVEL: Cell<usize> = Cell::new(0);
    }

    fn wait<'m>(levels: impl Iterator<Item = &'m Mutex<()>>) -> Vec<MutexGuard<'m, ()>> {
        levels.filter_map(|level| level.lock().ok()).collect()
    }

    pub(crate) fn step<T>(access: impl FnOnce() -> T) -> T {
        let level = LEVEL.with(Cell::get);
        let _alone = RUNNING.get(current_cpu()).map(|cpu| wait(cpu.iter().skip(level)));
        access()
    }

    /// Loom runs what is written.
    pub(crate) fn fence() {}

    /// Runs `body` as an interrupt of `level`, 1 or 2, of this CPU. One of level 2 also interrupts those of level 1.
    pub fn interrupt<T>(level: usize, body: impl FnOnce() -> T) -> T {
        LEVEL.with(|current| current.set(level));
        let _alone =
            RUNNING.get(current_cpu()).map(|cpu| wait(cpu.iter().skip(level.saturating_sub(1)).take(1)));
        body()
    }
}

/// Statistics: plain relaxed counters that no code path may branch on.
pub(crate) mod counter {
    #[cfg(framepool_injection)]
    use super::injection::statistics::AtomicU64;
    #[cfg(not(framepool_injection))]
    use core::sync::atomic::AtomicU64;
    use core::sync::atomic::Ordering;

    /// A statistic that many contexts may count at once.
    #[derive(Debug, Default)]
    #[repr(transparent)] // Assembly counts in it.
    pub(crate) struct Shared(AtomicU64);

    impl Shared {
        pub(crate) const fn new() -> Self {
            Self(AtomicU64::new(0))
        }

        #[cfg_attr(framepool_injection, track_caller)]
        pub(crate) fn add(&self, amount: u64) {
            // Ordering: Relaxed; the value publishes nothing and is only ever summed for a snapshot.
            self.0.fetch_add(amount, Ordering::Relaxed);
        }

        #[cfg(feature = "vtd")]
        #[cfg_attr(framepool_injection, track_caller)]
        pub(crate) fn subtract(&self, amount: u64) {
            // Ordering: Relaxed; as in `add`.
            self.0.fetch_sub(amount, Ordering::Relaxed);
        }

        #[cfg_attr(framepool_injection, track_caller)]
        pub(crate) fn raise_to(&self, value: u64) {
            // Ordering: Relaxed; as in `add`.
            self.0.fetch_max(value, Ordering::Relaxed);
        }

        #[cfg_attr(framepool_injection, track_caller)]
        pub(crate) fn get(&self) -> u64 {
            // Ordering: Relaxed; a snapshot is approximate while operations are in progress.
            self.0.load(Ordering::Relaxed)
        }
    }

    /// A statistic that is counted only by the context that owns what it stands beside (a slot, the pass of
    /// the worker), and read by anybody.
    #[derive(Debug, Default)]
    #[repr(transparent)] // As `Shared`.
    pub(crate) struct Owned(AtomicU64);

    impl Owned {
        pub(crate) const fn new() -> Self {
            Self(AtomicU64::new(0))
        }

        #[cfg_attr(framepool_injection, track_caller)]
        #[inline(always)]
        pub(crate) fn add(&self, amount: u64) {
            // Ordering: Relaxed, and a load and a store instead of a locked addition: the owner is alone, and the
            // handing over of what it owns orders its counts before those of the next owner.
            self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
        }

        #[cfg_attr(framepool_injection, track_caller)]
        pub(crate) fn set(&self, value: u64) {
            // Ordering: Relaxed; as in `add`.
            self.0.store(value, Ordering::Relaxed);
        }

        #[cfg_attr(framepool_injection, track_caller)]
        pub(crate) fn get(&self) -> u64 {
            // Ordering: Relaxed; a snapshot is approximate while operations are in progress.
            self.0.load(Ordering::Relaxed)
        }
    }
}

/// Tells the processor (or loom) that the caller is waiting for another context to make progress.
///
/// Only thread-context code calls this; nothing an interrupt can reach waits (INV-3).
pub(crate) fn wait_hint() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    core::hint::spin_loop();
}

/// Sleeping on a word until it changes: the kernel's futex, or loom's mutex and condition variable.
#[cfg(all(feature = "std", not(loom)))]
pub(crate) mod futex {
    use super::atomic::AtomicU32;
    use core::time::Duration;
    use rustix::thread::futex::{Flags, Timespec, wait as system_wait, wake as system_wake};

    /// Sleeps while `word` is `expected`, for at most `timeout`. May return early.
    pub(crate) fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        // Whatever the call returns (woken, changed, interrupted, timed out), the caller looks at the word again.
        let _ = system_wait(as_core(word), Flags::PRIVATE, expected, timeout.as_ref());
    }

    /// Wakes whoever sleeps on `word`. One system call, made without libc: async-signal-safe.
    pub(crate) fn wake(word: &AtomicU32) {
        let _ = system_wake(as_core(word), Flags::PRIVATE, 1);
    }

    /// The word as the system call takes it.
    fn as_core(word: &AtomicU32) -> &core::sync::atomic::AtomicU32 {
        #[cfg(framepool_injection)]
        let word = word.as_core();
        word
    }
}

/// Sleeping on a word until it changes, as loom sees it: the kernel's compare-and-sleep is one step.
#[cfg(loom)]
pub(crate) mod futex {
    use super::atomic::{AtomicU32, Ordering};
    use core::time::Duration;
    use loom::sync::{Condvar, Mutex};

    loom::lazy_static! {
        static ref KERNEL: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());
    }

    /// Sleeps while `word` is `expected`; under loom there is no time, hence no timeout.
    pub(crate) fn wait(word: &AtomicU32, expected: u32, _timeout: Option<Duration>) {
        if let Ok(mut kernel) = KERNEL.0.lock() {
            // Ordering: Relaxed; the kernel's comparison orders nothing for user space.
            while word.load(Ordering::Relaxed) == expected {
                let Ok(woken) = KERNEL.1.wait(kernel) else { return };
                kernel = woken;
            }
        }
    }

    /// Wakes whoever sleeps on `word`.
    pub(crate) fn wake(_word: &AtomicU32) {
        let _kernel = KERNEL.0.lock();
        KERNEL.1.notify_all();
    }
}

/// The mutex of those who may sleep: parking_lot's, or loom's.
#[cfg(any(feature = "std", loom))]
pub(crate) mod mutex {
    #[cfg(loom)]
    pub(crate) use loom::sync::{Mutex, MutexGuard};
    #[cfg(not(loom))]
    pub(crate) use parking_lot::{Mutex, MutexGuard};

    /// Waits for the mutex.
    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        #[cfg(not(loom))]
        return mutex.lock();
        #[cfg(loom)]
        mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
