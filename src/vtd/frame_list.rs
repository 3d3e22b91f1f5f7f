//! Owns table frames that are in no table: taken in advance by a map, or detached by an unmap. A list through the frames
//! themselves, since there is no heap.
//!
//! The link to the next frame stands in entry 0. The address of a frame has its low twelve bits clear, so in every format that
//! word means "not present": hardware and readers that still walk a detached table find nothing there, and lose only a
//! translation that is being removed anyway. The count says where the list ends.

use super::{TableFrames, table::Table};
use crate::PhysAddr;

const LINK: usize = 0;

/// A list of frames. Owned by one operation; it must be emptied or given on.
#[must_use]
#[derive(Debug)]
pub(crate) struct FrameList {
    head: PhysAddr,
    tail: PhysAddr,
    count: u64,
}

impl FrameList {
    pub(crate) const fn new() -> Self {
        Self { head: PhysAddr::new(0), tail: PhysAddr::new(0), count: 0 }
    }

    /// How many frames are in it.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// Adds a frame that the caller owns.
    pub(crate) fn push<A: TableFrames + ?Sized>(&mut self, frames: &A, frame: PhysAddr) {
        Table::at(frames, frame).store(LINK, self.head.as_u64());
        if self.count == 0 {
            self.tail = frame;
        }
        self.head = frame;
        self.count += 1;
    }

    /// Takes a frame out; its first entry is empty again.
    pub(crate) fn pop<A: TableFrames + ?Sized>(&mut self, frames: &A) -> Option<PhysAddr> {
        self.count = self.count.checked_sub(1)?;
        let frame = self.head;
        let table = Table::at(frames, frame);
        self.head = PhysAddr::new(table.load(LINK));
        table.store(LINK, 0);
        Some(frame)
    }

    /// Adds all frames of `other`.
    pub(crate) fn append<A: TableFrames + ?Sized>(&mut self, frames: &A, other: Self) {
        if other.count == 0 {
            return;
        }
        Table::at(frames, other.tail).store(LINK, self.head.as_u64());
        if self.count == 0 {
            self.tail = other.tail;
        }
        self.head = other.head;
        self.count += other.count;
    }
}
