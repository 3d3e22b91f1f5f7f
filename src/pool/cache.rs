//! Tier 1: the frames that each CPU has at hand, two magazines a CPU; asks the depot when both are empty or full. A pool has
//! two of these, one for frames of any content and one for zeroed ones.
//!
//! Nothing here is shared between CPUs but by theft; how a slot is owned is the strategy's secret (`raw/slot.rs`).

use crate::{
    platform::Platform,
    raw::{
        magazine::{FrameNumber, Magazine, Magazines},
        slot::{Loading, SlotMiss, SlotOwnership, SlotState, Slots},
        wanted::Wanted,
    },
};

/// The caches of all CPUs, for frames of one kind.
#[derive(Debug)]
pub(crate) struct Cache {
    slots: Slots,
}

impl Cache {
    pub(crate) fn new(slots: Slots) -> Self {
        Self { slots }
    }

    pub(crate) fn magazines(&self) -> &Magazines {
        &self.slots.magazines
    }

    /// Takes a frame from this CPU's slot.
    #[inline(always)]
    pub(crate) fn pop(&self, platform: &impl Platform) -> Result<FrameNumber, SlotMiss> {
        platform.ownership().pop(&self.slots, || platform.current_cpu())
    }

    /// As [`pop`](Self::pop) after that has missed, by a longer way if there is one.
    pub(crate) fn pop_again(
        &self,
        platform: &impl Platform,
        miss: SlotMiss,
    ) -> Result<FrameNumber, SlotMiss> {
        platform.ownership().pop_again(&self.slots, || platform.current_cpu(), miss)
    }

    /// Puts a frame into this CPU's slot, unless it is wanted elsewhere.
    #[inline(always)]
    pub(crate) fn push(
        &self,
        platform: &impl Platform,
        frame: FrameNumber,
        wanted: &Wanted,
    ) -> Result<(), SlotMiss> {
        platform.ownership().push(&self.slots, || platform.current_cpu(), frame, wanted)
    }

    /// As [`push`](Self::push) after that has missed, by a longer way if there is one.
    pub(crate) fn push_again(
        &self,
        platform: &impl Platform,
        frame: FrameNumber,
        wanted: &Wanted,
        miss: SlotMiss,
    ) -> Result<(), SlotMiss> {
        platform.ownership().push_again(&self.slots, || platform.current_cpu(), frame, wanted, miss)
    }

    /// Takes as many frames from this CPU's slot as are there, into the front of `frames`.
    pub(crate) fn pop_many(&self, platform: &impl Platform, frames: &mut [FrameNumber]) -> usize {
        platform.ownership().pop_many(&self.slots, || platform.current_cpu(), frames)
    }

    /// Puts as many of `frames` into this CPU's slot as there is room for, from the front on; none if they are wanted elsewhere.
    pub(crate) fn push_many(
        &self,
        platform: &impl Platform,
        frames: &[FrameNumber],
        wanted: &Wanted,
    ) -> usize {
        platform.ownership().push_many(&self.slots, || platform.current_cpu(), frames, wanted)
    }

    /// Loads a magazine with frames into this CPU's slot; the empty one comes out, or the same if it does not fit.
    pub(crate) fn load_stocked(
        &self,
        platform: &impl Platform,
        stocked: Magazine,
    ) -> Result<Magazine, Magazine> {
        let outcome =
            platform.ownership().load_stocked(&self.slots, || platform.current_cpu(), Loading(stocked));
        unwrap_loading(outcome)
    }

    /// Loads a magazine with room into this CPU's slot; the full one comes out, or the same if it does not fit.
    pub(crate) fn load_vacant(
        &self,
        platform: &impl Platform,
        vacant: Magazine,
    ) -> Result<Magazine, Magazine> {
        let outcome =
            platform.ownership().load_vacant(&self.slots, || platform.current_cpu(), Loading(vacant));
        unwrap_loading(outcome)
    }

    /// Tier 3: takes the fuller magazine of some other CPU's slot for the empty one `vacant` (R8).
    ///
    /// Looks at each slot once, from the next CPU on; bounded by their number.
    pub(crate) fn steal(&self, platform: &impl Platform, mut vacant: Magazine) -> Result<Magazine, Magazine> {
        let first = platform.current_cpu();
        for distance in 0..self.slots.count() {
            let victim = first.wrapping_add(1).wrapping_add(distance);
            match platform.ownership().steal(&self.slots, victim, Loading(vacant)) {
                Ok(stocked) => return Ok(stocked.0),
                Err(returned) => vacant = returned.0,
            }
        }
        Err(vacant)
    }

    /// Takes the slot `cpu` out of use; how many frames it holds, or nothing if it is busy.
    pub(crate) fn shut(&self, platform: &impl Platform, cpu: usize) -> Option<u32> {
        platform.ownership().shut(&self.slots, cpu)
    }

    /// Puts the slot `cpu`, which the caller has shut, back into use with what `unloaded` makes of its magazines.
    pub(crate) fn reopen(
        &self,
        platform: &impl Platform,
        cpu: usize,
        mut unloaded: impl FnMut(Magazine) -> Magazine,
    ) {
        if let Some((loaded, previous)) = platform.ownership().unload(&self.slots, cpu) {
            let (loaded, previous) = (unloaded(loaded.0), unloaded(previous.0));
            platform.ownership().open(&self.slots, cpu, Loading(loaded), Loading(previous));
        }
    }

    /// Whether the slot `cpu` holds frames and has not been used for `passes` passes; to be asked once a pass, by the worker.
    pub(crate) fn is_idle(&self, cpu: usize, passes: u32) -> bool {
        let Some(slot) = self.slots.of(cpu) else { return false };
        let used = slot.popped().wrapping_add(slot.pushed());
        if used != slot.seen.get() {
            slot.seen.set(used);
            slot.idle.set(0);
            return false;
        }
        slot.idle.add(1);
        slot.idle.get() >= u64::from(passes)
            && slot.resting_state().is_some_and(|state| state.frames(self.slots.magazines.shape()) > 0)
    }

    /// Takes what contexts keep in slots of their own into everybody's reach, when there is no other user any more.
    pub(crate) fn release_held(&mut self) {
        self.slots.release_held();
    }

    /// How many slots there are.
    pub(crate) fn slots(&self) -> usize {
        self.slots.count()
    }

    /// Shows `visit` the state of every slot that nobody has taken, for the census.
    pub(crate) fn census(&self, mut visit: impl FnMut(usize, SlotState)) {
        for (cpu, slot) in self.slots.slots.iter().enumerate() {
            slot.resting_state().into_iter().for_each(|state| visit(cpu, state));
        }
    }

    /// Frames handed out, frames taken in, and frames in the slots that nobody is using at this moment.
    pub(crate) fn totals(&self) -> CacheTotals {
        let mut totals = CacheTotals { popped: 0, pushed: 0, frames: 0 };
        for slot in self.slots.slots.iter() {
            totals.popped += slot.popped();
            totals.pushed += slot.pushed();
            if let Some(state) = slot.resting_state() {
                totals.frames += u64::from(state.frames(self.magazines().shape()));
            }
        }
        totals
    }
}

/// What the caches add up to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheTotals {
    pub(crate) popped: u64,
    pub(crate) pushed: u64,
    pub(crate) frames: u64,
}

fn unwrap_loading(outcome: Result<Loading, Loading>) -> Result<Magazine, Magazine> {
    match outcome {
        Ok(leaving) => Ok(leaving.0),
        Err(returned) => Err(returned.0),
    }
}
