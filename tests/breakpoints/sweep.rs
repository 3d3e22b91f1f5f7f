//! Every place, every state, every operation, every action.

use crate::{
    sequences::{self, Part, Sequence},
    trap::{self, Hit},
    world::{
        self, ACTIONS, ELSEWHERE, HOME, MAGAZINE, OPERATIONS, Operation, Situation, World, move_to, pool,
    },
};
use framepool::LinuxPlatform;
use iced_x86::Mnemonic;
use nix::{sched::sched_getaffinity, unistd::Pid};
use std::collections::{BTreeMap, BTreeSet};

/// Pieces of source that are a sequence: pop, push, pop many, push many, commit.
const KINDS: usize = 5;

/// How many instructions an operation may take when every attempt at every sequence is aborted; debug builds take more, and
/// whoever finds the depot empty looks at each slot of both sides.
fn steps_at_most(operation: &str) -> u64 {
    let slots = LinuxPlatform::possible_cpus() as u64 + 1;
    let (fixed, looks) = if operation.contains("bulk") { (2_500, 8) } else { (700, 2) };
    let debug = if cfg!(debug_assertions) { 12 } else { 1 };
    debug * (fixed + looks * slots * 50)
}

fn situations() -> Vec<Situation> {
    let with = |cached| [0, 4].map(|stock| Situation { cached, stock, elsewhere: 0 });
    let mut situations: Vec<_> = (0..=2 * MAGAZINE).flat_map(with).collect();
    if has_two_cpus() {
        situations.push(Situation { cached: 0, stock: 0, elsewhere: 2 });
    }
    situations
}

fn has_two_cpus() -> bool {
    sched_getaffinity(Pid::from_raw(0)).unwrap().is_set(ELSEWHERE).unwrap()
}

pub(crate) fn run() {
    world::build();
    if !pool().platform().uses_restartable_sequences() {
        let allowed = std::env::var_os("FRAMEPOOL_WITHOUT_RSEQ").is_some();
        assert!(
            allowed,
            "no restartable sequences here, so nothing was tested; FRAMEPOOL_WITHOUT_RSEQ=1 permits that"
        );
        return println!("breakpoints: no restartable sequences on this system");
    }
    let situations = situations();
    let migrates = has_two_cpus();
    let sequences = sequences::all();
    let text =
        sequences.iter().flat_map(|sequence| &sequence.points).map(|(_, instruction)| instruction.ip());
    trap::install(text.clone().min().unwrap(), text.max().unwrap() + 16);
    move_to(HOME);

    let mut world = World::default();
    let mut counts = Counts::default();
    let first = sweep(&mut world, &sequences, &situations, None, &mut counts);
    // Sequences that are entered only when another one was aborted, and the abort labels themselves.
    for aborted in first {
        sweep(&mut world, &sequences, &situations, Some(aborted), &mut counts);
    }
    counts.check(&sequences);
    if migrates {
        migrate(&mut world, &sequences);
    }
    if migrates {
        beyond_the_slots(&sequences);
    }
    let longest = step(&mut world, &situations);
    sequences.iter().for_each(Sequence::check);
    println!(
        "breakpoints: {} sequences of {} kinds, {} runs interrupted, {} aborted, {} after an abort; at most {longest} steps",
        sequences.len(),
        KINDS,
        counts.hits,
        counts.redirected,
        counts.second
    );
    println!("breakpoints: 1 passed, 0 failed");
}

#[derive(Debug, Default)]
struct Counts {
    hits: u64,
    redirected: u64,
    second: u64,
    /// Which instructions of which kind were interrupted.
    covered: BTreeMap<Vec<Mnemonic>, BTreeSet<usize>>,
}

impl Counts {
    /// Every instruction of every kind of sequence was interrupted in at least one instance; behind the abort label, where it
    /// depends on the kind which way is taken, at least the first.
    fn check(&self, sequences: &[Sequence]) {
        let kinds: BTreeSet<_> = sequences.iter().map(Sequence::kind).collect();
        assert_eq!(kinds.len(), KINDS, "each piece of source once: {kinds:?}");
        for kind in &kinds {
            let sequence = sequences.iter().find(|sequence| sequence.kind() == *kind).unwrap();
            let label = sequence.points.iter().position(|(part, _)| *part == Part::Abort).unwrap();
            let covered = self.covered.get(kind).cloned().unwrap_or_default();
            let missed: Vec<_> = (0..=label).filter(|number| !covered.contains(number)).collect();
            assert!(missed.is_empty(), "instructions of {kind:?} that were not interrupted: {missed:?}");
        }
        assert!(self.redirected > 1000, "too little was aborted: {self:?}");
    }
}

/// One sweep over all places, after an abort at the start of the sequence `aborted` if there is one. The sequences that were
/// reached.
fn sweep<'s>(
    world: &mut World,
    sequences: &'s [Sequence],
    situations: &[Situation],
    aborted: Option<&Sequence>,
    counts: &mut Counts,
) -> Vec<&'s Sequence> {
    let mut reached = Vec::new();
    for sequence in sequences {
        // Behind the abort label only after an abort of this sequence, which is then over.
        let again = aborted.is_some_and(|aborted| aborted.start == sequence.start);
        let points: Vec<_> = sequence.points.iter().enumerate().collect();
        let points: Vec<_> =
            points.into_iter().filter(|(_, (part, _))| (*part == Part::Abort) == again).collect();
        let mut was_reached = false;
        for case in cases(situations) {
            let places: Vec<_> = aborted.iter().map(|aborted| (aborted.start, aborted.abort)).collect();
            let places = |address| [places.as_slice(), &[(address, sequence.abort)]].concat();
            let probe = if again { sequence.abort } else { sequence.start };
            if run_case(world, &places(probe), &case, ACTIONS[0]).is_none() {
                continue;
            }
            was_reached = true;
            for (number, (part, instruction)) in &points {
                for action in ACTIONS {
                    let hit = run_case(world, &places(instruction.ip()), &case, action);
                    // A jump to the abort label may leave some instructions out, and nothing else does.
                    let Some(hit) = hit else { continue };
                    assert_eq!(
                        hit.redirected,
                        *part == Part::Body,
                        "{part:?} {number} at {:#x}, {case:?}",
                        instruction.ip()
                    );
                    counts.hits += 1;
                    counts.redirected += u64::from(hit.redirected);
                    counts.second += u64::from(aborted.is_some());
                    counts.covered.entry(sequence.kind()).or_default().insert(*number);
                }
            }
        }
        if was_reached && aborted.is_none() {
            reached.push(sequence);
        }
    }
    reached
}

/// An operation in a situation.
#[derive(Clone, Copy)]
struct Case {
    situation: Situation,
    operation: Operation,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} with {:?}", self.operation.0, self.situation)
    }
}

fn cases(situations: &[Situation]) -> impl Iterator<Item = Case> {
    situations.iter().flat_map(|&situation| OPERATIONS.map(|operation| Case { situation, operation }))
}

/// Runs one case with `action` in the middle; what came of the last place, if it and the one before were reached.
fn run_case(world: &mut World, places: &[(u64, u64)], case: &Case, action: (&str, fn())) -> Option<Hit> {
    world.arrange(case.situation);
    let before = world::start_counting();
    let hits = trap::run(places, action.1, || case.operation.1(world));
    if hits.iter().any(|hit| !hit.hit) {
        return None;
    }
    world.check(&before, &(case, action.0));
    hits.last().copied()
}

/// A thread that is moved to another CPU in the middle of an operation uses the cache of that CPU from there on: the number of
/// the first one is never used after the move.
fn migrate(world: &mut World, sequences: &[Sequence]) {
    let mut moved = 0;
    let here = Situation { cached: 2, stock: 0, elsewhere: 2 };
    for sequence in sequences {
        for (part, instruction) in sequence.points.iter().filter(|(part, _)| *part != Part::Abort) {
            for operation in [OPERATIONS[0], OPERATIONS[1]] {
                let (home, elsewhere) = world.arrange_known(here);
                let freed = world.last();
                world::start_moving();
                let places = [(instruction.ip(), sequence.abort)];
                let hits = trap::run(&places, world::move_elsewhere, || operation.1(world));
                // What is behind a sequence is reached with and without a commit. Whoever had committed had done so at home.
                let committed = *part == Part::After && world::had_moved_a_frame();
                let left_home = hits.iter().all(|hit| hit.hit) && !committed;
                let what = (part, instruction.ip(), operation.0);
                if operation.0 == "alloc" {
                    let expected = if left_home { elsewhere } else { home };
                    assert!(expected.contains(&world.last()), "{what:?}");
                } else {
                    move_to(if left_home { ELSEWHERE } else { HOME });
                    assert!(world.next_frames(3).contains(&freed), "{what:?}");
                }
                moved += u64::from(left_home);
                move_to(HOME);
            }
        }
    }
    assert!(moved > 20, "the thread was moved {moved} times only");
}

/// A CPU whose number is beyond the slots: its sequences leave at the comparison, and may be aborted there like anywhere else.
fn beyond_the_slots(sequences: &[Sequence]) {
    let pool = world::without_slots();
    move_to(ELSEWHERE);
    let (mut pairs, mut hits) = (0, 0);
    for sequence in sequences {
        for (part, instruction) in sequence.points.iter().filter(|(part, _)| *part != Part::Abort) {
            let place = [(instruction.ip(), sequence.abort)];
            let hit = trap::run(&place, || {}, || world::take_and_give(&pool))[0];
            pairs += 1;
            hits += u64::from(hit.hit);
            assert!(
                !hit.hit || hit.redirected == (*part == Part::Body),
                "{part:?} at {:#x}",
                instruction.ip()
            );
            let stats = pool.stats();
            let taken = stats.cache_hits + stats.depot_hits + stats.steals;
            assert_eq!(
                (taken, stats.freed),
                (pairs, pairs),
                "counted once: {part:?} at {:#x}",
                instruction.ip()
            );
        }
    }
    move_to(HOME);
    assert!(hits > 6, "the comparison of neither sequence was interrupted");
}

/// Each operation with a trap after every instruction: no attempt ever succeeds, and the operation ends all the same. The most
/// instructions.
fn step(world: &mut World, situations: &[Situation]) -> u64 {
    let mut longest = 0;
    for case in cases(situations) {
        world.arrange(case.situation);
        let before = world::start_counting();
        let steps = trap::step(|| case.operation.1(world));
        longest = longest.max(steps);
        let most = steps_at_most(case.operation.0);
        assert!(steps <= most, "{case:?} took {steps} steps, at most {most} are allowed");
        // Only a theft, which is no sequence, takes frames out of a cache, and nothing puts any in.
        let stats = pool().stats();
        let stolen = stats.cached < before.cached && stats.steals > before.steals;
        let untouched = stats.cache_hits == before.cache_hits && (stolen || stats.cached == before.cached);
        assert!(untouched, "an attempt succeeded: {case:?}");
        world.check(&before, &case);
    }
    longest
}
