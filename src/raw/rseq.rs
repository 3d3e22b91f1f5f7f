//! Owns the second way to own a slot: a restartable sequence, which the kernel starts over whenever its CPU does something else
//! in the middle. No locked instruction; Linux on x86-64 only.
//!
//! # The words
//! | word | written by | read by |
//! |---|---|---|
//! | a slot's `word` | sequences on its CPU, while the gate is open; whoever shut the gate, otherwise | both |
//! | a slot's `gate`: OPEN or SHUT | any CPU, by one exchange to SHUT; whoever shut it, back to OPEN | sequences, first |
//! | `popped`, `pushed` | sequences on the slot's CPU | statistics |
//!
//! | gate | word | who may use the two magazines |
//! |---|---|---|
//! | OPEN | a state | a sequence on the slot's CPU, until it is aborted |
//! | SHUT, a moment ago | a state | the same, until the barrier has ended it |
//! | SHUT, after the barrier | a state, or TAKEN when unloaded | whoever shut it |
//!
//! # Why a sequence is alone with its slot
//! A sequence reads the number of its CPU, the gate, the word and an entry, or writes a free entry, and commits with one store
//! to the word. Everything that could come in between aborts it before that store:
//!
//! | in between | what ends the sequence |
//! |---|---|
//! | a signal handler on the same thread, which uses the pool | delivery of the signal moves the thread to its abort label |
//! | another thread on the same CPU, which does | so does the preemption |
//! | the same thread on another CPU, after a migration | so does the migration: the number is never used elsewhere |
//! | an operation of another CPU on this slot | shuts the gate first and then calls the barrier, which interrupts this CPU |
//! | an interrupt that ends in none of these | nothing: no code of this process has run |
//!
//! So between the first instruction of a sequence that commits and its commit no other code has touched slot or magazines, and
//! reading the word first and storing it last is as good as one step. What an aborted sequence has left is a number in
//! an entry above the length, where nobody reads, and a count, which its abort label takes back.
//!
//! # Why the gate is read before the word
//! After the barrier the one who shut the gate changes the word, then opens the gate. A sequence that began before the
//! barrier is over. One that began later and finds the gate OPEN has read it after it was opened; x86 performs loads in order and
//! stores in order, so the word that it reads next is the new one. With the word read first, it could be the old one with the new
//! gate, and nothing would abort it: the barrier has passed.
//!
//! # Who does not use sequences
//! A thread without a registration reads all ones as its CPU (it unregistered, or the kernel refused it), and a CPU beyond the
//! slots has none of its own. Both share the *last* slot of a pool, which no sequence ever enters, by [`Claim`]. Where
//! the process has no registration at all, every slot is claimed. Which it is never changes while a pool lives, and a slot
//! is never owned in two ways.
//!
//! # Bounds
//! Each attempt is a few instructions; after four of them (`rseq/attempts.rs`) the caller goes to the depot, as from a slot that is taken. So
//! single-stepping in a debugger, which aborts every attempt, costs speed only. Operations on another CPU's slot are one
//! system call each, made only for a slot that looks worth it; they do not wait for that CPU's code (INV-3): a second one that
//! finds the gate shut goes away.
//!
//! # Forks, and what is forbidden
//! A child of `fork` has its own copy of everything, its thread is registered, and sequences of other threads are not half
//! done there: they were aborted before they left anything. A gate that another thread had shut at that moment stays shut in
//! the child, and that slot unused. Children of `vfork` or `clone(CLONE_VM)` without `CLONE_THREAD` run on the memory and on the
//! area of their parent without protection: they must not use a pool. A shared object with this code must not be unloaded while
//! threads live that have used it, since their areas name a sequence in it.
//!
//! Source: P. Turner, "Restartable Sequences", 2015; M. Desnoyers, `kernel/rseq.c`, Linux 4.18; the barrier, P. Oskolkov, Linux 5.10.

use super::{
    claim::Claim,
    magazine::FrameNumber,
    slot::{Loading, Slot, SlotMiss, SlotOwnership, SlotState, Slots, sealed},
    wanted::Wanted,
};
use crate::sync::{atomic::Ordering, hand_over};

mod attempts;
#[cfg(not(loom))]
mod kernel;
#[cfg(loom)]
mod model;
#[cfg(not(loom))]
mod section;

#[cfg(not(loom))]
use self::kernel::Area;
#[cfg(loom)]
use model::Area;

/// A sequence did not commit: it was interrupted, or left before its end, since this CPU has no slot, the gate is shut, or the slot
/// does not suit. Which of these it was is not told: what follows looks at the slot in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setback;

/// Ownership of a slot by restartable sequences, or by [`Claim`] where the kernel or the C library does not offer them.
///
/// Wait-free on a CPU's own slot: at most four attempts of a few instructions. Taking from another CPU's slot is one
/// `membarrier` system call.
#[derive(Debug)]
pub struct Rseq {
    /// None where there are no sequences.
    area: Option<Area>,
    /// Where the kernel writes the number of the CPU, whether there are sequences or not.
    #[cfg(not(loom))]
    registered: Option<Area>,
}

impl sealed::Sealed for Rseq {}

/// Which slot a caller uses.
enum Home<'s> {
    /// Its CPU's own, by sequences.
    Own(&'s Area, &'s Slot),
    /// The one with this number, by claim.
    Claimed(usize),
}

impl Rseq {
    /// By sequences if this process has them, which stays so for its life.
    #[cfg(not(loom))]
    pub(crate) fn find() -> Self {
        Self { area: Area::find(), registered: Area::registered() }
    }

    /// By the sequences of a model.
    #[cfg(loom)]
    pub fn modelled() -> Self {
        Self { area: Some(Area::new()) }
    }

    /// By claim alone.
    #[cfg(not(loom))]
    pub(crate) fn off() -> Self {
        Self { area: None, registered: Area::registered() }
    }

    /// The number of the CPU that runs this code, if the kernel writes it into this thread's area: one load.
    #[cfg(not(loom))]
    #[inline(always)]
    pub(crate) fn cpu_hint(&self) -> Option<usize> {
        /// What stands there on a thread without a registration.
        const UNREGISTERED: usize = u32::MAX as usize;
        Some(self.registered?.cpu()).filter(|&cpu| cpu != UNREGISTERED)
    }

    /// Whether sequences are used.
    #[cfg(not(loom))]
    pub(crate) const fn is_on(&self) -> bool {
        self.area.is_some()
    }

    fn home<'s>(&'s self, slots: &'s Slots, cpu: impl Fn() -> usize) -> Home<'s> {
        let Some(area) = &self.area else { return Home::Claimed(cpu()) };
        let own = area.cpu();
        match slots.slots.get(own) {
            Some(slot) if own < slots.restartable => Home::Own(area, slot),
            _ => Home::Claimed(slots.restartable),
        }
    }

    /// What sequences work with if they enter the slot with this number.
    fn area_of(&self, slots: &Slots, index: usize) -> Option<&Area> {
        self.area.as_ref().filter(|_| index < slots.restartable)
    }

    /// `pop` where there are no sequences. A function of its own: it is little for a caller of sequences to carry, and has few registers
    /// to save, which are stores that the exchange waits for.
    #[inline(never)]
    fn pop_claimed(slots: &Slots, cpu: impl Fn() -> usize, frame: &mut FrameNumber) -> Result<(), SlotMiss> {
        Claim.pop(slots, cpu).map(|popped| *frame = popped)
    }

    /// As `pop_claimed`.
    #[inline(never)]
    fn push_claimed(
        slots: &Slots,
        cpu: impl Fn() -> usize,
        frame: FrameNumber,
        wanted: &Wanted,
    ) -> Result<(), SlotMiss> {
        Claim.push(slots, cpu, frame, wanted)
    }
}

impl Area {
    /// Shuts the gate of another CPU's slot and ends the sequences in it: from here on the caller is alone with the slot.
    fn shut_gate<'s>(&self, slots: &'s Slots, cpu: usize) -> Option<&'s Slot> {
        let slot = slots.of(cpu)?;
        // Ordering: Acquire pairs with the Release in `open_gate` of whoever shut the gate before. What the sequences on that CPU
        // did is made visible by the barrier, which also keeps this store before it.
        if slot.gate.swap(Slot::SHUT, Ordering::Acquire) == Slot::SHUT {
            return None;
        }
        if self.end_sequences(cpu) {
            return Some(slot);
        }
        open_gate(slots, slot);
        None
    }
}

/// The state of a slot, unless its gate is shut. It may be another one in the next moment; what is derived from it is committed
/// against the same word.
fn state_of(slot: &Slot) -> Option<SlotState> {
    // Ordering: Relaxed; a look at whether an attempt is worth while, which does the ordering.
    let (gate, word) = (slot.gate.load(Ordering::Relaxed), slot.word.load(Ordering::Relaxed));
    (gate != Slot::SHUT && word != SlotState::TAKEN).then_some(SlotState::from_word(word))
}

/// Lets sequences into a slot whose gate the caller has shut.
fn open_gate(slots: &Slots, slot: &Slot) {
    // Ordering: Release publishes the word, and the entries of its magazines, to the sequences that find the gate open. A plain
    // store is enough, since whoever else exchanges the gate meanwhile puts SHUT in the place of SHUT.
    hand_over(&slot.gate, Slot::open_gate(slots.magazines.shape()));
}

impl SlotOwnership for Rseq {
    #[inline(always)]
    fn pop(&self, slots: &Slots, cpu: impl Fn() -> usize) -> Result<FrameNumber, SlotMiss> {
        let first = self.area.as_ref().map(|area| (area, area.pop(slots)));
        if let Some((_, Ok(frame))) = first {
            return Ok(frame);
        }
        // Only here, so that a hit has nothing to do with it.
        let mut frame = FrameNumber::MAX;
        match first {
            Some((area, _)) => self.pop_again(area, slots, cpu, &mut frame)?,
            None => Self::pop_claimed(slots, cpu, &mut frame)?,
        }
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
        let Some(area) = &self.area else { return Self::push_claimed(slots, cpu, frame, wanted) };
        match area.push(slots, frame, wanted) {
            Ok(()) => Ok(()),
            Err(Setback) => self.push_again(area, slots, cpu, frame, wanted),
        }
    }

    fn pop_many(&self, slots: &Slots, cpu: impl Fn() -> usize, frames: &mut [FrameNumber]) -> usize {
        match self.home(slots, cpu) {
            Home::Claimed(slot) => Claim.pop_many(slots, || slot, frames),
            Home::Own(area, slot) => area.move_many(
                slots,
                slot,
                frames.len(),
                |length| length > 0,
                |from| area.pop_many(slots, frames.get_mut(from..).unwrap_or_default()),
            ),
        }
    }

    fn push_many(
        &self,
        slots: &Slots,
        cpu: impl Fn() -> usize,
        frames: &[FrameNumber],
        wanted: &Wanted,
    ) -> usize {
        let size = slots.magazines.shape().size();
        match self.home(slots, cpu) {
            Home::Own(..) if wanted.is_any() => 0,
            Home::Claimed(slot) => Claim.push_many(slots, || slot, frames, wanted),
            Home::Own(area, slot) => area.move_many(
                slots,
                slot,
                frames.len(),
                |length| length < size,
                |from| area.push_many(slots, frames.get(from..).unwrap_or_default(), wanted),
            ),
        }
    }

    fn load_stocked(
        &self,
        slots: &Slots,
        cpu: impl Fn() -> usize,
        stocked: Loading,
    ) -> Result<Loading, Loading> {
        let shape = slots.magazines.shape();
        match self.home(slots, cpu) {
            Home::Claimed(slot) => Claim.load_stocked(slots, || slot, stocked),
            Home::Own(area, slot) => {
                area.replace(slots, slot, stocked.0, |state, stocked| state.load_stocked(shape, stocked))
            }
        }
    }

    fn load_vacant(
        &self,
        slots: &Slots,
        cpu: impl Fn() -> usize,
        vacant: Loading,
    ) -> Result<Loading, Loading> {
        let shape = slots.magazines.shape();
        match self.home(slots, cpu) {
            Home::Claimed(slot) => Claim.load_vacant(slots, || slot, vacant),
            Home::Own(area, slot) => {
                area.replace(slots, slot, vacant.0, |state, vacant| state.load_vacant(shape, vacant))
            }
        }
    }

    fn steal(&self, slots: &Slots, victim: usize, vacant: Loading) -> Result<Loading, Loading> {
        let shape = slots.magazines.shape();
        let Some(victim) = slots.index_of(victim) else { return Err(vacant) };
        let Some(area) = self.area_of(slots, victim) else { return Claim.steal(slots, victim, vacant) };
        // A system call only for a slot in which there seems to be something.
        let looks_stocked = |slot| state_of(slot).is_some_and(|state| state.frames(shape) > 0);
        if !slots.of(victim).is_some_and(looks_stocked) {
            return Err(vacant);
        }
        let Some(slot) = area.shut_gate(slots, victim) else { return Err(vacant) };
        // Ordering: Relaxed; alone with the slot, behind the barrier.
        let state = SlotState::from_word(slot.word.load(Ordering::Relaxed));
        let outcome = match state.give_up(shape, vacant.0) {
            Ok((after, leaving)) => {
                // Ordering: Relaxed; published by the Release of the gate.
                slot.word.store(after.word(), Ordering::Relaxed);
                Ok(Loading(leaving))
            }
            Err(returned) => Err(Loading(returned)),
        };
        open_gate(slots, slot);
        outcome
    }

    fn shut(&self, slots: &Slots, victim: usize) -> Option<u32> {
        let victim = slots.index_of(victim)?;
        let Some(area) = self.area_of(slots, victim) else { return Claim.shut(slots, victim) };
        let slot = area.shut_gate(slots, victim)?;
        // Ordering: Relaxed; alone with the slot, behind the barrier.
        Some(SlotState::from_word(slot.word.load(Ordering::Relaxed)).frames(slots.magazines.shape()))
    }

    fn unload(&self, slots: &Slots, victim: usize) -> Option<(Loading, Loading)> {
        let victim = slots.index_of(victim)?;
        if self.area_of(slots, victim).is_none() {
            return Claim.unload(slots, victim);
        }
        // Ordering: Relaxed; the caller has shut the slot. What comes out is replaced, so that no magazine comes out twice
        // (INV-2).
        let word = slots.of(victim)?.word.swap(SlotState::TAKEN, Ordering::Relaxed);
        if word == SlotState::TAKEN {
            return None;
        }
        let (loaded, previous) = SlotState::from_word(word).into_magazines(slots.magazines.shape());
        Some((Loading(loaded), Loading(previous)))
    }

    fn open(&self, slots: &Slots, victim: usize, loaded: Loading, previous: Loading) {
        let Some(victim) = slots.index_of(victim) else { return };
        if self.area_of(slots, victim).is_none() {
            return Claim.open(slots, victim, loaded, previous);
        }
        if let Some(slot) = slots.of(victim) {
            let state = SlotState::holding(slots.magazines.shape(), loaded.0, previous.0);
            // Ordering: Relaxed; published by the Release of the gate.
            slot.word.store(state.word(), Ordering::Relaxed);
            open_gate(slots, slot);
        }
    }
}
