//! Owns the first way to own a slot: one atomic swap puts `TAKEN` into its word and takes the state out.
//!
//! Whoever swaps out `TAKEN` has changed nothing and goes to the depot at once: an interrupt that landed inside an
//! operation, an NMI, a thread that migrated, a thief. Nobody waits (INV-3), so interrupting any instruction is
//! harmless: before the swap nothing is held, between swap and store the word says so, after the store all is done.
//! Linux's per-CPU page lists use a trylock in the same way (mm/page_alloc.c, `pcp_spin_trylock`).

use super::{
    magazine::FrameNumber,
    slot::{Loading, Slot, SlotMiss, SlotOwnership, SlotState, Slots, sealed},
    wanted::Wanted,
};
use crate::sync::{atomic::Ordering, hand_over};

/// Ownership of a slot by one locked exchange: for every host, from every context, with the CPU number as a hint.
///
/// Wait-free: each operation is one exchange and one store, and never loops.
#[derive(Clone, Copy, Debug, Default)]
pub struct Claim;

impl sealed::Sealed for Claim {}

/// A slot whose word this context has swapped out: alone with its two magazines until `release`.
struct Claimed<'s> {
    slot: &'s Slot,
    state: SlotState,
}

impl<'s> Claimed<'s> {
    #[inline(always)]
    fn new(slot: Option<&'s Slot>) -> Result<Self, SlotMiss> {
        let slot = slot.ok_or(SlotMiss::Busy)?;
        // Ordering: Acquire pairs with the Release in `release` of whoever had the slot before, so that the entries
        // it wrote, and what was written into the frames it freed, are ours. Not Release: `TAKEN` publishes nothing.
        let word = slot.word.swap(SlotState::TAKEN, Ordering::Acquire);
        if word == SlotState::TAKEN {
            return Err(SlotMiss::Busy);
        }
        Ok(Self { slot, state: SlotState::from_word(word) })
    }

    #[inline(always)]
    fn release(self, state: SlotState) {
        // Ordering: Release publishes the entries of both magazines to the Acquire in `new` of the next owner. A plain
        // store is enough, since whoever finds TAKEN puts TAKEN back.
        hand_over(&self.slot.word, state.word());
    }

    /// Lays the slot down as it was found.
    #[inline(always)]
    fn release_unchanged(self) {
        let state = self.state;
        self.release(state);
    }

    fn finish<T>(self, outcome: Result<(SlotState, T), T>) -> Result<T, T> {
        match outcome {
            Ok((state, leaving)) => {
                self.release(state);
                Ok(leaving)
            }
            Err(returned) => {
                self.release_unchanged();
                Err(returned)
            }
        }
    }
}

impl SlotOwnership for Claim {
    #[inline(always)]
    fn pop(&self, slots: &Slots, cpu: impl Fn() -> usize) -> Result<FrameNumber, SlotMiss> {
        let claimed = Claimed::new(slots.of(cpu()))?;
        let Some((after, entry)) = claimed.state.pop(slots.magazines.shape()) else {
            claimed.release_unchanged();
            return Err(SlotMiss::Unsuited);
        };
        // SAFETY: the claim makes both magazines of the slot ours alone (INV-2), and the entry was filled.
        let frame = unsafe { slots.magazines.read(entry) };
        claimed.slot.popped.add(1);
        claimed.release(after);
        Ok(frame)
    }

    #[inline(always)]
    fn push(
        &self,
        slots: &Slots,
        cpu: impl Fn() -> usize,
        frame: FrameNumber,
        wanted: &Wanted,
    ) -> Result<(), SlotMiss> {
        let claimed = Claimed::new(slots.of(cpu()))?;
        if wanted.is_any() {
            claimed.release_unchanged();
            return Err(SlotMiss::Wanted);
        }
        let Some((after, entry)) = claimed.state.push(slots.magazines.shape()) else {
            claimed.release_unchanged();
            return Err(SlotMiss::Unsuited);
        };
        // SAFETY: the claim makes both magazines of the slot ours alone (INV-2), and the position is below the size.
        unsafe { slots.magazines.write(entry, frame) };
        claimed.slot.pushed.add(1);
        claimed.release(after);
        Ok(())
    }

    fn pop_many(&self, slots: &Slots, cpu: impl Fn() -> usize, frames: &mut [FrameNumber]) -> usize {
        let Ok(claimed) = Claimed::new(slots.of(cpu())) else { return 0 };
        let (mut state, mut taken) = (claimed.state, 0);
        for frame in frames {
            let Some((after, entry)) = state.pop(slots.magazines.shape()) else { break };
            // SAFETY: the claim makes both magazines of the slot ours alone (INV-2), and the entry was filled.
            *frame = unsafe { slots.magazines.read(entry) };
            state = after;
            taken += 1;
        }
        claimed.slot.popped.add(taken as u64);
        claimed.release(state);
        taken
    }

    fn push_many(
        &self,
        slots: &Slots,
        cpu: impl Fn() -> usize,
        frames: &[FrameNumber],
        wanted: &Wanted,
    ) -> usize {
        let Ok(claimed) = Claimed::new(slots.of(cpu())) else { return 0 };
        if wanted.is_any() {
            claimed.release_unchanged();
            return 0;
        }
        let (mut state, mut put) = (claimed.state, 0);
        for &frame in frames {
            let Some((after, entry)) = state.push(slots.magazines.shape()) else { break };
            // SAFETY: the claim makes both magazines of the slot ours alone (INV-2), and the position is below the size.
            unsafe { slots.magazines.write(entry, frame) };
            state = after;
            put += 1;
        }
        claimed.slot.pushed.add(put as u64);
        claimed.release(state);
        put
    }

    fn load_stocked(
        &self,
        slots: &Slots,
        cpu: impl Fn() -> usize,
        stocked: Loading,
    ) -> Result<Loading, Loading> {
        let Ok(claimed) = Claimed::new(slots.of(cpu())) else { return Err(stocked) };
        let outcome = claimed.state.load_stocked(slots.magazines.shape(), stocked.0);
        claimed.finish(outcome).map(Loading).map_err(Loading)
    }

    fn load_vacant(
        &self,
        slots: &Slots,
        cpu: impl Fn() -> usize,
        vacant: Loading,
    ) -> Result<Loading, Loading> {
        let Ok(claimed) = Claimed::new(slots.of(cpu())) else { return Err(vacant) };
        let outcome = claimed.state.load_vacant(slots.magazines.shape(), vacant.0);
        claimed.finish(outcome).map(Loading).map_err(Loading)
    }

    fn steal(&self, slots: &Slots, victim: usize, vacant: Loading) -> Result<Loading, Loading> {
        let Ok(claimed) = Claimed::new(slots.of(victim)) else { return Err(vacant) };
        let outcome = claimed.state.give_up(slots.magazines.shape(), vacant.0);
        claimed.finish(outcome).map(Loading).map_err(Loading)
    }

    fn shut(&self, slots: &Slots, victim: usize) -> Option<u32> {
        let claimed = Claimed::new(slots.of(victim)).ok()?;
        // Ordering: Relaxed; only the context that shut the slot reads it back. The word stays TAKEN until `open`.
        claimed.slot.parked.store(claimed.state.word(), Ordering::Relaxed);
        Some(claimed.state.frames(slots.magazines.shape()))
    }

    fn unload(&self, slots: &Slots, victim: usize) -> Option<(Loading, Loading)> {
        // Ordering: Relaxed; as in `shut`. What comes out is replaced, so that no magazine comes out twice (INV-2).
        let parked = slots.of(victim)?.parked.swap(SlotState::TAKEN, Ordering::Relaxed);
        if parked == SlotState::TAKEN {
            return None;
        }
        let (loaded, previous) = SlotState::from_word(parked).into_magazines(slots.magazines.shape());
        Some((Loading(loaded), Loading(previous)))
    }

    fn open(&self, slots: &Slots, victim: usize, loaded: Loading, previous: Loading) {
        let state = SlotState::holding(slots.magazines.shape(), loaded.0, previous.0);
        if let Some(slot) = slots.of(victim) {
            Claimed { slot, state }.release_unchanged();
        }
    }
}
