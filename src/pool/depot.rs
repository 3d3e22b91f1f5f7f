//! Tier 2: the shared stock of whole magazines; whoever finds it empty steals from other CPUs.
//!
//! Stacks by what is in a magazine: full or partial (one frame at least, room for one at least), each twice, on the dirty
//! and on the clean side, and empty. Partial magazines come from refills and thefts that do not fill one, and from callers
//! that may not enter their CPU's slot at this moment (an interrupt that landed inside): they are served one frame at a time
//! from here.
//!
//! The fill level counts what the full and the partial stacks hold. It is raised before a magazine is pushed and lowered
//! after one is popped (`raw/level.rs`), so the calls that move magazines and those that count are apart.
//!
//! # Why only zeroed frames are on the clean side (INV-9)
//! A frame gets there when the worker has cleared it, when the source says that its frames are zero, or when its last
//! owner promised that it is; nobody writes it after that until it is taken. A magazine goes on the stack of the kind that
//! the caller names, and every caller names `Clean` only for a magazine from the clean side, with nothing but such frames
//! added.
//!
//! # Why a free finds a magazine
//! With nothing on the empty and the partial stacks, every magazine that is neither in a slot nor in the hands of an
//! operation or a reservation is full. There are as many magazines as all frames fill, four a CPU in slots, [`IN_PROGRESS`] for
//! each CPU, and one for each reservation that the pool was built for (only the first of a reservation's magazines is not
//! full); the frame that is being freed is in none of them, so at least as many operations are in progress as these. A CPU
//! that interrupts itself less deeply than that never gets there; user space with many preempted threads may, and then the
//! overflow takes the frame. A frame that finds room on the other side only takes it: a dirty one makes the magazine dirty.

use super::census::Place;
use crate::{
    raw::{
        arena::Carved,
        level::{FillLevel, Ring},
        magazine::{FrameNumber, Kind, Magazine, Magazines},
        stack::TaggedStack,
    },
    sync::{
        atomic::{AtomicU32, Ordering},
        counter,
    },
};
use crossbeam_utils::CachePadded;

/// Magazines kept for operations in progress, for each CPU: a thread, a soft and a hard interrupt, and an NMI, each of
/// which holds at most one.
pub(crate) const IN_PROGRESS: usize = 4;

/// The magazines with frames of one kind.
#[derive(Debug)]
struct Side {
    full: CachePadded<TaggedStack>,
    partial: CachePadded<TaggedStack>,
}

/// What is counted whenever a magazine comes or goes, on one line: it changes hands as one, and takes nothing along that others only
/// read.
#[derive(Debug)]
struct Traffic {
    level: FillLevel,
    /// All frames ever drawn from the stock: the demand, as the worker sees it.
    drawn: counter::Shared,
    /// Allocations that the stock has served.
    hits: counter::Shared,
    /// Frames that came back and found no room in their CPU's cache.
    freed: counter::Shared,
}

/// The shared stock.
#[derive(Debug)]
pub(crate) struct Depot {
    dirty: Side,
    clean: Side,
    empty: CachePadded<TaggedStack>,
    traffic: CachePadded<Traffic>,
    /// How full each magazine on a partial stack is; written before the push, read after the pop.
    lengths: Carved<AtomicU32>,
    size: u32,
}

impl Depot {
    /// A depot without magazines, over one link and one length for each.
    pub(crate) fn new(
        links: &Carved<AtomicU32>,
        lengths: Carved<AtomicU32>,
        size: u32,
        level: FillLevel,
    ) -> Self {
        let stack = || CachePadded::new(TaggedStack::new(links.share()));
        let side = || Side { full: stack(), partial: stack() };
        let counter = counter::Shared::new;
        let traffic = Traffic { level, drawn: counter(), hits: counter(), freed: counter() };
        let traffic = CachePadded::new(traffic);
        Self { dirty: side(), clean: side(), empty: stack(), traffic, lengths, size }
    }

    pub(crate) fn level(&self) -> &FillLevel {
        &self.traffic.level
    }

    /// All frames ever drawn from the stock.
    pub(crate) fn drawn(&self) -> u64 {
        self.traffic.drawn.get()
    }

    /// Counts an allocation that the stock has served.
    pub(crate) fn count_hit(&self) {
        self.traffic.hits.add(1);
    }

    /// How many there were.
    pub(crate) fn hits(&self) -> u64 {
        self.traffic.hits.get()
    }

    /// Counts frames that came back and found no room in their CPU's cache.
    pub(crate) fn count_freed(&self, frames: u32) {
        self.traffic.freed.add(u64::from(frames));
    }

    /// How many there were.
    pub(crate) fn freed(&self) -> u64 {
        self.traffic.freed.get()
    }

    fn side(&self, kind: Kind) -> &Side {
        match kind {
            Kind::Dirty => &self.dirty,
            Kind::Clean => &self.clean,
        }
    }

    /// Puts a magazine on the stack where it belongs. Does not count.
    pub(crate) fn put(&self, kind: Kind, magazine: Magazine) {
        let (index, length) = magazine.into_parts();
        if length == 0 {
            self.empty.push(index);
        } else if length >= self.size {
            self.side(kind).full.push(index);
        } else {
            if let Some(slot) = self.lengths.get(index as usize) {
                // Ordering: Relaxed; published with the index by the Release of the push, to the Acquire of the pop.
                slot.store(length, Ordering::Relaxed);
            }
            self.side(kind).partial.push(index);
        }
    }

    /// A full magazine. Does not count.
    pub(crate) fn take_full(&self, kind: Kind) -> Option<Magazine> {
        self.side(kind).full.pop().map(|index| magazine(index, self.size))
    }

    fn pop_partial(&self, kind: Kind) -> Option<Magazine> {
        let index = self.side(kind).partial.pop()?;
        // Ordering: Relaxed; the Acquire of the pop made it visible.
        Some(magazine(index, self.lengths.get(index as usize)?.load(Ordering::Relaxed)))
    }

    /// How many magazines there are, wherever they are.
    pub(crate) fn magazines(&self) -> usize {
        self.lengths.len()
    }

    /// Shows `visit` the place, the index and the length of every magazine on the stacks, see [`TaggedStack::indices`].
    pub(crate) fn census(&self, mut visit: impl FnMut(Place, u32, u32)) {
        self.empty.indices().for_each(|index| visit(Place::Empty, index, 0));
        for (side, clean) in [(&self.dirty, false), (&self.clean, true)] {
            side.full.indices().for_each(|index| visit(Place::Full { clean }, index, self.size));
            side.partial.indices().for_each(|index| {
                // Ordering: Relaxed; as in `pop_partial`.
                let length =
                    self.lengths.get(index as usize).map_or(0, |length| length.load(Ordering::Relaxed));
                visit(Place::Partial { clean }, index, length);
            });
        }
    }

    /// A magazine with frames: a full one, or else a partial one. Does not count.
    pub(crate) fn take_stocked(&self, kind: Kind) -> Option<Magazine> {
        self.take_full(kind).or_else(|| self.pop_partial(kind))
    }

    /// A magazine with frames of which only some are wanted: a partial one, or else a full one. Does not count.
    pub(crate) fn take_begun(&self, kind: Kind) -> Option<Magazine> {
        self.pop_partial(kind).or_else(|| self.take_full(kind))
    }

    /// A magazine with room for a slot: an empty one, or else a partial one. Does not count, unless what is in it has to
    /// change sides.
    pub(crate) fn take_vacant(&self, kind: Kind) -> Option<Magazine> {
        self.take_empty().or_else(|| self.pop_partial(kind)).or_else(|| self.soil_for(kind))
    }

    /// A magazine with room for a few frames: a partial one, or else an empty one. Counts as `take_vacant`.
    pub(crate) fn take_roomy(&self, kind: Kind) -> Option<Magazine> {
        self.pop_partial(kind).or_else(|| self.take_empty()).or_else(|| self.soil_for(kind))
    }

    /// A partial magazine of the clean side, whose frames count as dirty from now on, for want of another.
    fn soil_for(&self, kind: Kind) -> Option<Magazine> {
        if kind == Kind::Clean {
            return None;
        }
        let magazine = self.pop_partial(Kind::Clean)?;
        self.traffic.level.soiled(magazine.length());
        Some(magazine)
    }

    /// An empty magazine.
    pub(crate) fn take_empty(&self) -> Option<Magazine> {
        self.empty.pop().map(|index| magazine(index, 0))
    }

    /// Counts `frames` out of the stock, after they were taken, as demand.
    pub(crate) fn count_drawn(&self, kind: Kind, frames: u32) -> Ring {
        self.traffic.drawn.add(u64::from(frames));
        self.traffic.level.removed(kind, frames)
    }

    /// Takes one frame out of a magazine that goes back at once.
    pub(crate) fn take_one(&self, magazines: &Magazines, kind: Kind) -> Option<(FrameNumber, Ring)> {
        let mut magazine = self.take_begun(kind)?;
        let frame = magazines.pop(&mut magazine);
        self.put(kind, magazine);
        Some((frame?, self.count_drawn(kind, 1)))
    }

    /// Puts one frame into a magazine that goes back at once; the frame comes back when no magazine has room.
    pub(crate) fn put_one(
        &self,
        magazines: &Magazines,
        kind: Kind,
        frame: FrameNumber,
    ) -> Result<Ring, FrameNumber> {
        let Some(mut magazine) = self.take_roomy(kind) else {
            // What is clean may always go where dirty frames are.
            return if kind == Kind::Clean {
                self.put_one(magazines, Kind::Dirty, frame)
            } else {
                Err(frame)
            };
        };
        let outcome = magazines.push(&mut magazine, frame);
        let ring = match outcome {
            Ok(()) => Ok(self.traffic.level.added(kind, 1)),
            Err(frame) => Err(frame),
        };
        self.put(kind, magazine);
        ring
    }
}

/// Takes up a magazine that one of the stacks gave us.
#[allow(unsafe_code, reason = "the stacks are where magazines are laid down as bare indices")]
fn magazine(index: u32, length: u32) -> Magazine {
    // SAFETY: an index is pushed only by `Depot::put`, which used a magazine up, and a stack gives each index out once
    // (INV-2); the length is the one it was laid down with.
    unsafe { Magazine::from_parts(index, length) }
}
