//! What must hold when every operation has come to its end, whatever interrupted what.

use super::{
    host::{FRAMES, address_of, number_of},
    world::{MARKS, World},
};
use framepool::{PhysAddr, Place, Reservation, Resident, Stats};
use std::sync::atomic::Ordering::SeqCst;

/// More magazines than any of the pools has.
const MAGAZINES: usize = 64;

/// What a census found.
struct Found {
    /// In how many places each frame is.
    frames: [u8; FRAMES],
    /// In how many places each magazine is.
    magazines: [u8; MAGAZINES],
    /// Frames in the depot, in the reserve, in the overflow, and in the caches.
    depot: u64,
    reserve: u64,
    overflow: u64,
    cached: u64,
    /// Frames known to be zero, in the depot and in the caches.
    clean: u64,
    /// Which frames those are.
    zero: [bool; FRAMES],
    /// Frames that a full magazine has.
    magazine: u32,
    /// Something was there that cannot be.
    stray: bool,
}

/// What the audit compares with: taken when the state was prepared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Before {
    pub reserve: u64,
    pub asked: u64,
    pub rings: u32,
    pub shared: u32,
}

impl Before {
    pub fn of(world: &World<'_>) -> Self {
        let stats = world.pool.stats();
        let shared = world.shared.get().map_or(0, Reservation::left);
        Self { reserve: stats.reserve, asked: asked(&stats), rings: world.host().rings.load(SeqCst), shared }
    }
}

/// How many allocations went below the caches.
fn asked(stats: &Stats) -> u64 {
    stats.depot_hits
        + stats.steals
        + stats.reserve_hits
        + stats.fallback_taken
        + stats.exhausted
        + stats.reserved
}

impl Found {
    fn count(&mut self, frame: PhysAddr) {
        match number_of(frame) {
            Some(number) => self.frames[number] = self.frames[number].saturating_add(1),
            None => self.stray = true,
        }
    }

    fn see(&mut self, place: Place, resident: Resident) {
        match (place, resident) {
            (_, Resident::Magazine { index, length }) => {
                let valid = match place {
                    Place::Full { .. } => length == self.magazine,
                    Place::Partial { .. } => 0 < length && length < self.magazine,
                    Place::Empty => length == 0,
                    _ => length <= self.magazine,
                };
                self.stray |= !valid;
                match self.magazines.get_mut(index as usize) {
                    Some(magazine) => *magazine = magazine.saturating_add(1),
                    None => self.stray = true,
                }
            }
            (_, Resident::Frame(frame)) => {
                self.count(frame);
                if place.is_clean() {
                    // The reserve's are not counted among them.
                    self.clean += u64::from(!matches!(place, Place::Reserve { .. }));
                    number_of(frame).into_iter().for_each(|number| self.zero[number] = true);
                }
                match place {
                    Place::Loaded { .. } | Place::Previous { .. } => self.cached += 1,
                    Place::Reserve { .. } => self.reserve += 1,
                    Place::Overflow => self.overflow += 1,
                    Place::Full { .. } | Place::Partial { .. } | Place::Empty => self.depot += 1,
                }
            }
        }
    }
}

macro_rules! demand {
    ($holds:expr, $($words:tt)+) => {
        if !$holds {
            return Err(format!($($words)+));
        }
    };
}

impl World<'_> {
    /// Checks everything; the first thing that is wrong.
    pub fn audit(&self) -> Result<(), String> {
        let violations = self.violations();
        demand!(violations.is_empty(), "inside an operation: {violations:?}");
        self.audit_reservation()?;
        // What is set aside goes back first, so that everything is where it can be seen.
        self.reservations.iter().chain([&self.shared]).for_each(|reservation| drop(reservation.take()));
        #[cfg(feature = "vtd")]
        self.audit_retired()?;
        let found = self.census();
        let stats = self.pool.stats();
        demand!(!found.stray, "INV-2: a magazine or a frame that cannot be");
        self.audit_magazines(&found)?;
        self.audit_frames(&found, &stats)?;
        self.audit_counts(&found, &stats)?;
        self.audit_bell(&stats)?;
        #[cfg(feature = "vtd")]
        self.audit_translations()?;
        #[cfg(feature = "vtd")]
        self.audit_units()?;
        self.audit_place()
    }

    /// INV-8: what was set aside is drawn or left.
    fn audit_reservation(&self) -> Result<(), String> {
        let (drawn, before) = (self.drawn.load(SeqCst), self.before.get().shared);
        let left = self.shared.get().map_or(0, Reservation::left);
        demand!(
            drawn + left == before,
            "INV-8: of {before} frames set aside {drawn} were drawn and {left} are left"
        );
        Ok(())
    }

    fn census(&self) -> Found {
        let mut found = Found {
            frames: [0; FRAMES],
            magazines: [0; MAGAZINES],
            depot: 0,
            reserve: 0,
            overflow: 0,
            cached: 0,
            clean: 0,
            zero: [false; FRAMES],
            magazine: self.magazine,
            stray: false,
        };
        // SAFETY: every operation has come to its end.
        unsafe { self.pool.census(|place, resident| found.see(place, resident)) };
        found
    }

    /// INV-2: a magazine is in exactly one place.
    fn audit_magazines(&self, found: &Found) -> Result<(), String> {
        let (all, none) = found.magazines.split_at(self.pool.magazines());
        for (index, &places) in all.iter().enumerate() {
            demand!(places == 1, "INV-2: the magazine {index} is in {places} places");
        }
        demand!(none.iter().all(|&places| places == 0), "INV-2: a magazine too many");
        Ok(())
    }

    /// INV-1: a frame is in exactly one place. INV-9: those on the clean side are zero.
    fn audit_frames(&self, found: &Found, stats: &Stats) -> Result<(), String> {
        let mut frames = found.frames;
        let mut users = 0;
        let mut place = |frame| {
            users += 1;
            if let Some(number) = number_of(frame) {
                frames[number] = frames[number].saturating_add(1);
            }
        };
        self.hands.iter().chain(&self.charged).flat_map(|hand| hand.kept()).for_each(&mut place);
        #[cfg(feature = "vtd")]
        self.for_each_unit_table(&mut place);
        #[cfg(feature = "vtd")]
        let detached = self.for_each_table(&mut place);
        #[cfg(not(feature = "vtd"))]
        let detached = 0;
        let missing =
            (0..FRAMES).filter(|&number| self.supply().is_out(number) && frames[number] == 0).count();
        for (number, &places) in frames.iter().enumerate() {
            let zero = !found.zero[number] || self.is_zero(address_of(number));
            demand!(zero, "INV-9: the frame {number} is on the clean side and not zero");
            demand!(places <= 1, "INV-1: the frame {number} is in {places} places");
            demand!(
                places == 0 || self.supply().is_out(number),
                "INV-1: the frame {number} is the source's too"
            );
        }
        // Of the frames that wait for an invalidation, or that a quota keeps, only the number is known.
        let kept = self.audit_quota()?;
        demand!(
            (missing as u64).checked_sub(detached).is_some_and(|missing| kept.contains(&missing)),
            "INV-1: {missing} frames are nowhere, {detached} wait for an invalidation, {kept:?} are kept"
        );
        let in_use = users + missing as u64;
        demand!(stats.in_use == in_use, "INV-1: {in_use} frames are in use\n{stats}");
        demand!(
            stats.owned == u64::from(self.supply().out()),
            "INV-1: the source and the pool agree\n{stats}"
        );
        Ok(())
    }

    /// INV-4 and INV-5: the counts are those of what is there.
    fn audit_counts(&self, found: &Found, stats: &Stats) -> Result<(), String> {
        let counted = (stats.cached, stats.stock - stats.reserve, stats.reserve, stats.overflow, stats.clean);
        let there = (found.cached, found.depot, found.reserve, found.overflow, found.clean);
        demand!(counted == there, "INV-4: cached, depot, reserve, overflow, clean are {there:?}\n{stats}");
        demand!(stats.owned == stats.in_use + stats.cached + stats.stock + stats.overflow, "INV-4\n{stats}");
        let reserve = self.before.get().reserve;
        demand!(
            self.critical.load(SeqCst) || stats.reserve >= reserve,
            "INV-5: nobody was critical, and {reserve} frames were in the reserve\n{stats}"
        );
        Ok(())
    }

    /// INV-6: a crossing of `low` rings, and one of a clean side's mark for each depot, once until the worker has passed; and so does a frame for somebody who waits.
    fn audit_bell(&self, stats: &Stats) -> Result<(), String> {
        let before = self.before.get();
        let (rings, passes) = (self.host().rings.load(SeqCst) - before.rings, self.passes.load(SeqCst));
        let waits = self.waits.load(SeqCst);
        demand!(
            rings <= self.depots * (1 + passes) + waits,
            "INV-6: {rings} rings in {passes} passes, {waits} waits\n{stats}"
        );
        let low = stats.stock - stats.reserve < u64::from(MARKS.low - MARKS.min);
        let wanted = low && asked(stats) > before.asked && !self.short.load(SeqCst);
        demand!(!wanted || self.host().rung.load(SeqCst), "INV-6: below `low`, and nobody has rung\n{stats}");
        Ok(())
    }
}
