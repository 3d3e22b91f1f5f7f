//! Reservations: frames taken up front, all or nothing, so that drawing them cannot fail. Asks the depot for whole magazines, and
//! the tiers in their order for the rest.
//!
//! What a reservation holds is in no tier any more: nobody can take it away (INV-8). How it is drawn from any context is
//! the business of `raw/holding.rs`.

use super::{AllocError, FramePool, Request, bulk::CHUNK, depot::Depot};
use crate::{
    frame::Frame,
    platform::Platform,
    raw::{
        holding::{Holding, LOOSE},
        magazine::{FrameNumber, Kind, Magazine},
        overflow::Chain,
    },
    source::FrameSource,
};
use core::{error::Error, fmt};

/// Frames that are set aside: each [`draw`](Self::draw) gets one, whatever others do to the pool (INV-8).
///
/// What was not drawn goes back when this is dropped. The value may be shared: threads, signal handlers, interrupts and NMIs
/// may draw from one reservation at the same time, also in the middle of each other's draws.
///
/// ```
/// # #[cfg(feature = "std")] {
/// # use framepool::{AnonymousMemory, Builder, Request};
/// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
/// let reservation = pool.reserve(3)?;
/// // ... later, where nothing may fail:
/// let frame = reservation.draw().unwrap();
/// assert_eq!(reservation.left(), 2);
/// # drop(frame);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a reservation that is dropped at once sets nothing aside"]
pub struct Reservation<'p, S: FrameSource, P: Platform> {
    pool: &'p FramePool<S, P>,
    /// What is known about every frame in it.
    kind: Kind,
    holding: Holding,
}

/// A reservation could not be made. Every frame that there was went back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReserveError {
    missing: u32,
    reason: AllocError,
}

impl ReserveError {
    pub(super) const fn new(missing: u32, reason: AllocError) -> Self {
        Self { missing, reason }
    }

    /// How many frames were lacking at that moment.
    pub const fn missing(&self) -> u32 {
        self.missing
    }

    /// Why there was not one more.
    pub const fn reason(&self) -> AllocError {
        self.reason
    }
}

impl fmt::Display for ReserveError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} frames are lacking for the reservation: {}", self.missing, self.reason)
    }
}

impl Error for ReserveError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.reason)
    }
}

impl<'p, S: FrameSource, P: Platform> Reservation<'p, S, P> {
    /// One of the reserved frames; none when all were drawn. Cannot fail before.
    ///
    /// From any context. Lock-free: two exchanges, and a retry for each other draw from this reservation in the middle of
    /// which this one came. The frame is zeroed if the reservation was made with [`Request::zeroed`]; otherwise its content is
    /// whatever it was when it came back.
    /// At most 180 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    pub fn draw(&self) -> Option<Frame<'p, S, P>> {
        let (frame, empty) = self.holding.draw(self.pool.cache.magazines())?;
        if let Some(magazine) = empty {
            self.pool.depot().put(self.kind, magazine);
        }
        Some(Frame::new(self.pool, frame))
    }

    /// How many frames can still be drawn.
    pub fn left(&self) -> u32 {
        self.holding.left()
    }

    /// Whether what is drawn is zeroed: the reservation was made with [`Request::zeroed`].
    pub fn is_zeroed(&self) -> bool {
        self.kind == Kind::Clean
    }

    /// The pool to which the frames belong.
    pub fn pool(&self) -> &'p FramePool<S, P> {
        self.pool
    }
}

impl<S: FrameSource, P: Platform> Drop for Reservation<'_, S, P> {
    /// Gives back what was not drawn, whole magazines as such. From any context.
    /// At most 1,200 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    fn drop(&mut self) {
        while let Some(magazine) = self.holding.take_magazine(self.pool.cache.magazines()) {
            self.pool.give_magazine(self.kind, magazine);
        }
        self.pool.give_many(self.kind, self.holding.take_loose());
    }
}

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    /// Sets `frames` frames aside, all or nothing, as an ordinary caller.
    ///
    /// From any context. Lock-free, and bounded by the frames divided by the magazine size: whole magazines change hands where
    /// the depot has full ones, and only the rest, less than a magazine, is moved frame by frame.
    /// At most 11,700 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// Two callers who both find too little for both may both fail; those who may sleep wait in order instead.
    ///
    /// # Errors
    /// [`ReserveError`] says how many frames were lacking and why.
    pub fn reserve(&self, frames: u32) -> Result<Reservation<'_, S, P>, ReserveError> {
        self.reserve_with(Request::ORDINARY, frames)
    }

    /// Sets `frames` frames aside, as the request says. Contexts and bound as for [`reserve`](Self::reserve).
    ///
    /// # Errors
    /// As for `reserve`.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AllocError, AnonymousMemory, Builder, Request};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// let refused = pool.reserve_with(Request::ORDINARY.without_fallback(), 65).unwrap_err();
    /// assert_eq!(refused.reason(), AllocError::ReserveOnly);
    /// assert_eq!(pool.stats().in_use, 0, "all or nothing");
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reserve_with(&self, request: Request, frames: u32) -> Result<Reservation<'_, S, P>, ReserveError> {
        let mut reservation = Reservation { pool: self, kind: request.kind(), holding: Holding::new() };
        self.gather(request, frames, &mut reservation.holding)
            .map_err(|reason| ReserveError::new(frames - reservation.left(), reason))?;
        Ok(reservation)
    }

    /// A reservation of the `frames` frames of a chain.
    pub(super) fn reserve_chain(
        &self,
        request: Request,
        frames: u32,
        mut chain: Chain,
    ) -> Result<Reservation<'_, S, P>, ReserveError> {
        let mut reservation = Reservation { pool: self, kind: request.kind(), holding: Holding::new() };
        let outcome = self.gather_rest(frames, &mut reservation.holding, |places| {
            let mut length = 0;
            for place in places {
                let Some(frame) = self.next_for(request, &mut chain) else { break };
                *place = frame;
                length += 1;
            }
            if length == 0 { Err(AllocError::Exhausted) } else { Ok(length) }
        });
        while let Some(frame) = self.next_of(&mut chain) {
            self.put(Kind::Dirty, frame);
        }
        outcome.map_err(|reason| ReserveError::new(frames - reservation.left(), reason))?;
        Ok(reservation)
    }

    fn gather(&self, request: Request, frames: u32, holding: &mut Holding) -> Result<(), AllocError> {
        let magazines = self.cache.magazines();
        let size = magazines.shape().size();
        if self.is_closing() {
            return Err(AllocError::Closed);
        }
        if frames <= LOOSE as u32 {
            // What this CPU has at hand does for a small one; the depot is shared.
            holding.fill_loose(frames, |places| Ok(self.take_cached(request.kind(), places)))?;
        }
        // Hardened, each frame is looked at when it is taken, none as part of a magazine.
        while !cfg!(feature = "hardened")
            && frames - holding.left() >= size
            && let Some(full) = self.take_full(request)
        {
            holding.add_magazine(magazines, full);
            self.counters.reserved.add(u64::from(size));
        }
        self.gather_rest(frames, holding, |places| self.take_many(request, places))
    }

    /// Adds what is lacking to `frames` frames, one by one: in magazines of the reservation's own, and the last few loose. `take`
    /// puts at least one frame into the front of the places that it gets, and says how many.
    fn gather_rest(
        &self,
        frames: u32,
        holding: &mut Holding,
        mut take: impl FnMut(&mut [FrameNumber]) -> Result<usize, AllocError>,
    ) -> Result<(), AllocError> {
        while frames - holding.left() > LOOSE as u32 {
            let shell =
                self.depots.find(&self.platform, Depot::take_empty).ok_or(AllocError::TooManyReservations)?;
            let (filled, outcome) = self.fill_shell(shell, frames - holding.left(), &mut take);
            if filled.length() > 0 {
                holding.add_magazine(self.cache.magazines(), filled);
            } else {
                self.depot().put(Kind::Dirty, filled);
            }
            outcome?;
        }
        while holding.left() < frames {
            holding.fill_loose(frames - holding.left(), &mut take)?;
        }
        Ok(())
    }

    /// Takes a full magazine out of the depot, of the side that the request wants or else of the other; for zeroed frames they
    /// are then cleared here.
    fn take_full(&self, request: Request) -> Option<Magazine> {
        let (first, second) = match request.kind() {
            Kind::Dirty => (Kind::Dirty, Kind::Clean),
            Kind::Clean => (Kind::Clean, Kind::Dirty),
        };
        let of = |kind| self.depots.find(&self.platform, |depot| Some((depot, depot.take_full(kind)?, kind)));
        let (depot, magazine, kind) = of(first).or_else(|| of(second))?;
        let frames = magazine.length();
        let ring = depot.count_drawn(kind, frames);
        self.ring(self.depots.after_removal(depot, ring));
        if request.is_zeroed() {
            self.count_zeroed(kind, frames);
            match kind {
                Kind::Clean => self.counters.clean_drawn.add(u64::from(frames)),
                Kind::Dirty => {
                    let ring = self.depots.missed_clean(&self.platform);
                    self.ring(ring);
                    self.cache.magazines().frames(&magazine).for_each(|frame| self.clear_inline(frame));
                }
            }
        }
        Some(magazine)
    }

    /// Takes up to `frames` frames into the empty magazine `shell`, as many as it takes.
    fn fill_shell(
        &self,
        mut shell: Magazine,
        frames: u32,
        mut take: impl FnMut(&mut [FrameNumber]) -> Result<usize, AllocError>,
    ) -> (Magazine, Result<(), AllocError>) {
        let magazines = self.cache.magazines();
        let wanted = frames.min(magazines.shape().size());
        let mut chunk: [FrameNumber; CHUNK] = [0; CHUNK];
        while shell.length() < wanted {
            let count = CHUNK.min((wanted - shell.length()) as usize);
            match take(chunk.get_mut(..count).unwrap_or_default()) {
                Ok(got) => chunk.iter().take(got).for_each(|&frame| {
                    // There is room for all that are wanted.
                    let _ = magazines.push(&mut shell, frame);
                }),
                Err(reason) => return (shell, Err(reason)),
            }
        }
        (shell, Ok(()))
    }
}

impl<S: FrameSource, P: Platform> fmt::Debug for Reservation<'_, S, P> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Reservation").field("left", &self.left()).finish_non_exhaustive()
    }
}
