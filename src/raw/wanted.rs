//! Owns the one word that every free reads, and the wake-up protocol behind it: how many of the frames that come back are wanted
//! elsewhere than in a cache.
//!
//! # The word
//! ```text
//!  63 ......................... 32 | 31 .................. 0
//!  frames that callers wait for    | frames that the reserve
//!  and that nobody has promised    | lacks
//! ```
//! It is zero, in a cache line that every CPU shares, until the reserve is used or somebody waits. A free that finds it not
//! zero brings its frame to the reserve, if that lacks one, and counts it then (`pool/reserve.rs`); otherwise it takes a *ticket* for
//! those who wait, and brings its frame to them.
//!
//! # The wake-up protocol
//! Callers that wait stand in a queue that tasks alone touch (`raw/queue.rs`). A free, in whatever context, touches only this
//! word, the chain of frames on their way to the queue, and the doorbell.
//!
//! | event | who | order |
//! |---|---|---|
//! | Enrol | a task | in the queue's lock: joins the queue, adds what it lacks to the word |
//! | Sweep | a task | answers the call; SeqCst fence; then takes what is on the chain, in the depot, and in each slot, which it claims and releases; a slot that is taken is left for another Sweep |
//! | Keep | a free on its fast path | claims its slot (Acquire); reads the word: zero; puts the frame into the slot; releases it |
//! | Divert | a free | reads the word: not zero; takes a ticket; puts the frame on the chain; Call |
//! | PutDown | whoever else puts frames into the depot or a slot | puts them down; SeqCst fence; reads the word; Call if somebody waits |
//! | Call | any context | sets `called` (Release); rings the doorbell if it was not set |
//! | Answer | a task | clears `called` (with the fence behind it, Acquire) |
//!
//! Every Enrol is followed by a Sweep, by the same task; every ring, and every Sweep that left a slot out, by another (the
//! worker's, or that of the host's `maintain`).
//!
//! # Why no wake-up is lost (INV-7)
//! Let W be enrolled and lack a frame, and let all Sweeps be done. A frame that lies idle in the pool was put there by a Keep or a PutDown; take
//! the Enrol of W and the Sweep after it.
//! * Keep into slot s. The Sweep has claimed and released s. If the Keep's claim came first, so did its release, since the Sweep
//!   found s free: the Sweep took the frame. If it came later, it acquired what the Sweep released, hence saw the word with
//!   what W lacks in it; it kept the frame, so the word was zero: tickets for all that W lacks had been taken, and each brings
//!   its frame by a Divert.
//!   A restartable sequence reads the word inside the sequence, and its claim is the gate: a Sweep shuts it and ends, by the
//!   barrier, the sequence that has read the word before.
//! * PutDown. If its fence came before the Sweep's, the Sweep saw the frame. If it came later, it read the word with what W lacks
//!   in it: zero as above, or it called.
//! * Divert: the frame is on the chain, and the diverter called after that.
//! * A Call finds `called` clear and rings, or set by another whose ring is not answered yet. The Answer that clears it stands behind
//!   both in the order of that flag's changes, acquires what they released, and the Sweep behind it sees both their frames.
//!
//! The word counts at least what is lacked and on nobody's way: Enrol adds to both, a ticket makes the one the other, and only
//! the queue's lock holder lowers it otherwise, to what is still lacked. It may count more after somebody left the queue; then a
//! frame is brought that nobody wants any more, and the next Sweep gives it back.
//!
//! # What it costs those who do not wait
//! One load of a word that hardly ever changes, inside the claim that they make anyway.

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

const WAITED_FOR: u32 = 32;

/// The word as a pure value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Wants(u64);

impl Wants {
    const fn missing(self) -> u32 {
        self.0 as u32
    }

    const fn waited_for(self) -> u32 {
        (self.0 >> WAITED_FOR) as u32
    }

    /// One frame more is missing, if fewer than `target` are.
    fn claimed(self, target: u32) -> Option<Self> {
        (self.missing() < target).then(|| Self(self.0 + 1))
    }

    /// One frame fewer is missing, if one is.
    fn filled(self) -> Option<Self> {
        (self.missing() > 0).then(|| Self(self.0 - 1))
    }

    /// One frame fewer is waited for, if one is.
    fn promised(self) -> Option<Self> {
        (self.waited_for() > 0).then(|| Self(self.0 - (1 << WAITED_FOR)))
    }

    /// Other frames waited for, as many as `change` makes of those that were.
    fn waiting(self, change: impl FnOnce(u32) -> u32) -> Self {
        Self(u64::from(change(self.waited_for())) << WAITED_FOR | u64::from(self.missing()))
    }
}

/// What is wanted of the frames that come back.
#[derive(Debug)]
pub struct Wanted {
    word: AtomicU64,
    /// The doorbell has been rung for those who wait, and not answered.
    called: AtomicBool,
}

impl Wanted {
    /// `missing` frames for the reserve, and nobody waits.
    pub fn new(missing: u32) -> Self {
        Self { word: AtomicU64::new(missing.into()), called: AtomicBool::new(false) }
    }

    #[inline(always)]
    fn wants(&self) -> Wants {
        // Ordering: Relaxed; Keep reads it behind the Acquire of its claim, PutDown behind its fence, and a ticket is taken by
        // read-modify-write. Whoever got a frame from the reserve sees the count that came with it or a later one, because it
        // received the frame after that (coherence).
        Wants(self.word.load(Ordering::Relaxed))
    }

    /// Whether a frame that comes back is wanted anywhere but in a cache. To be asked inside the claim of a slot, or behind a
    /// fence.
    #[inline(always)]
    pub fn is_any(&self) -> bool {
        self.wants().0 != 0
    }

    /// The word itself, for a restartable sequence that asks `is_any`.
    #[cfg(all(feature = "std", not(loom)))]
    #[inline(always)]
    pub(crate) fn word(&self) -> *const u64 {
        self.word.as_ptr()
    }

    /// How many frames the reserve lacks.
    #[inline(always)]
    pub fn missing(&self) -> u32 {
        self.wants().missing()
    }

    /// How many frames are waited for that nobody has promised.
    pub fn waited_for(&self) -> u32 {
        self.wants().waited_for()
    }

    /// Changes the word as `change` says, or leaves it where that says nothing; whether it changed. Lock-free.
    fn change(&self, published: Ordering, change: impl Fn(Wants) -> Option<Wants>) -> bool {
        self.word
            // Ordering: as the callers say on success; Relaxed on failure, nothing is read through the word then.
            .fetch_update(published, Ordering::Relaxed, |word| change(Wants(word)).map(|after| after.0))
            .is_ok()
    }

    /// Claims a frame of a reserve of `target` frames, which is missing from now on; whether there was one.
    pub fn claim_below(&self, target: u32) -> bool {
        // Ordering: Acquire pairs with the Release in `fill_missing`: the frames that the word counts are seen in their cells. Changes
        // in between are read-modify-writes and continue the release sequence.
        self.change(Ordering::Acquire, |wants| wants.claimed(target))
    }

    /// A frame more is in the reserve; whether it lacked one.
    pub fn fill_missing(&self) -> bool {
        // Ordering: Release publishes the frame in its cell to the Acquire of `claim_below`.
        self.change(Ordering::Release, Wants::filled)
    }

    /// Takes a ticket for a caller that waits; whether there was one.
    pub fn promise(&self) -> bool {
        // Ordering: Relaxed; the frame is published by the chain, and the count limits itself.
        self.change(Ordering::Relaxed, Wants::promised)
    }

    /// Enrol: `frames` more are waited for.
    pub fn wait_for(&self, frames: u32) {
        // Ordering: Relaxed; the Sweep that follows publishes it, with its fence and with each slot that it releases.
        self.change(Ordering::Relaxed, |wants| Some(wants.waiting(|before| before.saturating_add(frames))));
    }

    /// No more than `frames` are still lacked and on nobody's way. By the holder of the queue's lock.
    pub fn limit_waited_for(&self, frames: u32) {
        // Ordering: Relaxed; the lock orders those who lower the count, and tickets only lower it further.
        self.change(Ordering::Relaxed, |wants| {
            (wants.waited_for() > frames).then(|| wants.waiting(|_| frames))
        });
    }

    /// The end of a PutDown: whether the caller must Call.
    pub fn is_waited_for_after_put_down(&self) -> bool {
        // Ordering: SeqCst fence between what was put down and the reading of the word, against the fence of `answer` between
        // the word and what is looked at: one of both sees the other. Acquire and Release would let both miss.
        fence(Ordering::SeqCst);
        self.waited_for() > 0
    }

    /// Call: whether the caller must ring the doorbell.
    pub fn call(&self) -> bool {
        // Ordering: Release publishes the frame that was just put down to the Acquire of `answer`, also when another has
        // called before: all changes of the flag until then are read-modify-writes.
        !self.called.swap(true, Ordering::Release)
    }

    /// Answer, and the fence of the Sweep that follows.
    pub fn answer(&self) {
        // Ordering: Relaxed; the fence behind it makes it pair with the Release in `call`, so that what was put down before
        // any call so far is seen.
        self.called.swap(false, Ordering::Relaxed);
        // Ordering: SeqCst fence; see `is_waited_for_after_put_down`.
        fence(Ordering::SeqCst);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_and_those_who_wait_are_counted_apart() {
        let wanted = Wanted::new(2);
        wanted.wait_for(u32::MAX);
        wanted.wait_for(1);
        assert_eq!((wanted.missing(), wanted.waited_for()), (2, u32::MAX));
        wanted.limit_waited_for(1);
        assert!(wanted.promise() && !wanted.promise());
        assert!(wanted.fill_missing() && wanted.is_any() && wanted.fill_missing());
        assert!(!wanted.fill_missing() && !wanted.is_any());
        assert!(wanted.claim_below(1) && !wanted.claim_below(1));
        wanted.limit_waited_for(7);
        assert_eq!((wanted.missing(), wanted.waited_for()), (1, 0), "a limit never adds");
    }

    #[test]
    fn one_call_rings_until_it_is_answered() {
        let wanted = Wanted::new(0);
        assert!(wanted.call() && !wanted.call());
        wanted.answer();
        assert!(wanted.call());
    }
}
