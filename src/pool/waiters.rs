//! Those who wait for frames (R11): who stands in the queue, and how frames reach it. Asks whoever frees.
//!
//! The wake-up protocol and its proof are in `raw/wanted.rs`; this file does what its events say. Frames are handed over in the
//! order of arrival, each to the first who lacks one, so nobody starves: neither a caller that waits for many behind those
//! that wait for one, nor the reverse. Only the first in the queue has frames in hand while it waits, so two of them never block
//! each other; and what it has goes on to the next when it gives up.
//!
//! A frame goes from the free that diverts it to the chain, and by a Sweep from there into the hands of the first. Everything behind the
//! chain is touched by tasks alone, under the lock.

use super::{AllocError, FramePool, SourceContents, cache::Cache, refill::CHUNK, reserve::NotKept};
use crate::{
    platform::Platform,
    raw::{
        level::Ring,
        lock::TaskLock,
        magazine::{FrameNumber, Kind},
        overflow::{Chain, Overflow},
        queue::{Entry, Queue},
    },
    source::FrameSource,
    sync::counter,
};
use core::{
    mem,
    pin::Pin,
    task::{Poll, Waker},
};

/// The queue of those who wait, and the frames on their way to it.
#[derive(Debug)]
pub(super) struct Waiters {
    on_the_way: Overflow,
    line: TaskLock<Line>,
    /// Frames that came here, and frames that left.
    arrived: counter::Shared,
    departed: counter::Shared,
    joined: counter::Shared,
    left: counter::Shared,
}

/// The queue, as the holder of the lock sees it.
#[derive(Debug)]
struct Line {
    queue: Queue<Waiter>,
    /// Frames that all who wait still lack.
    lacking: u64,
}

/// One caller that waits.
#[derive(Debug)]
pub(super) struct Waiter {
    wanted: u32,
    lacks: u32,
    /// What it has so far.
    frames: Chain,
    /// Set when it has all that it wanted, or gets nothing.
    outcome: Option<Result<(), AllocError>>,
    waker: Option<Waker>,
}

impl Waiter {
    /// A caller that wants `frames` frames.
    pub(super) fn new(frames: u32) -> Self {
        Self { wanted: frames, lacks: frames, frames: Chain::default(), outcome: None, waker: None }
    }
}

impl Waiters {
    pub(super) fn new() -> Self {
        Self {
            on_the_way: Overflow::new(),
            line: TaskLock::new(Line { queue: Queue::new(), lacking: 0 }),
            arrived: counter::Shared::new(),
            departed: counter::Shared::new(),
            joined: counter::Shared::new(),
            left: counter::Shared::new(),
        }
    }

    /// Frames on the way to those who wait, or in their hands while they wait for more.
    pub(super) fn frames(&self) -> u64 {
        self.arrived.get().saturating_sub(self.departed.get())
    }

    /// How many callers have ever waited.
    pub(super) fn joined(&self) -> u64 {
        self.joined.get()
    }

    /// How many callers wait at this moment.
    pub(super) fn waiting(&self) -> u64 {
        self.joined.get().saturating_sub(self.left.get())
    }
}

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    /// The end of a PutDown of the wake-up protocol.
    pub(super) fn announce(&self) {
        if self.wanted.is_waited_for_after_put_down() {
            self.call();
        }
    }

    fn call(&self) {
        if self.wanted.call() {
            self.ring(Ring::Yes);
        }
    }

    /// Divert: brings a frame where it is wanted, to the reserve first, then to those who wait. It comes back if it is not wanted, or
    /// another in its place.
    pub(super) fn divert(&self, kind: Kind, frame: FrameNumber) -> Result<(), (Kind, FrameNumber)> {
        if !self.wanted.is_any() {
            return Err((kind, frame));
        }
        let Err((kind, frame)) = self.keep_in_reserve(kind, frame) else { return Ok(()) };
        self.promise(frame).map_err(|frame| (kind, frame))?;
        self.call();
        Ok(())
    }

    /// Puts a frame into the reserve. It comes back, or another in its place, if that lacks none.
    pub(super) fn keep_in_reserve(&self, kind: Kind, frame: FrameNumber) -> Result<(), (Kind, FrameNumber)> {
        self.reserve.put(&self.wanted, kind, frame).map_err(|not_kept| match not_kept {
            NotKept::Full(kind, frame) => (kind, frame),
            NotKept::NoCell(frame) => {
                let ring = self.depots.missed();
                self.ring(ring);
                (kind, frame)
            }
        })
    }

    /// Puts a frame on the way to those who wait, if they want one more; the worker, who serves them afterwards, need not be
    /// called.
    pub(super) fn promise(&self, frame: FrameNumber) -> Result<(), FrameNumber> {
        if !self.wanted.promise() {
            return Err(frame);
        }
        self.send_on_the_way(frame);
        Ok(())
    }

    #[allow(unsafe_code, reason = "the chain runs through the frames themselves")]
    fn send_on_the_way(&self, frame: FrameNumber) {
        self.waiters.arrived.add(1);
        // SAFETY: the frame is the pool's and in no other place, and the source maps it.
        unsafe { self.waiters.on_the_way.push(&SourceContents(&*self.source), frame, self.address_of(frame)) }
    }

    #[allow(unsafe_code, reason = "the chain runs through the frames themselves")]
    fn add_to_chain(&self, chain: &mut Chain, frame: FrameNumber) {
        // SAFETY: the frame is the pool's and in no other place, and the source maps it.
        unsafe { chain.push(&SourceContents(&*self.source), frame, self.address_of(frame)) }
    }

    /// Hands frames that lie idle, or have come back, to those who wait for some, in their order; wakes those who have all. The
    /// worker does so when the doorbell rings, [`maintain`](Self::maintain) does so too, and a caller that begins to wait; a host
    /// that leaves the source alone for a while calls this instead when [`Platform::ring`] asks for it.
    ///
    /// Whether a cache was in use at that moment and could not be looked into: then somebody must look again soon.
    ///
    /// Thread context; bounded by the frames that move and the number of CPUs. Never asks the source.
    /// At most 220 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    pub fn serve_waiters(&self) -> bool {
        let left_out = self.waiters.line.with(|line| self.sweep(line));
        self.wake_done();
        left_out
    }

    /// Sweep; whether a slot was left out.
    fn sweep(&self, line: &mut Line) -> bool {
        self.wanted.answer();
        let mut arriving = self.waiters.on_the_way.take_all();
        let mut surplus = Chain::default();
        while let Some(frame) = self.next_of(&mut arriving) {
            self.hand(line, frame, &mut surplus);
        }
        let (mut cpu, mut left_out) = (0, false);
        while line.lacking > 0 {
            let mut chunk: [FrameNumber; CHUNK] = [0; CHUNK];
            let most = usize::try_from(line.lacking).unwrap_or(CHUNK).min(CHUNK);
            let length = self.take_idle(chunk.get_mut(..most).unwrap_or_default());
            for &frame in chunk.iter().take(length) {
                self.waiters.arrived.add(1);
                self.hand(line, frame, &mut surplus);
            }
            if length == 0 {
                if cpu == self.cache.slots() {
                    break;
                }
                for cache in [&self.cache, &self.clean_cache] {
                    left_out |= !self.sweep_slot(cache, cpu, line, &mut surplus);
                }
                cpu += 1;
            }
        }
        self.settle(line, surplus);
        left_out
    }

    /// Hands over what a slot holds, as far as it is lacked; whether the slot could be looked into.
    fn sweep_slot(&self, cache: &Cache, cpu: usize, line: &mut Line, surplus: &mut Chain) -> bool {
        if cache.shut(&self.platform, cpu).is_none() {
            return false;
        }
        cache.reopen(&self.platform, cpu, |mut magazine| {
            while line.lacking > 0
                && let Some(frame) = cache.magazines().pop(&mut magazine)
            {
                self.waiters.arrived.add(1);
                self.hand(line, frame, surplus);
            }
            magazine
        });
        true
    }

    /// Takes frames out of one magazine of the depot, or one out of the overflow; how many. Nobody looks for frames meanwhile who
    /// would have to be told that they are back, since that takes the lock.
    fn take_idle(&self, frames: &mut [FrameNumber]) -> usize {
        for kind in [Kind::Dirty, Kind::Clean] {
            let (depot, length) = self.take_uncounted(kind, frames);
            if length > 0 {
                let ring = depot.count_drawn(kind, length as u32);
                self.ring(self.depots.after_removal(depot, ring));
                return length;
            }
        }
        match (self.take_from_overflow(), frames.first_mut()) {
            (Some(frame), Some(first)) => *first = frame,
            _ => return 0,
        }
        1
    }

    /// Hands a frame to the first who lacks one, or adds it to the surplus.
    fn hand(&self, line: &mut Line, frame: FrameNumber, surplus: &mut Chain) {
        let is_done = line.queue.with_first(|waiter| {
            self.add_to_chain(&mut waiter.frames, frame);
            waiter.lacks -= 1;
            waiter.lacks == 0
        });
        match is_done {
            Some(is_done) => {
                line.lacking -= 1;
                if is_done {
                    self.finish_first(line, Ok(()));
                }
            }
            None => self.add_to_chain(surplus, frame),
        }
    }

    /// The first in the queue waits no longer.
    fn finish_first(&self, line: &mut Line, outcome: Result<(), AllocError>) {
        line.queue.with_first(|waiter| waiter.outcome = Some(outcome));
        line.queue.finish_first();
        self.waiters.left.add(1);
    }

    fn move_frames(&self, chain: &mut Chain, mut to: impl FnMut(FrameNumber)) {
        while let Some(frame) = self.next_of(chain) {
            to(frame);
        }
    }

    /// Says what is still wanted, and gives back what nobody waits for any more.
    fn settle(&self, line: &Line, mut surplus: Chain) {
        self.wanted.limit_waited_for(u32::try_from(line.lacking).unwrap_or(u32::MAX));
        self.move_frames(&mut surplus, |frame| {
            self.waiters.departed.add(1);
            self.put(Kind::Dirty, frame);
        });
    }

    /// Wakes those who are done, one by one and outside the lock: a waker is the caller's code.
    fn wake_done(&self) {
        let next = || self.waiters.line.with(|line| line.queue.take_done(|waiter| waiter.waker.take()));
        while let Some(waker) = next() {
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Refuses all who wait: the pool closes.
    pub(super) fn refuse_waiters(&self) {
        self.waiters.line.with(|line| {
            let mut surplus = Chain::default();
            while let Some(lacks) = line.queue.with_first(|waiter| {
                self.move_frames(&mut waiter.frames, |frame| self.add_to_chain(&mut surplus, frame));
                waiter.lacks
            }) {
                line.lacking -= u64::from(lacks);
                self.finish_first(line, Err(AllocError::Closed));
            }
            self.settle(line, surplus);
            self.sweep(line);
        });
        self.wake_done();
    }

    /// Enrol: the caller joins the queue, and is woken by `waker` when it is done, which it may be already.
    ///
    /// # Safety
    /// `entry` is fresh, used with this pool only, and given to [`withdraw`](Self::withdraw) before its memory is used for anything
    /// else, unless [`collect`](Self::collect) was ready before.
    #[allow(unsafe_code, reason = "the entry is part of the task that waits")]
    pub(super) unsafe fn enrol(&self, entry: Pin<&Entry<Waiter>>, waker: Waker) -> Result<(), AllocError> {
        self.waiters.line.with(|line| {
            if self.is_closing() {
                return Err(AllocError::Closed);
            }
            let note = |waiter: &mut Waiter| {
                waiter.waker = Some(waker);
                waiter.wanted
            };
            // SAFETY: the caller's.
            let wanted = unsafe {
                line.queue.join(entry);
                line.queue.with_value(entry.get_ref(), note)
            };
            line.lacking += u64::from(wanted);
            self.wanted.wait_for(wanted);
            self.waiters.joined.add(1);
            Ok(())
        })?;
        if self.serve_waiters() {
            // Somebody must look again.
            self.call();
        }
        Ok(())
    }

    /// What came of a caller that has enrolled; if nothing yet, it is woken by `waker` from now on.
    ///
    /// # Safety
    /// `entry` has enrolled.
    #[allow(unsafe_code, reason = "the entry is part of the task that waits")]
    pub(super) unsafe fn collect(
        &self,
        entry: Pin<&Entry<Waiter>>,
        waker: Waker,
    ) -> Poll<Result<Chain, AllocError>> {
        // The waker that it had is the caller's code, and dropped outside the lock.
        let (outcome, _old) = self.waiters.line.with(|line| {
            let look = |waiter: &mut Waiter| match waiter.outcome {
                None => (Poll::Pending, waiter.waker.replace(waker)),
                Some(Err(refusal)) => (Poll::Ready(Err(refusal)), waiter.waker.take()),
                Some(Ok(())) => {
                    self.waiters.departed.add(u64::from(waiter.wanted));
                    (Poll::Ready(Ok(mem::take(&mut waiter.frames))), waiter.waker.take())
                }
            };
            // SAFETY: the caller's.
            unsafe {
                let (outcome, old) = line.queue.with_value(entry.get_ref(), look);
                if outcome.is_ready() {
                    line.queue.leave(entry.get_ref());
                }
                (outcome, old)
            }
        });
        outcome
    }

    /// A caller that has enrolled gives up: what it has goes to those behind it.
    ///
    /// # Safety
    /// `entry` has enrolled, and [`collect`](Self::collect) was not ready.
    #[allow(unsafe_code, reason = "the entry is part of the task that waits")]
    pub(super) unsafe fn withdraw(&self, entry: &Entry<Waiter>) {
        let _old = self.waiters.line.with(|line| {
            let take = |waiter: &mut Waiter| {
                if waiter.outcome.is_none() {
                    self.waiters.left.add(1);
                }
                (mem::take(&mut waiter.frames), mem::take(&mut waiter.lacks), waiter.waker.take())
            };
            // SAFETY: the caller's.
            let (mut frames, lacks, old) = unsafe {
                line.queue.leave(entry);
                line.queue.with_value(entry, take)
            };
            line.lacking -= u64::from(lacks);
            let mut surplus = Chain::default();
            self.move_frames(&mut frames, |frame| self.hand(line, frame, &mut surplus));
            self.settle(line, surplus);
            old
        });
        self.wake_done();
    }
}
