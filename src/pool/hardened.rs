//! The feature `hardened` (R16): every frame is looked at where it enters and leaves the pool, and who misuses one is reported. Who
//! has a frame, and what must be in it, stands in `raw/custody.rs`.
//!
//! A frame that comes back is filled with a pattern; when it is handed out again, or goes back to the source, the pattern must be there. A
//! frame that somebody may still be using is quarantined: it stays the pool's and is handed out to nobody, neither to a caller nor
//! to the source. Everything here runs in the context of whoever calls the pool: it takes no lock, formats nothing and never panics.

use super::{FramePool, SourceContents};
use crate::{
    frame::PhysAddr,
    platform::Platform,
    raw::{
        contents::{fill, first_difference, write_link},
        custody::{Custody, POISON},
        magazine::{FrameNumber, Kind},
    },
    source::FrameSource,
};
use core::{error::Error, fmt};

/// What somebody has done to a pool with the feature `hardened`, and what was found; see
/// [`Builder::on_misuse`](crate::Builder::on_misuse). Offsets are in bytes from the start of the frame, of a word of eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Misuse {
    /// A frame was given back that was in the pool. It is quarantined when it comes up next.
    DoubleFree {
        /// The frame.
        frame: PhysAddr,
    },
    /// An address was given back at which the pool has no frame. Nothing changes.
    Foreign {
        /// The address.
        address: PhysAddr,
    },
    /// An address was given back that is inside a frame. Nothing changes; the frame stays out.
    Misaligned {
        /// The start of the frame.
        frame: PhysAddr,
        /// How far from there the address was.
        offset: usize,
    },
    /// Somebody has written to a frame that lay in the pool. It is quarantined.
    WriteAfterFree {
        /// The frame.
        frame: PhysAddr,
        /// Where the first word is that differs.
        offset: usize,
        /// What the pool had left there.
        expected: u64,
        /// What was there.
        found: u64,
    },
    /// A frame that was promised to be zero was not. It is quarantined, since somebody else may have written to it.
    FalsePromise {
        /// The frame.
        frame: PhysAddr,
        /// Where the first word is that is not zero.
        offset: usize,
        /// What was there.
        found: u64,
    },
    /// The source says that its frames are zero, and one was not. It is taken in as a dirty one.
    SourceNotZero {
        /// The frame.
        frame: PhysAddr,
        /// Where the first word is that is not zero.
        offset: usize,
        /// What was there.
        found: u64,
    },
}

impl fmt::Display for Misuse {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DoubleFree { frame } => write!(formatter, "frame {frame} was given back twice"),
            Self::Foreign { address } => {
                write!(formatter, "{address} was given back, where the pool has no frame")
            }
            Self::Misaligned { frame, offset } => {
                write!(formatter, "an address {offset} bytes inside of frame {frame} was given back")
            }
            Self::WriteAfterFree { frame, offset, expected, found } => write!(
                formatter,
                "frame {frame} was written to after it was given back: {found:#x} at {offset}, not {expected:#x}"
            ),
            Self::FalsePromise { frame, offset, found } => {
                write!(formatter, "frame {frame} was promised to be zero: {found:#x} at {offset}")
            }
            Self::SourceNotZero { frame, offset, found } => {
                write!(formatter, "the source says that frame {frame} is zero: {found:#x} at {offset}")
            }
        }
    }
}

impl Error for Misuse {}

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    /// The frames that are out, as handles, as bare addresses, or in reservations: what a leak report needs. With the
    /// feature `hardened`.
    ///
    /// From any context; each step looks at one place of the bookkeeping. Exact when no operation is in progress.
    pub fn frames_out(&self) -> impl Iterator<Item = PhysAddr> + '_ {
        self.door.frames_in_custody(Custody::OUT)
    }

    fn report(&self, misuse: &Misuse) {
        self.counters.misuses.add(1);
        if let Some(report) = self.on_misuse {
            report(misuse);
        }
    }

    fn quarantine(&self, place: usize) {
        if self.door.custodies().quarantine(place) {
            self.counters.quarantined.add(1);
        }
    }

    #[allow(unsafe_code, reason = "the contents of a frame that is nobody else's")]
    fn difference(&self, frame: FrameNumber, word: u64) -> Option<(usize, u64)> {
        // SAFETY: the frame is in the hands of this operation, and the source maps all of it.
        unsafe {
            first_difference(&SourceContents(&*self.source), self.address_of(frame), self.frame_size(), word)
        }
    }

    /// Looks at what is in a frame that the pool has; whether that is what must be there. If not, it is quarantined.
    pub(super) fn inspect(&self, frame: FrameNumber) -> bool {
        let Some(place) = self.door.place_of(frame) else { return false };
        let Some(expected) = self.door.custodies().of(place).content() else { return true };
        let Some((offset, found)) = self.difference(frame, expected) else { return true };
        self.quarantine(place);
        let frame = self.address_of(frame);
        self.report(&Misuse::WriteAfterFree { frame, offset, expected, found });
        false
    }

    /// Whether a frame may go from the pool to a caller.
    #[inline(never)]
    pub(super) fn check_out(&self, frame: FrameNumber) -> bool {
        self.check_out_to(frame, Custody::OUT)
    }

    /// Whether a frame may go back to the source.
    pub(super) fn check_dismissal(&self, frame: FrameNumber) -> bool {
        self.check_out_to(frame, Custody::ABSENT)
    }

    fn check_out_to(&self, frame: FrameNumber, custody: Custody) -> bool {
        let Some(place) = self.door.place_of(frame) else { return false };
        if self.inspect(frame) && self.door.custodies().hand_out(place, custody) {
            return true;
        }
        self.quarantine(place);
        false
    }

    /// What is known about a frame that a caller gives back, if it may come in.
    #[inline(never)]
    pub(super) fn check_in(&self, kind: Kind, frame: FrameNumber) -> Option<Kind> {
        if frame == FrameNumber::MAX {
            // Reported when the address was taken up.
            return None;
        }
        let address = self.address_of(frame);
        let Some(place) = self.door.place_of(frame) else {
            self.report(&Misuse::Foreign { address });
            return None;
        };
        if !self.door.custodies().take_back(place) {
            self.report(&Misuse::DoubleFree { frame: address });
            return None;
        }
        if kind == Kind::Clean {
            if let Some((offset, found)) = self.difference(frame, 0) {
                self.quarantine(place);
                self.report(&Misuse::FalsePromise { frame: address, offset, found });
                return None;
            }
            self.door.custodies().settle(place, Custody::ZERO);
        } else {
            self.poison(address);
            self.door.custodies().settle(place, Custody::POISONED);
        }
        Some(kind)
    }

    #[allow(unsafe_code, reason = "the contents of a frame that is nobody else's")]
    fn poison(&self, address: PhysAddr) {
        // SAFETY: the frame has just come back and is in no place of the pool yet; the source maps all of it.
        unsafe { fill(&SourceContents(&*self.source), address, self.frame_size(), POISON) }
    }

    /// What is known about a frame that the source has just handed out.
    pub(super) fn check_supply(&self, frame: FrameNumber) -> Kind {
        let Some(place) = self.door.place_of(frame) else { return Kind::Dirty };
        if self.kind_of_supply() == Kind::Clean {
            let Some((offset, found)) = self.difference(frame, 0) else {
                self.door.custodies().admit(place, Custody::ZERO);
                return Kind::Clean;
            };
            self.report(&Misuse::SourceNotZero { frame: self.address_of(frame), offset, found });
        }
        self.door.custodies().admit(place, Custody::UNKNOWN);
        Kind::Dirty
    }

    /// A frame of the pool has been cleared.
    pub(super) fn note_cleared(&self, frame: FrameNumber) {
        if let Some(place) = self.door.place_of(frame) {
            self.door.custodies().settle(place, Custody::ZERO);
        }
    }

    /// A chain ran through the first word of a frame, which is zero now.
    #[allow(unsafe_code, reason = "the contents of a frame that is nobody else's")]
    pub(super) fn mend_link(&self, frame: FrameNumber) {
        let place = self.door.place_of(frame);
        if place.is_some_and(|place| self.door.custodies().of(place) == Custody::POISONED) {
            // SAFETY: the frame has just been taken off a chain and is in the hands of this operation.
            unsafe { write_link(&SourceContents(&*self.source), self.address_of(frame), POISON) }
        }
    }

    /// An address was taken up that no frame of the pool can have.
    #[cold]
    pub(super) fn refuse_address(&self, address: PhysAddr) {
        let size = self.frame_size();
        let offset = (address.as_u64() & (size as u64 - 1)) as usize;
        let frame = PhysAddr::new(address.as_u64() - offset as u64);
        let is_inside =
            offset > 0 && self.door.number(frame).and_then(|number| self.door.place_of(number)).is_some();
        self.report(&if is_inside {
            Misuse::Misaligned { frame, offset }
        } else {
            Misuse::Foreign { address }
        });
    }
}
