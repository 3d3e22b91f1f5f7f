//! All depots of a pool: one, or one for each group of CPUs, so that no line of a depot is wanted by more CPUs than a group has. Whoever finds
//! nothing in its own looks into each of the others once, and then into other CPUs' caches.
//!
//! Each depot is what the only one of a pool is, with a level of its own. Magazines move between depots as they move between a depot and a slot: in
//! one pair of hands, counted out where they were taken and counted in where they are put. So a depot may be empty while others are full;
//! nobody but those who look into the next one has to do anything about it.
//!
//! How they share the one `low` of the pool is in `raw/level/parts.rs`. Above `max` the worker is rung when one depot alone is; it looks at the sum
//! whenever it passes. Frames that lie where they came back are no reason to wake it.

use super::{census::Place, depot::Depot};
use crate::{
    platform::Platform,
    raw::{
        arena::Carved,
        level::{Fill, Ring, parts::share_out},
    },
};
use crossbeam_utils::CachePadded;

/// One depot at least.
#[derive(Debug)]
pub(crate) struct Depots {
    first: Depot,
    others: Carved<CachePadded<Depot>>,
    /// CPUs that have a cache.
    cpus: usize,
    /// Below this the worker is wanted.
    low: u32,
}

impl Depots {
    /// All of them, for `cpus` CPUs; below `low` the worker is wanted.
    pub(crate) fn new(first: Depot, others: Carved<CachePadded<Depot>>, cpus: usize, low: u32) -> Self {
        Self { first, others, cpus, low }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        1 + self.others.len()
    }

    /// The depot `number`; numbers beyond them are the first one's.
    pub(crate) fn of(&self, number: usize) -> &Depot {
        number.checked_sub(1).and_then(|other| self.others.get(other)).map_or(&self.first, |depot| depot)
    }

    /// All of them, in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Depot> + Clone {
        core::iter::once(&self.first).chain(self.others.iter().map(|depot| &**depot))
    }

    /// The number of the depot that is near the CPU that runs this code, as a hint (R3).
    #[cold]
    #[inline(never)]
    fn home(&self, platform: &impl Platform) -> usize {
        let (cpu, count) = (platform.current_cpu(), self.count());
        let number = platform.depot_near(cpu);
        number.map_or_else(|| cpu % self.cpus.max(1) * count / self.cpus.max(1), |number| number % count)
    }

    /// The depot that is near the CPU that runs this code.
    #[inline(always)]
    pub(crate) fn near(&self, platform: &impl Platform) -> &Depot {
        if self.others.is_empty() { &self.first } else { self.of(self.home(platform)) }
    }

    /// What `look` finds in the first depot in which it finds something: looks into each once, into the one near this CPU first.
    #[inline(always)]
    pub(crate) fn find<'d, T>(
        &'d self,
        platform: &impl Platform,
        mut look: impl FnMut(&'d Depot) -> Option<T>,
    ) -> Option<T> {
        if self.others.is_empty() {
            return look(&self.first);
        }
        let mut found = None;
        self.visit(self.home(platform), &mut |depot| {
            found = look(depot);
            found.is_some()
        });
        found
    }

    /// Shows `visit` each depot, the one near the CPU that runs this code first, until it says that this is enough.
    ///
    /// The order of the others is by the bits in which their numbers differ: neighbours first, and CPUs of different depots that
    /// find theirs empty look into different ones.
    #[cold]
    #[inline(never)]
    fn visit<'d>(&'d self, home: usize, visit: &mut dyn FnMut(&'d Depot) -> bool) {
        let distances = 0..self.count().next_power_of_two();
        let mut numbers = distances.map(|distance| home ^ distance).filter(|&number| number < self.count());
        numbers.any(|number| visit(self.of(number)));
    }

    /// Whether the caller must ring who has just counted frames out of `depot`: its level says so with `ring`, or it has less than its part.
    #[inline(always)]
    pub(crate) fn after_removal(&self, depot: &Depot, ring: Ring) -> Ring {
        if self.others.is_empty() || ring == Ring::Yes { ring } else { depot.level().rings_below_part() }
    }

    /// Shares `low` out among the depots, by what they hold, and tells whether the caller must ring. By the worker at the end of a pass, which
    /// knows that there is less and no more to be had, or found enough.
    pub(crate) fn share_out(&self, knows_below: bool) -> Ring {
        if self.others.is_empty() {
            Ring::No
        } else {
            share_out(self.low, knows_below, self.all().map(Depot::level))
        }
    }

    /// The depot with the fewest frames.
    pub(crate) fn poorest(&self) -> &Depot {
        self.all().min_by_key(|depot| depot.level().fill().frames).unwrap_or(&self.first)
    }

    /// Notes that somebody found all of them empty.
    pub(crate) fn missed(&self) -> Ring {
        self.first.level().missed()
    }

    /// Notes at one level that somebody found no clean frame: one where there is something to clear.
    pub(crate) fn missed_clean(&self, platform: &impl Platform) -> Ring {
        if self.others.is_empty() {
            return self.first.level().missed_clean();
        }
        let has_dirty = |fill: Fill| fill.frames > fill.clean;
        let dirty = self.find(platform, |depot| has_dirty(depot.level().fill()).then_some(depot));
        dirty.map_or(Ring::No, |depot| depot.level().missed_clean())
    }

    /// The worker takes note of every level.
    pub(crate) fn answered(&self) {
        for depot in self.all() {
            depot.level().answered();
        }
    }

    /// Sets the number of clean frames below which the worker is wanted.
    pub(crate) fn set_clean_low(&self, frames: u32) {
        let part = self.part_of(frames);
        self.all().for_each(|depot| depot.level().set_clean_low(part));
    }

    /// One depot's part of what all have together, rounded up.
    pub(crate) fn part_of(&self, frames: u32) -> u32 {
        frames.div_ceil(self.count() as u32)
    }

    /// The frames in all of them.
    pub(crate) fn fill(&self) -> Fill {
        self.all().map(|depot| depot.level().fill()).fold(Fill { frames: 0, clean: 0 }, |sum, fill| Fill {
            frames: sum.frames.saturating_add(fill.frames),
            clean: sum.clean.saturating_add(fill.clean),
        })
    }

    fn sum(&self, of: impl Fn(&Depot) -> u64) -> u64 {
        self.all().map(of).fold(0, u64::wrapping_add)
    }

    /// All frames ever drawn from the stock.
    pub(crate) fn drawn(&self) -> u64 {
        self.sum(Depot::drawn)
    }

    /// Allocations that the stock has served.
    pub(crate) fn hits(&self) -> u64 {
        self.sum(Depot::hits)
    }

    /// Frames that came back and found no room in their CPU's cache.
    pub(crate) fn freed(&self) -> u64 {
        self.sum(Depot::freed)
    }

    /// How many magazines there are, wherever they are.
    pub(crate) fn magazines(&self) -> usize {
        self.first.magazines()
    }

    /// As [`Depot::census`], of all of them.
    pub(crate) fn census(&self, mut visit: impl FnMut(Place, u32, u32)) {
        self.all().for_each(|depot| depot.census(&mut visit));
    }
}
