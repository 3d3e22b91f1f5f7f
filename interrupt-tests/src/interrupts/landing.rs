//! How a call is interrupted, and where: at every point of a recorded run.

use super::world::{Hand, World};
use std::{collections::HashMap, fmt, hash::Hash};

/// An operation's call, as it is made and interrupted.
#[derive(Clone, Copy)]
pub struct Call<'c, 'w> {
    pub function: extern "C" fn(&World<'_>, &Hand),
    pub world: &'c World<'w>,
    pub hand: &'c Hand,
}

/// What runs where a call is interrupted.
pub type Action<'a> = &'a dyn Fn();

/// A way to interrupt calls.
pub trait Interrupter {
    /// A place at which a call can be interrupted: an instruction, or a line of the source.
    type Point: Copy + Eq + Hash + fmt::Debug;

    /// Points of a call within which the second of two nested interrupts comes.
    const SECOND_WITHIN: usize;

    /// Whether pools of several depots are tried as well. Their instructions grow with the number of depots, for which there is no limit.
    const SEVERAL_DEPOTS: bool;

    /// Makes the call; every point that it comes to, in order.
    fn record(&self, call: Call<'_, '_>) -> Vec<Self::Point>;

    /// Makes the call that was recorded last once more, and runs `action` at `landing`; whether it came there.
    fn interrupt(
        &self,
        call: Call<'_, '_>,
        record: &[Self::Point],
        landing: Landing<Self::Point>,
        action: Action<'_>,
    ) -> bool;

    /// Makes a call and runs `action` at its point number `step`; whether it came so far. May be called in an action.
    fn interrupt_step(&self, call: Call<'_, '_>, step: usize, action: Action<'_>) -> bool;
}

/// One moment of a recorded run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landing<T> {
    /// The point, and which pass over it this is, from 1.
    pub at: T,
    pub pass: usize,
    /// The same, counted from the start of the run.
    pub step: usize,
}

impl<T: fmt::Debug> fmt::Display for Landing<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "at {:x?}, pass {}, step {}", self.at, self.pass, self.step)
    }
}

/// The moments at which a run that came to the points of `record`, in this order, is to be interrupted: in the first `passes` passes
/// through a loop, since what comes later does the same to other elements.
pub fn landings<T: Copy + Eq + Hash>(record: &[T], passes: usize) -> Vec<Landing<T>> {
    let mut seen = HashMap::new();
    let moment = |(step, &at): (usize, &T)| {
        let pass = seen.entry(at).or_insert(0usize);
        *pass += 1;
        (*pass <= passes).then_some(Landing { at, pass: *pass, step })
    };
    record.iter().enumerate().filter_map(moment).collect()
}
