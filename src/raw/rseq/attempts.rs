//! What follows an attempt that did not commit: the other magazine of the slot, the claimed slot, or another attempt, a few times.

use super::{Area, Home, Rseq, Setback, state_of};
use crate::raw::{
    claim::Claim,
    magazine::{FrameNumber, Magazine},
    slot::{Loading, Slot, SlotMiss, SlotOwnership, SlotState, Slots},
    wanted::Wanted,
};

/// How often a sequence is tried before its caller goes to the depot.
const ATTEMPTS: usize = 4;

impl Area {
    /// Loads the previous magazine of a slot if the loaded one does not suit and it does; whether another attempt may succeed.
    fn turn_to_suited(
        &self,
        slots: &Slots,
        slot: &Slot,
        suits: impl Fn(u32) -> bool,
    ) -> Result<(), SlotMiss> {
        let state = state_of(slot).ok_or(SlotMiss::Busy)?;
        let shape = slots.magazines.shape();
        if suits(state.loaded_length(shape)) {
            return Ok(());
        }
        let turned = state.exchanged();
        if !suits(turned.loaded_length(shape)) {
            return Err(SlotMiss::Unsuited);
        }
        // If this fails, the next attempt sees what has changed.
        let _ = self.commit(slots, slot, state.word(), turned.word());
        Ok(())
    }

    /// Moves frames by `attempt`, from the number of those that have moved on, until `wanted` have, or the slot does not
    /// suit; how many.
    pub(super) fn move_many(
        &self,
        slots: &Slots,
        slot: &Slot,
        wanted: usize,
        suits: impl Fn(u32) -> bool,
        mut attempt: impl FnMut(usize) -> Result<usize, Setback>,
    ) -> usize {
        let (mut moved, mut setbacks) = (0, 0);
        while moved < wanted && setbacks < ATTEMPTS {
            match attempt(moved) {
                Ok(more) => moved += more,
                Err(Setback) => {
                    setbacks += 1;
                    if self.turn_to_suited(slots, slot, &suits).is_err() {
                        break;
                    }
                }
            }
        }
        moved
    }

    /// Replaces a magazine of this CPU's slot as `exchange` says.
    pub(super) fn replace(
        &self,
        slots: &Slots,
        slot: &Slot,
        arriving: Magazine,
        exchange: impl Fn(SlotState, Magazine) -> Result<(SlotState, Magazine), Magazine>,
    ) -> Result<Loading, Loading> {
        let (index, length) = arriving.into_parts();
        // SAFETY: laid down above, and taken up once: on the way out of this function, or as part of a state that is not stored.
        let arriving = || unsafe { Magazine::from_parts(index, length) };
        for _ in 0..ATTEMPTS {
            let Some(state) = state_of(slot) else { break };
            let Ok((after, leaving)) = exchange(state, arriving()) else { break };
            // The states say which magazines are here and how full they are; what is in them does not matter to an exchange.
            // So it is enough that the word is the same when it is replaced.
            if self.commit(slots, slot, state.word(), after.word()).is_ok() {
                return Ok(Loading(leaving));
            }
        }
        Err(Loading(arriving()))
    }
}

impl Rseq {
    /// What `pop` does after an attempt that did not commit. The frame comes back through a reference: the result is then so
    /// simple that the compiler keeps it apart from the one of the attempt that commits.
    #[cold]
    #[inline(never)]
    pub(super) fn pop_again(
        &self,
        area: &Area,
        slots: &Slots,
        cpu: impl Fn() -> usize,
        frame: &mut FrameNumber,
    ) -> Result<(), SlotMiss> {
        for _ in 1..ATTEMPTS {
            match self.home(slots, &cpu) {
                Home::Own(_, slot) => area.turn_to_suited(slots, slot, |length| length > 0)?,
                Home::Claimed(slot) => return Claim.pop(slots, || slot).map(|popped| *frame = popped),
            }
            if let Ok(popped) = area.pop(slots) {
                *frame = popped;
                return Ok(());
            }
        }
        Err(SlotMiss::Busy)
    }

    #[cold]
    #[inline(never)]
    pub(super) fn push_again(
        &self,
        area: &Area,
        slots: &Slots,
        cpu: impl Fn() -> usize,
        frame: FrameNumber,
        wanted: &Wanted,
    ) -> Result<(), SlotMiss> {
        let size = slots.magazines.shape().size();
        for _ in 1..ATTEMPTS {
            match self.home(slots, &cpu) {
                Home::Own(..) if wanted.is_any() => return Err(SlotMiss::Wanted),
                Home::Own(_, slot) => area.turn_to_suited(slots, slot, |length| length < size)?,
                Home::Claimed(slot) => return Claim.push(slots, || slot, frame, wanted),
            }
            if area.push(slots, frame, wanted).is_ok() {
                return Ok(());
            }
        }
        Err(SlotMiss::Busy)
    }
}
