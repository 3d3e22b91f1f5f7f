//! A moment in which no CPU's cache is in use: for closing, and for whoever has to see every frame in its place.

use super::{FramePool, cache::Cache};
use crate::{
    platform::Platform,
    raw::magazine::Kind,
    source::FrameSource,
    sync::{atomic::Ordering, wait_hint},
};

/// How often to look again at a slot in which an operation is in progress.
pub(super) const PATIENCE: u32 = 1 << 16;

/// All slots of a pool that its owner has shut, and the sign at the door that says so. Ends when it is dropped, also when
/// the source panics: slots that are still shut are opened with what they hold.
///
/// Begun by the context that has the pool's turn, hence once at a time.
pub(super) struct Standstill<'p, S: FrameSource, P: Platform> {
    pool: &'p FramePool<S, P>,
    /// Slots that are shut, from the first one on.
    dirty: usize,
    clean: usize,
}

impl<'p, S: FrameSource, P: Platform> Standstill<'p, S, P> {
    /// Puts up the sign: from here on allocations that miss fail.
    pub(super) fn begin(pool: &'p FramePool<S, P>) -> Self {
        // Ordering: Release; pairs with the Acquire in `is_closing`.
        pool.closing.store(true, Ordering::Release);
        Self { pool, dirty: 0, clean: 0 }
    }

    /// Shuts every slot, waiting for operations in progress there; how many frames they hold, or nothing if one is used too
    /// long.
    pub(super) fn shut_all(&mut self) -> Option<u32> {
        let (pool, mut frames) = (self.pool, 0u32);
        for (cache, shut) in [(&pool.cache, &mut self.dirty), (&pool.clean_cache, &mut self.clean)] {
            while *shut < cache.slots() {
                frames = frames.saturating_add(pool.shut_patiently(cache, *shut)?);
                *shut += 1;
            }
        }
        Some(frames)
    }

    /// Moves the magazines of all slots into the depot, and opens the slots without them.
    pub(super) fn drain_all(&mut self) {
        for (kind, shut) in [(Kind::Dirty, &mut self.dirty), (Kind::Clean, &mut self.clean)] {
            while let Some(last) = shut.checked_sub(1) {
                *shut = last;
                self.pool.drain_shut(kind, last);
            }
        }
    }
}

impl<S: FrameSource, P: Platform> Drop for Standstill<'_, S, P> {
    fn drop(&mut self) {
        for (cache, shut) in [(&self.pool.cache, self.dirty), (&self.pool.clean_cache, self.clean)] {
            for cpu in 0..shut {
                cache.reopen(&self.pool.platform, cpu, |magazine| magazine);
            }
        }
        // Ordering: Release; as in `begin`.
        self.pool.closing.store(false, Ordering::Release);
    }
}

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    /// Shuts one slot, waiting for an operation that is in progress there, for a bounded time; how many frames it holds.
    pub(super) fn shut_patiently(&self, cache: &Cache, cpu: usize) -> Option<u32> {
        for _ in 0..PATIENCE {
            if let Some(frames) = cache.shut(&self.platform, cpu) {
                return Some(frames);
            }
            wait_hint();
        }
        None
    }
}
