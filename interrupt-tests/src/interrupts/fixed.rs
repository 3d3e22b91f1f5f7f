//! The operations of a place for a pool: one context fills it while another looks whether there is a pool, and uses it. Filling it is not
//! interrupted here, since how the C library copies a pool depends on where the stacks are; the guest does that.

use super::{
    host::{Host, Memory, Pool, Supply},
    operations::{Of, Operation, Role},
    world::{Hand, Kept, LEVELS, Violation, World},
};
use framepool::{Builder, FallbackPolicy, StaticPool, Watermarks};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

/// Frames of such a pool: enough for a context that finds the cache, which has two, in the hands of another.
const FRAMES: u32 = 8;
const MARKS: Watermarks = Watermarks { min: 0, low: 1, high: 2, max: FRAMES };

/// A place, and a pool of each context that could go there.
pub struct Fixed<'w> {
    place: StaticPool<Supply<'w>, Host>,
    spares: [Kept<Pool<'w>>; LEVELS],
    /// How many contexts have set out to fill the place.
    begun: AtomicU32,
    filled: AtomicBool,
}

// The one that brings a place into a state.
pub const FILL: Operation = Operation::new("StaticPool::init", Role::Interrupting, fill)
    .needs(has_spare)
    .settled_by(check_fill)
    .of(Of::Place);

/// These operations.
pub static FIXED: &[Operation] = &[
    FILL,
    Operation::new("StaticPool::get, alloc, free", Role::Any, look)
        .needs(note_filled)
        .settled_by(check_look)
        .of(Of::Place),
];

// What a call came to, as [`Hand::outcome`] has it.
const DONE: u32 = 1;
const REFUSED: u32 = 2;
const WRONG: u32 = 3;

fn has_spare(world: &World<'_>, hand: &Hand) -> bool {
    let ready = |fixed: &&Fixed<'_>| fixed.spares[hand.level].get().is_some();
    world.fixed.as_ref().filter(ready).is_some_and(|fixed| fixed.begun.fetch_add(1, SeqCst) < u32::MAX)
}

extern "C" fn fill(world: &World<'_>, hand: &Hand) {
    let Some(fixed) = &world.fixed else { return };
    let Some(pool) = fixed.spares[hand.level].take() else { return };
    let outcome = match fixed.place.init(pool) {
        Ok(_) => DONE,
        Err(pool) => {
            fixed.spares[hand.level].put(pool);
            REFUSED
        }
    };
    hand.outcome.store(outcome, SeqCst);
}

/// One context fills the place; the others have set out beside it.
fn check_fill(world: &World<'_>, hand: &Hand) {
    let Some(fixed) = &world.fixed else { return };
    let right = match hand.outcome.load(SeqCst) {
        DONE => !fixed.filled.swap(true, SeqCst),
        _ => fixed.begun.load(SeqCst) > 1,
    };
    if !right {
        world.report(Violation::Outcome);
    }
}

fn note_filled(world: &World<'_>, hand: &Hand) -> bool {
    let filled = world.fixed.as_ref().map(|fixed| fixed.filled.load(SeqCst));
    hand.outcome.store(u32::from(filled.unwrap_or(false)), SeqCst);
    filled.is_some()
}

/// Who finds a pool can use it; nobody who comes after it was put there finds none.
extern "C" fn look(world: &World<'_>, hand: &Hand) {
    let Some(fixed) = &world.fixed else { return };
    let filled_before = hand.outcome.load(SeqCst) != 0;
    let right = fixed.place.get().map_or(!filled_before, |pool| pool.alloc().is_ok());
    hand.outcome.store(if right { DONE } else { WRONG }, SeqCst);
}

fn check_look(world: &World<'_>, hand: &Hand) {
    if hand.outcome.load(SeqCst) != DONE {
        world.report(Violation::Outcome);
    }
}

impl<'w> Fixed<'w> {
    /// A place without a pool; those of the contexts have sources of their own over the same memory, to which nobody writes.
    pub fn new(memory: &'w Memory) -> Self {
        let builder = Builder::new(FRAMES)
            .watermarks(MARKS)
            .initial(FRAMES)
            .cpus(1)
            .magazine_size(1)
            .fallback(FallbackPolicy::Never);
        let pool = || builder.build(Supply::new(memory), Host::default()).unwrap();
        let spares = [const { Kept::nothing() }; LEVELS];
        spares.iter().for_each(|spare| spare.put(pool()));
        Self { place: StaticPool::new(), spares, begun: AtomicU32::new(0), filled: AtomicBool::new(false) }
    }
}

impl World<'_> {
    /// The place has a pool if one context says so, and all frames of it are in it.
    pub fn audit_place(&self) -> Result<(), String> {
        let Some(fixed) = &self.fixed else { return Ok(()) };
        match (fixed.place.get(), fixed.filled.load(SeqCst)) {
            (None, false) => Ok(()),
            (Some(pool), true) if pool.stats().in_use == 0 => Ok(()),
            (pool, filled) => {
                Err(format!("filled: {filled}, and in the place is {:?}", pool.map(|pool| pool.stats())))
            }
        }
    }
}
