//! Owns the lock of those who may wait: tasks, never an interrupt (INV-3 is not concerned, since nothing that an interrupt can reach
//! comes here).
//!
//! With `std` it is parking_lot's mutex, which sleeps when it has to. Without, a task that finds it taken looks again and again: it
//! is held for a bounded number of steps. A host whose tasks preempt each other by strict priority keeps to one priority those
//! that wait for frames of one pool.

#[cfg(not(any(feature = "std", loom)))]
use super::turn::Turn;
#[cfg(any(feature = "std", loom))]
use crate::sync::mutex::Mutex;

/// State that tasks share.
#[derive(Debug)]
pub struct TaskLock<T> {
    #[cfg(any(feature = "std", loom))]
    state: Mutex<T>,
    #[cfg(not(any(feature = "std", loom)))]
    state: Turn<T>,
}

impl<T> TaskLock<T> {
    pub fn new(state: T) -> Self {
        Self {
            #[cfg(any(feature = "std", loom))]
            state: Mutex::new(state),
            #[cfg(not(any(feature = "std", loom)))]
            state: Turn::new(state),
        }
    }

    /// Runs `work` alone with the state. Task context only. `work` calls nothing that is not the pool's own: no waker, no source, no
    /// destructor of a caller's value.
    pub fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        #[cfg(any(feature = "std", loom))]
        return work(&mut crate::sync::mutex::lock(&self.state));
        #[cfg(not(any(feature = "std", loom)))]
        self.state.wait_with(work)
    }
}
