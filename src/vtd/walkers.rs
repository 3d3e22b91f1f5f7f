//! Owns the knowledge who is walking the tables at this moment, so that a table frame that was unlinked is used again only when
//! nobody can be inside any more: mappers, unmappers and readers in threads and in interrupts alike (INV-10).
//!
//! # The words
//! ```text
//! clock: 1, 2, 3 ...   grows with every stamp
//! slot:  0 = free, otherwise what the clock said when the walk in it began
//! crowd: how many walks go on that have found no free slot
//! ```
//!
//! | event | order |
//! |---|---|
//! | Enter | read the clock; slot: 0 to what was read; full barrier; then the tables are read |
//! | Leave | slot: to 0 |
//! | Stamp | tables were unlinked; full barrier; clock + 1 is the stamp |
//! | Passed | every slot is 0 or not below the stamp, and there is no crowd |
//!
//! # The argument
//! *Passed* returns true only if no walk is left that can have found one of the tables that were unlinked before *Stamp*. Take a
//! walk, and the last value of its slot that *Passed* may have read.
//! 1. The slot before *Enter*: the barriers of *Enter* and *Stamp* have an order. Were *Enter*'s first, *Passed* would have read what
//!    *Enter* wrote, or later. So *Stamp*'s is first, and the walk sees the tables unlinked.
//! 2. A clock not below the stamp: the walk has read it from the clock, which *Stamp* wrote after the unlinking. It sees the
//!    tables unlinked.
//! 3. The slot after *Leave*: the walk is over, and *Leave* orders its accesses before whatever follows *Passed*.
//!
//! Nobody waits: a walk that is stopped in the middle keeps frames from coming back, nothing else (INV-3). Which slot a walk gets is
//! a matter of speed; a walk that finds none is counted in the crowd, and while there is one nothing passes.
//!
//! Source: epoch-based reclamation (K. Fraser, Practical lock-freedom, 2004, section 5.2.3), with claimed slots instead of
//! registered threads, since an interrupt cannot register.

use crate::sync::{
    atomic::{AtomicU64, Ordering, fence},
    context, occupy,
};
use core::array;
use crossbeam_utils::CachePadded;

/// How many walks have a slot of their own at most.
pub(crate) const SLOTS: usize = 16;

/// Who is walking.
pub(crate) struct Walkers {
    clock: CachePadded<AtomicU64>,
    crowd: CachePadded<AtomicU64>,
    slots: [CachePadded<AtomicU64>; SLOTS],
    /// How many of the slots are used.
    used: usize,
}

/// A moment after which tables were unlinked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp(u64);

/// A walk in progress: while it lives, no table that it may find is used for anything else.
#[must_use]
pub(crate) struct Walk<'w> {
    walkers: &'w Walkers,
    /// The slot, or none for one of the crowd.
    slot: Option<&'w AtomicU64>,
}

impl Walkers {
    /// Nobody walks; up to `slots` walks get a slot.
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            clock: CachePadded::new(AtomicU64::new(1)),
            crowd: CachePadded::new(AtomicU64::new(0)),
            slots: array::from_fn(|_| CachePadded::new(AtomicU64::new(0))),
            used: slots.min(SLOTS),
        }
    }

    fn used(&self) -> &[CachePadded<AtomicU64>] {
        self.slots.get(..self.used).unwrap_or_default()
    }

    /// Begins a walk. Wait-free: one exchange, and one more for each slot that is found taken.
    #[inline]
    pub(crate) fn enter(&self) -> Walk<'_> {
        // Ordering: Acquire pairs with the Release of `stamp`: what was unlinked before a stamp is not found by a walk that has
        // read it.
        let now = self.clock.load(Ordering::Acquire);
        let (before, from) = self.used().split_at(first_slot(self.used));
        for slot in from.iter().chain(before) {
            // Ordering: Relaxed; saves an exchange that cannot succeed.
            if slot.load(Ordering::Relaxed) == 0 && occupy(slot, now) {
                return Walk { walkers: self, slot: Some(slot) };
            }
        }
        self.enter_crowd()
    }

    #[cold]
    fn enter_crowd(&self) -> Walk<'_> {
        // Ordering: Relaxed; the fence below orders it before the walk.
        self.crowd.fetch_add(1, Ordering::Relaxed);
        // Ordering: SeqCst; the partner is the fence in `stamp`, as for `occupy`.
        fence(Ordering::SeqCst);
        Walk { walkers: self, slot: None }
    }

    /// The moment: tables that the caller, or those from whom it has them, unlinked are not found by walks that begin from now on.
    pub(crate) fn stamp(&self) -> Stamp {
        // Ordering: SeqCst; orders the unlinking before the look at the slots in `passed`; the partner is the barrier of `enter`.
        fence(Ordering::SeqCst);
        // Ordering: AcqRel: Release publishes the unlinking to the Acquire of `enter`; Acquire, so that it also stands for what
        // was before earlier stamps.
        Stamp(self.clock.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// Whether every walk that began before `stamp` is over, the caller's own `walk` not counted. Bound: the slots.
    pub(crate) fn passed(&self, stamp: Stamp, own: Option<&Walk<'_>>) -> bool {
        let is_own =
            |slot: &AtomicU64| own.and_then(|walk| walk.slot).is_some_and(|own| core::ptr::eq(own, slot));
        let own_crowd = u64::from(own.is_some_and(|walk| walk.slot.is_none()));
        // Ordering: Acquire pairs with the Release of `Walk::drop`: what a walk did in the tables is over before whatever follows.
        // Every change of the crowd is a read-modify-write, so the last one stands for all.
        self.crowd.load(Ordering::Acquire) == own_crowd
            && self.used().iter().all(|slot| {
                // Ordering: Acquire, as above; the exchange of the next walk continues the release sequence.
                let began = slot.load(Ordering::Acquire);
                began == 0 || began >= stamp.0 || is_own(slot)
            })
    }
}

/// Where a context looks for a free slot first.
#[inline(always)]
fn first_slot(slots: usize) -> usize {
    /// 2⁶⁴ divided by the golden ratio (Knuth, The Art of Computer Programming, volume 3, section 6.4): spreads neighbours.
    const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
    let spread = (context() as u64).wrapping_mul(SPREAD) >> 32;
    (spread as usize).checked_rem(slots).unwrap_or(0)
}

impl Drop for Walk<'_> {
    #[inline]
    fn drop(&mut self) {
        // Ordering: Release, to the Acquire in `passed`: what the walk did in the tables is over.
        match self.slot {
            Some(slot) => slot.store(0, Ordering::Release),
            None => drop(self.walkers.crowd.fetch_sub(1, Ordering::Release)),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_walk_holds_back_the_stamps_that_came_after_it_began() {
        let walkers = Walkers::new(2);
        let before = walkers.stamp();
        let walk = walkers.enter();
        assert!(walkers.passed(before, None), "the walk began after that");
        let during = walkers.stamp();
        let (second, third) = (walkers.enter(), walkers.enter());
        assert!(!walkers.passed(before, Some(&walk)), "a crowd holds everything back");
        drop(third);
        assert!(walkers.passed(before, None) && !walkers.passed(during, None));
        assert!(walkers.passed(during, Some(&walk)), "the caller's own walk is its own business");
        drop(walk);
        assert!(walkers.passed(during, None), "the second began after the stamp");
        let last = walkers.stamp();
        assert!(!walkers.passed(last, None));
        drop(second);
        assert!(walkers.passed(last, None));
    }

    #[test]
    fn without_slots_all_are_a_crowd() {
        let walkers = Walkers::new(0);
        let walk = walkers.enter();
        let stamp = walkers.stamp();
        assert!(!walkers.passed(stamp, None) && walkers.passed(stamp, Some(&walk)));
        drop(walk);
        assert!(walkers.passed(stamp, None));
    }
}
