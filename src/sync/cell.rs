//! The cell of the tests that try schedules at random: it notices two contexts that use it at once, as loom's does.

use loom::sync::atomic::{AtomicU32, Ordering};

/// As loom's, which shuttle lacks.
#[derive(Debug)]
pub struct UnsafeCell<T> {
    /// How many read, or [`WRITER`]. Each change is a point at which another context may go on.
    users: AtomicU32,
    value: core::cell::UnsafeCell<T>,
}

const WRITER: u32 = 1 << 16;

/// A use of a cell, to its end.
struct Use<'c>(&'c AtomicU32, u32);

impl Drop for Use<'_> {
    fn drop(&mut self) {
        // Ordering: SeqCst, as is everything under shuttle.
        self.0.fetch_sub(self.1, Ordering::SeqCst);
    }
}

impl<T> UnsafeCell<T> {
    /// A cell with `value` in it.
    pub const fn new(value: T) -> Self {
        Self { users: AtomicU32::new(0), value: core::cell::UnsafeCell::new(value) }
    }

    fn begin(&self, user: u32, others: u32) -> Use<'_> {
        // Ordering: SeqCst, as is everything under shuttle.
        let before = self.users.fetch_add(user, Ordering::SeqCst);
        assert!(before < others, "two contexts use a cell at once");
        Use(&self.users, user)
    }

    /// Reads; nobody may write meanwhile.
    pub fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        let _use = self.begin(1, WRITER);
        read(self.value.get())
    }

    /// Writes; nobody may do anything meanwhile.
    pub fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        let _use = self.begin(WRITER, 1);
        write(self.value.get())
    }
}
