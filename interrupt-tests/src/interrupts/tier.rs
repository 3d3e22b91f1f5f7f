//! How far down an operation went, as the pool's own statistics and a census tell it.

use super::world::World;
use framepool::{Place, Resident, Stats};

/// A pool before or after an operation.
pub struct Seen {
    stats: Stats,
    /// The dirty and the clean side.
    sides: [Side; 2],
    /// Frames that a magazine can hold.
    magazine: u32,
    /// Tables of the domain, or of the unit.
    tables: u64,
}

/// What can be seen of one side.
#[derive(Clone, Copy, Default)]
struct Side {
    /// Frames in the loaded magazine of CPU 0.
    loaded: u32,
    /// Full magazines in the depot.
    full: usize,
}

impl Seen {
    pub fn of(world: &World<'_>) -> Self {
        let mut sides = [Side::default(); 2];
        let visit = |place: Place, resident| {
            let side = &mut sides[usize::from(place.is_clean())];
            match (place, resident) {
                (Place::Loaded { cpu: 0, .. }, Resident::Magazine { length, .. }) => side.loaded = length,
                (Place::Full { .. }, Resident::Magazine { .. }) => side.full += 1,
                _ => {}
            }
        };
        // SAFETY: no operation is in progress, but for those that the caller has stopped.
        unsafe { world.pool.census(visit) };
        #[cfg(feature = "vtd")]
        let tables = world.space.as_ref().map_or(0, |space| space.table_frames())
            + world.units.as_ref().map_or(0, |units| units.table_frames());
        #[cfg(not(feature = "vtd"))]
        let tables = 0;
        Self { stats: world.pool.stats(), sides, magazine: world.magazine, tables }
    }
}

/// What an operation did, in a few words, for each of which something must have been counted.
pub fn name(before: &Seen, after: &Seen) -> String {
    let (old, new) = (&before.stats, &after.stats);
    let given = new.freed > old.freed;
    let clean = new.zeroed_hits > old.zeroed_hits || given && new.clean > old.clean;
    let side = before.sides[usize::from(clean)];
    let (pops, pushes) = (new.cache_hits > old.cache_hits, given && new.cached > old.cached);
    let swaps = pops && side.loaded == 0 || pushes && side.loaded == before.magazine;
    let drawn = new.depot_hits > old.depot_hits;
    let words = [
        (clean, "clean"),
        (pops || pushes, if swaps { "cache, swapped" } else { "cache" }),
        (drawn && old.overflow > new.overflow, "overflow"),
        (drawn && old.overflow == new.overflow, if side.full > 0 { "depot, full" } else { "depot, partial" }),
        (new.steals > old.steals, "steal"),
        (new.reserve_hits > old.reserve_hits, "reserve"),
        (new.fallback_taken > old.fallback_taken, "fallback"),
        (new.exhausted > old.exhausted, "refused"),
        (new.cleared_inline > old.cleared_inline, "cleared"),
        (given && new.reserve > old.reserve, "reserve filled"),
        (given && new.stock - new.reserve > old.stock - old.reserve, "depot"),
        (given && new.overflow > old.overflow, "overflow"),
        (new.decayed > old.decayed, "decay"),
        (new.refilled > old.refilled, "refill"),
        (new.trimmed > old.trimmed, "trim"),
        (new.cleared_ahead > old.cleared_ahead, "cleared ahead"),
        (new.source_failures > old.source_failures, "source failed"),
        (after.tables > before.tables, "tables linked"),
        (after.tables < before.tables, "tables detached"),
        (new.rings > old.rings, "bell"),
    ];
    let words: Vec<_> = words.into_iter().filter(|(happened, _)| *happened).map(|(_, word)| word).collect();
    if words.is_empty() { "-".into() } else { words.join(" + ") }
}
