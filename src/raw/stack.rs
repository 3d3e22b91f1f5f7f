//! Owns the links and the tag of a Treiber stack of indices; what an index stands for is the caller's business.
//!
//! # The word
//! ```text
//! head:  63 ........ 32 | 31 ......... 0
//!              tag      | index of the top, NIL = empty
//! ```
//! The tag grows by one with every pop and every push, so that a head which was read before an interruption is never
//! mistaken for the same index that has meanwhile been popped and pushed again (ABA):
//!
//! | without the tag | this context | the code that interrupts it |
//! |---|---|---|
//! | 1 | reads head = A, link of A = B | |
//! | 2 | | pops A, pops B, pushes A |
//! | 3 | head is A again: installs B, which is not on the stack | |
//!
//! With the tag, step 3 finds the tag three further and starts over. The tag wraps after 2³² operations; a context would
//! have to be stopped between its load and its exchange for exactly a multiple of that many operations on this stack.
//!
//! Links live in a side array: what is read from a popped index is never memory that its new owner writes with plain
//! stores. Source: R. K. Treiber, IBM RJ 5118, 1986; the counted head is from IBM's System/370 Principles of Operation.

use super::arena::Carved;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// No index: the end of a chain of links.
pub const NIL: u32 = u32::MAX;

/// The value of a stack's head: a pure value with pure transitions, which the atomic only applies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head(u64);

impl Head {
    const EMPTY: Self = Self(NIL as u64);

    const fn index(self) -> u32 {
        self.0 as u32
    }

    /// The head that follows this one, with `index` on top.
    const fn followed_by(self, index: u32) -> Self {
        let tag = (self.0 >> 32).wrapping_add(1);
        Self(tag << 32 | index as u64)
    }
}

/// A lock-free stack of indices below the length of its links.
///
/// An index is on at most one of the stacks that share an array of links.
#[derive(Debug)]
pub struct TaggedStack {
    head: AtomicU64,
    links: Carved<AtomicU32>,
}

impl TaggedStack {
    /// An empty stack over `links`.
    pub fn new(links: Carved<AtomicU32>) -> Self {
        Self { head: AtomicU64::new(Head::EMPTY.0), links }
    }

    /// Another empty stack over the same links: an index is on one of them at a time.
    pub fn sibling(&self) -> Self {
        Self::new(self.links.share())
    }

    /// Puts `index` on top. Lock-free: a retry means that another context finished an operation.
    ///
    /// An index beyond the links is refused; none of the callers has one.
    pub fn push(&self, index: u32) {
        let Some(link) = self.links.get(index as usize) else { return };
        // Ordering: Relaxed; the exchange below checks the value, nothing is read through it.
        let mut head = Head(self.head.load(Ordering::Relaxed));
        loop {
            // Ordering: Relaxed; published to the `pop` that finds this index on top by the exchange below.
            link.store(head.index(), Ordering::Relaxed);
            // Ordering: Release publishes the link and whatever the caller wrote into what the index stands for, to
            // the Acquire of `pop`. Every later exchange of the head is a read-modify-write and so continues this
            // release sequence. On failure nothing is read, Relaxed.
            match self.head.compare_exchange_weak(
                head.0,
                head.followed_by(index).0,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(current) => head = Head(current),
            }
        }
    }

    /// Takes the top off. Lock-free: a retry means that another context finished an operation.
    pub fn pop(&self) -> Option<u32> {
        // Ordering: Acquire pairs with the Release of the `push` that put this index on top, so that its link is seen.
        let mut head = Head(self.head.load(Ordering::Acquire));
        loop {
            let link = self.links.get(head.index() as usize)?;
            // Ordering: Relaxed; if the index has been popped since, the link may be any other, and the tag makes the
            // exchange fail.
            let below = link.load(Ordering::Relaxed);
            // Ordering: Acquire makes what the pusher wrote behind the index ours; Release is not needed, since a
            // pop publishes nothing and the release sequences it continues are those of the pushes. On failure
            // Acquire again, because the link of the new top is read next.
            match self.head.compare_exchange_weak(
                head.0,
                head.followed_by(below).0,
                Ordering::Acquire,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some(head.index()),
                Err(current) => head = Head(current),
            }
        }
    }

    /// The indices from the top down, for the census: meaningless while somebody uses the stack. A chain that ran in a
    /// circle would show every index and one more.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        // Ordering: Acquire, as in `pop`.
        let mut index = Head(self.head.load(Ordering::Acquire)).index();
        core::iter::from_fn(move || {
            let link = self.links.get(index as usize)?;
            // Ordering: Relaxed; the Acquire above made the links of a stack at rest visible.
            Some(core::mem::replace(&mut index, link.load(Ordering::Relaxed)))
        })
        .take(self.links.len() + 1)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_head_counts_every_transition() {
        let head = Head::EMPTY.followed_by(7).followed_by(NIL);
        assert_eq!(head.index(), NIL);
        assert_ne!(head, Head::EMPTY);
        assert_eq!(Head(u64::MAX << 32).followed_by(3), Head(3));
    }
}
