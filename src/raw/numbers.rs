//! Owns the stock of a source of our own: numbers never handed out yet, and numbers that came back.

use super::{arena::Carved, stack::TaggedStack};
use crate::sync::atomic::{AtomicU32, Ordering};

/// A lock-free stock of the numbers below the length of its links.
#[derive(Debug)]
pub(crate) struct Numbers {
    fresh: AtomicU32,
    limit: u32,
    returned: TaggedStack,
}

impl Numbers {
    /// All numbers below `limit`, which is at most the length of `links`.
    pub(crate) fn new(limit: u32, links: Carved<AtomicU32>) -> Self {
        Self { fresh: AtomicU32::new(0), limit, returned: TaggedStack::new(links) }
    }

    /// Takes a number: one that came back, otherwise the lowest fresh one. Lock-free, from any context.
    pub(crate) fn take(&self) -> Option<u32> {
        self.returned.pop().or_else(|| {
            // Ordering: Relaxed; a fresh number carries no history that its taker would have to see.
            let next = |fresh| if fresh < self.limit { Some(fresh + 1) } else { None };
            self.fresh.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()
        })
    }

    /// Gives a number back. Lock-free, from any context.
    pub(crate) fn give(&self, number: u32) {
        self.returned.push(number);
    }
}
