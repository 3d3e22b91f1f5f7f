//! Owns the replay itself: one thread for each CPU of the trace, and handlers that take events of their CPU while one of
//! its own is in progress.
//!
//! # The state of an event
//! | state | meaning | who sets it |
//! |---|---|---|
//! | `WAITING` | not begun, or in progress | |
//! | `EXECUTED` | done by a handler, not yet checked | the handler |
//! | `REFUSED` | begun by a handler, but there were no frames | the handler |
//! | `SETTLED` | done and checked against the model: others may build on it | the thread |
//!
//! A handler takes the next event of its CPU only if everything that this waits for is settled; so it never waits, and never
//! touches the pages of the event that it interrupted. A thread waits for events of other CPUs, and settles meanwhile what its
//! handlers have done. The first event that is not settled has nothing to wait for: somebody always goes on.

use crate::{
    interrupts::{Interruptible, interrupted},
    plan::{Flushing, Model, Plan},
    trace::{Event, Operation},
    unit::Behind,
};
use framepool::{
    AnonymousMemory, FramePool, LinuxPlatform, PhysAddr,
    vtd::{Domain, Format, Invalidation, Iova, MapError, MapOutcome, TableFrames, UnmapError},
};
use std::{
    cell::UnsafeCell,
    sync::{
        Barrier, Mutex,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

const PAGE: u64 = 4096;

const WAITING: u8 = 0;
const EXECUTED: u8 = 1;
const REFUSED: u8 = 2;
const SETTLED: u8 = 3;

/// How many events a handler takes at most.
const BURST: usize = 2;
/// How often all threads stop for a comparison of every domain with the model.
const COMPARISONS: usize = 16;

/// The allocator under every domain, or under the strict unit: the pool itself.
pub type Frames<'p> = &'p FramePool<AnonymousMemory, LinuxPlatform>;
/// An invalidation that waits for its flush, in a place of its own, since a handler cannot ask for memory.
type Pending<'d, A> = UnsafeCell<Option<Invalidation<'d, A>>>;

/// What the replay has counted.
#[derive(Debug, Default)]
pub struct Counts {
    pub settled: AtomicU64,
    pub signals: AtomicU64,
    /// Signals that landed inside a call of the builder.
    pub inside: AtomicU64,
    pub by_handlers: AtomicU64,
    /// Calls that found no frames and were made again later.
    pub refused: AtomicU64,
    pub pages_checked: AtomicU64,
    pub mismatches: AtomicU64,
    pub table_frames_peak: AtomicU64,
    /// The first line at which something was not as the model says; 0 if none.
    pub first_mismatch: AtomicU32,
}

impl Counts {
    fn mismatch(&self, line: u32) {
        self.mismatches.fetch_add(1, SeqCst);
        let _ = self.first_mismatch.compare_exchange(0, line, SeqCst, SeqCst);
    }
}

/// One replay in progress.
pub struct Replay<'p, 'd, F: Format, A: TableFrames> {
    plan: &'d Plan,
    domains: &'d [Domain<F, A>],
    behind: &'d Behind<'d, Frames<'p>>,
    states: Vec<AtomicU8>,
    /// For lazy traces, a place for each event.
    pending: Vec<Pending<'d, A>>,
    counts: &'d Counts,
}

// SAFETY: a pending place is written by the one who executes its unmap, before it is settled, and read by the one who executes
// the flush that waits for it, after; everything else is atomic or not changed.
unsafe impl<F: Format, A: TableFrames + Sync> Sync for Replay<'_, '_, F, A> {}

/// There were no frames; the tables are as before.
struct OutOfFrames;

impl<'p, 'd, F: Format, A: TableFrames + Sync> Replay<'p, 'd, F, A> {
    pub fn new(
        plan: &'d Plan,
        domains: &'d [Domain<F, A>],
        behind: &'d Behind<'d, Frames<'p>>,
        counts: &'d Counts,
    ) -> Self {
        let states = plan.events.iter().map(|_| AtomicU8::new(WAITING)).collect();
        let places = if plan.flushing == Flushing::Lazy { plan.events.len() } else { 0 };
        let pending = (0..places).map(|_| UnsafeCell::new(None)).collect();
        Self { plan, domains, behind, states, pending, counts }
    }

    /// Replays all events, with an interrupt on each CPU every `interval`; then completes what no flush has.
    pub fn run(self, interval: Option<Duration>) {
        let barrier = Barrier::new(self.plan.lanes.len());
        let model = Mutex::new((Model::default(), 0));
        thread::scope(|scope| {
            for numbers in &self.plan.lanes {
                let lane = Lane::new(&self, numbers);
                let (barrier, model) = (&barrier, &model);
                scope.spawn(move || {
                    let work = || {
                        lane.run(barrier, &mut |end| {
                            lane.replay.compare(&mut model.lock().expect("no comparison has panicked"), end);
                        });
                    };
                    interrupted(&lane, interval, work).expect("timers for every thread");
                });
            }
        });
        for place in self.pending {
            if let Some(invalidation) = place.into_inner() {
                self.behind.complete(F::STAGE, invalidation);
            }
        }
    }

    fn is_settled(&self, event: u32) -> bool {
        self.states[event as usize].load(SeqCst) == SETTLED
    }

    fn is_ready(&self, event: u32) -> bool {
        self.plan.waits_for.of(event).iter().all(|&other| self.is_settled(other))
    }

    /// Makes the driver's call. Any context.
    fn execute(&self, number: u32) -> Result<(), OutOfFrames> {
        let event = &self.plan.events[number as usize];
        let domain = &self.domains[usize::from(event.domain)];
        let iova = Iova::new(event.iova);
        let _call = self.behind.enter();
        match event.operation {
            Operation::Map { target, permissions } => {
                // SAFETY: there is no hardware, and the plan keeps events on the same pages apart.
                match unsafe { domain.map(iova, PhysAddr::new(target), event.length, permissions) } {
                    Ok(told) => {
                        if let Some(told) = told.into_invalidation() {
                            self.behind.complete(F::STAGE, told);
                        }
                    }
                    Err(MapError::OutOfFrames { .. }) => return Err(OutOfFrames),
                    Err(_) => self.counts.mismatch(event.line),
                }
            }
            Operation::Unmap => match domain.unmap(iova, event.length) {
                Ok(invalidation) => self.unmapped(number, invalidation),
                Err(UnmapError::OutOfFrames { .. }) => return Err(OutOfFrames),
                Err(_) => self.counts.mismatch(event.line),
            },
            Operation::Flush => self.flush(number),
            Operation::Sync | Operation::Attach => {}
        }
        let live = self.domains.iter().map(Domain::table_frames).sum();
        self.counts.table_frames_peak.fetch_max(live, SeqCst);
        Ok(())
    }

    fn unmapped(&self, number: u32, invalidation: Invalidation<'d, A>) {
        match self.pending.get(number as usize) {
            // SAFETY: this event is being executed by us alone, and its flush waits until it is settled.
            Some(place) => unsafe { *place.get() = Some(invalidation) },
            None => self.behind.complete(F::STAGE, invalidation),
        }
    }

    /// Completes the unmaps that the flush waits for, as one invalidation.
    fn flush(&self, number: u32) {
        let mut all: Option<Invalidation<'d, A>> = None;
        for &unmap in self.plan.completes.of(number) {
            let place = self.pending.get(unmap as usize);
            // SAFETY: the unmap is settled, this flush alone completes it, and we execute the flush.
            let next = place.and_then(|place| unsafe { (*place.get()).take() });
            match (&mut all, next) {
                (Some(all), Some(next)) => {
                    if all.merge(next).is_err() {
                        self.counts.mismatch(self.plan.events[unmap as usize].line);
                    }
                }
                (None, Some(next)) => all = Some(next),
                (_, None) => {}
            }
        }
        if let Some(all) = all {
            self.behind.complete(F::STAGE, all);
        }
    }

    /// Lets a device look at what the event, or what a flush completes, has left behind. Thread context.
    fn access(&self, number: u32) {
        let event = &self.plan.events[number as usize];
        let wrong = match event.operation {
            Operation::Map { .. } => self.behind.access(event),
            Operation::Unmap if self.plan.flushing == Flushing::Strict => self.behind.access(event),
            Operation::Flush => {
                let unmaps = self.plan.completes.of(number).iter();
                unmaps.map(|&unmap| self.behind.access(&self.plan.events[unmap as usize])).sum()
            }
            Operation::Unmap | Operation::Sync | Operation::Attach => 0,
        };
        if wrong > 0 {
            self.counts.mismatch(event.line);
        }
    }

    /// Compares every page of the event with what it must have left behind. Thread context.
    fn check(&self, event: &Event) {
        let domain = &self.domains[usize::from(event.domain)];
        let expected = |index: u64| match event.operation {
            Operation::Map { target, permissions } => Some(Some((target + index * PAGE, permissions))),
            Operation::Unmap => Some(None),
            Operation::Sync | Operation::Flush | Operation::Attach => None,
        };
        for (index, page) in (0..).zip(event.pages()) {
            let Some(expected) = expected(index) else { return };
            let found =
                domain.translate(Iova::new(page * PAGE)).map(|at| (at.target.as_u64(), at.permissions));
            self.counts.pages_checked.fetch_add(1, SeqCst);
            if found != expected {
                self.counts.mismatch(event.line);
            }
        }
    }

    /// Compares all mappings of all domains with the model after the first `end` events, while nobody works.
    fn compare(&self, (model, applied): &mut (Model, usize), end: usize) {
        for event in &self.plan.events[*applied..end] {
            model.apply(event);
        }
        *applied = end;
        for (number, domain) in (0..).zip(self.domains) {
            let mapped = domain.mappings().flat_map(|mapping| {
                let page = move |index| {
                    let (iova, target) = (mapping.iova.as_u64() / PAGE, mapping.target.as_u64());
                    (iova + index, target + index * PAGE, mapping.permissions)
                };
                (0..mapping.length / PAGE).map(page)
            });
            if !mapped.eq(model.pages(number)) {
                self.counts.mismatch(end.checked_sub(1).map_or(0, |last| self.plan.events[last].line));
            }
        }
    }
}

/// The events of one CPU, as its thread and its handlers share them.
struct Lane<'r, 'p, 'd, F: Format, A: TableFrames> {
    replay: &'r Replay<'p, 'd, F, A>,
    numbers: &'d [u32],
    /// The next position to take.
    next: AtomicUsize,
    /// Handlers and thread take nothing from here on.
    limit: AtomicUsize,
    /// Everything before this position is settled; the thread's alone.
    settled: AtomicUsize,
    /// Whether the thread is inside a call of the builder.
    inside: AtomicBool,
}

impl<'r, 'p, 'd, F: Format, A: TableFrames + Sync> Lane<'r, 'p, 'd, F, A> {
    fn new(replay: &'r Replay<'p, 'd, F, A>, numbers: &'d [u32]) -> Self {
        let position = || AtomicUsize::new(0);
        let (next, limit, settled) = (position(), position(), position());
        Self { replay, numbers, next, limit, settled, inside: AtomicBool::new(false) }
    }

    /// Works through the lane; at each of the comparisons all threads wait for each other.
    fn run(&self, barrier: &Barrier, compare: &mut dyn FnMut(usize)) {
        let events = self.replay.plan.events.len();
        for part in 1..=COMPARISONS {
            let end = events * part / COMPARISONS;
            let limit = self.numbers.partition_point(|&number| (number as usize) < end);
            self.limit.store(limit, SeqCst);
            while let Some(position) = self.take() {
                self.work(self.numbers[position]);
            }
            self.settle_executed();
            if barrier.wait().is_leader() {
                compare(end);
            }
            barrier.wait();
        }
    }

    /// The next position, for whoever gets it first.
    fn take(&self) -> Option<usize> {
        let limit = self.limit.load(SeqCst);
        self.next.fetch_update(SeqCst, SeqCst, |next| (next < limit).then_some(next + 1)).ok()
    }

    /// Executes and settles an event that the thread has taken, and settles what handlers have executed.
    fn work(&self, number: u32) {
        while !self.replay.is_ready(number) {
            self.settle_executed();
            thread::yield_now();
        }
        self.execute_and_settle(number);
        self.settle_executed();
    }

    fn execute_and_settle(&self, number: u32) {
        loop {
            self.inside.store(true, SeqCst);
            let outcome = self.replay.execute(number);
            self.inside.store(false, SeqCst);
            match outcome {
                Ok(()) => return self.settle(number),
                // Exhaustion is normal: the worker fetches more, and this thread may sleep.
                Err(OutOfFrames) => {
                    self.replay.counts.refused.fetch_add(1, SeqCst);
                    thread::sleep(Duration::from_micros(50));
                }
            }
        }
    }

    fn settle(&self, number: u32) {
        self.replay.check(&self.replay.plan.events[number as usize]);
        self.replay.access(number);
        self.replay.states[number as usize].store(SETTLED, SeqCst);
        self.replay.counts.settled.fetch_add(1, SeqCst);
    }

    /// Settles the events that handlers have taken so far.
    fn settle_executed(&self) {
        let state = |position: usize| self.replay.states[self.numbers[position] as usize].load(SeqCst);
        let mut all_settled = true;
        for position in self.settled.load(SeqCst)..self.next.load(SeqCst) {
            match state(position) {
                EXECUTED => self.settle(self.numbers[position]),
                REFUSED => self.execute_and_settle(self.numbers[position]),
                _ => {}
            }
            all_settled &= state(position) == SETTLED;
            if all_settled {
                self.settled.store(position + 1, SeqCst);
            }
        }
    }
}

impl<F: Format, A: TableFrames + Sync> Interruptible for Lane<'_, '_, '_, F, A> {
    /// Takes the next events of this CPU, as an interrupt handler of a driver would, if they need not wait.
    fn interrupt(&self) {
        let counts = self.replay.counts;
        counts.signals.fetch_add(1, SeqCst);
        counts.inside.fetch_add(self.inside.load(SeqCst).into(), SeqCst);
        for _ in 0..BURST {
            let next = self.next.load(SeqCst);
            if next >= self.limit.load(SeqCst) || !self.replay.is_ready(self.numbers[next]) {
                return;
            }
            // Lost to a handler that interrupted this one.
            if self.next.compare_exchange(next, next + 1, SeqCst, SeqCst).is_err() {
                return;
            }
            let number = self.numbers[next];
            let state = match self.replay.execute(number) {
                Ok(()) => EXECUTED,
                Err(OutOfFrames) => REFUSED,
            };
            counts.by_handlers.fetch_add(1, SeqCst);
            self.replay.states[number as usize].store(state, SeqCst);
        }
    }
}
