//! Owns what the feature `hardened` knows of each frame that the pool has taken in: who has it, and what must be in it. One word a
//! frame, at the place that the registry gave it.
//!
//! | state | who has the frame | what is in it |
//! |---|---|---|
//! | ABSENT | the source | |
//! | UNKNOWN | the pool | anything |
//! | POISONED | the pool | [`POISON`] in every word |
//! | ZERO | the pool | zeros |
//! | OUT | an owner outside | the owner's |
//! | SUSPECT | the pool, and somebody who gave it back twice | anything |
//! | QUARANTINED | nobody, for good | anything |
//!
//! | transition | from | to | else |
//! |---|---|---|---|
//! | `admit` | ABSENT | UNKNOWN or ZERO | |
//! | `take_back` | OUT | UNKNOWN | a frame of the pool becomes SUSPECT; nothing is taken back |
//! | `settle` | UNKNOWN, POISONED | what is in it now | stays |
//! | `hand_out` | UNKNOWN, POISONED, ZERO | OUT or, on its way to the source, ABSENT | SUSPECT becomes QUARANTINED |
//! | `quarantine` | any of the pool's | QUARANTINED | |
//!
//! All are exchanges of one word, so of two who give one frame back one is refused, whenever they come; and the frame is not
//! handed out afterwards, unless that had happened before the second came: then its new owner's frame is what was given back, and that
//! owner is told.

use super::arena::Carved;
use crate::sync::atomic::{AtomicU32, Ordering};

/// The word in every place of a frame that lies in the pool.
pub const POISON: u64 = 0xF4EE_F4EE_F4EE_F4EE;

/// Who has a frame, and what must be in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Custody(u32);

impl Custody {
    pub const ABSENT: Self = Self(0);
    pub const UNKNOWN: Self = Self(1);
    pub const POISONED: Self = Self(2);
    pub const ZERO: Self = Self(3);
    pub const OUT: Self = Self(4);
    pub const SUSPECT: Self = Self(5);
    pub const QUARANTINED: Self = Self(6);

    /// Whether the frame is the pool's and nobody has misused it.
    const fn is_sound(self) -> bool {
        matches!(self, Self::UNKNOWN | Self::POISONED | Self::ZERO)
    }

    /// The word that must be in every place.
    pub const fn content(self) -> Option<u64> {
        match self {
            Self::POISONED => Some(POISON),
            Self::ZERO => Some(0),
            _ => None,
        }
    }
}

/// The custody of each place of a registry.
#[derive(Debug)]
pub struct Custodies {
    words: Carved<AtomicU32>,
}

impl Custodies {
    pub fn new(words: Carved<AtomicU32>) -> Self {
        Self { words }
    }

    /// The custody of the frame at `place`.
    pub fn of(&self, place: usize) -> Custody {
        // Ordering: Relaxed; the word says nothing about other memory: whoever acts on it does so by an exchange, and the
        // contents of frames travel by the stacks and slots.
        self.words.get(place).map_or(Custody::ABSENT, |word| Custody(word.load(Ordering::Relaxed)))
    }

    /// Applies a transition; the custody before, or the one for which there is none.
    fn change(&self, place: usize, to: impl Fn(Custody) -> Option<Custody>) -> Result<Custody, Custody> {
        let Some(word) = self.words.get(place) else { return Err(Custody::ABSENT) };
        let change = |before| to(Custody(before)).map(|after| after.0);
        // Ordering: Relaxed; as in `of`.
        word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).map(Custody).map_err(Custody)
    }

    /// The pool has taken the frame in.
    pub fn admit(&self, place: usize, custody: Custody) {
        let _ = self.change(place, |_| Some(custody));
    }

    /// Somebody gives the frame back; whether it was out. If not, it is never handed out again.
    pub fn take_back(&self, place: usize) -> bool {
        let returned = |before| match before {
            Custody::OUT => Some(Custody::UNKNOWN),
            sound if sound.is_sound() => Some(Custody::SUSPECT),
            _ => None,
        };
        self.change(place, returned) == Ok(Custody::OUT)
    }

    /// The frame has this content now.
    pub fn settle(&self, place: usize, custody: Custody) {
        let _ = self.change(place, |before| before.is_sound().then_some(custody));
    }

    /// The frame leaves the pool, to `custody`; whether it may.
    pub fn hand_out(&self, place: usize, custody: Custody) -> bool {
        self.change(place, |before| before.is_sound().then_some(custody)).is_ok()
    }

    /// The frame is never handed out again; whether that is new.
    pub fn quarantine(&self, place: usize) -> bool {
        self.change(place, |before| (before != Custody::QUARANTINED).then_some(Custody::QUARANTINED)).is_ok()
    }
}
