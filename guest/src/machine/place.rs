//! Statics that are written once the program runs, since there is no heap.

use core::{cell::UnsafeCell, mem::MaybeUninit};

/// Room for one value.
pub struct Place<T>(UnsafeCell<MaybeUninit<T>>);

// SAFETY: every access is by an unsafe function whose caller answers for the others.
unsafe impl<T> Sync for Place<T> {}

impl<T> Place<T> {
    pub const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::uninit()))
    }

    /// Puts a value there.
    ///
    /// # Safety
    /// Nobody uses what was there before.
    pub unsafe fn put(&'static self, value: T) -> &'static T {
        // SAFETY: the caller's.
        unsafe { (*self.0.get()).write(value) }
    }

    /// The value.
    ///
    /// # Safety
    /// It was put there, and not taken since.
    pub unsafe fn get(&'static self) -> &'static T {
        // SAFETY: the caller's.
        unsafe { (*self.0.get()).assume_init_ref() }
    }

    /// The address behind the value: the top of a stack.
    pub fn after(&'static self) -> *const T {
        self.0.get().cast::<T>().wrapping_add(1)
    }

    /// The value, to be changed.
    ///
    /// # Safety
    /// As for [`get`](Self::get), and nobody else uses it meanwhile.
    #[expect(clippy::mut_from_ref, reason = "the caller answers for the others")]
    pub unsafe fn get_mut(&'static self) -> &'static mut T {
        // SAFETY: the caller's.
        unsafe { (*self.0.get()).assume_init_mut() }
    }

    /// Takes the value out.
    ///
    /// # Safety
    /// As for [`get`](Self::get), and nobody uses it any more.
    pub unsafe fn take(&'static self) -> T {
        // SAFETY: the caller's.
        unsafe { (*self.0.get()).assume_init_read() }
    }
}

/// Room for the bookkeeping of a pool.
pub struct Room<const BYTES: usize>(UnsafeCell<[MaybeUninit<u8>; BYTES]>);

// SAFETY: as for `Place`.
unsafe impl<const BYTES: usize> Sync for Room<BYTES> {}

impl<const BYTES: usize> Room<BYTES> {
    pub const fn new() -> Self {
        Self(UnsafeCell::new([MaybeUninit::uninit(); BYTES]))
    }

    /// All of it.
    ///
    /// # Safety
    /// Whoever had it before is gone.
    #[expect(clippy::mut_from_ref, reason = "the caller answers for the others")]
    pub unsafe fn all(&'static self) -> &'static mut [MaybeUninit<u8>] {
        // SAFETY: the caller's.
        unsafe { &mut *self.0.get() }
    }
}
