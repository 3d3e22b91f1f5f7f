//! Interrupts every instruction of every operation of pool and builder, and uses the same pool and domain in the handler.
//!
//! For each case: an undisturbed run is counted, a traced one gives the addresses of its instructions, and then one run for each
//! instruction and each action of the handler is interrupted right there. After each run everything is audited and taken apart.

mod actions;
mod bounds;
mod cases;
mod observation;
mod quota;
mod rig;

use crate::{host::PhysicalMemory, ledger, say};
use actions::{ON_INTERRUPT, ON_NMI, Planned};
use bounds::Context;
use cases::{CASES, Case};
use observation::{EXECUTED, INTERRUPTED, Run, counted, interrupted, traced, within};
use rig::{THREAD, pool};

/// Runs of each case with a second level, an NMI in the handler, spread over both.
const SAMPLES: u32 = 64;
/// An interrupt that comes so many instructions after the last one of an operation finds it done.
const BEYOND: u64 = 8;

/// What came of a case.
#[derive(Default)]
struct Tally {
    runs: u32,
    hits: u32,
    inner_hits: u32,
    executed: u32,
    covered: u32,
    /// The run that broke something: the instructions before the interrupt, and the handler's action.
    violated: Option<(u32, &'static str)>,
}

/// Which operations are swept.
#[derive(Clone, Copy, PartialEq)]
pub enum Part {
    Pool,
    Builder,
}

/// Sweeps the cases of `part`, or those of them whose name contains `word`, and prints what came of it; whether all of it was as it
/// must be.
pub fn run(memory: &'static PhysicalMemory, part: Part, word: Option<&str>) -> bool {
    observation::begin();
    bounds::calibrate();
    let (mut executed, mut covered, mut runs, mut good) = (0, 0, 0, true);
    say!("{:<62} {:>6} {:>6} {:>6} {:>6} {:>6}", "case", "steps", "of", "hit", "runs", "nested");
    for case in CASES
        .iter()
        .copied()
        .flatten()
        .filter(|case| case.operation.part() == part && word.is_none_or(|word| case.name.contains(word)))
    {
        observation::forget();
        let (alone, reached, landing) = alone(memory, case);
        let tally = sweep(memory, case, alone, landing);
        say!(
            "{:<62} {:>6} {:>6} {:>6} {:>6} {:>6}",
            case.name,
            alone,
            tally.executed,
            tally.covered,
            tally.hits,
            tally.inner_hits
        );
        if !reached {
            say!("FAIL {}: an undisturbed run did not take this way", case.name);
        }
        if tally.covered < tally.executed {
            say!("FAIL {}: {:x?} was never interrupted", case.name, EXECUTED.first_missing(&INTERRUPTED));
        }
        if let Some((ticks, action)) = tally.violated {
            say!("FAIL {}: {} ({action} after {ticks} instructions)", case.name, ledger::violations().1);
            return false;
        }
        good &= reached && tally.covered == tally.executed && tally.runs > 0;
        executed += tally.executed;
        covered += tally.covered;
        runs += tally.runs;
    }
    good &= bounds::report();
    say!(
        "{runs} runs, {covered} of {executed} instruction addresses interrupted, {} violations",
        ledger::violations().0
    );
    good && runs > 0
}

/// One run of `case` from a pool that is built to one that is taken apart; `observe` runs the operation.
fn once(memory: &'static PhysicalMemory, case: &Case, observe: impl FnOnce() -> Run) -> (Run, bool) {
    rig::build(memory, case.setup);
    (case.prepare)();
    let before = pool().stats();
    let run = observe();
    let after = pool().stats();
    rig::audit(
        memory,
        case.critical || case.in_handler || run.inner_hit,
        before.rings as u32,
        (case.others)(),
    );
    (case.check)();
    rig::take_apart(memory);
    (run, (case.reached)(&before, &after))
}

/// As [`once`], in a handler if the case wants that: of an interrupt `landing` instructions into an `alloc`.
fn once_placed(
    memory: &'static PhysicalMemory,
    case: &Case,
    landing: u32,
    observe: &mut dyn FnMut() -> Run,
) -> (Run, bool) {
    if !case.in_handler {
        return once(memory, case, observe);
    }
    once(memory, case, || {
        let (mut run, mut taken) = (None, None);
        within(&mut || taken = pool().alloc().ok(), landing, &mut || run = Some(observe()));
        taken.into_iter().for_each(|frame| THREAD.keep(frame));
        run.expect("the handler ran")
    })
}

/// The instructions of an undisturbed run, whether it took the way that the name says, and where the interrupt lands in which a case
/// for handlers runs.
fn alone(memory: &'static PhysicalMemory, case: &Case) -> (u64, bool, u32) {
    for landing in 1..64 {
        let (run, reached) = once_placed(memory, case, landing, &mut || counted(case.run));
        if reached || !case.in_handler {
            bounds::note(
                case.operation,
                if case.in_handler { Context::Interrupt } else { Context::Alone },
                run.instructions,
            );
            once_placed(memory, case, landing, &mut || {
                traced(case.run);
                run
            });
            return (run.instructions, reached, landing);
        }
    }
    (0, false, 1)
}

/// One run for each instruction and action.
fn sweep(memory: &'static PhysicalMemory, case: &Case, alone: u64, landing: u32) -> Tally {
    let actions: &[Planned] = if case.in_handler { &ON_NMI } else { &ON_INTERRUPT };
    let mut tally = Tally::default();
    for (turn, Planned { name, action, runs }) in actions.iter().enumerate() {
        // The slow drift keeps a loop from meeting the same action in each of its passes.
        let comes = |ticks: &u32| !case.in_turn || (*ticks + *ticks / 61) as usize % actions.len() == turn;
        for ticks in
            (1..=(alone + BEYOND) as u32).filter(comes).flat_map(|ticks| (0..*runs).map(move |_| ticks))
        {
            let (run, _) =
                once_placed(memory, case, landing, &mut || interrupted(case.run, ticks, *action, None));
            tally.runs += 1;
            if ledger::violations().0 > 0 {
                tally.violated = Some((ticks, name));
                return tally;
            }
            if run.hit {
                tally.hits += 1;
                bounds::note(case.operation, Context::Interrupted, run.instructions);
            }
        }
    }
    tally.executed = EXECUTED.count();
    tally.covered = EXECUTED.common(&INTERRUPTED);
    for sample in 0..if case.in_handler { 0 } else { SAMPLES } {
        // Both counts walk over their ranges with strides that share no factor with them.
        let ticks = 1 + sample * 7919 % (alone + BEYOND) as u32;
        let inner = 1 + sample * 104_729 % 400;
        let action = &ON_INTERRUPT[(sample % 5) as usize];
        let nmi = &ON_NMI[(sample % 3) as usize];
        let (run, _) = once_placed(memory, case, landing, &mut || {
            interrupted(case.run, ticks, action.action, Some((inner, nmi.action)))
        });
        tally.runs += 1;
        tally.inner_hits += u32::from(run.inner_hit);
        if ledger::violations().0 > 0 {
            tally.violated = Some((ticks, "an NMI in a handler"));
            return tally;
        }
    }
    tally
}
