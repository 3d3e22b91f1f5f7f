//! The pool: asks the tiers in their order, cache, depot, other CPUs' caches, reserve, fallback.
//!
//! Each tier is a file of its own under `pool/`; who is asked next is in `pool/take.rs` and `pool/give.rs`; how contexts
//! share it all is under `raw/`.

use crate::{
    frame::{Frame, PhysAddr},
    platform::Platform,
    raw::{
        arena::Memory,
        cells::Cells,
        contents::Contents,
        level::Ring,
        magazine::{FrameNumber, Kind},
        overflow::Overflow,
        slot::SlotMiss,
        turn::Turn,
        wanted::Wanted,
    },
    source::FrameSource,
    sync::{
        atomic::{AtomicBool, Ordering},
        counter,
    },
};
use core::{fmt, mem::ManuallyDrop, ptr::NonNull};
use crossbeam_utils::CachePadded;

mod assemble;
#[cfg(feature = "std")]
pub(crate) mod blocking;
mod bulk;
mod cache;
mod census;
mod clean;
mod close;
mod config;
mod depot;
mod depots;
mod door;
mod fallback;
mod fixed;
mod give;
#[cfg(feature = "hardened")]
mod hardened;
mod quota;
mod refill;
mod request;
mod reservation;
mod reserve;
mod shrink;
mod standstill;
mod stats;
mod take;
#[cfg(not(feature = "hardened"))]
mod unhardened;
mod wait;
mod waiters;
#[cfg(feature = "std")]
mod worker;

#[doc(hidden)]
pub use census::{Place, Resident};
pub use close::CloseError;
pub use config::{BuildError, Builder, Watermarks};
pub use fallback::FallbackPolicy;
pub use fixed::StaticPool;
#[cfg(feature = "hardened")]
pub use hardened::Misuse;
pub use quota::{Quota, QuotaError, QuotaFrame};
pub use refill::{Growth, Maintenance, Outcome};
pub use request::{AllocError, Class, Request};
pub use reservation::{Reservation, ReserveError};
pub use shrink::CpuBusy;
pub use stats::Stats;
pub use wait::{AllocFuture, ReserveFuture, WhenFree};
#[cfg(feature = "std")]
pub use worker::WorkedPool;

use cache::Cache;
use depot::Depot;
use depots::Depots;
use door::Door;
use fallback::Fallback;
use quota::Guarantees;
use refill::Policy;
use reserve::Reserve;
use waiters::Waiters;

/// A pool of frames over a [`FrameSource`], on a [`Platform`].
///
/// Every operation takes `&self`. Which may be called where, and how long it can take, is the table on the front page of
/// this crate.
///
/// ```
/// # #[cfg(feature = "std")] {
/// use framepool::{AnonymousMemory, Builder};
///
/// let pool = Builder::new(256).start(AnonymousMemory::new(256)?)?;
/// let frame = pool.alloc()?; // from a thread, a signal handler, ...
/// assert!(frame.phys_addr().is_aligned(4096));
/// drop(frame); // and back, from wherever
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FramePool<S: FrameSource, P: Platform> {
    cache: Cache,
    /// The caches of frames known to be zero, over the same magazines.
    clean_cache: Cache,
    /// What every free reads, in a line of its own.
    wanted: CachePadded<Wanted>,
    /// The cells of all quotas.
    cells: Cells,
    reserve: Reserve,
    guarantees: Guarantees,
    waiters: Waiters,
    depots: Depots,
    overflow: Overflow,
    door: Door,
    fallback: Fallback,
    maintenance: Turn<Policy>,
    watermarks: Watermarks,
    /// Passes without use after which a cache is idle.
    idle_passes: u32,
    #[cfg(feature = "hardened")]
    on_misuse: Option<fn(&Misuse)>,
    growth: Growth,
    closing: AtomicBool,
    /// In lines of their own: what is beside them is read on every hit.
    counters: CachePadded<Counters>,
    platform: P,
    /// Dropped by hand: not at all while frames are out (INV-12).
    source: ManuallyDrop<S>,
    memory: Memory,
}

/// Events that are not counted where they are owned.
#[derive(Debug, Default)]
struct Counters {
    steals: counter::Shared,
    reserve_hits: counter::Shared,
    reserved: counter::Shared,
    exhausted: counter::Shared,
    refills: counter::Shared,
    refilled: counter::Shared,
    source_failures: counter::Shared,
    source_panics: counter::Shared,
    #[cfg(feature = "hardened")]
    misuses: counter::Shared,
    #[cfg(feature = "hardened")]
    quarantined: counter::Shared,
    trimmed: counter::Shared,
    decayed: counter::Shared,
    /// Clean frames drawn from the depot for those who ask for zeroed ones: their demand, with `cleared_inline`.
    clean_drawn: counter::Shared,
    zeroed_below: counter::Shared,
    cleared_inline: counter::Shared,
    cleared_ahead: counter::Shared,
    rings: counter::Shared,
    collisions: counter::Shared,
    overflowed: counter::Shared,
    recovered: counter::Shared,
    in_use_peak: counter::Shared,
    #[cfg(feature = "vtd")]
    table_frames_leaked: counter::Shared,
}

/// The size of a page table, in bytes.
#[cfg(feature = "vtd")]
pub(crate) const TABLE: usize = crate::FrameSize::Size4K.bytes();

/// The contents of a pool's frames, as its source maps them.
struct SourceContents<'s, S>(&'s S);

impl<S: FrameSource> Contents for SourceContents<'_, S> {
    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        self.0.pointer(frame)
    }
}

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    /// Takes one frame, as an ordinary caller.
    ///
    /// From any context. Lock-free; on a hit wait-free: one exchange and one store with [`Claim`](crate::Claim). A miss
    /// adds a constant number of steps, one look at each CPU's cache before it fails, and retries that each mean that another
    /// context finished an operation. The content of the frame is whatever it was when it came back.
    /// At most 2,300 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`AllocError`] says what was missing. Exhaustion is normal and counted; nothing else changes.
    #[inline]
    pub fn alloc(&self) -> Result<Frame<'_, S, P>, AllocError> {
        self.alloc_with(Request::ORDINARY)
    }

    /// Takes one frame, as the request says. Contexts and bound as for [`alloc`](Self::alloc).
    ///
    /// # Errors
    /// As for `alloc`.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AllocError, AnonymousMemory, Builder, Request, Watermarks};
    /// # let marks = Watermarks { min: 1, low: 1, high: 1, max: 1 };
    /// # let pool = Builder::new(1).watermarks(marks).start(AnonymousMemory::new(1)?)?;
    /// // One frame, and it is the reserve:
    /// assert_eq!(pool.alloc_with(Request::ORDINARY.without_fallback()).err(), Some(AllocError::ReserveOnly));
    /// assert!(pool.alloc_with(Request::CRITICAL).is_ok());
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn alloc_with(&self, request: Request) -> Result<Frame<'_, S, P>, AllocError> {
        self.take(request).map(|number| Frame::new(self, number))
    }

    /// The watermarks, as built.
    pub fn watermarks(&self) -> Watermarks {
        self.watermarks
    }

    /// The size of one frame in bytes.
    pub fn frame_size(&self) -> usize {
        self.door.frame_size() as usize
    }

    /// The host under the pool.
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// The source behind the pool.
    pub fn source(&self) -> &S {
        &self.source
    }

    #[inline(always)]
    pub(crate) fn address_of(&self, frame: FrameNumber) -> PhysAddr {
        self.door.address(frame)
    }

    /// The number of a frame of this pool. An address that cannot have one gets none, and is never found in the pool.
    #[inline(always)]
    pub(crate) fn number_of(&self, frame: PhysAddr) -> FrameNumber {
        self.door.number(frame).unwrap_or_else(|| {
            self.refuse_address(frame);
            FrameNumber::MAX
        })
    }

    /// A frame filled with zeros, laid down as its address, for a table; none if the pool's frames are not of a table's size.
    #[cfg(feature = "vtd")]
    pub(crate) fn alloc_table_frame(&self) -> Option<PhysAddr> {
        if self.frame_size() != TABLE {
            return None;
        }
        self.alloc_zeroed().ok().map(Frame::into_raw)
    }

    /// `count` frames for tables, as `request` says, laid down as their addresses, all or nothing; otherwise why not, and how many were
    /// lacking.
    #[cfg(feature = "vtd")]
    pub(crate) fn reserve_table_frames(
        &self,
        request: Request,
        count: u64,
    ) -> Result<impl Iterator<Item = PhysAddr> + '_, (AllocError, u64)> {
        let capacity = if self.frame_size() == TABLE { self.door.capacity() } else { 0 };
        let frames = u32::try_from(count).ok().filter(|&frames| frames <= capacity);
        let frames = frames.ok_or((AllocError::Exhausted, count.saturating_sub(u64::from(capacity))))?;
        let reservation = self
            .reserve_with(request, frames)
            .map_err(|error| (error.reason(), u64::from(error.missing())))?;
        Ok(core::iter::from_fn(move || reservation.draw().map(Frame::into_raw)))
    }

    #[cfg(feature = "vtd")]
    pub(crate) fn count_leaked_table_frames(&self, frames: u64) {
        self.counters.table_frames_leaked.add(frames);
    }

    /// How many frames ordinary callers can ever have together.
    fn most_for_ordinary(&self) -> u32 {
        self.door.capacity().saturating_sub(self.reserve.target())
    }

    /// The caches of one kind.
    #[inline(always)]
    fn cache_of(&self, kind: Kind) -> &Cache {
        match kind {
            Kind::Dirty => &self.cache,
            Kind::Clean => &self.clean_cache,
        }
    }

    /// The depot near the CPU that runs this code.
    #[inline]
    fn depot(&self) -> &Depot {
        self.depots.near(&self.platform)
    }

    fn count_collision(&self, miss: SlotMiss) {
        if miss == SlotMiss::Busy {
            self.counters.collisions.add(1);
        }
    }

    fn is_closing(&self) -> bool {
        // Ordering: Acquire pairs with the Release in `close`: whoever sees the pool closing does not ask the source.
        self.closing.load(Ordering::Acquire)
    }

    fn ring(&self, ring: Ring) {
        if ring == Ring::Yes {
            self.counters.rings.add(1);
            self.platform.ring();
        }
    }
}

impl<S: FrameSource, P: Platform> fmt::Debug for FramePool<S, P> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("FramePool").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
