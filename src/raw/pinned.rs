//! Owns the third way to own a slot: its one context keeps it, and works on it with plain loads and stores.
//!
//! For code that nobody but interrupts of its own can come between: a kernel that keeps preemption off around its calls, where a
//! CPU's slot belongs to that CPU; a thread with a slot of its own, whose signal handlers nest. The owner takes the slot out of the
//! others' reach by one claim (`raw/claim.rs`) and then *holds* it, for as many operations as it likes; when another CPU asks for
//! it, the owner *lends* it for a while: it puts the state back where all can claim it, and claims it like all others.
//!
//! # The words
//! | word | written by | read by |
//! |---|---|---|
//! | a slot's `word` | whoever claims; it stays TAKEN while the owner holds the slot | all |
//! | a slot's `held`: a state, or LENT with a count | the owner's contexts, inside | the same; statistics |
//! | a slot's `entered`: 0 or 1 | the owner's contexts | the same |
//! | a slot's `gate`: OPEN, SHUT or LENDING | any CPU, to SHUT, which asks; the owner, to LENDING or OPEN, which answers | the owner, inside |
//!
//! | `word` | `held` | who may use the two magazines |
//! |---|---|---|
//! | TAKEN | a state | the owner's context that set `entered` |
//! | TAKEN | LENT | whoever claimed the slot, the owner or another |
//! | a state | LENT | nobody; the next to claim it |
//!
//! `held` never is a state while `word` is one: the owner takes `word` before it writes `held`, and writes LENT before it puts the
//! state back. What the owner finds inside with an OPEN gate is a state: it opens the gate in the same operation in which it takes
//! `word`, and lends only together with LENDING. So one look at the gate says that nobody asks and that the slot is held.
//!
//! # Why an interrupt finds the slot consistent
//! The owner's contexts nest: one that interrupts another ends before that one goes on. Each reads `entered`, and goes to the depot
//! if it is 1 (INV-3: it does not wait); otherwise it writes 1, and only then reads `held`; it writes `held` once, and 0 to `entered`
//! last. What an interrupt finds:
//!
//! | interrupted | the interrupt finds | and |
//! |---|---|---|
//! | before the 1 is stored, also behind the load of the 0 | 0 | works on the slot, and leaves a 0, which is what was read, and a state, which is read later |
//! | between the 1 and the last 0 | 1 | goes to the depot |
//! | after the 0 | 0, and the new state | works on the slot |
//!
//! So no exchange is needed: what could come in between leaves the word that was read as it was. One CPU, hence one program order: it
//! is the compiler alone that must keep the order of the stores. A single word would not do: a state that was read before the
//! slot is marked may be old when it is.
//!
//! # Why others get at the frames
//! Another CPU cannot take a plain word away from its owner, so it asks: it shuts the gate and goes on without (an operation in
//! progress, as far as it knows). The owner's next operation on the slot, of whatever kind, sees that, puts the state back into `word`
//! (Release), and claims the slot for its next operations, [`LENT_FOR`] of them unless it is asked again; then it holds it again.
//! A request that crosses with the answer is answered: the state was in reach after it. One that crosses with the owner's taking the
//! slot up again may be lost, and is repeated with the next miss. An owner that never calls again keeps
//! what it holds, so one that stops drains its slot itself (`drain_cpu` on the owner's own slot needs no request); closing and
//! dropping a pool need none either, because they have it alone.
//!
//! # Bounds
//! An operation on a held slot is a constant number of plain instructions; holding and lending add one claim. Nothing loops.
//!
//! Source: the bias of a lock towards its owner and its revocation, K. Kawachiya and others, OOPSLA 2002; local_lock_t in Linux.

use super::{
    claim::Claim,
    magazine::{Entry, FrameNumber},
    slot::{Loading, Slot, SlotMiss, SlotOwnership, SlotState, Slots, sealed},
    wanted::Wanted,
};
use crate::sync::{atomic::Ordering, nesting};

mod entered;

use entered::Entered;

/// For how many operations a slot stays in everybody's reach after a request.
const LENT_FOR: u32 = 256;

/// Says which cache belongs to the calling context alone: the duty behind [`Pinned`].
///
/// # Safety
/// While an operation of the pool that has asked is in progress, nobody else is given the same number, except code that interrupts
/// it where it runs and ends before it goes on: an interrupt, an NMI, a signal handler that returns. The context is not moved to
/// where another number is given out. Whoever is given a number later sees what was done before under it.
///
/// So a kernel keeps preemption off from before a call of the pool until it returns, and answers with the number of the CPU, exactly.
///
/// ```
/// use framepool::{Pinned, PinnedContext, Platform};
///
/// /// A kernel that never preempts kernel code, on one CPU.
/// struct Unikernel {
///     ownership: Pinned<OnlyCpu>,
/// }
///
/// struct OnlyCpu;
///
/// // SAFETY: there is one CPU, code on it is interrupted by handlers only, and they return.
/// unsafe impl PinnedContext for OnlyCpu {
///     fn slot(&self) -> Option<usize> {
///         Some(0)
///     }
/// }
///
/// impl Platform for Unikernel {
///     type Ownership = Pinned<OnlyCpu>;
///     fn ownership(&self) -> &Pinned<OnlyCpu> {
///         &self.ownership
///     }
///     fn current_cpu(&self) -> usize {
///         0
///     }
///     fn ring(&self) {}
/// }
/// # let kernel = Unikernel { ownership: Pinned::new(OnlyCpu) };
/// # assert_eq!(kernel.ownership().context().slot(), Some(0));
/// ```
pub unsafe trait PinnedContext: Sync {
    /// The number of the caller's own cache, or nothing for a context without one, which claims that of its CPU. A number beyond the
    /// caches of the pool counts as nothing. Called from any context in which the pool is; must not sleep, lock or panic.
    fn slot(&self) -> Option<usize>;
}

/// Ownership of a slot by the one context that it belongs to, as `C` says: without a locked instruction.
///
/// Wait-free: an operation is a constant number of plain instructions, and one claim more after another CPU has asked for the
/// slot. Another CPU gets frames out of it from the owner's next operation on; so a context that will not call again soon drains
/// its cache by [`drain_cpu`](crate::FramePool::drain_cpu).
#[derive(Clone, Copy, Debug)]
pub struct Pinned<C> {
    context: C,
    lent_for: u32,
}

impl<C: PinnedContext> sealed::Sealed for Pinned<C> {}

/// Why a slot cannot be worked on as a held one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// The code that was interrupted is at work on it.
    Nested,
    /// It is in everybody's reach: the one with this number, to be claimed.
    Shared(usize),
    /// The context has none of its own; that of its CPU is to be claimed.
    NoOwn,
}

impl<C: PinnedContext> Pinned<C> {
    /// Slots belong to whom `context` says.
    pub const fn new(context: C) -> Self {
        Self { context, lent_for: LENT_FOR }
    }

    /// As [`new`](Self::new), with a number of operations for which a slot is lent.
    #[cfg(loom)]
    pub const fn lending(context: C, lent_for: u32) -> Self {
        Self { context, lent_for }
    }

    /// Who says to whom slots belong.
    pub const fn context(&self) -> &C {
        &self.context
    }

    /// Takes a frame from the loaded magazine of the caller's own slot, if it has one and holds it, nobody asks for it, and there is one.
    #[inline(always)]
    fn pop_loaded(&self, slots: &Slots) -> Option<FrameNumber> {
        let entered = Entered::new(slots.slots.get(self.context.slot()?)?)?;
        if entered.is_held_for_good()
            && let Some((after, entry)) = entered.state().pop_loaded(slots.magazines.shape())
        {
            return Some(pop_entry(slots, entered, after, entry));
        }
        entered.leave();
        None
    }

    /// Puts a frame into the loaded magazine of the caller's own slot, if it has one and holds it, nobody asks for it, and there is room.
    #[inline(always)]
    fn push_loaded(&self, slots: &Slots, frame: FrameNumber, wanted: &Wanted) -> bool {
        let Some(own) = self.context.slot() else { return false };
        let Some(slot) = slots.slots.get(own) else { return false };
        let Some(entered) = Entered::new(slot) else { return false };
        if entered.is_held_for_good()
            && !wanted.is_any()
            && let Some((after, entry)) = entered.state().push_loaded(slots.magazines.shape())
        {
            push_entry(slots, entered, after, entry, frame);
            return true;
        }
        entered.leave();
        false
    }

    /// Enters the caller's own slot, if it has one and holds it, after it has answered who asks.
    fn enter<'s>(&self, slots: &'s Slots) -> Result<(Entered<'s>, SlotState), Refusal> {
        let Some(own) = self.context.slot() else { return Err(Refusal::NoOwn) };
        let Some(slot) = slots.slots.get(own) else { return Err(Refusal::NoOwn) };
        let Some(entered) = Entered::new(slot) else { return Err(Refusal::Nested) };
        match entered.held().or_else(|| entered.settle(self.lent_for)) {
            Some(state) => Ok((entered, state)),
            None => {
                entered.leave();
                Err(Refusal::Shared(own))
            }
        }
    }

    /// Replaces a magazine of the caller's own slot as `exchange` says, or as `claim` does if it is not held.
    fn replace(
        &self,
        slots: &Slots,
        cpu: impl Fn() -> usize,
        arriving: Loading,
        exchange: impl FnOnce(SlotState, Loading) -> Result<(SlotState, Loading), Loading>,
        claim: impl FnOnce(usize, Loading) -> Result<Loading, Loading>,
    ) -> Result<Loading, Loading> {
        match self.enter(slots) {
            Ok((entered, state)) => match exchange(state, arriving) {
                Ok((after, leaving)) => {
                    entered.leave_holding(after);
                    Ok(leaving)
                }
                Err(returned) => {
                    entered.leave_holding(state);
                    Err(returned)
                }
            },
            Err(Refusal::Nested) => Err(arriving),
            Err(Refusal::Shared(slot)) => claim(slot, arriving),
            Err(Refusal::NoOwn) => claim(cpu(), arriving),
        }
    }

    /// Puts a slot that its owner holds into everybody's reach, at once if it is the caller's own, or else asks for it.
    fn ask_for(&self, slots: &Slots, victim: usize) {
        let Some(slot) = slots.of(victim) else { return };
        if self.context.slot() == slots.index_of(victim) {
            if let Some(entered) = Entered::new(slot) {
                entered.lend(self.lent_for);
                entered.leave();
            }
        } else if slot.held_state().is_some() {
            // Ordering: Relaxed; a request carries nothing.
            slot.gate.store(Slot::SHUT, Ordering::Relaxed);
        }
    }
}

/// Takes the frame in `entry` out of a slot that its owner holds and leaves with `after`.
#[inline(always)]
fn pop_entry(slots: &Slots, entered: Entered<'_>, after: SlotState, entry: Entry) -> FrameNumber {
    // SAFETY: the slot is held and entered, so both magazines are ours alone (INV-2), and the entry was filled.
    let frame = nesting::step(|| unsafe { slots.magazines.read(entry) });
    entered.slot.popped.add(1);
    entered.leave_holding(after);
    frame
}

/// Puts a frame into `entry` of a slot that its owner holds and leaves with `after`.
#[inline(always)]
fn push_entry(slots: &Slots, entered: Entered<'_>, after: SlotState, entry: Entry, frame: FrameNumber) {
    // SAFETY: the slot is held and entered, so both magazines are ours alone (INV-2), and the position is below the size.
    nesting::step(|| unsafe { slots.magazines.write(entry, frame) });
    entered.slot.pushed.add(1);
    entered.leave_holding(after);
}

fn outcome<T>(
    outcome: Result<(SlotState, super::magazine::Magazine), super::magazine::Magazine>,
    wrap: impl Fn(super::magazine::Magazine) -> T,
) -> Result<(SlotState, T), T> {
    match outcome {
        Ok((state, leaving)) => Ok((state, wrap(leaving))),
        Err(returned) => Err(wrap(returned)),
    }
}

impl<C: PinnedContext> SlotOwnership for Pinned<C> {
    #[inline(always)]
    fn pop(&self, slots: &Slots, _: impl Fn() -> usize) -> Result<FrameNumber, SlotMiss> {
        self.pop_loaded(slots).ok_or(SlotMiss::Untried)
    }

    #[inline(always)]
    fn push(
        &self,
        slots: &Slots,
        _: impl Fn() -> usize,
        frame: FrameNumber,
        wanted: &Wanted,
    ) -> Result<(), SlotMiss> {
        if self.push_loaded(slots, frame, wanted) { Ok(()) } else { Err(SlotMiss::Untried) }
    }

    fn pop_again(
        &self,
        slots: &Slots,
        cpu: impl Fn() -> usize,
        _: SlotMiss,
    ) -> Result<FrameNumber, SlotMiss> {
        match self.enter(slots) {
            Ok((entered, state)) => match state.pop(slots.magazines.shape()) {
                Some((after, entry)) => Ok(pop_entry(slots, entered, after, entry)),
                None => {
                    entered.leave_holding(state);
                    Err(SlotMiss::Unsuited)
                }
            },
            Err(Refusal::Nested) => Err(SlotMiss::Busy),
            Err(Refusal::Shared(slot)) => Claim.pop(slots, || slot),
            Err(Refusal::NoOwn) => Claim.pop(slots, cpu),
        }
    }

    fn push_again(
        &self,
        slots: &Slots,
        cpu: impl Fn() -> usize,
        frame: FrameNumber,
        wanted: &Wanted,
        _: SlotMiss,
    ) -> Result<(), SlotMiss> {
        match self.enter(slots) {
            Ok((entered, state)) if wanted.is_any() => {
                entered.leave_holding(state);
                Err(SlotMiss::Wanted)
            }
            Ok((entered, state)) => match state.push(slots.magazines.shape()) {
                Some((after, entry)) => {
                    push_entry(slots, entered, after, entry, frame);
                    Ok(())
                }
                None => {
                    entered.leave_holding(state);
                    Err(SlotMiss::Unsuited)
                }
            },
            Err(Refusal::Nested) => Err(SlotMiss::Busy),
            Err(Refusal::Shared(slot)) => Claim.push(slots, || slot, frame, wanted),
            Err(Refusal::NoOwn) => Claim.push(slots, cpu, frame, wanted),
        }
    }

    fn pop_many(&self, slots: &Slots, cpu: impl Fn() -> usize, frames: &mut [FrameNumber]) -> usize {
        let (entered, mut state) = match self.enter(slots) {
            Ok(entered) => entered,
            Err(Refusal::Nested) => return 0,
            Err(Refusal::Shared(slot)) => return Claim.pop_many(slots, || slot, frames),
            Err(Refusal::NoOwn) => return Claim.pop_many(slots, cpu, frames),
        };
        let mut taken = 0;
        for frame in frames {
            let Some((after, entry)) = state.pop(slots.magazines.shape()) else { break };
            // SAFETY: the slot is held and entered, so both magazines are ours alone (INV-2), and the entry was filled.
            *frame = nesting::step(|| unsafe { slots.magazines.read(entry) });
            state = after;
            taken += 1;
        }
        entered.slot.popped.add(taken as u64);
        entered.leave_holding(state);
        taken
    }

    fn push_many(
        &self,
        slots: &Slots,
        cpu: impl Fn() -> usize,
        frames: &[FrameNumber],
        wanted: &Wanted,
    ) -> usize {
        let (entered, mut state) = match self.enter(slots) {
            Ok(entered) => entered,
            Err(Refusal::Nested) => return 0,
            Err(Refusal::Shared(slot)) => return Claim.push_many(slots, || slot, frames, wanted),
            Err(Refusal::NoOwn) => return Claim.push_many(slots, cpu, frames, wanted),
        };
        let mut put = 0;
        let frames = if wanted.is_any() { &[] } else { frames };
        for &frame in frames {
            let Some((after, entry)) = state.push(slots.magazines.shape()) else { break };
            // SAFETY: the slot is held and entered, so both magazines are ours alone (INV-2), and the position is below the size.
            nesting::step(|| unsafe { slots.magazines.write(entry, frame) });
            state = after;
            put += 1;
        }
        entered.slot.pushed.add(put as u64);
        entered.leave_holding(state);
        put
    }

    fn load_stocked(
        &self,
        slots: &Slots,
        cpu: impl Fn() -> usize,
        stocked: Loading,
    ) -> Result<Loading, Loading> {
        let shape = slots.magazines.shape();
        let load =
            |state: SlotState, stocked: Loading| outcome(state.load_stocked(shape, stocked.0), Loading);
        self.replace(slots, cpu, stocked, load, |slot, stocked| Claim.load_stocked(slots, || slot, stocked))
    }

    fn load_vacant(
        &self,
        slots: &Slots,
        cpu: impl Fn() -> usize,
        vacant: Loading,
    ) -> Result<Loading, Loading> {
        let shape = slots.magazines.shape();
        let load = |state: SlotState, vacant: Loading| outcome(state.load_vacant(shape, vacant.0), Loading);
        self.replace(slots, cpu, vacant, load, |slot, vacant| Claim.load_vacant(slots, || slot, vacant))
    }

    fn steal(&self, slots: &Slots, victim: usize, vacant: Loading) -> Result<Loading, Loading> {
        let is_stocked =
            |slot: &Slot| slot.held_state().is_some_and(|state| state.frames(slots.magazines.shape()) > 0);
        if slots.of(victim).is_some_and(is_stocked) {
            self.ask_for(slots, victim);
        }
        Claim.steal(slots, victim, vacant)
    }

    fn shut(&self, slots: &Slots, victim: usize) -> Option<u32> {
        self.ask_for(slots, victim);
        Claim.shut(slots, victim)
    }

    fn unload(&self, slots: &Slots, victim: usize) -> Option<(Loading, Loading)> {
        Claim.unload(slots, victim)
    }

    fn open(&self, slots: &Slots, victim: usize, loaded: Loading, previous: Loading) {
        Claim.open(slots, victim, loaded, previous);
    }
}
