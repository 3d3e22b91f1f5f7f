//! Owns the right to be the one who works for the pool, and the state that only that one may touch.

use crate::sync::{
    atomic::{AtomicBool, Ordering},
    cell::UnsafeCell,
};

/// State behind a try-lock: whoever finds it taken goes away, nobody waits (INV-3).
#[derive(Debug)]
pub struct Turn<T> {
    taken: AtomicBool,
    state: UnsafeCell<T>,
}

// SAFETY: `state` is reached only between a successful exchange of `taken` and its release, by one context; sending
// it from one to the next needs `T: Send`.
unsafe impl<T: Send> Sync for Turn<T> {}

impl<T> Turn<T> {
    pub fn new(state: T) -> Self {
        Self { taken: AtomicBool::new(false), state: UnsafeCell::new(state) }
    }

    /// Runs `work` on the state, or returns nothing at once when somebody else has the turn.
    pub fn try_with<R>(&self, work: impl FnOnce(&mut T) -> R) -> Option<R> {
        Some(self.hold()?.with(work))
    }

    /// Runs `work` on the state when those before are done with it. Task context only.
    #[cfg(not(any(feature = "std", loom)))]
    pub fn wait_with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        loop {
            if let Some(mut held) = self.hold() {
                return held.with(work);
            }
            crate::sync::wait_hint();
        }
    }

    /// The turn, until the value goes; nothing at once when somebody else has it.
    pub fn hold(&self) -> Option<Held<'_, T>> {
        // Ordering: Acquire pairs with the Release in `Held::drop`, so that the last holder's changes are seen.
        // Relaxed on failure: nothing is read.
        self.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(Held(self))
    }
}

/// The turn of its owner. Goes back with it, also when the work panics (a source of the host may).
#[derive(Debug)]
pub struct Held<'t, T>(&'t Turn<T>);

impl<T> Held<'_, T> {
    /// Runs `work` on the state.
    pub fn with<R>(&mut self, work: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: the exchange made the turn ours until `self` goes, `self` is borrowed by this call alone, and the closure cannot
        // keep the reference.
        self.0.state.with_mut(|state| work(unsafe { &mut *state }))
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        // Ordering: Release publishes the changes to the Acquire of the next holder.
        self.0.taken.store(false, Ordering::Release);
    }
}
