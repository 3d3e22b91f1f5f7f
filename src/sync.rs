//! The one facade over `core::sync::atomic` and loom: no other file names either.
//!
//! Loom checks every access that goes through here, [`cell::UnsafeCell`] included, so that exclusive ownership
//! of a magazine or of a slot is a thing the models verify rather than assume.

#[cfg(loom)]
pub(crate) mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
}

#[cfg(not(loom))]
pub(crate) mod atomic {
    pub(crate) use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
}

#[cfg(loom)]
pub(crate) mod cell {
    pub(crate) use loom::cell::UnsafeCell;
}

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
        pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
            read(self.0.get())
        }

        #[inline(always)]
        pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
            write(self.0.get())
        }
    }
}

/// Tells the processor (or loom) that the caller is waiting for another context to make progress.
///
/// Only thread-context code calls this; nothing an interrupt can reach waits (INV-3).
#[cfg(loom)]
pub(crate) fn wait_hint() {
    loom::thread::yield_now();
}

/// See the loom twin.
#[cfg(not(loom))]
pub(crate) fn wait_hint() {
    core::hint::spin_loop();
}
