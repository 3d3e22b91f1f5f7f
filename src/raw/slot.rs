//! Owns the state of one CPU's cache: which two magazines it holds and how full they are, in one word.
//!
//! # The word
//! ```text
//!  63 ...................... 32 | 31 ....................... 0
//!  previous: index,  its length | loaded: index,   its length      TAKEN = all ones
//! ```
//! How many bits of a half are the length is the pool's [`Shape`]; a half as a whole is the number of the magazine's first free
//! entry. Swapping loaded and previous is a rotation by 32 bits; pop and push change the low half by one. One word means one
//! committing store, whichever way the slot is owned (claimed, pinned, or in a restartable sequence).
//!
//! | state of the word | who may use the two magazines |
//! |---|---|
//! | `TAKEN` | the one operation that put it there, until it stores the next state |
//! | any other | nobody; the next to take it |

use super::arena::Carved;
use super::magazine::{Entry, FrameNumber, Magazine, Magazines, Shape};
use super::wanted::Wanted;
use crate::sync::{
    atomic::{AtomicU64, Ordering},
    counter,
};
use crossbeam_utils::CachePadded;

const HALF_BITS: u32 = 32;
const HALF_MASK: u64 = (1 << HALF_BITS) - 1;

/// The two magazines of a slot as a pure value with pure transitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotState(u64);

impl SlotState {
    /// Not a state: somebody is at work on the slot.
    pub(crate) const TAKEN: u64 = u64::MAX;

    pub(crate) const fn from_word(word: u64) -> Self {
        Self(word)
    }

    pub(crate) const fn word(self) -> u64 {
        self.0
    }

    fn half(shape: Shape, magazine: Magazine) -> u64 {
        let (index, length) = magazine.into_parts();
        u64::from(shape.entry(index, length).0)
    }

    pub(crate) fn holding(shape: Shape, loaded: Magazine, previous: Magazine) -> Self {
        Self(Self::half(shape, previous) << HALF_BITS | Self::half(shape, loaded))
    }

    /// The first free entry of the loaded magazine.
    #[inline(always)]
    const fn free_entry(self) -> Entry {
        Entry((self.0 & HALF_MASK) as u32)
    }

    #[inline(always)]
    pub(crate) const fn loaded_length(self, shape: Shape) -> u32 {
        shape.place(self.free_entry()).1
    }

    const fn loaded_index(self, shape: Shape) -> u32 {
        shape.place(self.free_entry()).0
    }

    /// How many frames are in both magazines.
    pub(crate) const fn frames(self, shape: Shape) -> u32 {
        self.loaded_length(shape) + self.exchanged().loaded_length(shape)
    }

    /// Index and length of the loaded and the previous magazine, for the census.
    pub(crate) const fn magazines(self, shape: Shape) -> [(u32, u32); 2] {
        [shape.place(self.free_entry()), shape.place(self.exchanged().free_entry())]
    }

    /// Loaded and previous in each other's place.
    pub(crate) const fn exchanged(self) -> Self {
        Self(self.0.rotate_left(HALF_BITS))
    }

    /// The state with the loaded magazine first in the line of those for whose length `wanted` holds, if there is one.
    #[inline(always)]
    fn with_loaded(self, shape: Shape, wanted: impl Fn(u32) -> bool) -> Option<Self> {
        if wanted(self.loaded_length(shape)) {
            return Some(self);
        }
        let exchanged = self.exchanged();
        wanted(exchanged.loaded_length(shape)).then_some(exchanged)
    }

    /// Takes one frame: the state after it and the entry that held it.
    #[inline(always)]
    pub(crate) fn pop(self, shape: Shape) -> Option<(Self, Entry)> {
        self.pop_loaded(shape).or_else(|| self.exchanged().pop_loaded(shape))
    }

    /// As [`pop`](Self::pop), from the loaded magazine only.
    #[inline(always)]
    pub(crate) fn pop_loaded(self, shape: Shape) -> Option<(Self, Entry)> {
        let after = Self(self.0.wrapping_sub(1));
        (self.loaded_length(shape) > 0).then_some((after, after.free_entry()))
    }

    /// Adds one frame: the state after it and the entry to write it to.
    #[inline(always)]
    pub(crate) fn push(self, shape: Shape) -> Option<(Self, Entry)> {
        self.push_loaded(shape).or_else(|| self.exchanged().push_loaded(shape))
    }

    /// As [`push`](Self::push), into the loaded magazine only.
    #[inline(always)]
    pub(crate) fn push_loaded(self, shape: Shape) -> Option<(Self, Entry)> {
        (self.loaded_length(shape) < shape.size()).then_some((Self(self.0 + 1), self.free_entry()))
    }

    /// Puts `arriving` in the place of the first magazine whose length is `wanted`; that one comes out.
    fn exchange(
        self,
        shape: Shape,
        arriving: Magazine,
        wanted: impl Fn(u32) -> bool,
    ) -> Result<(Self, Magazine), Magazine> {
        let Some(state) = self.with_loaded(shape, wanted) else { return Err(arriving) };
        // SAFETY: the magazine leaves this state, which is replaced by one without it (INV-2); its length is its own.
        let leaving = unsafe { Magazine::from_parts(state.loaded_index(shape), state.loaded_length(shape)) };
        Ok((Self(state.0 & !HALF_MASK | Self::half(shape, arriving)), leaving))
    }

    /// Loads a magazine with frames in the place of an empty one.
    pub(crate) fn load_stocked(self, shape: Shape, stocked: Magazine) -> Result<(Self, Magazine), Magazine> {
        self.exchange(shape, stocked, |length| length == 0)
    }

    /// Loads a magazine with room in the place of a full one.
    pub(crate) fn load_vacant(self, shape: Shape, vacant: Magazine) -> Result<(Self, Magazine), Magazine> {
        self.exchange(shape, vacant, |length| length >= shape.size())
    }

    /// Takes the fuller magazine for an empty one. Nothing changes when both are empty.
    pub(crate) fn give_up(self, shape: Shape, vacant: Magazine) -> Result<(Self, Magazine), Magazine> {
        let fuller = self.loaded_length(shape).max(self.exchanged().loaded_length(shape));
        self.exchange(shape, vacant, |length| length == fuller && length > 0)
    }

    /// Both magazines, when the slot is closed for good.
    pub(crate) fn into_magazines(self, shape: Shape) -> (Magazine, Magazine) {
        let other = self.exchanged();
        // SAFETY: the state is used up; its two magazines are now in the caller's hands alone (INV-2).
        unsafe {
            (
                Magazine::from_parts(self.loaded_index(shape), self.loaded_length(shape)),
                Magazine::from_parts(other.loaded_index(shape), other.loaded_length(shape)),
            )
        }
    }
}

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
        if held >= Self::LENT { None } else { Some(SlotState(held)) }
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
            word => Some(SlotState(word)),
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::raw::magazine::{MAGAZINE_LIMIT, MAGAZINE_SIZE_LIMIT};

    fn magazine(index: u32, length: u32) -> Magazine {
        // SAFETY: the tests look at states only; no magazine exists.
        unsafe { Magazine::from_parts(index, length) }
    }

    #[test]
    fn pops_and_pushes_walk_through_both_magazines() {
        let shape = Shape::new(2);
        let mut state = SlotState::holding(shape, magazine(5, 1), magazine(9, 2));
        let mut seen = std::vec::Vec::new();
        while let Some((after, entry)) = state.pop(shape) {
            seen.push(shape.place(entry));
            state = after;
        }
        assert_eq!(seen, [(5, 0), (9, 1), (9, 0)]);
        assert_eq!(state.frames(shape), 0);
        let mut entries = std::vec::Vec::new();
        while let Some((after, entry)) = state.push(shape) {
            entries.push(shape.place(entry));
            state = after;
        }
        assert_eq!(entries, [(9, 0), (9, 1), (5, 0), (5, 1)]);
        assert_eq!(state.frames(shape), 4);
    }

    #[test]
    fn an_exchange_replaces_only_a_magazine_of_the_wanted_kind() {
        let shape = Shape::new(2);
        let state = SlotState::holding(shape, magazine(1, 0), magazine(2, 2));
        let (stocked, out) = state.load_stocked(shape, magazine(3, 2)).unwrap();
        assert_eq!((out, stocked.frames(shape)), (magazine(1, 0), 4));
        assert_eq!(stocked.load_stocked(shape, magazine(4, 1)), Err(magazine(4, 1)));
        let (vacant, out) = stocked.load_vacant(shape, magazine(5, 1)).unwrap();
        assert_eq!((out, vacant.frames(shape)), (magazine(3, 2), 3));
        let (robbed, out) = vacant.give_up(shape, magazine(6, 0)).unwrap();
        assert_eq!((out, robbed.frames(shape)), (magazine(2, 2), 1));
        assert_eq!(robbed.into_magazines(shape), (magazine(6, 0), magazine(5, 1)));
    }

    #[test]
    fn no_state_of_a_valid_pool_is_taken() {
        let last = MAGAZINE_LIMIT - 1;
        for size in (1..200).chain([255, 256, 2048, MAGAZINE_SIZE_LIMIT]) {
            let shape = Shape::new(size);
            let state = SlotState::holding(shape, magazine(last, size), magazine(last, size));
            assert_ne!(state.word(), SlotState::TAKEN);
            assert_eq!(Slot::state_in(state.word()), Some(state), "and none is lent");
            assert_eq!(state.frames(shape), 2 * size);
            assert_eq!(state.push(shape), None, "full");
            assert_eq!(state.into_magazines(shape), (magazine(last, size), magazine(last, size)));
        }
    }
}
