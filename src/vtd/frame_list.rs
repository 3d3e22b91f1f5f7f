//! Owns table frames that are in no table: taken in advance by a map, detached by an unmap, or waiting for the last walker. A
//! list through the frames themselves, since there is no heap.
//!
//! # The word
//! ```text
//! entry 0 of a frame, and the head:  63 ........ 12 | 11 ... 4 | 3 | 2 .. 0
//!                                    next frame     |    0     | 1 |   0      else there is none: END in a frame, 0 in the head
//! ```
//! In every format that word means "not present": hardware and readers that still walk a detached table find nothing there, and
//! lose only a translation that is being removed anyway; readers look again, since a table may also have been joined (`join.rs`). Somebody who breaks the contract of `map` may write an entry over it: then
//! the list ends there, and the frames behind are lost, but none gets a second owner.

use super::{TableFrames, table::Table, width::PAGE};
use crate::{
    PhysAddr,
    sync::atomic::{AtomicU64, Ordering},
};

const LINK: usize = 0;
/// Tells a link from none; a present bit in no format.
const SOME: u64 = 1 << 3;
const NONE: u64 = 0;
/// What stands in the last frame: neither a link nor empty, so that whoever finds it in a table knows that the table was detached.
const END: u64 = 1 << 3 | 1 << 5;

const fn link(frame: PhysAddr) -> u64 {
    frame.as_u64() | SOME
}

const fn is_link(word: u64) -> bool {
    word & (PAGE - 1) == SOME
}

/// Whether `word`, found in a table, says that the table was detached under whoever found it.
pub(crate) const fn is_of_detached(word: u64) -> bool {
    is_link(word) || word == END
}

/// What a frame says that comes before `head`.
const fn before(head: u64) -> u64 {
    if is_link(head) { head } else { END }
}

/// Frames one behind the other. Owned by one operation; it must be emptied or given on.
#[must_use]
#[derive(Debug)]
pub(crate) struct Chain(u64);

impl Chain {
    pub(crate) const EMPTY: Self = Self(NONE);

    pub(crate) const fn is_empty(&self) -> bool {
        !is_link(self.0)
    }

    /// Takes a frame out; its first entry is empty again.
    pub(crate) fn pop<A: TableFrames + ?Sized>(&mut self, frames: &A) -> Option<PhysAddr> {
        if self.is_empty() {
            return None;
        }
        let frame = PhysAddr::new(self.0 & !SOME);
        let table = Table::links_of(frames, frame);
        self.0 = table.load(LINK);
        table.store(LINK, NONE);
        Some(frame)
    }
}

/// A chain that knows its length and its end, so that two become one in constant time.
#[must_use]
#[derive(Debug)]
pub(crate) struct FrameList {
    chain: Chain,
    tail: PhysAddr,
    count: u64,
}

impl FrameList {
    pub(crate) const fn new() -> Self {
        Self { chain: Chain::EMPTY, tail: PhysAddr::new(0), count: 0 }
    }

    /// How many frames are in it.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// Adds a frame that the caller owns.
    pub(crate) fn push<A: TableFrames + ?Sized>(&mut self, frames: &A, frame: PhysAddr) {
        Table::links_of(frames, frame).store(LINK, before(self.chain.0));
        if self.count == 0 {
            self.tail = frame;
        }
        self.chain = Chain(link(frame));
        self.count += 1;
    }

    /// Takes a frame out; its first entry is empty again.
    pub(crate) fn pop<A: TableFrames + ?Sized>(&mut self, frames: &A) -> Option<PhysAddr> {
        let frame = self.chain.pop(frames)?;
        self.count -= 1;
        Some(frame)
    }

    /// Adds all frames of `other`.
    pub(crate) fn append<A: TableFrames + ?Sized>(&mut self, frames: &A, other: Self) {
        if other.count == 0 {
            return;
        }
        Table::links_of(frames, other.tail).store(LINK, before(self.chain.0));
        if self.count == 0 {
            self.tail = other.tail;
        }
        self.chain = other.chain;
        self.count += other.count;
    }
}

/// A list that several contexts add to and one takes whole.
///
/// There is no ABA: an exchange that succeeds has linked to what is on top at that moment, and a take-all compares nothing.
#[derive(Debug)]
pub(crate) struct SharedList {
    head: AtomicU64,
}

impl SharedList {
    pub(crate) fn new() -> Self {
        Self { head: AtomicU64::new(NONE) }
    }

    /// Adds all frames of `list`. Lock-free: a retry means that another context finished an operation.
    pub(crate) fn push<A: TableFrames + ?Sized>(&self, frames: &A, list: FrameList) {
        if list.count == 0 {
            return;
        }
        let tail = Table::links_of(frames, list.tail);
        // Ordering: Relaxed; the exchange checks the value, nothing is read through it.
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            tail.store(LINK, before(head));
            // Ordering: Release publishes the links, and the unlinking of the tables, to the Acquire of `take_all`; later
            // pushes are read-modify-writes and continue the release sequence. On failure nothing is read, Relaxed.
            match self.head.compare_exchange_weak(head, list.chain.0, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(current) => head = current,
            }
        }
    }

    /// Takes all frames. Wait-free: one exchange.
    pub(crate) fn take_all(&self) -> Chain {
        // Ordering: Relaxed; saves an exchange where there is nothing.
        if self.head.load(Ordering::Relaxed) == NONE {
            return Chain::EMPTY;
        }
        // Ordering: Acquire makes the links and the frames ours, and orders the unlinking of the tables before what follows.
        Chain(self.head.swap(NONE, Ordering::Acquire))
    }
}
