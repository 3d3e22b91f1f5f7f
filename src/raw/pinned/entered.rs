//! Owns the steps by which the contexts of an owner enter a slot, keep its state and lend it (`raw/pinned.rs` has the words and the
//! argument); asks nobody: who cannot enter goes to the depot.

use crate::{
    raw::slot::{Slot, SlotState},
    sync::{atomic::Ordering, hand_over, nesting},
};

/// A slot that this context has entered: alone with what it holds until it leaves.
pub(super) struct Entered<'s> {
    pub(super) slot: &'s Slot,
}

impl<'s> Entered<'s> {
    #[inline(always)]
    pub(super) fn new(slot: &'s Slot) -> Option<Self> {
        // Ordering: Relaxed; only contexts that nest write it, which is program order.
        if nesting::step(|| slot.entered.load(Ordering::Relaxed)) != 0 {
            return None;
        }
        // Ordering: Relaxed; as above. The fence keeps the compiler from moving what follows before it.
        nesting::step(|| slot.entered.store(1, Ordering::Relaxed));
        nesting::fence();
        Some(Self { slot })
    }

    /// Whether the slot is held and nobody asks for it.
    #[inline(always)]
    pub(super) fn is_held_for_good(&self) -> bool {
        // Ordering: Relaxed; a request carries nothing, and is repeated.
        nesting::step(|| self.slot.gate.load(Ordering::Relaxed)) == Slot::OPEN
    }

    /// The state of a slot that is held.
    #[inline(always)]
    pub(super) fn state(&self) -> SlotState {
        // Ordering: Relaxed; as `entered`.
        SlotState::from_word(nesting::step(|| self.slot.held.load(Ordering::Relaxed)))
    }

    /// The state, unless the slot is lent or somebody asks for it.
    pub(super) fn held(&self) -> Option<SlotState> {
        self.is_held_for_good().then(|| self.state())
    }

    /// Writes what the slot holds from now on.
    #[inline(always)]
    fn hold(&self, held: u64) {
        // Ordering: Relaxed; only contexts that nest read through it.
        nesting::step(|| self.slot.held.store(held, Ordering::Relaxed));
    }

    #[inline(always)]
    pub(super) fn leave(self) {
        nesting::fence();
        // Ordering: Relaxed; as in `new`. The fence keeps the compiler from moving what came before behind it.
        nesting::step(|| self.slot.entered.store(0, Ordering::Relaxed));
    }

    #[inline(always)]
    pub(super) fn leave_holding(self, state: SlotState) {
        self.hold(state.word());
        self.leave();
    }

    /// Puts what the slot holds back into everybody's reach, for `operations` of the owner's.
    pub(super) fn lend(&self, operations: u32) {
        // Ordering: Relaxed; as in `held`.
        let held = nesting::step(|| self.slot.held.load(Ordering::Relaxed));
        self.hold(Slot::lent_for(operations));
        if let Some(state) = Slot::state_in(held) {
            // Ordering: Release publishes the entries of both magazines to the next claim. A plain store is enough: whoever
            // exchanges the word meanwhile puts TAKEN in the place of TAKEN.
            hand_over(&self.slot.word, state.word());
        }
        // Ordering: Relaxed; answers the request. One that crosses with it was answered above.
        self.slot.gate.store(Slot::LENDING, Ordering::Relaxed);
    }

    /// What to do with a slot that is lent, or asked for: the state, if it is held from here on because it has been lent long enough.
    pub(super) fn settle(&self, lent_for: u32) -> Option<SlotState> {
        // Ordering: Relaxed; as in `held`.
        if self.slot.gate.load(Ordering::Relaxed) == Slot::SHUT {
            self.lend(lent_for);
            return None;
        }
        // Ordering: Relaxed; as `entered`. The low half of what is no state counts.
        let left = nesting::step(|| self.slot.held.load(Ordering::Relaxed)) as u32;
        if left > 0 {
            self.hold(Slot::lent_for(left - 1));
            return None;
        }
        // Ordering: Acquire pairs with the Release of whoever had the slot before, as every claim does.
        let word = self.slot.word.swap(SlotState::TAKEN, Ordering::Acquire);
        if word == SlotState::TAKEN {
            return None;
        }
        // Ordering: Relaxed; whoever asks at this moment asks again with the next miss.
        self.slot.gate.store(Slot::OPEN, Ordering::Relaxed);
        Some(SlotState::from_word(word))
    }
}
