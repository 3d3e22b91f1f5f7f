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

use crate::raw::magazine::{Entry, Magazine, Shape};

pub(super) const HALF_BITS: u32 = 32;
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::raw::{
        magazine::{MAGAZINE_LIMIT, MAGAZINE_SIZE_LIMIT},
        slot::Slot,
    };

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
