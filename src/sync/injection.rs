//! The atomics of the injection tests: core's, with a point before every access at which a test runs something else, as an
//! interrupt would. On any architecture, without signals.
//!
//! Only memory that contexts share can tell an interrupted operation from one that is not, and every access to such memory goes
//! through the facade. What runs between two accesses sees what it would see anywhere between them, so a point before each
//! stands for every instruction. What the facade cannot see are the instructions themselves: in which order the compiler puts plain
//! accesses, and what it makes of them. The sweep of the release build is there for that (`interrupt-tests`).
//!
//! A point knows the line of the source that makes the access, so that the tests can say which lines were interrupted. An observer is told
//! of every access before it is made, those of statistics too, at which nobody stops: `examples/scale` counts which cache lines move.

extern crate std;

use core::{cell::Cell, panic::Location, ptr};
use std::{cell::RefCell, vec::Vec};

/// A line of the source that makes an access.
pub type Site = &'static Location<'static>;

/// What an access does to its word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// Reads it.
    Load,
    /// Writes it.
    Store,
    /// Reads and writes it in one step, whether or not it then has another value.
    ReadModifyWrite,
}

/// An access that is about to be made.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Where in the source.
    pub site: Site,
    /// The address of the word.
    pub address: usize,
    /// What is done to the word.
    pub kind: AccessKind,
}

std::thread_local! {
    /// Accesses of the call that is being observed, so far.
    static SEEN: Cell<usize> = const { Cell::new(0) };
    /// The access before which the action runs.
    static STOP: Cell<usize> = const { Cell::new(usize::MAX) };
    /// A reference to the action.
    static ACTION: Cell<*const ()> = const { Cell::new(ptr::null()) };
    /// The sites of a call that is being recorded.
    static RECORD: RefCell<Option<Vec<Site>>> = const { RefCell::new(None) };
    /// Whom to tell of each access.
    static OBSERVER: Cell<Option<fn(Access)>> = const { Cell::new(None) };
}

/// From here on `observer` is told of each access of this thread, before it is made; or nobody is. It may switch to another stack of the
/// same thread, on which others use the crate.
pub fn observe(observer: Option<fn(Access)>) {
    OBSERVER.set(observer);
}

/// Tells the observer of an access to `word`.
#[track_caller]
pub(crate) fn notice<T>(word: *const T, kind: AccessKind) {
    if let Some(observer) = OBSERVER.get() {
        observer(Access { site: Location::caller(), address: word.addr(), kind });
    }
}

/// Stands before every access to shared memory but statistics.
#[track_caller]
pub(crate) fn access<T>(word: *const T, kind: AccessKind) {
    notice(word, kind);
    point();
}

/// Stands before every access to shared memory, and every fence.
#[track_caller]
fn point() {
    let (seen, site) = (SEEN.get(), Location::caller());
    SEEN.set(seen + 1);
    RECORD.with_borrow_mut(|record| record.as_mut().map(|record| record.push(site)));
    if seen == STOP.get() {
        // SAFETY: `interrupted_at` stored a reference to an action that outlives the call in which we are.
        unsafe { (*ACTION.get().cast::<&dyn Fn()>())() };
    }
}

/// The sites of the accesses that `call` makes, in order.
pub fn recorded(call: impl FnOnce()) -> Vec<Site> {
    RECORD.set(Some(Vec::new()));
    call();
    RECORD.take().unwrap_or_default()
}

/// Makes `call` and runs `action` before its access number `stop`; whether it came so far. May be called in an action.
pub fn interrupted_at(stop: usize, call: impl FnOnce(), action: &dyn Fn()) -> bool {
    let landed = Cell::new(false);
    let once = || {
        landed.set(true);
        let (seen, stop) = (SEEN.get(), STOP.replace(usize::MAX));
        action();
        SEEN.set(seen);
        STOP.set(stop);
    };
    let once: &dyn Fn() = &once;
    let outer = (SEEN.replace(0), STOP.replace(stop), ACTION.replace((&raw const once).cast()));
    call();
    SEEN.set(outer.0);
    STOP.set(outer.1);
    ACTION.set(outer.2);
    landed.get()
}

/// What `core::sync::atomic` offers, as far as the crate uses it.
#[allow(dead_code, reason = "which of it is used depends on the features")]
pub(crate) mod atomic {
    use super::{AccessKind, access, point};
    pub(crate) use core::sync::atomic::Ordering;
    use core::{ptr, sync::atomic};

    /// A fence, with a point before it.
    #[track_caller]
    pub(crate) fn fence(ordering: Ordering) {
        point();
        atomic::fence(ordering);
    }

    macro_rules! with_points {
        ($name:ident, $value:ty) => {
            #[derive(Debug, Default)]
            #[repr(transparent)]
            pub(crate) struct $name(atomic::$name);

            impl $name {
                pub(crate) const fn new(value: $value) -> Self {
                    Self(atomic::$name::new(value))
                }

                with_points!(Load $value: load());
                with_points!(Store (): store(value: $value));
                with_points!(ReadModifyWrite $value: swap(value: $value));

                #[track_caller]
                pub(crate) fn compare_exchange(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    access(ptr::from_ref(self), AccessKind::ReadModifyWrite);
                    self.0.compare_exchange(current, new, success, failure)
                }

                #[track_caller]
                pub(crate) fn compare_exchange_weak(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    access(ptr::from_ref(self), AccessKind::ReadModifyWrite);
                    self.0.compare_exchange_weak(current, new, success, failure)
                }

                /// As core's: a load, and an exchange until it succeeds, each with its point.
                #[track_caller]
                pub(crate) fn fetch_update(
                    &self,
                    success: Ordering,
                    failure: Ordering,
                    mut update: impl FnMut($value) -> Option<$value>,
                ) -> Result<$value, $value> {
                    let mut seen = self.load(failure);
                    while let Some(new) = update(seen) {
                        match self.compare_exchange_weak(seen, new, success, failure) {
                            Ok(before) => return Ok(before),
                            Err(current) => seen = current,
                        }
                    }
                    Err(seen)
                }

                /// The word as the system takes it.
                pub(crate) fn as_core(&self) -> &atomic::$name {
                    &self.0
                }
            }
        };
        ($kind:ident $result:ty: $operation:ident($($argument:ident: $type:ty)?)) => {
            #[track_caller]
            pub(crate) fn $operation(&self, $($argument: $type,)? ordering: Ordering) -> $result {
                access(ptr::from_ref(self), AccessKind::$kind);
                self.0.$operation($($argument,)? ordering)
            }
        };
    }

    with_points!(AtomicBool, bool);
    with_points!(AtomicU32, u32);
    with_points!(AtomicU64, u64);

    macro_rules! with_arithmetic {
        ($name:ident, $value:ty) => {
            impl $name {
                with_points!(ReadModifyWrite $value: fetch_add(value: $value));
                with_points!(ReadModifyWrite $value: fetch_sub(value: $value));
                with_points!(ReadModifyWrite $value: fetch_and(value: $value));
                with_points!(ReadModifyWrite $value: fetch_or(value: $value));
            }
        };
    }

    with_arithmetic!(AtomicU32, u32);
    with_arithmetic!(AtomicU64, u64);
}

/// Words of statistics: an observer is told of them, and nobody stops there, since nothing branches on what they count.
pub(crate) mod statistics {
    use super::{AccessKind, notice};
    use core::{
        ptr,
        sync::atomic::{self, Ordering},
    };

    /// As core's.
    #[derive(Debug, Default)]
    #[repr(transparent)]
    pub(crate) struct AtomicU64(atomic::AtomicU64);

    impl AtomicU64 {
        pub(crate) const fn new(value: u64) -> Self {
            Self(atomic::AtomicU64::new(value))
        }
    }

    macro_rules! with_notice {
        ($($kind:ident $operation:ident($($argument:ident)?) -> $result:ty;)*) => {
            impl AtomicU64 {
                $(
                    #[track_caller]
                    #[allow(dead_code, reason = "which of it is used depends on the features")]
                    pub(crate) fn $operation(&self, $($argument: u64,)? ordering: Ordering) -> $result {
                        notice(ptr::from_ref(self), AccessKind::$kind);
                        self.0.$operation($($argument,)? ordering)
                    }
                )*
            }
        };
    }

    with_notice! {
        Load load() -> u64;
        Store store(value) -> ();
        ReadModifyWrite fetch_add(amount) -> u64;
        ReadModifyWrite fetch_sub(amount) -> u64;
        ReadModifyWrite fetch_max(value) -> u64;
    }
}
