//! A pool in a static: the place is there when the program begins, the pool from [`StaticPool::init`] on.

use super::FramePool;
use crate::{platform::Platform, raw::place::Place, source::FrameSource};

/// A place for a pool, made by `const`: for kernels, whose handlers find what they need in statics.
///
/// ```
/// use core::mem::MaybeUninit;
/// use framepool::{Builder, Claim, FixedRegion, Platform, StaticPool};
///
/// struct Kernel;
/// impl Platform for Kernel {
///     type Ownership = Claim;
///     fn ownership(&self) -> &Claim {
///         &Claim
///     }
///     fn current_cpu(&self) -> usize {
///         0
///     }
///     fn ring(&self) {}
/// }
///
/// static POOL: StaticPool<FixedRegion, Kernel> = StaticPool::new();
///
/// // An interrupt handler, which may run before there is a pool:
/// fn handler() -> bool {
///     POOL.get().is_some_and(|pool| pool.alloc().is_ok())
/// }
///
/// assert!(!handler());
/// let memory: &'static mut [MaybeUninit<u8>] = Box::leak(Box::new_uninit_slice(80 * 4096));
/// let bookkeeping: &'static mut [MaybeUninit<u8>] = Box::leak(Box::new_uninit_slice(1 << 16));
/// let pool = Builder::new(64).cpus(1).build_in(bookkeeping, FixedRegion::new(memory)?, Kernel)?;
/// assert!(POOL.init(pool).is_ok());
/// assert!(handler());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct StaticPool<S: FrameSource, P: Platform> {
    place: Place<FramePool<S, P>>,
}

impl<S: FrameSource, P: Platform> Default for StaticPool<S, P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: FrameSource, P: Platform> StaticPool<S, P> {
    /// A place without a pool.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self { place: Place::new() }
    }

    /// A place without a pool.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self { place: Place::new() }
    }

    /// Puts the pool here, for good. From any context; wait-free.
    /// At most 430 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// The pool comes back if there is one here, or somebody is putting one here at this moment.
    #[allow(clippy::result_large_err, reason = "what was given comes back, without a heap to put it on")]
    pub fn init(&self, pool: FramePool<S, P>) -> Result<&FramePool<S, P>, FramePool<S, P>> {
        self.place.fill(pool)
    }

    /// The pool, from [`init`](Self::init) on. From any context; one load.
    #[inline]
    pub fn get(&self) -> Option<&FramePool<S, P>> {
        self.place.get()
    }
}
