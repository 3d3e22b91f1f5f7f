//! What the host is asked for besides memory: which CPU this is, and to wake whoever maintains the pool.

#[cfg(feature = "std")]
use crate::raw::doorbell::Doorbell;
use crate::raw::slot::SlotOwnership;

#[cfg(feature = "std")]
pub(crate) mod linux;
#[cfg(all(feature = "std", not(loom)))]
pub(crate) mod threads;

#[cfg(feature = "std")]
pub use linux::LinuxPlatform;

/// The host under a pool.
///
/// ```
/// use core::sync::atomic::{AtomicBool, Ordering};
/// use framepool::{Claim, Platform};
///
/// /// A kernel with one CPU that maintains its pools from an idle loop.
/// struct Unikernel {
///     refill_wanted: AtomicBool,
/// }
///
/// impl Platform for Unikernel {
///     type Ownership = Claim;
///     fn ownership(&self) -> &Claim {
///         &Claim
///     }
///     fn current_cpu(&self) -> usize {
///         0
///     }
///     fn ring(&self) {
///         self.refill_wanted.store(true, Ordering::Release);
///     }
/// }
/// ```
pub trait Platform: Sync {
    /// How this host gives code exclusive use of a CPU's cache.
    type Ownership: SlotOwnership;

    /// The way chosen above.
    ///
    /// From any context in which the pool is called; must not sleep, lock or panic.
    fn ownership(&self) -> &Self::Ownership;

    /// The number of the CPU that runs this code, as a hint: a wrong or stale number costs speed, never correctness
    /// (R3). Called from any context in which the pool is; must not sleep, lock or panic.
    fn current_cpu(&self) -> usize;

    /// The number of the depot that is near the CPU `cpu`, in a pool with several ([`Builder::depots`](crate::Builder::depots)): that of its
    /// last-level cache, or of its node; numbers beyond the depots share them. A hint like the CPU itself. As provided: none, and CPUs
    /// with neighbouring numbers share a depot.
    ///
    /// From any context in which the pool is called; must not sleep, lock or panic.
    fn depot_near(&self, cpu: usize) -> Option<usize> {
        let _ = cpu;
        None
    }

    /// Gets [`maintain`](crate::FramePool::maintain) called soon, by a context that may sleep. The doorbell: the only
    /// thing that the pool ever does towards a sleeper, from any context in which the pool is called, at most once for
    /// each crossing of a watermark until the pool has been maintained, and at most once for callers that wait until they
    /// have been served. What was done before the ring must be visible to the pass that answers it. Must not sleep, lock
    /// or panic.
    fn ring(&self);
}

/// A host on which a worker thread answers the bell that the pool rings, as [`Builder::start_on`](crate::Builder::start_on) starts it.
#[cfg(feature = "std")]
pub trait DoorbellPlatform: Platform + Send + Sync + 'static {
    /// The bell that [`ring`](Platform::ring) rings.
    fn doorbell(&self) -> &Doorbell;

    /// How many caches a pool has beside those of the CPUs.
    fn extra_caches(&self) -> usize;
}
