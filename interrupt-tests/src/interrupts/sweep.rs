//! The sweep over one operation: recorded in every state, then interrupted at every point of the record, by every operation.

use super::{
    crowd::Crowd,
    host::Memory,
    landing::{Call, Interrupter, Landing, landings},
    operations::{self, Operation, Role},
    situations::{self, Situation},
    tier::{self, Seen},
    world::{World, stage},
};
use std::{
    cell::Cell,
    collections::{BTreeMap, HashSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    /// Each moment is tried with one of so many interrupts, in turn, at least with one. With 1, all.
    pub every: usize,
    /// Passes through a loop in which it is interrupted.
    pub passes: usize,
    /// Pairs of interrupts, the second in the first, in each state.
    pub pairs: u64,
}

/// Failures after which a sweep ends.
const FAILURES: usize = 32;

/// What is known about one tier of the operation.
pub struct Tier<T> {
    /// States of the pool in which the operation comes to this tier.
    pub states: usize,
    /// The most points that it came to, undisturbed.
    pub steps: usize,
    /// Distinct points that it came to, and at which it was interrupted.
    pub reached: HashSet<T>,
    pub interrupted: HashSet<T>,
    /// Runs that were interrupted.
    pub runs: usize,
}

impl<T> Default for Tier<T> {
    fn default() -> Self {
        Self { states: 0, steps: 0, reached: HashSet::new(), interrupted: HashSet::new(), runs: 0 }
    }
}

/// One operation, and what came of interrupting it.
pub struct Sweep<'i, I: Interrupter> {
    pub operation: &'static Operation,
    pub tiers: BTreeMap<String, Tier<I::Point>>,
    pub failures: Vec<String>,
    /// Pairs of interrupts, the second of which came.
    pub pairs: usize,
    interrupter: &'i I,
    depth: Depth,
    memory: Memory,
    /// Of the state that is being swept.
    crowd: Crowd<I::Point>,
}

impl<'i, I: Interrupter> Sweep<'i, I> {
    pub fn new(interrupter: &'i I, operation: &'static Operation, depth: Depth) -> Self {
        let (tiers, failures, memory) = (BTreeMap::new(), Vec::new(), Memory::default());
        Self { operation, tiers, failures, pairs: 0, interrupter, depth, memory, crowd: Crowd::NOBODY }
    }

    /// Sweeps over all states, and has `each` look at those in which the operation can run.
    pub fn run(&mut self, mut each: impl FnMut(&mut Self, &Situation)) {
        for (number, state) in situations::all(I::SEVERAL_DEPOTS).iter().enumerate() {
            if state.is_for(self.operation) && !self.has_failed() && self.run_in(state, number as u64) {
                each(self, state);
            }
        }
    }

    /// Whether every point that was reached was interrupted too.
    pub fn is_complete(&self) -> bool {
        !self.tiers.is_empty() && self.tiers.values().all(|tier| tier.reached == tier.interrupted)
    }

    pub fn fail(&mut self, state: &Situation, words: &str) {
        self.failures.push(format!("{} [{state}] {words}", self.operation.name));
    }

    /// Whether there is nothing more to be learnt.
    fn has_failed(&self) -> bool {
        self.failures.len() >= FAILURES
    }

    /// Records the operation in one state and interrupts it wherever it went; whether it can run there.
    fn run_in(&mut self, state: &Situation, number: u64) -> bool {
        self.crowd = Crowd::gather(self.interrupter, &self.memory, state);
        let (recorded, verdict) = self.stage(state, |world| {
            let before = Seen::of(world);
            let record = world.attempt(self.operation, 0, |call| self.interrupter.record(call))?;
            Some((record, tier::name(&before, &Seen::of(world))))
        });
        if let Err(wrong) = verdict {
            self.fail(state, &wrong);
        }
        let Some(Some((record, name))) = recorded else { return false };
        let tier = self.tiers.entry(name.clone()).or_default();
        tier.states += 1;
        tier.steps = tier.steps.max(record.len());
        tier.reached.extend(&record);
        let landings = landings(&record, self.depth.passes);
        // A call that touches nothing that is shared may have no points at all.
        let Some(&start) = landings.first() else { return true };
        let interrupts: Vec<_> = operations::all()
            .filter(|interrupt| state.is_for_both(self.operation, interrupt))
            .filter(|interrupt| self.interrupted(state, &record, start, interrupt).is_some())
            .collect();
        // With fewer interrupts than that, each moment would not have its turn.
        let every = self.depth.every.min(interrupts.len());
        for (turn, interrupt) in interrupts.into_iter().enumerate() {
            let first = (turn + number as usize) % every;
            for &landing in landings.iter().skip(first).step_by(every) {
                match self.interrupted(state, &record, landing, interrupt) {
                    _ if self.has_failed() => return true,
                    None => self.fail(state, &format!("{landing}, by {}: cannot run here", interrupt.name)),
                    Some(Ok(())) => {
                        let tier = self.tiers.entry(name.clone()).or_default();
                        tier.runs += 1;
                        tier.interrupted.insert(landing.at);
                    }
                    Some(Err(wrong)) => {
                        self.fail(state, &format!("{landing}, by {}: {wrong}", interrupt.name))
                    }
                }
            }
        }
        for pair in 0..self.depth.pairs {
            self.pair(state, &record, &landings, number * self.depth.pairs + pair);
        }
        true
    }

    /// As [`stage`], in the middle of the crowd if the state has one; nothing if that did not gather.
    fn stage<R>(
        &self,
        state: &Situation,
        play: impl FnOnce(&World<'_>) -> R,
    ) -> (Option<R>, Result<(), String>) {
        stage(&self.memory, state, |world| {
            self.crowd.within(self.interrupter, world, || {
                state.prepare_inside(world);
                play(world)
            })
        })
    }

    /// One run that is interrupted once; nothing if the interrupt has nothing to do in this state.
    fn interrupted(
        &self,
        state: &Situation,
        record: &[I::Point],
        landing: Landing<I::Point>,
        interrupt: &Operation,
    ) -> Option<Result<(), String>> {
        let ran = Cell::new(false);
        let (landed, verdict) = self.stage(state, |world| {
            let action = || ran.set(world.perform(interrupt, 1));
            world
                .attempt(self.operation, 0, |call| self.interrupter.interrupt(call, record, landing, &action))
        });
        match (landed.flatten(), ran.get()) {
            (Some(true), false) => None,
            (Some(true), true) => Some(verdict),
            (_, _) => Some(Err("the run took another way than the one that was recorded".into())),
        }
    }

    /// Two interrupts, the second in the middle of the first.
    fn pair(&mut self, state: &Situation, record: &[I::Point], landings: &[Landing<I::Point>], number: u64) {
        let mut choice = Choice::new(self.operation, number);
        let (Some(&landing), Some(first), Some(second)) = (
            choice.of(landings),
            choice.among(|first| first.role == Role::Any && state.is_for_both(self.operation, first)),
            choice.among(|second| state.is_for_both(self.operation, second)),
        ) else {
            return;
        };
        let step = choice.below(I::SECOND_WITHIN);
        let came = Cell::new(false);
        let (_, verdict) = self.stage(state, |world| {
            let last = || came.set(world.perform(second, 2));
            let action = || {
                world.attempt(first, 1, |call| self.interrupter.interrupt_step(call, step, &last));
            };
            world
                .attempt(self.operation, 0, |call| self.interrupter.interrupt(call, record, landing, &action))
        });
        self.pairs += usize::from(came.get());
        if let Err(wrong) = verdict {
            let words =
                format!("{landing}, by {}, at its step {step} by {}: {wrong}", first.name, second.name);
            self.fail(state, &words);
        }
    }
}

impl World<'_> {
    /// Makes the call of an operation as `make` does, as the context `level`; nothing if it cannot run here.
    pub fn attempt<R>(
        &self,
        operation: &Operation,
        level: usize,
        make: impl FnOnce(Call<'_, '_>) -> R,
    ) -> Option<R> {
        let hand = &self.hands[level];
        self.prepare(operation, hand).then(|| {
            let result = make(Call { function: operation.call, world: self, hand });
            self.settle(operation, hand);
            result
        })
    }
}

/// A choice that is the same in every run.
pub struct Choice(DefaultHasher);

impl Choice {
    pub fn new(operation: &Operation, number: u64) -> Self {
        let mut hasher = DefaultHasher::new();
        (operation.name, number).hash(&mut hasher);
        Self(hasher)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0.write_u8(0);
        (self.0.finish() % limit as u64) as usize
    }

    pub fn among(&mut self, suits: impl Fn(&Operation) -> bool) -> Option<&'static Operation> {
        let suitable: Vec<_> = operations::all().filter(|operation| suits(operation)).collect();
        self.of(&suitable).copied()
    }

    pub fn of<'t, T>(&mut self, all: &'t [T]) -> Option<&'t T> {
        all.get(self.below(all.len().max(1)))
    }
}
