//! The sequences as loom sees them: every access is a step that happens only if nothing has ended the sequence before it.
//!
//! Step by step what `section.rs` does in assembly, with the orderings that x86 gives to plain loads and stores.

use super::Setback;
use crate::raw::{
    magazine::{Entry, FrameNumber, Magazines},
    slot::{Slot, SlotState, Slots},
    wanted::Wanted,
};
use crate::sync::{
    atomic::Ordering,
    sequence::{Cpus, Sequence, current_cpu},
};

const LOADED: u64 = 0xFFFF_FFFF;

/// The CPUs of a model.
#[derive(Debug)]
pub(crate) struct Area(Cpus);

impl Area {
    pub(crate) fn new() -> Self {
        Self(Cpus::new())
    }

    pub(crate) fn cpu(&self) -> usize {
        current_cpu()
    }

    pub(crate) fn end_sequences(&self, cpu: usize) -> bool {
        self.0.end(cpu);
        true
    }

    /// Begins a sequence: the slot of this CPU, its gate, and then its word.
    fn begin<'s>(&'s self, slots: &'s Slots) -> Result<(Sequence<'s>, &'s Slot, u64, u64), Setback> {
        let sequence = self.0.begin().ok_or(Setback)?;
        let slot = slots.slots.get(sequence.cpu()).filter(|_| sequence.cpu() < slots.restartable);
        let slot = slot.ok_or(Setback)?;
        // Ordering: Acquire; as x86 orders loads.
        let gate = sequence.step(|| slot.gate.load(Ordering::Acquire)).ok_or(Setback)?;
        // Ordering: Acquire; as above.
        let word = sequence.step(|| slot.word.load(Ordering::Acquire)).ok_or(Setback)?;
        Ok((sequence, slot, gate, word))
    }

    pub(crate) fn pop(&self, slots: &Slots) -> Result<FrameNumber, Setback> {
        let mut frames = [0];
        self.pop_many(slots, &mut frames).map(|_| frames.into_iter().sum())
    }

    pub(crate) fn push(&self, slots: &Slots, frame: FrameNumber, wanted: &Wanted) -> Result<(), Setback> {
        self.push_many(slots, &[frame], wanted).map(|_| ())
    }

    pub(crate) fn pop_many(&self, slots: &Slots, frames: &mut [FrameNumber]) -> Result<usize, Setback> {
        let (sequence, slot, gate, word) = self.begin(slots)?;
        let length = word & gate & LOADED;
        if length == 0 {
            return Err(Setback);
        }
        let mut count = 0;
        for (place, below) in frames.iter_mut().zip(1..=length) {
            let entry = Entry(((word & LOADED) - below) as u32);
            // SAFETY: the entry is filled, and the slot ours as long as the sequence has not been ended.
            let frame = sequence.step(|| unsafe { slots.magazines.read(entry) });
            *place = frame.ok_or(Setback)?;
            count += 1;
        }
        commit(&sequence, slot, word - count, || slot.popped.add(count))?;
        Ok(count as usize)
    }

    pub(crate) fn push_many(
        &self,
        slots: &Slots,
        frames: &[FrameNumber],
        wanted: &Wanted,
    ) -> Result<usize, Setback> {
        let (sequence, slot, gate, word) = self.begin(slots)?;
        if sequence.step(|| wanted.is_any()).ok_or(Setback)? {
            return Err(Setback);
        }
        let shape = slots.magazines.shape();
        let length = SlotState::from_word(word).loaded_length(shape);
        let room = ((gate >> 32) as u32).saturating_sub(length);
        if room == 0 {
            return Err(Setback);
        }
        let mut count = 0;
        for (&frame, above) in frames.iter().zip(0..room) {
            let entry = Entry((word & LOADED) as u32 + above);
            write(&sequence, &slots.magazines, entry, frame)?;
            count += 1;
        }
        commit(&sequence, slot, word + count, || slot.pushed.add(count))?;
        Ok(count as usize)
    }

    pub(crate) fn commit(
        &self,
        slots: &Slots,
        wanted: &Slot,
        before: u64,
        after: u64,
    ) -> Result<(), Setback> {
        let (sequence, slot, gate, word) = self.begin(slots)?;
        if !core::ptr::eq(slot, wanted) || gate == Slot::SHUT || word != before {
            return Err(Setback);
        }
        commit(&sequence, slot, after, || ())
    }
}

fn write(
    sequence: &Sequence<'_>,
    magazines: &Magazines,
    entry: Entry,
    frame: FrameNumber,
) -> Result<(), Setback> {
    // SAFETY: the entry is free and below the size, and the slot ours as long as the sequence has not been ended.
    sequence.step(|| unsafe { magazines.write(entry, frame) }).ok_or(Setback)
}

fn commit(sequence: &Sequence<'_>, slot: &Slot, after: u64, count: impl FnOnce()) -> Result<(), Setback> {
    let committed = sequence.step(|| {
        count();
        // Ordering: Release; as x86 orders stores.
        slot.word.store(after, Ordering::Release);
    });
    committed.ok_or(Setback)
}
