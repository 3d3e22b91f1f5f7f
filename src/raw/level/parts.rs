//! Owns how several levels share the one `low` of their pool: each has a *part* of it, and whoever leaves less than the part there rings.
//!
//! | step | who | order |
//! |---|---|---|
//! | ShareOut | the worker, in each pass, after it has answered | adds up all levels; while they have `low`, sets each one's part in proportion to what it holds, rounded up; SeqCst fence; looks again: if the parts do not add up to `low`, or a level does not have its part, it rings for another pass. If all together have less than `low`, each part is all of it, and it rings if it did not know |
//! | Removal | any context | counts frames out of a level; SeqCst fence; rings if the level has less than its part, once until the worker answers |
//!
//! # Why the worker hears of a pool that falls below `low` (INV-6)
//! Let all together fall below `low` after a ShareOut whose second look found nothing: the parts add up to `low` at least, so one level has
//! less than its part, and a Removal brought that about which the second look did not see. There is a SeqCst fence between the setting of the parts
//! and that look, and one between the Removal and its look at the part: as the one did not see the removal, the other sees that part, or a later
//! one, and rings. A later one is set by a worker that has answered and looks at everything again.
//!
//! If all together had less than `low` at a ShareOut, the next Removal from any level rings, as from a single level that stays below it.
//!
//! A level that is emptied has no part after the next pass and rings no more, however much of the stock is elsewhere. A level that loses what
//! it had at the last pass rings without need; the worker then only shares `low` out anew.

use super::{FillLevel, Ring};
use crate::sync::atomic::{Ordering, fence};

/// The part of `low` of a level with `frames` of `all`, rounded up: never more than it has while all have `low`.
fn part(low: u32, frames: u32, all: u32) -> u32 {
    // What does not fit is more than any pool has.
    u32::try_from((u64::from(low) * u64::from(frames)).div_ceil(u64::from(all))).unwrap_or(u32::MAX)
}

/// ShareOut, by a worker that knows that all together have less than `low`, or found that they have it; whether it must ring.
pub fn share_out<'l>(
    low: u32,
    knows_below: bool,
    levels: impl Iterator<Item = &'l FillLevel> + Clone,
) -> Ring {
    let all = levels.clone().map(|level| level.fill().frames).fold(0, u32::saturating_add);
    if all < low || all == 0 {
        levels.clone().for_each(|level| level.set_part(low));
        return ring_unless(all >= low || knows_below, levels);
    }
    let parts = levels.clone().map(|level| {
        let part = part(low, level.fill().frames, all);
        level.set_part(part);
        part
    });
    let shared_out = parts.fold(0, u32::saturating_add);
    // Ordering: SeqCst between the parts and the second look; against the fence of `rings_below_part`.
    fence(Ordering::SeqCst);
    let is_sound = shared_out >= low && levels.clone().all(FillLevel::has_its_part);
    ring_unless(is_sound, levels)
}

/// Notes at the first level that the worker is wanted once more, if it is.
fn ring_unless<'l>(is_sound: bool, mut levels: impl Iterator<Item = &'l FillLevel>) -> Ring {
    match levels.next() {
        Some(level) if !is_sound => level.missed(),
        _ => Ring::No,
    }
}

impl FillLevel {
    fn set_part(&self, frames: u32) {
        // Ordering: Relaxed; fences order it, see above.
        self.part.store(frames, Ordering::Relaxed);
    }

    fn has_its_part(&self) -> bool {
        // Ordering: Relaxed; as in `set_part`.
        self.fill().frames >= self.part.load(Ordering::Relaxed)
    }

    /// The rest of a Removal, after frames were counted out; whether the caller must ring.
    pub fn rings_below_part(&self) -> Ring {
        // Ordering: SeqCst between the removal, which stands before this, and the look at the part; against the fence of `share_out`.
        // Acquire and Release would let both miss each other.
        fence(Ordering::SeqCst);
        if self.has_its_part() { Ring::No } else { self.missed() }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{super::super::magazine::Kind::Dirty, *};
    use std::vec::Vec;

    #[test]
    fn parts_add_up_to_low_and_nobody_has_less_than_its_part() {
        for frames in [[0, 0, 7], [1, 1, 5], [3, 3, 3], [u32::MAX / 4, 0, 1], [1000, 1, 0]] {
            let all = frames.iter().sum::<u32>();
            for low in [0, 1, 5, 6, 7, all / 2, all].into_iter().filter(|&low| low <= all) {
                let parts = frames.map(|frames| part(low, frames, all));
                assert!(parts.iter().sum::<u32>() >= low, "{frames:?} {low}");
                assert!(parts.iter().zip(frames).all(|(&part, frames)| part <= frames), "{frames:?} {low}");
            }
        }
    }

    #[test]
    fn levels_that_fall_below_low_together_have_rung() {
        for frames in [[20, 20], [39, 1], [40, 0]] {
            let levels: Vec<_> = frames.map(|frames| (FillLevel::new(0, 100), frames)).into();
            levels.iter().for_each(|(level, frames)| assert_eq!(level.added(Dirty, *frames), Ring::No));
            let levels: Vec<_> = levels.into_iter().map(|(level, _)| level).collect();
            assert_eq!(share_out(10, false, levels.iter()), Ring::No);
            let (mut rung, mut left) = (0, 40);
            while left > 9 {
                let level = levels.iter().max_by_key(|level| level.fill().frames).unwrap();
                assert_eq!(level.removed(Dirty, 1), Ring::No);
                rung += u32::from(level.rings_below_part() == Ring::Yes);
                left -= 1;
            }
            assert!(rung > 0, "{frames:?}");
            assert_eq!(share_out(10, true, levels.iter()), Ring::No, "below `low`, as the worker knows");
            levels.iter().for_each(|level| _ = level.answered());
            let level = levels.iter().max_by_key(|level| level.fill().frames).unwrap();
            assert_eq!((level.removed(Dirty, 1), level.rings_below_part()), (Ring::No, Ring::Yes));
        }
    }
}
