//! Owns the caches of all CPUs, a slot for each, and says what every way to own one must do. What a slot holds is one word, a [`SlotState`]
//! (`slot/state.rs`).

use super::arena::Carved;
use super::magazine::{FrameNumber, Magazine, Magazines, Shape};
use super::wanted::Wanted;
use crate::sync::{
    atomic::{AtomicU64, Ordering},
    counter,
};
use crossbeam_utils::CachePadded;

mod state;

use state::HALF_BITS;
pub(crate) use state::SlotState;

/// One CPU's cache. What every operation touches comes first, on one cache line.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Slot {
    pub(crate) word: AtomicU64,
    /// What restartable sequences compare lengths with, or [`Slot::SHUT`]; see `raw/rseq.rs`. Or whether an owner who keeps the
    /// slot is asked for it; see `raw/pinned.rs`.
    pub(crate) gate: AtomicU64,
    /// Whether a context of the slot's owner is at work on it; see `raw/pinned.rs`.
    pub(crate) entered: AtomicU64,
    /// The state of a slot that its owner keeps, whose word stays TAKEN; see `raw/pinned.rs`.
    pub(crate) held: AtomicU64,
    /// Frames handed out by this slot; counted by whoever has taken it.
    pub(crate) popped: counter::Owned,
    /// Frames taken in by this slot; counted by whoever has taken it.
    pub(crate) pushed: counter::Owned,
    /// What is counted without owning the slot; belongs to `popped`.
    pub(crate) popped_apart: counter::Shared,
    /// As above; belongs to `pushed`.
    pub(crate) pushed_apart: counter::Shared,
    /// The state of a slot that is shut, whose word stays TAKEN: kept by whoever shut it.
    pub(crate) parked: AtomicU64,
    /// The sum of both that the last pass of the worker saw; the worker's own.
    pub(crate) seen: counter::Owned,
    /// Passes in a row that saw the same sum; the worker's own.
    pub(crate) idle: counter::Owned,
}

impl Slot {
    /// The gate that lets no length pass.
    pub(crate) const SHUT: u64 = 0;
    /// The gate of a slot that its owner holds and nobody asks for.
    pub(crate) const OPEN: u64 = u64::MAX;
    /// The gate of a slot that its owner has put into everybody's reach.
    pub(crate) const LENDING: u64 = 1;
    /// In the high half of `held`, where the index and the length of a magazine never are: the slot is in everybody's reach.
    const LENT: u64 = u64::MAX << HALF_BITS;

    pub(crate) fn new(shape: Shape, state: SlotState) -> Self {
        Self {
            word: AtomicU64::new(state.word()),
            gate: AtomicU64::new(Self::open_gate(shape)),
            entered: AtomicU64::new(0),
            held: AtomicU64::new(Self::lent_for(0)),
            popped: counter::Owned::new(),
            pushed: counter::Owned::new(),
            popped_apart: counter::Shared::new(),
            pushed_apart: counter::Shared::new(),
            parked: AtomicU64::new(SlotState::TAKEN),
            seen: counter::Owned::new(),
            idle: counter::Owned::new(),
        }
    }

    /// The gate that lets a frame out of a magazine of which a bit of the length is set in the low half, and a frame into
    /// one whose length is below the high half.
    pub(crate) fn open_gate(shape: Shape) -> u64 {
        u64::from(shape.size()) << HALF_BITS | u64::from(shape.position_mask())
    }

    /// What `held` is while the slot is in everybody's reach, with a number that its owner counts down.
    pub(crate) const fn lent_for(operations: u32) -> u64 {
        Self::LENT | operations as u64
    }

    /// The state in a value of `held`, if it is one.
    #[inline(always)]
    pub(crate) const fn state_in(held: u64) -> Option<SlotState> {
        if held >= Self::LENT { None } else { Some(SlotState::from_word(held)) }
    }

    /// What the owner of this slot keeps in it at this moment, for a decision that something else puts in order.
    pub(crate) fn held_state(&self) -> Option<SlotState> {
        // Ordering: Relaxed; a look, nothing is read through it.
        Self::state_in(self.held.load(Ordering::Relaxed))
    }

    /// The state of a slot that nobody is working on at this moment, for figures.
    pub(crate) fn resting_state(&self) -> Option<SlotState> {
        // Ordering: Relaxed; a look, nothing is read through it.
        match self.word.load(Ordering::Relaxed) {
            SlotState::TAKEN => self.held_state(),
            word => Some(SlotState::from_word(word)),
        }
    }

    /// Frames handed out by this slot.
    pub(crate) fn popped(&self) -> u64 {
        self.popped.get().wrapping_add(self.popped_apart.get())
    }

    /// Frames taken in by this slot.
    pub(crate) fn pushed(&self) -> u64 {
        self.pushed.get().wrapping_add(self.pushed_apart.get())
    }
}

/// The slots of all CPUs, each on cache lines of its own, and the magazines that move through them.
#[derive(Debug)]
pub struct Slots {
    pub(crate) slots: Carved<CachePadded<Slot>>,
    pub(crate) magazines: Magazines,
    /// How many slots, from the first on, restartable sequences may enter: all but the last.
    #[allow(dead_code, reason = "for restartable sequences, where there are any")]
    pub(crate) restartable: usize,
}

impl Slots {
    pub(crate) fn new(slots: Carved<CachePadded<Slot>>, magazines: Magazines) -> Self {
        let restartable = slots.len().saturating_sub(1);
        Self { slots, magazines, restartable }
    }

    /// The number of the slot of the CPU `cpu`; numbers beyond the slots share them (R3: the number is only a hint).
    #[inline(always)]
    pub(crate) fn index_of(&self, cpu: usize) -> Option<usize> {
        if cpu < self.slots.len() { Some(cpu) } else { cpu.checked_rem(self.slots.len()) }
    }

    /// The slot of the CPU `cpu`, with numbers as above.
    #[inline(always)]
    pub(crate) fn of(&self, cpu: usize) -> Option<&Slot> {
        self.slots.get(self.index_of(cpu)?).map(|slot| &**slot)
    }

    /// How many slots there are.
    pub(crate) fn count(&self) -> usize {
        self.slots.len()
    }

    /// Puts what owners keep back into the words, for a caller who is alone with all slots.
    pub(crate) fn release_held(&mut self) {
        for slot in self.slots.iter() {
            if let Some(state) = slot.held_state() {
                // Ordering: Relaxed, like the next; the exclusive borrow is what orders both.
                slot.word.store(state.word(), Ordering::Relaxed);
                slot.held.store(Slot::lent_for(0), Ordering::Relaxed);
                // Ordering: Relaxed; as above.
                slot.gate.store(Slot::LENDING, Ordering::Relaxed);
            }
        }
    }
}

/// Why a slot did not give or take a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)] // As wide as a frame number: a result of either is two plain values, which stay in registers.
pub enum SlotMiss {
    /// Both magazines are empty (pop) or full (push).
    Unsuited,
    /// The slot is being used by the code that was interrupted, or by another context.
    Busy,
    /// The frame is wanted elsewhere (push).
    Wanted,
    /// The short way did not lead there; the long one may.
    Untried,
}

/// How code gets exclusive use of a CPU's slot: the one strategy that the tiers do not see.
///
/// Each operation either happens as a whole or leaves the slot as it was; none waits (INV-3).
///
/// Sealed: the ways to own a slot are part of the crate's proof.
pub trait SlotOwnership: sealed::Sealed + Sync {
    /// Takes one frame from the slot of the CPU that `cpu` names.
    #[doc(hidden)]
    fn pop(&self, slots: &Slots, cpu: impl Fn() -> usize) -> Result<FrameNumber, SlotMiss>;

    /// Puts one frame into the slot of the CPU that `cpu` names, unless it is `wanted` elsewhere: asked after the slot is owned, so
    /// that whoever has looked into the slot before was seen to want it.
    #[doc(hidden)]
    fn push(
        &self,
        slots: &Slots,
        cpu: impl Fn() -> usize,
        frame: FrameNumber,
        wanted: &Wanted,
    ) -> Result<(), SlotMiss>;

    /// Takes one frame after `pop` has missed, by a longer way if there is one.
    #[doc(hidden)]
    fn pop_again(
        &self,
        _slots: &Slots,
        _cpu: impl Fn() -> usize,
        miss: SlotMiss,
    ) -> Result<FrameNumber, SlotMiss> {
        Err(miss)
    }

    /// Puts one frame after `push` has missed, by a longer way if there is one.
    #[doc(hidden)]
    fn push_again(
        &self,
        _slots: &Slots,
        _cpu: impl Fn() -> usize,
        _frame: FrameNumber,
        _wanted: &Wanted,
        miss: SlotMiss,
    ) -> Result<(), SlotMiss> {
        Err(miss)
    }

    /// Takes frames into `frames` from the front on; how many.
    #[doc(hidden)]
    fn pop_many(&self, slots: &Slots, cpu: impl Fn() -> usize, frames: &mut [FrameNumber]) -> usize;

    /// Puts frames of `frames` into the slot from the front on, unless they are `wanted` elsewhere; how many.
    #[doc(hidden)]
    fn push_many(
        &self,
        slots: &Slots,
        cpu: impl Fn() -> usize,
        frames: &[FrameNumber],
        wanted: &Wanted,
    ) -> usize;

    /// Loads a magazine with frames; the empty one that it replaced comes back, or itself.
    #[doc(hidden)]
    fn load_stocked(
        &self,
        slots: &Slots,
        cpu: impl Fn() -> usize,
        stocked: Loading,
    ) -> Result<Loading, Loading>;

    /// Loads a magazine with room; the full one that it replaced comes back, or itself.
    #[doc(hidden)]
    fn load_vacant(
        &self,
        slots: &Slots,
        cpu: impl Fn() -> usize,
        vacant: Loading,
    ) -> Result<Loading, Loading>;

    /// Takes the fuller magazine of the slot `victim`, of any CPU, for an empty one; or the empty one comes back.
    #[doc(hidden)]
    fn steal(&self, slots: &Slots, victim: usize, vacant: Loading) -> Result<Loading, Loading>;

    /// Takes the slot `victim` out of use: from here on it is busy for everybody. How many frames it holds, or nothing if it
    /// is busy now.
    #[doc(hidden)]
    fn shut(&self, slots: &Slots, victim: usize) -> Option<u32>;

    /// Takes both magazines out of a slot that the caller has shut.
    #[doc(hidden)]
    fn unload(&self, slots: &Slots, victim: usize) -> Option<(Loading, Loading)>;

    /// Puts a slot that the caller has shut and unloaded back into use.
    #[doc(hidden)]
    fn open(&self, slots: &Slots, victim: usize, loaded: Loading, previous: Loading);
}

/// A magazine on its way into or out of a slot, as the sealed trait names it.
#[must_use]
#[derive(Debug)]
pub struct Loading(pub(crate) Magazine);

pub(crate) mod sealed {
    pub trait Sealed {}
}
