//! Owns the domain ids of a unit: one bit each, taken and given back from any context.
//!
//! Hardware tags what it caches with the id of the domain that it was read for (VT-d specification, section 6.2.1), so an id
//! names one domain until everything tagged with it has been invalidated. Id 0 is not handed out: in caching mode hardware tags
//! not-present entries with it.
//!
//! # The words
//! ```text
//! bit b of word w: id 64 w + b is taken, or there is no such id
//! ```
//! A `take` sets the lowest clear bit that it sees; who finds that the bit was clear before has the id, all others see it set
//! and look again, which means that somebody else has taken an id. A `give` clears the bit. Both are one read-modify-write, so
//! there is no state in between that an interrupt could find.

use crate::sync::atomic::{AtomicU64, Ordering};
use core::{array, error::Error, fmt, num::NonZeroU16};

/// The tag of one domain in the caches of the hardware: 1 to 65,535.
///
/// ```
/// use framepool::vtd::DomainId;
/// assert_eq!(DomainId::new(7).map(DomainId::get), Some(7));
/// assert_eq!(DomainId::new(0), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct DomainId(NonZeroU16);

impl DomainId {
    /// The first id.
    pub const FIRST: Self = Self(NonZeroU16::MIN);

    /// The id `id`, unless it is 0.
    pub const fn new(id: u16) -> Option<Self> {
        match NonZeroU16::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The number, never 0.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Debug for DomainId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DomainId({})", self.0)
    }
}

impl fmt::Display for DomainId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// An id was given back that is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainIdNotTaken(
    /// The id.
    pub DomainId,
);

impl fmt::Display for DomainIdNotTaken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "domain id {} is not taken: give back once what `take` returned", self.0)
    }
}

impl Error for DomainIdNotTaken {}

/// Hands out the domain ids of one unit, or of several that share domains. `WORDS` words of memory, 64 ids each; 1024 words
/// are enough for every unit.
///
/// ```
/// use framepool::vtd::{Capabilities, DomainIds};
/// let unit = Capabilities::from_registers(0x00d2_008c_222f_0606, 0x00f0_0f4a);
/// let ids = DomainIds::<4>::new(unit.domain_ids());
/// let id = ids.take().unwrap();
/// assert_eq!(id.get(), 1);
/// ids.give(id)?;
/// assert!(ids.give(id).is_err(), "once");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct DomainIds<const WORDS: usize> {
    taken: [AtomicU64; WORDS],
    /// Ids below this exist.
    limit: u32,
}

impl<const WORDS: usize> DomainIds<WORDS> {
    /// All ids from 1 up to but not including `domain_ids`, the number of ids that the hardware has
    /// ([`Capabilities::domain_ids`](super::Capabilities::domain_ids); the least of all units that share domains), as far as
    /// `WORDS` reaches.
    ///
    /// Any context; bounded by `WORDS`.
    pub fn new(domain_ids: u32) -> Self {
        let limit = domain_ids.min(WORDS as u32 * u64::BITS).min(u32::from(u16::MAX) + 1);
        let taken = array::from_fn(|word| {
            let below = limit.saturating_sub(word as u32 * u64::BITS);
            let absent = if below >= u64::BITS { 0 } else { u64::MAX << below };
            AtomicU64::new(absent | u64::from(word == 0))
        });
        Self { taken, limit }
    }

    /// The lowest id that is free, or nothing. Lock-free, from any context; bound: `WORDS` words, and a retry for each id that
    /// somebody else takes meanwhile.
    /// At most 50 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    pub fn take(&self) -> Option<DomainId> {
        self.taken.iter().enumerate().find_map(|(index, word)| {
            // The bits of numbers beyond 65,535 are set for ever.
            let number = index * u64::BITS as usize + take_bit(word)? as usize;
            u16::try_from(number).ok().and_then(DomainId::new)
        })
    }

    /// Takes an id back. Wait-free, from any context.
    /// At most 30 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// Only when every unit has confirmed that it has forgotten all that was tagged with it: after the domain-wide invalidation
    /// that precedes [`ClosedDomain::complete`](super::ClosedDomain::complete). An id that comes back earlier lends the next
    /// domain the translations of this one.
    ///
    /// # Errors
    /// [`DomainIdNotTaken`]; nothing changes.
    pub fn give(&self, id: DomainId) -> Result<(), DomainIdNotTaken> {
        let number = u32::from(id.get());
        let (word, bit) = ((number / u64::BITS) as usize, 1 << (number % u64::BITS));
        let word = self.taken.get(word).filter(|_| number < self.limit).ok_or(DomainIdNotTaken(id))?;
        // Ordering: Release, to the Acquire of the `take` that gets the id next: what the domain did under it is before what the
        // next one does. A cleared bit that was clear stays as it was.
        let before = word.fetch_and(!bit, Ordering::Release);
        if before & bit == 0 { Err(DomainIdNotTaken(id)) } else { Ok(()) }
    }
}

/// Sets the lowest clear bit of `word`, if there is one.
fn take_bit(word: &AtomicU64) -> Option<u32> {
    // Ordering: Relaxed; the exchange below decides.
    let mut seen = word.load(Ordering::Relaxed);
    while seen != u64::MAX {
        let bit = seen.trailing_ones();
        // Ordering: Acquire, from the Release of the `give` that freed the id; other takes in between are read-modify-writes
        // and continue its release sequence. Setting a bit that was set changes nothing.
        let before = word.fetch_or(1 << bit, Ordering::Acquire);
        if before & 1 << bit == 0 {
            return Some(bit);
        }
        seen = before;
    }
    None
}

impl<const WORDS: usize> fmt::Debug for DomainIds<WORDS> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("DomainIds").field("limit", &self.limit).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn every_id_of_the_unit_but_zero_is_handed_out_once() {
        for (domain_ids, words) in [(16, 15), (64, 63), (100, 99), (4096, 127)] {
            let ids = DomainIds::<2>::new(domain_ids);
            let taken: Vec<u16> = core::iter::from_fn(|| ids.take()).map(DomainId::get).collect();
            assert_eq!(taken, (1..=words).collect::<Vec<u16>>());
        }
        let many = DomainIds::<64>::new(1 << 16);
        assert_eq!(core::iter::from_fn(|| many.take()).last(), DomainId::new(4095));
        assert_eq!(DomainIds::<1>::new(0).take(), None);
        assert_eq!(DomainIds::<0>::new(16).take(), None);
    }

    #[test]
    fn what_is_not_taken_is_not_taken_back() {
        let ids = DomainIds::<2>::new(100);
        let (first, second) = (ids.take().unwrap(), ids.take().unwrap());
        assert_eq!(ids.give(first), Ok(()));
        for id in [first, DomainId(NonZeroU16::new(100).unwrap()), DomainId(NonZeroU16::MAX)] {
            assert_eq!(ids.give(id), Err(DomainIdNotTaken(id)));
        }
        assert_eq!(ids.take(), Some(first));
        assert_eq!(ids.give(second), Ok(()));
    }
}
