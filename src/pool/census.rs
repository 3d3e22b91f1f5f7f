//! The census: every magazine and every frame by the place in which it is. No path of the pool takes it; the tests that
//! interrupt the pool at any instruction do, to see afterwards that nothing is missing and nothing is there twice.

use super::{FramePool, SourceContents};
use crate::{
    frame::PhysAddr,
    platform::Platform,
    raw::magazine::{FrameNumber, Kind},
    source::FrameSource,
};

/// Where something is when nobody is using it.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The magazine that the cache of a CPU takes from and gives to first, or a frame in it.
    Loaded {
        /// The number of the slot.
        cpu: usize,
        /// Whether frames there are known to be zero.
        clean: bool,
    },
    /// The other magazine of that cache, or a frame in it.
    Previous {
        /// The number of the slot.
        cpu: usize,
        /// As above.
        clean: bool,
    },
    /// The depot's full magazines.
    Full {
        /// As above.
        clean: bool,
    },
    /// The depot's partial magazines.
    Partial {
        /// As above.
        clean: bool,
    },
    /// The depot's empty magazines.
    Empty,
    /// The reserve.
    Reserve {
        /// As above.
        clean: bool,
    },
    /// The overflow.
    Overflow,
}

impl Place {
    /// Whether frames there are known to be zero.
    pub const fn is_clean(self) -> bool {
        match self {
            Self::Loaded { clean, .. }
            | Self::Previous { clean, .. }
            | Self::Full { clean }
            | Self::Partial { clean }
            | Self::Reserve { clean } => clean,
            Self::Empty | Self::Overflow => false,
        }
    }
}

/// What is there.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resident {
    /// A magazine, and how many frames are in it.
    Magazine {
        /// Its number, less than [`FramePool::magazines`].
        index: u32,
        /// Frames in it; they are visited too.
        length: u32,
    },
    /// A frame.
    Frame(PhysAddr),
}

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    /// How many magazines there are, wherever they are.
    #[doc(hidden)]
    pub fn magazines(&self) -> usize {
        self.depots.magazines()
    }

    /// Shows `visit` every magazine and every frame in the pool with its place. What is in the hands of an operation is not
    /// seen.
    ///
    /// # Safety
    /// Nobody uses the pool meanwhile: every operation is complete, or stopped in the middle by the caller (an interrupt).
    #[doc(hidden)]
    #[allow(unsafe_code, reason = "magazines and chains are read where they lie")]
    pub unsafe fn census(&self, mut visit: impl FnMut(Place, Resident)) {
        let magazines = self.cache.magazines();
        let shape = magazines.shape();
        let address = |frame: FrameNumber| self.door.address(frame);
        let mut magazine = |place, index, length| {
            visit(place, Resident::Magazine { index, length });
            for position in 0..length.min(shape.size()) {
                // SAFETY: the magazine lies in its place, the caller keeps everybody from taking it up, and the position is
                // filled.
                visit(
                    place,
                    Resident::Frame(address(unsafe { magazines.read(shape.entry(index, position)) })),
                );
            }
        };
        for (cache, clean) in [(&self.cache, false), (&self.clean_cache, true)] {
            cache.census(|cpu, state| {
                let [loaded, previous] = state.magazines(shape);
                magazine(Place::Loaded { cpu, clean }, loaded.0, loaded.1);
                magazine(Place::Previous { cpu, clean }, previous.0, previous.1);
            });
        }
        self.depots.census(magazine);
        self.reserve.census(&self.cells, |(frame, kind)| {
            visit(Place::Reserve { clean: kind == Kind::Clean }, Resident::Frame(address(frame)));
        });
        let contents = SourceContents(&*self.source);
        // SAFETY: the frames of the overflow are the pool's and stay there, as the caller says; the source maps them.
        let overflow = unsafe { self.overflow.frames(&contents, address) };
        // One more than there can be shows a chain that runs in a circle.
        for frame in overflow.take(self.door.capacity() as usize + 1) {
            visit(Place::Overflow, Resident::Frame(address(frame)));
        }
    }
}
