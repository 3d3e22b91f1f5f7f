//! Owns the place for a value that is made once, after the program has begun, and is there for everybody from then on.
//!
//! # The word
//! | state | value | who may touch it |
//! |---|---|---|
//! | VACANT | none | nobody |
//! | FILLING | being written | the one who changed VACANT to FILLING |
//! | FILLED | there, for good | everybody, to read |
//!
//! The state only goes down the table. Nobody waits: an interrupt in the middle of the filling finds nothing there, as a moment
//! before, and cannot fill it itself (INV-3).

use crate::sync::{
    atomic::{AtomicU32, Ordering},
    cell::UnsafeCell,
};
use core::mem::MaybeUninit;

const VACANT: u32 = 0;
const FILLING: u32 = 1;
const FILLED: u32 = 2;

/// A place for one value.
#[derive(Debug)]
pub struct Place<T> {
    state: AtomicU32,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: the value is written by one context, and read by others only behind the store that says that it is there. Shared
// references to it go to other threads (`T: Sync`), and it is dropped where the place is, not where it was made (`T: Send`).
unsafe impl<T: Send + Sync> Sync for Place<T> {}

impl<T> Place<T> {
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self { state: AtomicU32::new(VACANT), value: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    #[cfg(loom)]
    pub fn new() -> Self {
        Self { state: AtomicU32::new(VACANT), value: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    /// Fills the place; the value comes back if somebody has done so, or is about to.
    pub fn fill(&self, value: T) -> Result<&T, T> {
        // Ordering: Relaxed on both sides; the exchange gives the place to one context, which reads nothing that another wrote.
        if self.state.compare_exchange(VACANT, FILLING, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return Err(value);
        }
        let filled = self.value.with_mut(|place| {
            // SAFETY: the exchange made the place ours alone, until the store below.
            unsafe { (*place).write(value) as *const T }
        });
        // Ordering: Release publishes the value to the Acquire in `get`.
        self.state.store(FILLED, Ordering::Release);
        // SAFETY: the value is there for as long as the place, and from now on only read.
        Ok(unsafe { &*filled })
    }

    /// The value, once it is there.
    #[inline]
    pub fn get(&self) -> Option<&T> {
        // Ordering: Acquire pairs with the Release in `fill`, so that the value is seen whole.
        if self.state.load(Ordering::Acquire) != FILLED {
            return None;
        }
        // SAFETY: the value is there for as long as the place, and only read.
        Some(self.value.with(|place| unsafe { (*place).assume_init_ref() }))
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        // Ordering: Relaxed; alone with the place, its owner was handed all that others did.
        if self.state.load(Ordering::Relaxed) == FILLED {
            // SAFETY: the value is there, and nobody else is.
            self.value.with_mut(|place| unsafe { (*place).assume_init_drop() });
        }
    }
}
