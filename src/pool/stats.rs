//! What the pool tells about itself; no path of the pool reads it back (R15).

use super::FramePool;
use crate::{platform::Platform, source::FrameSource};
use core::fmt;

/// A snapshot of a pool's state and counters, in frames or in events.
///
/// Exact when no operation is in progress; approximate by the frames in their hands otherwise. Taking it reads one word
/// and two counters for each CPU. With the feature `serde` it can be serialized, field by field.
///
/// ```
/// # #[cfg(feature = "std")] {
/// # use framepool::{AnonymousMemory, Builder};
/// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
/// let frame = pool.alloc()?;
/// let stats = pool.stats();
/// assert_eq!((stats.in_use, stats.exhausted), (1, 0));
/// println!("{stats}"); // every figure with its name
/// # drop(frame);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Stats {
    /// Frames that the pool may own.
    pub capacity: u64,
    /// Frames that the pool owns: in it or out.
    pub owned: u64,
    /// Frames that are out: owned, and not in the caches, the stock or the overflow, nor promised. A frame in the hands of an operation
    /// in progress, or of the worker in its pass, is among them.
    pub in_use: u64,
    /// The most frames in use that a snapshot or a pass of the worker has seen.
    pub in_use_peak: u64,
    /// Frames in the caches of the CPUs.
    pub cached: u64,
    /// Frames in the shared stock: depot and reserve. What the watermarks are compared with.
    pub stock: u64,
    /// Frames in the reserve, of those in the stock.
    pub reserve: u64,
    /// Frames waiting in the overflow, for want of a magazine.
    pub overflow: u64,
    /// Frames on their way to callers that wait, or gathered for one that waits for more.
    pub promised: u64,
    /// Callers that wait.
    pub waiters: u64,
    /// Callers that have ever had to wait.
    pub waits: u64,
    /// Frames known to be zero, of those in the caches and the stock.
    pub clean: u64,
    /// Allocations served by the CPU's own cache (tier 1).
    pub cache_hits: u64,
    /// Allocations served by the depot (tier 2).
    pub depot_hits: u64,
    /// Allocations served from another CPU's cache (tier 3).
    pub steals: u64,
    /// Allocations served by the reserve (tier 4).
    pub reserve_hits: u64,
    /// Frames that left the depot in whole magazines for reservations; those taken one by one count in their tiers.
    pub reserved: u64,
    /// Allocations served by the host at once (tier 5).
    pub fallback_taken: u64,
    /// Requests to the host that brought nothing: it had none, the budget was used up, or the pool was at its capacity.
    pub fallback_failed: u64,
    /// Allocations that failed.
    pub exhausted: u64,
    /// Allocations of zeroed frames for which nothing had to be cleared.
    pub zeroed_hits: u64,
    /// Allocations of zeroed frames that cleared a dirty one themselves.
    pub cleared_inline: u64,
    /// Frames that the worker cleared before anybody asked.
    pub cleared_ahead: u64,
    /// Frames that came back.
    pub freed: u64,
    /// Passes of the worker that fetched frames.
    pub refills: u64,
    /// Frames that the worker fetched, the initial fill included.
    pub refilled: u64,
    /// Requests of the worker that the source refused.
    pub source_failures: u64,
    /// Panics of the source, or of a waker, that the worker thread survived; it leaves the source alone as after a failure. A panic in
    /// [`maintain`](FramePool::maintain) called by hand reaches the caller and is not counted.
    pub source_panics: u64,
    /// Frames that the source handed out and the pool did not take in: misaligned, out of its window, beyond the address
    /// limit, or twice.
    pub refused: u64,
    /// Misuses that were found, with the feature `hardened`; see `Builder::on_misuse`.
    pub misuses: u64,
    /// Frames that the pool owns and hands out to nobody any more, because somebody may still use them; with the feature
    /// `hardened`. They count as out when the pool is closed.
    pub quarantined: u64,
    /// Frames that the worker gave back to the source.
    pub trimmed: u64,
    /// Frames that the worker moved from the caches of idle CPUs to the depot.
    pub decayed: u64,
    /// How often the doorbell was rung.
    pub rings: u64,
    /// Operations that found their CPU's cache in use by the code they interrupted, and went to the depot.
    pub collisions: u64,
    /// Table frames that were given up because an invalidation was dropped instead of completed.
    pub table_frames_leaked: u64,
}

impl Stats {
    /// Every figure with its name, in the order of the fields: for reports.
    pub const fn figures(&self) -> [(&'static str, u64); 36] {
        [
            ("capacity", self.capacity),
            ("owned", self.owned),
            ("in_use", self.in_use),
            ("in_use_peak", self.in_use_peak),
            ("cached", self.cached),
            ("stock", self.stock),
            ("reserve", self.reserve),
            ("overflow", self.overflow),
            ("promised", self.promised),
            ("waiters", self.waiters),
            ("waits", self.waits),
            ("clean", self.clean),
            ("cache_hits", self.cache_hits),
            ("depot_hits", self.depot_hits),
            ("steals", self.steals),
            ("reserve_hits", self.reserve_hits),
            ("reserved", self.reserved),
            ("fallback_taken", self.fallback_taken),
            ("fallback_failed", self.fallback_failed),
            ("exhausted", self.exhausted),
            ("zeroed_hits", self.zeroed_hits),
            ("cleared_inline", self.cleared_inline),
            ("cleared_ahead", self.cleared_ahead),
            ("freed", self.freed),
            ("refills", self.refills),
            ("refilled", self.refilled),
            ("source_failures", self.source_failures),
            ("source_panics", self.source_panics),
            ("refused", self.refused),
            ("misuses", self.misuses),
            ("quarantined", self.quarantined),
            ("trimmed", self.trimmed),
            ("decayed", self.decayed),
            ("rings", self.rings),
            ("collisions", self.collisions),
            ("table_frames_leaked", self.table_frames_leaked),
        ]
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.figures() {
            writeln!(formatter, "{name:<20} {value:>12}")?;
        }
        Ok(())
    }
}

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    /// A snapshot of the pool's state and counters.
    ///
    /// From thread and interrupt context; bounded by the number of CPUs. Exact when no operation is in progress.
    /// At most 640 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    pub fn stats(&self) -> Stats {
        let dirty = self.cache.totals();
        let clean = self.clean_cache.totals();
        let counters = &self.counters;
        let reserve = u64::from(self.reserve.target().saturating_sub(self.wanted.missing()));
        let overflow = counters.overflowed.get().saturating_sub(counters.recovered.get());
        let fill = self.depots.fill();
        let stock = u64::from(fill.frames) + reserve;
        let cached = dirty.frames + clean.frames;
        let owned = u64::from(self.door.owned());
        let promised = self.waiters.frames();
        #[cfg(feature = "hardened")]
        let quarantined = counters.quarantined.get();
        #[cfg(not(feature = "hardened"))]
        let quarantined = 0;
        let in_use = owned.saturating_sub(cached + stock + overflow + promised + quarantined);
        counters.in_use_peak.raise_to(in_use);
        Stats {
            capacity: u64::from(self.door.capacity()),
            owned,
            in_use,
            in_use_peak: counters.in_use_peak.get(),
            cached,
            stock,
            reserve,
            overflow,
            promised,
            waiters: self.waiters.waiting(),
            waits: self.waiters.joined(),
            clean: u64::from(fill.clean) + clean.frames,
            cache_hits: dirty.popped + clean.popped,
            depot_hits: self.depots.hits(),
            steals: counters.steals.get(),
            reserve_hits: counters.reserve_hits.get(),
            reserved: counters.reserved.get(),
            fallback_taken: self.fallback.taken.get(),
            fallback_failed: self.fallback.failed.get(),
            exhausted: counters.exhausted.get(),
            zeroed_hits: clean.popped + counters.zeroed_below.get(),
            cleared_inline: counters.cleared_inline.get(),
            cleared_ahead: counters.cleared_ahead.get(),
            freed: dirty.pushed + clean.pushed + self.depots.freed(),
            refills: counters.refills.get(),
            refilled: counters.refilled.get(),
            source_failures: counters.source_failures.get(),
            source_panics: counters.source_panics.get(),
            refused: self.door.refused(),
            #[cfg(feature = "hardened")]
            misuses: counters.misuses.get(),
            #[cfg(not(feature = "hardened"))]
            misuses: 0,
            quarantined,
            trimmed: counters.trimmed.get(),
            decayed: counters.decayed.get(),
            rings: counters.rings.get(),
            collisions: counters.collisions.get(),
            #[cfg(feature = "vtd")]
            table_frames_leaked: counters.table_frames_leaked.get(),
            #[cfg(not(feature = "vtd"))]
            table_frames_leaked: 0,
        }
    }
}
