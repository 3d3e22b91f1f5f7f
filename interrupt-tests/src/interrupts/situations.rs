//! The states of the pool in which every operation is tried: every fill level, and what else a tier needs to be reached.

use super::{
    crowd::CROWD,
    fixed::FILL,
    operations::{
        ALLOC, ALLOC_CRITICAL, ALLOC_ZEROED, DRAW, DRAW_ZEROED, FREE, FREE_ZEROED, MAINTAIN, Of, Operation,
        Role, SET_ASIDE, SET_ASIDE_ZEROED,
    },
    quota::{CHARGE, GUARANTEE, LIMIT},
    world::{LEVELS, MAGAZINE, ORDINARY, PROVIDED, RESERVE, World},
};
use std::{fmt, sync::atomic::Ordering::SeqCst};

/// How the pool came to be as it is.
#[derive(Clone, Debug)]
pub struct Situation {
    pub subject: Subject,
    /// What the thread has done since the pool was built.
    steps: Vec<Step>,
    /// How many depots the pool has.
    pub depots: usize,
}

/// What a state is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The tiers.
    Tiers,
    /// Reservations: a context's own, and one from which all draw.
    Reservations(SetAside),
    /// A quota, of which the thread holds so many frames, and each interrupt.
    Quota { mine: u32, theirs: u32 },
    /// One stopped operation that has the cache, in the middle of which so many frames have been taken.
    Busy { taken: u32 },
    /// A crowd of stopped operations, in the middle of which so many frames have gone to the overflow.
    Crowd { overflowed: u32 },
    /// A place for another pool, with or without one.
    Place { filled: bool },
    /// A page-table domain over the pool.
    Tables(Mapped),
    /// The tables of a unit over the pool: whether the thread and the interrupts have attached something, and the frames left for ordinary
    /// callers.
    Units { mine: bool, theirs: bool, left: u32 },
}

/// The state of reservations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Frames that have been drawn from the one that all share.
    pub drawn: u32,
    /// Whether all of them are of zeroed frames.
    pub zeroed: bool,
    /// Whether the thread has one of its own, too.
    pub own: bool,
}

/// The state of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// What the thread has mapped.
    pub mine: State,
    /// What the interrupts have mapped.
    pub theirs: State,
    /// Frames left in the pool for ordinary callers.
    pub left: u32,
}

impl Mapped {
    /// Whether all of it is looked at, which takes long and needs no frames: what interrupts map and unmap meanwhile.
    fn is_looked_at(self) -> bool {
        let (mine, theirs) = (self.mine, self.theirs);
        self.left == SCARCE
            && mine != State::Waiting
            && theirs != State::Waiting
            && (mine, theirs) != (State::All, State::All)
    }
}

/// What a context has mapped, at addresses of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Nothing,
    /// Every range.
    All,
    /// Every range but one, whose table waits for its invalidation.
    Waiting,
}

/// One thing that the thread has done, so many times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Take(u32),
    TakeZeroed(u32),
    Give(u32),
    GiveZeroed(u32),
    /// Goes on on the other CPU.
    Migrate,
    /// From here on the source has nothing.
    Fail,
    /// The worker has answered the bell and could not do a thing: the next crossing rings again.
    Answer,
}

/// Frames that the pool may have from the host, beyond those with which it starts.
const LENT: u32 = 8;
/// Frames drawn from a reservation when the next one empties its magazine.
const LAST_OF_MAGAZINE: u32 = 2;
/// Frames that the thread has in a crowd.
const CROWDED: u32 = 3;
/// Frames left that do for some maps and not for others, and for every one.
const SCARCE: u32 = 2;
const PLENTY: u32 = 6;
/// Table frames that a domain with everything mapped takes, and some.
const FOR_TABLES: u32 = 18;
/// Frames that the tables of a unit in both modes take, and some.
const FOR_UNITS: u32 = 11;
/// Frames of both magazines of a cache.
const CACHE: u32 = 2 * MAGAZINE;

/// Every state that is tried, of pools with `several_depots` too or of those with one.
pub fn all(several_depots: bool) -> Vec<Situation> {
    let depots = if several_depots { depots() } else { Vec::new() };
    [tiers(), clean(), others(), quota(), tables(), units(), depots].concat()
}

fn state(subject: Subject, steps: &[Step]) -> Situation {
    Situation { subject, steps: steps.to_vec(), depots: 1 }
}

/// Where an allocation and a free find their frame and their place.
fn tiers() -> Vec<Situation> {
    use Step::{Answer, Fail, Give, Migrate, Take};
    let state = |steps: &[Step]| state(Subject::Tiers, steps);
    let mut all = Vec::new();
    // Every fill level of the stock, down to the reserve and to nothing.
    all.extend((0..=ORDINARY + RESERVE).map(|taken| state(&[Take(taken)])));
    // Every fill level of the cache, with the depot empty, up to the exchange of a full magazine; of the other CPU's cache, to
    // be stolen from.
    let levels = 1..=CACHE + 2;
    all.extend(levels.clone().map(|given| state(&[Take(ORDINARY), Give(given)])));
    all.extend(levels.map(|given| state(&[Take(ORDINARY), Migrate, Give(given), Migrate])));
    // The loaded magazine empty, the other one not.
    all.extend([(4, 1), (6, 3)].map(|(given, again)| state(&[Take(ORDINARY), Give(given), Take(again)])));
    // The cache full, with frames left in the depot or not: frees go below.
    all.extend([7, 8].map(|taken| state(&[Take(taken), Give(CACHE)])));
    // The reserve has been used: the next frames that come back are its.
    all.extend((1..=3).map(|given| state(&[Take(ORDINARY + RESERVE), Give(given)])));
    // Nothing to be had from the host; the bell has been answered, so a miss rings.
    for taken in [ORDINARY - 1, ORDINARY, ORDINARY + RESERVE] {
        all.extend([state(&[Take(taken), Fail]), state(&[Take(taken), Fail, Answer])]);
    }
    // Frames come back that the host has lent: up to the crossing of `max`, at it, and beyond.
    let lent = ORDINARY + RESERVE + LENT;
    all.extend([14, 17, lent].map(|given| state(&[Take(lent), Give(given)])));
    all
}

/// The same for frames that are known to be zero.
fn clean() -> Vec<Situation> {
    use Step::{Answer, Fail, Give, GiveZeroed, Migrate, Take, TakeZeroed};
    let state = |steps: &[Step]| state(Subject::Tiers, steps);
    let mut all = Vec::new();
    // Every fill level of the clean cache, and of the other CPU's.
    all.extend([1, 3, 4, CACHE, CACHE + 1].map(|given| state(&[Take(ORDINARY), GiveZeroed(given)])));
    all.extend([1, 4].map(|given| state(&[Take(ORDINARY), Migrate, GiveZeroed(given), Migrate])));
    // Both sides have some.
    all.push(state(&[Take(ORDINARY), GiveZeroed(4), Give(4)]));
    all.push(state(&[Take(ORDINARY), GiveZeroed(ORDINARY), Take(CACHE)]));
    // Zeroed frames have been asked for in vain: the worker has a goal, and something to clear or not.
    all.push(state(&[TakeZeroed(1)]));
    all.push(state(&[Take(4), TakeZeroed(2), Answer]));
    all.push(state(&[Take(ORDINARY - 1), TakeZeroed(1), Fail, Answer]));
    all
}

/// A depot for each of both CPUs: frames and magazines in this one's, in the other's, in both, or in none.
fn depots() -> Vec<Situation> {
    use Step::{Answer, Fail, Give, GiveZeroed, Migrate, Take, TakeZeroed};
    let steps: [&[Step]; 12] = [
        &[],
        &[Take(CACHE - 1)],
        &[Take(ORDINARY - 1)],
        &[Take(ORDINARY)],
        &[Take(ORDINARY + RESERVE), Fail, Answer],
        &[Take(ORDINARY), Give(CACHE + 2)],
        &[Take(ORDINARY), Migrate, Give(CACHE + 2), Migrate],
        &[Take(ORDINARY), Migrate, Give(CACHE + 2), Migrate, Take(1), Answer],
        &[Take(ORDINARY), Give(CACHE), Migrate, Give(2), Migrate],
        &[Take(ORDINARY + RESERVE + LENT), Give(17)],
        &[Take(ORDINARY), Migrate, GiveZeroed(CACHE + 1), Migrate],
        &[Take(4), TakeZeroed(2), Answer],
    ];
    steps.map(|steps| Situation { depots: 2, ..state(Subject::Tiers, steps) }).into()
}

/// Reservations, crowds, and places for pools.
fn others() -> Vec<Situation> {
    let mut all = Vec::new();
    // Every fill level of a reservation, with and without a host that helps others out.
    let mut reservation = |drawn, zeroed, own| {
        let subject = Subject::Reservations(SetAside { drawn, zeroed, own });
        all.extend([state(subject, &[]), state(subject, &[Step::Fail])]);
    };
    (0..=4).for_each(|drawn| reservation(drawn, false, true));
    // Of zeroed frames: loose ones, those of a magazine, none; and the thread has yet to set some aside.
    [0, LAST_OF_MAGAZINE, 4].into_iter().for_each(|drawn| reservation(drawn, true, true));
    reservation(0, true, false);
    // Every fill level of the overflow that the thread can bring about, with one frame left to give.
    let crowd = |overflowed| state(Subject::Crowd { overflowed }, &[Step::Take(CROWDED)]);
    all.extend((0..CROWDED - 1).map(crowd));
    // The cache is busy: every length of the partial magazine, with full ones and without, and nothing at all.
    let busy = |taken| state(Subject::Busy { taken }, &[]);
    all.extend([0, 1, MAGAZINE - 1, ORDINARY - 2, ORDINARY - 1, ORDINARY].map(busy));
    all.extend([false, true].map(|filled| state(Subject::Place { filled }, &[])));
    all
}

/// Every fill level of a quota, and others who have left it nothing but what is guaranteed.
fn quota() -> Vec<Situation> {
    let all = (0..=LIMIT).map(|mine| (mine, 0)).chain((0..=LIMIT - GUARANTEE).map(|mine| (mine, 1)));
    all.flat_map(|(mine, theirs)| {
        let subject = Subject::Quota { mine, theirs };
        [state(subject, &[]), state(subject, &[Step::Take(ORDINARY), Step::Fail])]
    })
    .collect()
}

/// What is mapped in a domain, and every fill level from none to more than any call takes.
fn tables() -> Vec<Situation> {
    use State::{All, Nothing, Waiting};
    let mut all = Vec::new();
    let mut add = |mine, theirs, fills: &[u32]| {
        all.extend(
            fills.iter().map(|&left| state(Subject::Tables(Mapped { mine, theirs, left }), &[Step::Fail])),
        );
    };
    add(Nothing, Nothing, &[0, 1, SCARCE, 3, 4, PLENTY]);
    add(All, Nothing, &[0, 1, SCARCE, PLENTY]);
    add(Nothing, All, &[0, SCARCE, PLENTY]);
    add(All, All, &[0, SCARCE, PLENTY]);
    for (mine, theirs) in [(Waiting, Nothing), (Waiting, All), (Nothing, Waiting), (All, Waiting)] {
        add(mine, theirs, &[SCARCE]);
    }
    all
}

/// What is attached to a unit, and every fill level from none to more than any call takes.
fn units() -> Vec<Situation> {
    let attached = [(false, false), (true, false), (false, true), (true, true)];
    let all = attached
        .into_iter()
        .flat_map(|(mine, theirs)| [0, 1, SCARCE, PLENTY].map(|left| (mine, theirs, left)));
    all.map(|(mine, theirs, left)| state(Subject::Units { mine, theirs, left }, &[Step::Fail])).collect()
}

impl Situation {
    /// Brings the pool into this state when the crowd, if there is one, has gathered.
    pub fn prepare_inside(&self, world: &World<'_>) {
        match self.subject {
            Subject::Crowd { overflowed } => (0..overflowed).for_each(|_| world.must_perform(&FREE, 0)),
            Subject::Busy { taken } => (0..taken).for_each(|_| world.must_perform(&ALLOC, 0)),
            _ => {}
        }
    }

    /// Whether the operation is tried in this state. To those of the pool, those of a reservation or a domain are allocations and
    /// frees, which they know from each other: one state of each kind.
    pub fn is_for(&self, operation: &Operation) -> bool {
        match (self.subject, operation.of) {
            (Subject::Tiers, of) => of == Of::Pool,
            // Nobody waits for a crowd.
            (Subject::Crowd { .. } | Subject::Busy { .. }, of) => {
                of == Of::Pool && operation.role != Role::Interrupted
            }
            (Subject::Place { .. }, of) => of == Of::Place,
            (Subject::Reservations(set), Of::Pool) => set.drawn == LAST_OF_MAGAZINE && !set.zeroed,
            (Subject::Reservations(_), of) => of == Of::Reservation,
            (Subject::Quota { mine, theirs }, Of::Pool) => mine == GUARANTEE && theirs > 0,
            (Subject::Quota { .. }, of) => of == Of::Quota,
            (Subject::Tables(mapped), Of::Pool) => mapped.mine == State::Nothing && mapped.left == SCARCE,
            (Subject::Tables(mapped), Of::Mappings) => mapped.is_looked_at(),
            (Subject::Tables(_), of) => of == Of::Tables,
            (Subject::Units { .. }, of) => of == Of::Units,
        }
    }

    /// Whether it is tried in this state what `interrupt` does in the middle of `operation`.
    pub fn is_for_both(&self, operation: &Operation, interrupt: &Operation) -> bool {
        let related = match (self.subject, interrupt.of) {
            (Subject::Tiers | Subject::Crowd { .. } | Subject::Busy { .. }, of) => of == Of::Pool,
            (Subject::Place { .. }, of) => of == Of::Place,
            (Subject::Reservations(_), Of::Pool) => operation.of == Of::Reservation,
            (Subject::Reservations(_), of) => of == Of::Reservation,
            (Subject::Quota { .. }, Of::Pool) => operation.of == Of::Quota,
            (Subject::Quota { .. }, of) => of == Of::Quota,
            // Those of the pool take frames from a call of the builder that needs them, or leave it enough.
            (Subject::Tables(mapped), Of::Pool) => {
                operation.of != Of::Pool && [SCARCE, PLENTY].contains(&mapped.left)
            }
            (Subject::Tables(mapped), Of::Mappings) => mapped.is_looked_at(),
            (Subject::Tables(_), of) => of == Of::Tables,
            (Subject::Units { left, .. }, Of::Pool) => [SCARCE, PLENTY].contains(&left),
            (Subject::Units { .. }, of) => of == Of::Units,
        };
        let waits = operation.locks && interrupt.role == Role::Thread;
        self.is_for(operation) && interrupt.role.interrupts() && related && !waits
    }

    pub fn has_tables(&self) -> bool {
        matches!(self.subject, Subject::Tables(_))
    }

    pub fn has_place(&self) -> bool {
        matches!(self.subject, Subject::Place { .. })
    }

    pub fn has_units(&self) -> bool {
        matches!(self.subject, Subject::Units { .. })
    }

    pub fn has_quota(&self) -> bool {
        matches!(self.subject, Subject::Quota { .. })
    }

    /// Frames that the pool guarantees.
    pub fn guaranteed(&self) -> u32 {
        if self.has_quota() { GUARANTEE } else { 0 }
    }

    /// How many operations are stopped.
    pub fn crowd(&self) -> usize {
        match self.subject {
            Subject::Busy { .. } => 1,
            Subject::Crowd { .. } => CROWD,
            _ => 0,
        }
    }

    fn is_crowded(&self) -> bool {
        matches!(self.subject, Subject::Crowd { .. })
    }

    pub fn for_tables(&self) -> u32 {
        match self.subject {
            Subject::Tables(_) => FOR_TABLES,
            Subject::Units { .. } => FOR_UNITS,
            _ => 0,
        }
    }

    /// Frames that the pool may own.
    pub fn capacity(&self) -> u32 {
        if self.is_crowded() { self.initial() } else { self.initial() + LENT }
    }

    /// Frames with which it starts.
    pub fn initial(&self) -> u32 {
        let provided = RESERVE + (LEVELS as u32 - 1) * PROVIDED;
        if self.is_crowded() {
            provided + CROWD as u32 - 1 + CROWDED
        } else {
            provided + ORDINARY + self.for_tables() + self.guaranteed()
        }
    }

    pub fn cpus(&self) -> usize {
        if self.is_crowded() { 1 } else { 2 }
    }

    /// Frames of one magazine: in a crowd so many that the pool has no more magazines than it must.
    pub fn magazine(&self) -> u32 {
        if self.is_crowded() { self.initial() } else { MAGAZINE }
    }

    /// Magazines that the pool has for reservations.
    pub fn reservations(&self) -> u32 {
        if matches!(self.subject, Subject::Reservations(_)) { LEVELS as u32 } else { 0 }
    }

    /// Brings a fresh pool into this state.
    pub fn prepare(&self, world: &World<'_>) {
        let repeat = |operation, level, times| (0..times).for_each(|_| world.must_perform(operation, level));
        (1..LEVELS).for_each(|level| repeat(&ALLOC, level, PROVIDED));
        // A fresh pool has more than `max`, with what the interrupts have taken, and has rung.
        repeat(&MAINTAIN, 0, 1);
        match self.subject {
            Subject::Tiers | Subject::Busy { .. } => {}
            Subject::Place { filled } => repeat(&FILL, 2, u32::from(filled)),
            Subject::Reservations(SetAside { drawn, zeroed, own }) => {
                let (set_aside, draw) =
                    if zeroed { (&SET_ASIDE_ZEROED, &DRAW_ZEROED) } else { (&SET_ASIDE, &DRAW) };
                if zeroed {
                    // Frames that are known to be zero, in the depot too.
                    repeat(&ALLOC, 0, ORDINARY);
                    repeat(&FREE_ZEROED, 0, ORDINARY);
                }
                repeat(set_aside, 2, 1);
                world.reservations[2]
                    .take()
                    .into_iter()
                    .for_each(|reservation| world.shared.put(reservation));
                (usize::from(!own)..2).for_each(|level| repeat(set_aside, level, 1));
                repeat(draw, 0, drawn);
            }
            Subject::Quota { mine, theirs } => {
                [mine, theirs, theirs]
                    .into_iter()
                    .enumerate()
                    .for_each(|(level, times)| repeat(&CHARGE, level, times));
            }
            // One frame for each that is to give one.
            Subject::Crowd { .. } => (1..CROWD).for_each(|member| repeat(&ALLOC, LEVELS + member, 1)),
            Subject::Tables(mapped) => {
                #[cfg(feature = "vtd")]
                world.map_in_advance(mapped);
                leave(world, mapped.left);
            }
            Subject::Units { mine, theirs, left } => {
                #[cfg(feature = "vtd")]
                world.attach_in_advance(mine, theirs);
                leave(world, left);
            }
        }
        for &step in &self.steps {
            match step {
                Step::Take(times) => repeat(&ALLOC_CRITICAL, 0, times),
                Step::TakeZeroed(times) => repeat(&ALLOC_ZEROED, 0, times),
                Step::Give(times) => repeat(&FREE, 0, times),
                Step::GiveZeroed(times) => repeat(&FREE_ZEROED, 0, times),
                Step::Migrate => _ = world.host().cpu.fetch_xor(1, SeqCst),
                Step::Fail => world.supply().failing.store(true, SeqCst),
                Step::Answer => {
                    let failing = world.supply().failing.swap(true, SeqCst);
                    repeat(&MAINTAIN, 0, 1);
                    world.supply().failing.store(failing, SeqCst);
                }
            }
        }
        world.start();
    }
}

/// Takes frames until so many are left for ordinary callers.
fn leave(world: &World<'_>, left: u32) {
    let stats = world.pool.stats();
    let there = (stats.cached + stats.stock - stats.reserve) as u32;
    (left..there).for_each(|_| world.must_perform(&ALLOC, 0));
}

impl fmt::Display for Situation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?} after {:?}, depots: {}", self.subject, self.steps, self.depots)
    }
}
