//! Tier 5: one non-sleeping request to the host, the unreliable last resort; whoever finds nothing here gets an error.

use crate::sync::{
    atomic::{AtomicU32, Ordering},
    counter,
};

/// Whether, and how often, an empty pool asks the host for a frame that it must have at once (R6).
///
/// ```
/// # #[cfg(feature = "std")] {
/// # use framepool::{AllocError, AnonymousMemory, Builder, FallbackPolicy, LinuxPlatform, Watermarks};
/// let marks = Watermarks { min: 0, low: 0, high: 0, max: 0 };
/// let builder = Builder::new(8).watermarks(marks).fallback(FallbackPolicy::Budget(1));
/// let pool = builder.build(AnonymousMemory::new(8)?, LinuxPlatform::new())?;
/// let first = pool.alloc()?; // the pool is empty: from the host
/// assert_eq!(pool.alloc().err(), Some(AllocError::FallbackFailed), "no more before the next pass");
/// assert_eq!((pool.stats().fallback_taken, pool.stats().fallback_failed), (1, 1));
/// # drop(first);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallbackPolicy {
    /// Never: the pool alone serves.
    Never,
    /// Whenever a caller allows it.
    Always,
    /// As `Always`, but at most so many times between two passes of the worker: a pool that is asked too much must not eat
    /// the memory that the host keeps for emergencies.
    Budget(u32),
}

/// The fallback's policy, what is left of its budget, and its counts.
#[derive(Debug)]
pub(crate) struct Fallback {
    policy: FallbackPolicy,
    budget: AtomicU32,
    pub(crate) taken: counter::Shared,
    pub(crate) failed: counter::Shared,
}

impl Fallback {
    pub(crate) fn new(policy: FallbackPolicy) -> Self {
        let fallback = Self {
            policy,
            budget: AtomicU32::new(0),
            taken: counter::Shared::new(),
            failed: counter::Shared::new(),
        };
        fallback.renew();
        fallback
    }

    /// Whether the policy ever asks the host.
    pub(crate) fn is_allowed(&self) -> bool {
        self.policy != FallbackPolicy::Never
    }

    /// Spends one request; whether there was one left.
    pub(crate) fn spend(&self) -> bool {
        match self.policy {
            FallbackPolicy::Never => false,
            FallbackPolicy::Always => true,
            // Ordering: Relaxed; the budget limits itself and publishes nothing.
            FallbackPolicy::Budget(_) => self
                .budget
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .is_ok(),
        }
    }

    /// The worker has passed: the whole budget is there again.
    pub(crate) fn renew(&self) {
        if let FallbackPolicy::Budget(requests) = self.policy {
            // Ordering: Relaxed; as in `spend`. A request that is being spent meanwhile may be counted to either pass.
            self.budget.store(requests, Ordering::Relaxed);
        }
    }
}
