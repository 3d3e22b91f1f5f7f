//! The machine that is simulated: CPUs with clocks of their own, and cache lines that move between them, in virtual time.
//!
//! Every CPU is a stack of its own on one thread of the host, and the pool on top is the real one, built with the points of `sync/injection.rs`:
//! before each access to shared memory the CPU that makes it is told here what it costs, and waits for that long. Others run meanwhile, so
//! that operations interleave as they would, and an exchange fails because another CPU has changed the word. What a line costs is in `line.rs`.

use crate::line::{Layout, Line, LineHasher, NANOSECOND, Time};
use framepool_injected::injection::{Access, Site};
use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    hash::BuildHasherDefault,
    mem,
};

/// How far addresses are shifted to number their lines.
const LINE_SHIFT: u32 = 6;
/// In words: enough for the deepest call of an unoptimised build.
const STACK_WORDS: usize = 1 << 15;

/// Whose lines an access needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// The depot: heads and links of its stacks, its level, its counts.
    Depot,
    /// The entries of magazines.
    Entries,
    /// Everything else: the CPU's own slot, mostly.
    Other,
}

impl Class {
    const COUNT: usize = 3;

    /// Told by the file that makes the access.
    fn of(access: &Access) -> Self {
        match access.site.file().rsplit('/').next() {
            Some("stack.rs" | "level.rs" | "depot.rs") => Self::Depot,
            Some("magazine.rs") => Self::Entries,
            _ => Self::Other,
        }
    }
}

/// What the CPUs have spent, added up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    /// Waiting behind others for a line, by class.
    pub(crate) queued: [Time; Class::COUNT],
    /// While lines travelled, by class.
    pub(crate) moved: [Time; Class::COUNT],
    /// Lines that travelled, by class.
    pub(crate) lines: [u64; Class::COUNT],
}

/// How much of a run is done: so many pairs of take and give, or so many lines that have travelled, of all CPUs together. The latter comes
/// first where the CPUs hold each other up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extent {
    pub(crate) pairs: u64,
    pub(crate) lines: u64,
}

/// What a run came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// How long the part that counts took.
    pub(crate) time: Time,
    /// Pairs of take and give in it.
    pub(crate) pairs: u64,
    pub(crate) spent: Spent,
    /// For how much of that time the busiest line travelled.
    pub(crate) busiest: Time,
    /// An access that wanted it.
    pub(crate) wanted_by: Option<Site>,
}

impl Measured {
    /// What a pair takes a CPU, in nanoseconds.
    pub(crate) fn pair(&self, cpus: usize) -> f64 {
        self.time as f64 * cpus as f64 / self.pairs as f64 / NANOSECOND as f64
    }

    /// Millions of pairs a second, all CPUs together.
    pub(crate) fn throughput(&self) -> f64 {
        self.pairs as f64 / self.time as f64 * 1e6
    }

    /// The part of the CPUs' time that goes by while they wait behind each other for lines of a class, and while these travel.
    pub(crate) fn shares(&self, cpus: usize, class: Class) -> (f64, f64) {
        let share =
            |spent: [Time; Class::COUNT]| spent[class as usize] as f64 / (self.time as f64 * cpus as f64);
        (share(self.spent.queued), share(self.spent.moved))
    }

    /// Lines of a class that travel for a pair.
    pub(crate) fn lines(&self, class: Class) -> f64 {
        self.spent.lines[class as usize] as f64 / self.pairs as f64
    }
}

/// One run.
struct Machine {
    layout: Layout,
    /// The time of each CPU, the worker's behind the others; no CPU is behind the event that is being worked on.
    clocks: Vec<Time>,
    /// When whose turn it is.
    turns: BinaryHeap<Reverse<(Time, u64, usize)>>,
    /// Turns given so far, so that those at the same time come in order.
    given: u64,
    current: usize,
    lines: HashMap<usize, Line, BuildHasherDefault<LineHasher>>,
    /// What is done before the part that counts, and in it.
    extents: (Extent, Extent),
    done: Extent,
    /// How often each CPU has said how far it is.
    said: Vec<u64>,
    began: Option<Time>,
    measured: Option<Measured>,
    spent: Spent,
}

impl Machine {
    fn clock(&mut self) -> &mut Time {
        &mut self.clocks[self.current]
    }

    /// Gives the current CPU a turn when its clock says; whether others come first.
    fn queue_up(&mut self) -> bool {
        let at = *self.clock();
        if self.turns.peek().is_none_or(|Reverse((first, ..))| *first >= at) {
            return false;
        }
        self.turn(at, self.current);
        true
    }

    fn turn(&mut self, at: Time, cpu: usize) {
        self.given += 1;
        self.turns.push(Reverse((at, self.given, cpu)));
    }

    /// Whether the current CPU has the line that it needs.
    fn has(&mut self, access: &Access) -> bool {
        let (cpu, at) = (self.current, *self.clock());
        self.lines.entry(access.address >> LINE_SHIFT).or_default().suits(cpu, access.kind, at)
    }

    /// Whether so much is done, also by the CPU that is furthest behind; or so many lines have travelled.
    fn reaches(&self, extent: Extent) -> bool {
        let said = |&said: &u64| said > 1;
        let is_done = self.done.pairs >= extent.pairs && self.said.iter().all(said);
        is_done || self.done.lines >= extent.lines
    }

    /// Gets the current CPU the line that it needs.
    fn fetch(&mut self, access: &Access, class: Class) {
        let (cpu, at, layout) = (self.current, *self.clock(), self.layout);
        let line = self.lines.entry(access.address >> LINE_SHIFT).or_default();
        let (start, there) = line.request(&layout, cpu, access.kind, at);
        line.wanted_by = Some(access.site);
        self.spent.queued[class as usize] += start - at;
        self.spent.moved[class as usize] += there - start;
        self.spent.lines[class as usize] += 1;
        self.done.lines += 1;
        *self.clock() = there;
    }
}

thread_local! {
    static MACHINE: RefCell<Option<Machine>> = const { RefCell::new(None) };
    /// The CPU that runs, for [`current`] in the midst of everything.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

fn with<T>(use_machine: impl FnOnce(&mut Machine) -> T) -> Option<T> {
    MACHINE.with_borrow_mut(|machine| machine.as_mut().map(use_machine))
}

/// The number of the CPU that runs.
pub(crate) fn current() -> usize {
    CURRENT.get()
}

/// The time on the CPU that runs.
pub(crate) fn now() -> Time {
    with(|machine| *machine.clock()).unwrap_or_default()
}

/// Lets time pass on the CPU that runs.
pub(crate) fn spend(time: Time) {
    with(|machine| *machine.clock() += time);
    settle();
}

/// Lets all other CPUs come as far as the one that runs.
fn settle() {
    if with(Machine::queue_up) == Some(true) {
        give_way();
    }
}

/// Lets others run until it is this CPU's turn again.
#[expect(deprecated, reason = "no scope can be handed through the pool to where the switch is made")]
fn give_way() {
    generator::yield_with(());
}

/// Sleeps until somebody wakes this CPU.
pub(crate) fn sleep() {
    give_way();
}

/// Wakes the CPU `cpu`, which sleeps, in a while.
pub(crate) fn wake(cpu: usize, after: Time) {
    with(|machine| {
        let at = machine.clocks[cpu].max(*machine.clock() + after);
        machine.clocks[cpu] = at;
        machine.turn(at, cpu);
    });
}

/// Stands before every access of the pool.
fn charge(access: Access) {
    let class = Class::of(&access);
    let near_at_hand = with(|machine| {
        let own = machine.layout.own;
        *machine.clock() += own;
        // What others want at the same time is done in the order of time; the rest runs ahead until it needs a line.
        class != Class::Depot && machine.has(&access)
    });
    if near_at_hand != Some(false) {
        return;
    }
    settle();
    if with(|machine| machine.has(&access)) == Some(false) {
        with(|machine| machine.fetch(&access, class));
        settle();
    }
}

/// This CPU has done `pairs` more pairs of take and give; whether the run goes on.
pub(crate) fn progress(pairs: u64) -> bool {
    settle();
    with(|machine| {
        let at = *machine.clock();
        machine.done.pairs += pairs;
        machine.said[machine.current] += 1;
        let Some(began) = machine.began else {
            if machine.reaches(machine.extents.0) {
                (machine.began, machine.done, machine.spent) =
                    (Some(at), Extent::default(), Spent::default());
                machine.lines.values_mut().for_each(|line| line.busy = 0);
            }
            return;
        };
        if machine.measured.is_none() && machine.reaches(machine.extents.1) {
            let busiest = machine.lines.values().max_by_key(|line| line.busy);
            let wanted_by = busiest.and_then(|line| line.wanted_by);
            // What has been asked for by now may be on its way still.
            let busiest = busiest.map_or(0, |line| line.busy.min(at - began));
            let (time, pairs, spent) = (at - began, machine.done.pairs, machine.spent);
            machine.measured = Some(Measured { time, pairs, spent, busiest, wanted_by });
        }
    });
    goes_on()
}

/// Whether the part of the run that counts is not over yet.
pub(crate) fn goes_on() -> bool {
    with(|machine| machine.measured.is_none()).unwrap_or_default()
}

/// Makes `call` as the CPU `cpu`, before time begins.
pub(crate) fn prepare<T>(cpu: usize, call: impl FnOnce() -> T) -> T {
    CURRENT.set(cpu);
    call()
}

/// Runs `body` on every CPU, and `worker` on one more, which sleeps at first and is woken once in the end.
pub(crate) fn run(
    layout: Layout,
    extents: (Extent, Extent),
    body: impl Fn(usize) + Sync,
    worker: impl Fn() + Sync,
) -> Option<Measured> {
    let machine = Machine {
        layout,
        clocks: vec![0; layout.cpus + 1],
        turns: BinaryHeap::new(),
        given: 0,
        current: 0,
        lines: HashMap::default(),
        extents,
        done: Extent::default(),
        said: vec![0; layout.cpus],
        began: None,
        measured: None,
        spent: Spent::default(),
    };
    MACHINE.set(Some(machine));
    let (body, worker) = (&body, &worker);
    let mut stacks: Vec<_> =
        (0..layout.cpus).map(|cpu| generator::Gn::<()>::new_opt(STACK_WORDS, move || body(cpu))).collect();
    stacks.push(generator::Gn::new_opt(STACK_WORDS, worker));
    framepool_injected::injection::observe(Some(charge));
    (0..layout.cpus).for_each(|cpu| wake(cpu, 0));
    let next = || with(|machine| machine.turns.pop().map(|Reverse((_, _, cpu))| cpu)).flatten();
    // The worker goes to sleep first.
    let mut turn = Some(layout.cpus);
    let mut is_over = false;
    while let Some(cpu) = turn {
        with(|machine| machine.current = cpu);
        CURRENT.set(cpu);
        if let Some(stack) = stacks.get_mut(cpu) {
            stack.resume();
        }
        turn = next();
        if turn.is_none() && !mem::replace(&mut is_over, true) {
            turn = Some(layout.cpus);
        }
    }
    framepool_injected::injection::observe(None);
    CURRENT.set(0);
    MACHINE.take()?.measured
}
