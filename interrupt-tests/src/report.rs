//! One operation: swept, counted, held to its limit, and reported.

use crate::{
    interrupts::{
        host::Memory,
        operations::{Operation, Role},
        situations::Situation,
        sweep::{Choice, Depth, Sweep},
        world::stage,
    },
    limits,
    machine::Machine,
};
use std::cell::Cell;

pub(crate) const HEADER: &str = "operation                    tier                                            states  \
                                 instructions  addresses  interrupted      runs";

/// How long a sweep may take before it counts as stuck, in seconds.
const PATIENCE: u32 = 1200;
/// Of so many states one is taken to count the instructions of operations that disturb each other.
const COUNTED_EVERY: usize = 12;
/// Instructions within which an operation is disturbed.
const DISTURBED_WITHIN: usize = 150;
/// Failures that are printed.
const PRINTED: usize = 8;

/// The most instructions of an operation.
#[derive(Default)]
struct Counts {
    states: usize,
    undisturbed: usize,
    interrupted: usize,
    interrupting: usize,
}

/// Sweeps the operation and prints what came of it; whether everything held.
pub(crate) fn sweep(operation: &'static Operation, depth: Depth) -> bool {
    nix::unistd::alarm::set(PATIENCE);
    let (machine, memory, mut counts) = (Machine::new(), Memory::default(), Counts::default());
    let mut sweep = Sweep::new(&machine, operation, depth);
    sweep.run(|sweep, state| {
        if let Err(wrong) = counts.take(&machine, &memory, operation, state) {
            sweep.fail(state, &wrong);
        }
    });
    let name = operation.name;
    for (word, tier) in &sweep.tiers {
        let (reached, interrupted) =
            (tier.reached.len(), tier.reached.intersection(&tier.interrupted).count());
        println!(
            "{name:<28} {word:<47} {:>6} {:>13} {reached:>10} {interrupted:>12} {:>9}",
            tier.states, tier.steps, tier.runs
        );
        counts.undisturbed = counts.undisturbed.max(tier.steps);
    }
    let limit = limits::of(name).unwrap_or(0);
    println!(
        "{name:<28} at most {} instructions undisturbed, {} interrupted, {} as an interrupt; limit {limit}; {} pairs",
        counts.undisturbed, counts.interrupted, counts.interrupting, sweep.pairs
    );
    sweep.failures.iter().take(PRINTED).for_each(|failure| println!("FAILED: {failure}"));
    let most = counts.undisturbed.max(counts.interrupted).max(counts.interrupting);
    let demands = [
        (sweep.failures.is_empty(), "no run may fail"),
        (sweep.is_complete(), "every instruction must be interrupted"),
        (most <= limit, "there is a limit, and it must hold"),
    ];
    for (_, words) in demands.iter().filter(|(holds, _)| !holds) {
        println!("FAILED: {name}: {words}");
    }
    demands.iter().all(|(holds, _)| *holds)
}

impl Counts {
    /// Counts the operation in some of the states when it is interrupted, and when it is itself the interrupt of another one.
    fn take(
        &mut self,
        machine: &Machine,
        memory: &Memory,
        operation: &'static Operation,
        state: &Situation,
    ) -> Result<(), String> {
        self.states += 1;
        let mut choice = Choice::new(operation, self.states as u64);
        if self.states % COUNTED_EVERY == 1
            && let Some(inner) =
                choice.among(|inner| inner.role == Role::Any && state.is_for_both(operation, inner))
        {
            let (count, _) =
                Self::of_both(machine, memory, state, (operation, inner), choice.below(DISTURBED_WITHIN))?;
            self.interrupted = self.interrupted.max(count);
        }
        if (self.states % COUNTED_EVERY == 2 || self.interrupting == 0)
            && let Some(outer) =
                choice.among(|outer| outer.role == Role::Any && state.is_for_both(outer, operation))
        {
            let (_, count) =
                Self::of_both(machine, memory, state, (outer, operation), choice.below(DISTURBED_WITHIN))?;
            self.interrupting = self.interrupting.max(count);
        }
        Ok(())
    }

    /// How many instructions the first of two operations takes that is interrupted by the second at `stop`, and how many that.
    fn of_both(
        machine: &Machine,
        memory: &Memory,
        state: &Situation,
        (outer, inner): (&Operation, &Operation),
        stop: usize,
    ) -> Result<(usize, usize), String> {
        let interrupting = Cell::new(0);
        let (interrupted, verdict) = stage(memory, state, |world| {
            let action = || {
                let count = world.attempt(inner, 1, |call| machine.count(call, usize::MAX, &|| ()));
                interrupting.set(count.unwrap_or(0));
            };
            world.attempt(outer, 0, |call| machine.count(call, stop, &action))
        });
        verdict
            .map_err(|wrong| format!("{} at instruction {stop} by {}: {wrong}", outer.name, inner.name))?;
        Ok((interrupted.unwrap_or(0), interrupting.get()))
    }
}
