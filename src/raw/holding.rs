//! Owns what a reservation holds: whole magazines in a chain, a few loose frames, and the one word that says what is left.
//!
//! # The word
//! ```text
//!  63 ........ 44 | 43 .... 32 | 31 ................... 0
//!  first magazine | its length | frames left, loose ones included      first magazine of all ones: none
//! ```
//! | draw of | before | after | what the drawer then owns |
//! |---|---|---|---|
//! | a frame of the first magazine | m, k > 1, left | m, k − 1, left − 1 | entry k − 1 of m |
//! | its last frame | m, 1, left | next of m, all its frames, left − 1 | entry 0 of m |
//! | a loose frame | none, left > 0 | none, left − 1 | loose frame left − 1 |
//!
//! # Why a draw may be interrupted anywhere, by another draw of the same reservation too
//! A draw claims its frame by one exchange of the word and reads it afterwards, alone. `left` falls with every draw and never
//! rises, so no state comes twice and there is no ABA; a retry means that another draw got its frame. Only a draw lowers `left`:
//! N frames can be drawn whatever others do (INV-8).
//!
//! # When an empty magazine goes back
//! When the last of its frames has been *read*, which need not be the one that was claimed last: the drawer in between may be
//! interrupted. The magazine's word in the side array of lengths, which it does not need here, counts the entries that are
//! not read yet; whoever counts it down to zero brings the magazine back. The successor of the first magazine is looked up
//! before the exchange: an exchange that succeeds proves that an entry was still unclaimed, hence unread, and the magazine and
//! its link still the reservation's.

use super::magazine::{FrameNumber, Magazine, Magazines};
use crate::sync::atomic::{AtomicU64, Ordering};

/// Frames that a holding takes without a magazine: a cache line of numbers.
pub(crate) const LOOSE: usize = 16;

const LEFT_BITS: u32 = 32;
const LENGTH_BITS: u32 = 12;
const NO_MAGAZINE: u32 = (1 << (u64::BITS - LEFT_BITS - LENGTH_BITS)) - 1;

/// The word as a pure value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Holdings(u64);

/// What one draw claimed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Claimed {
    Entry { magazine: u32, position: u32 },
    Loose(u32),
}

impl Holdings {
    const NOTHING: Self = Self::new((NO_MAGAZINE, 0), 0);

    const fn new((first, length): (u32, u32), left: u32) -> Self {
        Self((first as u64) << (LEFT_BITS + LENGTH_BITS) | (length as u64) << LEFT_BITS | left as u64)
    }

    const fn left(self) -> u32 {
        self.0 as u32
    }

    /// The first magazine and its length.
    fn first(self) -> Option<(u32, u32)> {
        let magazine = (self.0 >> (LEFT_BITS + LENGTH_BITS)) as u32;
        let length = (self.0 >> LEFT_BITS) as u32 & ((1 << LENGTH_BITS) - 1);
        (magazine != NO_MAGAZINE).then_some((magazine, length))
    }

    /// Takes one frame; `next` names the magazine behind another, and its length.
    fn draw(self, next: impl FnOnce(u32) -> (u32, u32)) -> Option<(Self, Claimed)> {
        let left = self.left().checked_sub(1)?;
        let Some((magazine, length)) = self.first() else {
            return Some((Self::new((NO_MAGAZINE, 0), left), Claimed::Loose(left)));
        };
        let position = length.checked_sub(1)?;
        let first = if position > 0 { (magazine, position) } else { next(magazine) };
        Some((Self::new(first, left), Claimed::Entry { magazine, position }))
    }
}

/// The frames of one reservation.
#[derive(Debug)]
pub(crate) struct Holding {
    word: AtomicU64,
    /// Filled while the holding is built, from the front on.
    loose: [FrameNumber; LOOSE],
    loose_length: u32,
}

impl Holding {
    pub(crate) fn new() -> Self {
        Self { word: AtomicU64::new(Holdings::NOTHING.0), loose: [0; LOOSE], loose_length: 0 }
    }

    fn holdings(&self) -> Holdings {
        // Ordering: Relaxed; what the word names was put there before the holding could be shared, and whoever shares it
        // publishes all of it. A draw decides by its exchange.
        Holdings(self.word.load(Ordering::Relaxed))
    }

    fn set(&mut self, holdings: Holdings) {
        // Ordering: Relaxed; nobody else has the holding at this moment.
        self.word.store(holdings.0, Ordering::Relaxed);
    }

    /// How many frames can still be drawn.
    pub(crate) fn left(&self) -> u32 {
        self.holdings().left()
    }

    /// Adds a magazine with frames. Only while the holding is built, as the next.
    pub(crate) fn add_magazine(&mut self, magazines: &Magazines, magazine: Magazine) {
        let holdings = self.holdings();
        let (next, _) = holdings.first().unwrap_or((NO_MAGAZINE, 0));
        let (index, length) = magazine.into_parts();
        magazines.lay_down(index, next, length);
        self.set(Holdings::new((index, length), holdings.left() + length));
    }

    /// Adds loose frames: as many as `fill` says that it put into the front of the places it gets, at most `most` of them.
    pub(crate) fn fill_loose<E>(
        &mut self,
        most: u32,
        fill: impl FnOnce(&mut [FrameNumber]) -> Result<usize, E>,
    ) -> Result<(), E> {
        let places = self.loose.get_mut(self.loose_length as usize..).unwrap_or_default();
        let count = places.len().min(most as usize);
        let filled = fill(places.get_mut(..count).unwrap_or_default())?.min(count) as u32;
        self.loose_length += filled;
        self.set(Holdings(self.holdings().0 + u64::from(filled)));
        Ok(())
    }

    /// Takes one frame, and the magazine that it was the last to leave. Lock-free: a retry means that another draw got its
    /// frame.
    pub(crate) fn draw(&self, magazines: &Magazines) -> Option<(FrameNumber, Option<Magazine>)> {
        let mut before = self.holdings();
        loop {
            let (after, claimed) =
                before.draw(|magazine| magazines.behind(magazine).unwrap_or((NO_MAGAZINE, 0)))?;
            // Ordering: Relaxed on both sides; the exchange claims, and publishes nothing: the entries were written before the
            // holding could be shared, and nobody writes them until the magazine has gone back.
            match self.word.compare_exchange_weak(before.0, after.0, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return self.read(magazines, claimed),
                Err(current) => before = Holdings(current),
            }
        }
    }

    fn read(&self, magazines: &Magazines, claimed: Claimed) -> Option<(FrameNumber, Option<Magazine>)> {
        match claimed {
            Claimed::Loose(position) => Some((*self.loose.get(position as usize)?, None)),
            Claimed::Entry { magazine, position } => {
                // SAFETY: the exchange made this filled entry ours alone, and the magazine stays where it is until we have
                // counted the entry as read.
                let frame = unsafe { magazines.read(magazines.shape().entry(magazine, position)) };
                let is_last = magazines.count_read(magazine);
                // SAFETY: when all its entries were claimed and are read, nobody else has the magazine any more (INV-2).
                let empty = is_last.then(|| unsafe { Magazine::from_parts(magazine, 0) });
                Some((frame, empty))
            }
        }
    }

    /// Takes out a whole magazine. For the owner who is alone with the holding and takes it apart.
    pub(crate) fn take_magazine(&mut self, magazines: &Magazines) -> Option<Magazine> {
        let holdings = self.holdings();
        let (magazine, length) = holdings.first()?;
        let next = magazines.behind(magazine).unwrap_or((NO_MAGAZINE, 0));
        self.set(Holdings::new(next, holdings.left() - length));
        // SAFETY: no draw is in progress, so the magazine has left the holding for our hands alone (INV-2), with the entries that
        // were not drawn.
        Some(unsafe { Magazine::from_parts(magazine, length) })
    }

    /// The loose frames that were not drawn. For the owner who is alone with the holding and has taken out all magazines.
    pub(crate) fn take_loose(&mut self) -> &[FrameNumber] {
        let left = self.left() as usize;
        self.set(Holdings::NOTHING);
        self.loose.get(..left).unwrap_or_default()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn draws_walk_through_the_magazines_and_then_the_loose_frames() {
        let mut holdings = Holdings::new((7, 2), 5);
        let mut claimed = std::vec::Vec::new();
        while let Some((after, what)) =
            holdings.draw(|magazine| if magazine == 7 { (3, 1) } else { (NO_MAGAZINE, 0) })
        {
            claimed.push(what);
            holdings = after;
        }
        let entry = |magazine, position| Claimed::Entry { magazine, position };
        assert_eq!(claimed, [entry(7, 1), entry(7, 0), entry(3, 0), Claimed::Loose(1), Claimed::Loose(0)]);
        assert_eq!(holdings, Holdings::NOTHING);
    }

    #[test]
    fn the_widest_values_do_not_meet() {
        let holdings = Holdings::new((NO_MAGAZINE - 1, (1 << LENGTH_BITS) - 1), u32::MAX);
        assert_eq!(holdings.first(), Some((NO_MAGAZINE - 1, (1 << LENGTH_BITS) - 1)));
        assert_eq!(holdings.left(), u32::MAX);
    }
}
