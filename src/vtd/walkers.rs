//! Owns the knowledge who is walking the tables at this moment, so that a table frame that was unlinked is used again only when
//! nobody can be inside any more: mappers, unmappers and readers in threads and in interrupts alike (INV-10).
//!
//! # The words
//! ```text
//! clock: 1, 2, 3 ...   grows with every stamp
//! slot:  0 = free, otherwise what the clock said when the walk in it began
//! reach: the block of addresses for which the walk in the slot looks at tables; all of them unless it has said less
//! crowd: how many walks go on that have found no free slot
//! ```
//!
//! | event | order |
//! |---|---|
//! | Enter | read the clock; slot: 0 to what was read; full barrier; then reach, and the tables are read |
//! | Leave | reach: to all; slot: to 0 |
//! | Stamp | tables were unlinked; full barrier; clock + 1 is the stamp |
//! | Passed, for a block | every slot is 0, or not below the stamp, or its reach does not meet the block; and there is no crowd |
//!
//! # The argument
//! *Passed* returns true only if no walk is left that can have found one of the tables for addresses of the block that were unlinked before
//! *Stamp*. Take a walk that looks at tables of the block, and the last value of its slot that *Passed* may have read.
//! 1. The slot before *Enter*: the barriers of *Enter* and *Stamp* have an order. Were *Enter*'s first, *Passed* would have read what
//!    *Enter* wrote, or later. So *Stamp*'s is first, and the walk sees the tables unlinked.
//! 2. A clock not below the stamp: the walk has read it from the clock, which *Stamp* wrote after the unlinking. It sees the
//!    tables unlinked.
//! 3. The slot after *Leave*: the walk is over, and *Leave* orders its accesses before whatever follows *Passed*.
//! 4. What the walk itself has put into its slot: the reach that *Passed* reads next is then all, or the walk's own, which meets the
//!    block, since *Leave* of the walk before was seen with the slot; or that of a later walk in the slot, and then this one is over,
//!    as in 3. Its reach may be seen late: until then it counts as all.
//!
//! Nobody waits: a walk that is stopped in the middle keeps the tables of its reach from coming back, nothing else (INV-3). Which slot a walk gets is
//! a matter of speed; a walk that finds none is counted in the crowd, and while there is one nothing passes.
//!
//! Source: epoch-based reclamation (K. Fraser, Practical lock-freedom, 2004, section 5.2.3), with claimed slots instead of
//! registered threads, since an interrupt cannot register.

use super::page_block::PageBlock;
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
    slots: [CachePadded<Slot>; SLOTS],
    /// How many of the slots are used.
    used: usize,
    /// Which of them are looked at first: as many as the largest power of two of those that are used.
    first_mask: usize,
}

/// One walk at a time.
struct Slot {
    began: AtomicU64,
    /// A block as a word.
    reach: AtomicU64,
}

/// A moment after which tables were unlinked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp(u64);

/// A walk in progress: while it lives, no table that it may find is used for anything else.
#[must_use]
pub(crate) struct Walk<'w> {
    walkers: &'w Walkers,
    /// The slot, or none for one of the crowd.
    slot: Option<&'w Slot>,
}

impl Walkers {
    /// Nobody walks; up to `slots` walks get a slot.
    pub(crate) fn new(slots: usize) -> Self {
        let used = slots.min(SLOTS);
        Self {
            clock: CachePadded::new(AtomicU64::new(1)),
            crowd: CachePadded::new(AtomicU64::new(0)),
            slots: array::from_fn(|_| CachePadded::new(Slot::new())),
            used,
            first_mask: used.checked_ilog2().map_or(0, |bits| (1 << bits) - 1),
        }
    }

    fn used(&self) -> &[CachePadded<Slot>] {
        self.slots.get(..self.used).unwrap_or_default()
    }

    /// Begins a walk that looks at tables for addresses of `reach` only. Wait-free: one exchange, and one more for each slot that is
    /// found taken.
    #[inline(always)]
    pub(crate) fn enter(&self, reach: PageBlock) -> Walk<'_> {
        // Ordering: Acquire pairs with the Release of `stamp`: what was unlinked before a stamp is not found by a walk that has
        // read it.
        let now = self.clock.load(Ordering::Acquire);
        let first = first_slot() & self.first_mask;
        match self.slots.get(first) {
            Some(slot) if first < self.used && occupy(&slot.began, now) => {
                slot.narrow(reach);
                Walk { walkers: self, slot: Some(slot) }
            }
            _ => self.enter_elsewhere(first, now, reach),
        }
    }

    /// Begins a walk in a slot other than `taken`.
    #[cold]
    fn enter_elsewhere(&self, taken: usize, now: u64, reach: PageBlock) -> Walk<'_> {
        let (before, from) = self.used().split_at(taken.min(self.used));
        for slot in from.iter().skip(1).chain(before) {
            // Ordering: Relaxed; saves an exchange that cannot succeed.
            if slot.began.load(Ordering::Relaxed) == 0 && occupy(&slot.began, now) {
                slot.narrow(reach);
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

    /// Whether every walk that began before `stamp` and reaches into `block` is over, the caller's `own` not counted. Bound: the slots.
    pub(crate) fn passed(&self, stamp: Stamp, block: PageBlock, own: Option<&Walk<'_>>) -> bool {
        let is_own = |slot: &Slot| own.and_then(|walk| walk.slot).is_some_and(|own| core::ptr::eq(own, slot));
        let own_crowd = u64::from(own.is_some_and(|walk| walk.slot.is_none()));
        // Ordering: Acquire pairs with the Release of `Walk::drop`: what a walk did in the tables is over before whatever follows.
        // Every change of the crowd is a read-modify-write, so the last one stands for all.
        self.crowd.load(Ordering::Acquire) == own_crowd
            && self.used().iter().all(|slot| {
                // Ordering: Acquire, as above; the exchange of the next walk continues the release sequence.
                let began = slot.began.load(Ordering::Acquire);
                began == 0 || began >= stamp.0 || !slot.reach().meets(block) || is_own(slot)
            })
    }
}

impl Slot {
    fn new() -> Self {
        Self { began: AtomicU64::new(0), reach: AtomicU64::new(PageBlock::ALL.to_word()) }
    }

    /// The walk in the slot, which is the caller's, looks at tables for addresses of `reach` only.
    #[inline]
    fn narrow(&self, reach: PageBlock) {
        if reach.mask() < PageBlock::ALL.mask() {
            // Ordering: Release, to the Acquire of `reach`: whoever reads it finds the walks before over.
            self.reach.store(reach.to_word(), Ordering::Release);
        }
    }

    fn reach(&self) -> PageBlock {
        // Ordering: Acquire pairs with the Release of `narrow`: the reach may be that of a later walk than was read from `began`, and
        // then that one is over before whatever follows.
        PageBlock::from_word(self.reach.load(Ordering::Acquire))
    }
}

/// Where a context looks for a free slot first, before the mask.
#[inline(always)]
fn first_slot() -> usize {
    /// 2⁶⁴ divided by the golden ratio (Knuth, The Art of Computer Programming, volume 3, section 6.4): spreads neighbours.
    const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
    ((context() as u64).wrapping_mul(SPREAD) >> (u64::BITS - SLOTS.trailing_zeros())) as usize
}

impl Drop for Walk<'_> {
    #[inline]
    fn drop(&mut self) {
        // Ordering: Release, to the Acquire in `passed`: what the walk did in the tables is over. The reach is Relaxed: whoever finds the
        // next walk in the slot finds it widened before.
        match self.slot {
            Some(slot) => {
                slot.reach.store(PageBlock::ALL.to_word(), Ordering::Relaxed);
                slot.began.store(0, Ordering::Release);
            }
            None => drop(self.walkers.crowd.fetch_sub(1, Ordering::Release)),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::vtd::Iova;

    const ALL: PageBlock = PageBlock::ALL;

    fn page(number: u64) -> PageBlock {
        PageBlock::new(Iova::new(number << 12), 0).unwrap()
    }

    #[test]
    fn a_walk_holds_back_the_stamps_that_came_after_it_began() {
        let walkers = Walkers::new(2);
        let before = walkers.stamp();
        let walk = walkers.enter(ALL);
        assert!(walkers.passed(before, ALL, None), "the walk began after that");
        let during = walkers.stamp();
        let (second, third) = (walkers.enter(ALL), walkers.enter(ALL));
        assert!(!walkers.passed(before, ALL, Some(&walk)), "a crowd holds everything back");
        drop(third);
        assert!(walkers.passed(before, ALL, None) && !walkers.passed(during, ALL, None));
        assert!(walkers.passed(during, ALL, Some(&walk)), "the caller's own walk is its own business");
        drop(walk);
        assert!(walkers.passed(during, ALL, None), "the second began after the stamp");
        let last = walkers.stamp();
        assert!(!walkers.passed(last, ALL, None));
        drop(second);
        assert!(walkers.passed(last, ALL, None));
    }

    #[test]
    fn a_walk_holds_back_what_it_reaches_only() {
        let walkers = Walkers::new(2);
        let walk = walkers.enter(page(5));
        let stamp = walkers.stamp();
        let around = PageBlock::new(Iova::new(0), 9).unwrap();
        for (block, held) in [(page(4), false), (page(5), true), (around, true), (ALL, true)] {
            assert_eq!(walkers.passed(stamp, block, None), !held, "{block:?}");
        }
        drop(walk);
        let wide = walkers.enter(ALL);
        let stamp = walkers.stamp();
        assert!(!walkers.passed(stamp, page(4), None), "the next walk in the slot reaches what it says");
        drop(wide);
        assert!(walkers.passed(stamp, ALL, None));
    }

    #[test]
    fn without_slots_all_are_a_crowd() {
        let walkers = Walkers::new(0);
        let walk = walkers.enter(page(1));
        let stamp = walkers.stamp();
        assert!(!walkers.passed(stamp, page(2), None) && walkers.passed(stamp, ALL, Some(&walk)));
        drop(walk);
        assert!(walkers.passed(stamp, ALL, None));
    }
}
