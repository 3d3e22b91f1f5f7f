//! A crowd: operations stopped in the middle, one inside the other. The first holds the CPU's cache, so that whoever comes inside finds it
//! busy; the others hold every magazine that has room, so that a free finds no place but the overflow.
//!
//! That takes six of them: an allocation that has claimed the cache, and as many frees as the pool has spare magazines for one
//! CPU, and one. Where each is to be stopped is found by trying: at the first point at which a census misses what it should hold.

use super::{
    host::Memory,
    landing::{Interrupter, Landing, landings},
    operations::{ALLOC, FREE, Operation},
    situations::Situation,
    world::{LEVELS, World, stage},
};
use std::cell::Cell;

/// How many operations are stopped at most.
pub const CROWD: usize = 6;
/// The magazines of a cache.
const IN_CACHE: usize = 2;

/// Where each operation is stopped, as recorded when those before it were.
pub struct Crowd<P> {
    members: Vec<(Vec<P>, Landing<P>)>,
}

fn member(number: usize) -> (&'static Operation, usize) {
    (if number == 0 { &ALLOC } else { &FREE }, LEVELS + number)
}

impl<P> Crowd<P> {
    pub const NOBODY: Self = Self { members: Vec::new() };

    /// Finds out where the operations must be stopped in the state `state`.
    pub fn gather<I: Interrupter<Point = P>>(interrupter: &I, memory: &Memory, state: &Situation) -> Self
    where
        P: Copy + Eq + std::hash::Hash,
    {
        let mut crowd = Self::NOBODY;
        for number in 0..state.crowd() {
            let (operation, level) = member(number);
            let record = stage(memory, state, |world| {
                crowd.within(interrupter, world, || {
                    world.attempt(operation, level, |call| interrupter.record(call))
                })
            });
            let record = record.0.flatten().expect("the state provides for every member of the crowd");
            let holds = |landing: &Landing<P>| {
                let held = Cell::new(0);
                let _ = stage(memory, state, |world| {
                    let action = || held.set(world.missing_magazines());
                    crowd.within(interrupter, world, || {
                        world.attempt(operation, level, |call| {
                            interrupter.interrupt(call, &record, *landing, &action)
                        })
                    })
                });
                held.get() == IN_CACHE + number
            };
            let landing = landings(&record, 1).into_iter().find(holds);
            crowd.members.push((record, landing.expect("every member holds something at some point")));
        }
        crowd
    }

    /// Runs `play` in the middle of the crowd; nothing if it did not gather.
    pub fn within<I: Interrupter<Point = P>, R>(
        &self,
        interrupter: &I,
        world: &World<'_>,
        play: impl FnOnce() -> R,
    ) -> Option<R>
    where
        P: Copy,
    {
        let (play, result) = (Cell::new(Some(play)), Cell::new(None));
        self.enter(0, interrupter, world, &|| result.set(play.take().map(|play| play())));
        result.into_inner()
    }

    fn enter<I: Interrupter<Point = P>>(
        &self,
        number: usize,
        interrupter: &I,
        world: &World<'_>,
        play: &dyn Fn(),
    ) where
        P: Copy,
    {
        let Some((record, landing)) = self.members.get(number) else { return play() };
        let (operation, level) = member(number);
        let next = || self.enter(number + 1, interrupter, world, play);
        world.attempt(operation, level, |call| interrupter.interrupt(call, record, *landing, &next));
    }
}

impl World<'_> {
    /// Magazines that are in nobody's place, but in the hands of operations.
    fn missing_magazines(&self) -> usize {
        let mut seen = 0;
        let count =
            |_, resident| seen += usize::from(matches!(resident, framepool::Resident::Magazine { .. }));
        // SAFETY: every operation is stopped, by the caller.
        unsafe { self.pool.census(count) };
        self.pool.magazines() - seen
    }
}
