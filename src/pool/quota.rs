//! Quotas (R18): what one domain may take of a pool that it shares with others, and what is kept for it. Asks its own cells first,
//! then the pool.
//!
//! INV-13: an account never uses more than its limit, and while it uses less than its guarantee it gets a frame, whatever others
//! take. The guarantee is not a promise on paper: its frames are taken out of the pool when the quota is made, and as many of
//! those that it frees stay with it as it needs to have its guarantee again. The arithmetic and its proof are in `raw/account.rs`.

use super::{AllocError, FramePool, Request, ReserveError};
use crate::{
    frame::PhysAddr,
    platform::Platform,
    raw::{
        account::Account,
        magazine::{FrameNumber, Kind},
        stack::TaggedStack,
    },
    source::FrameSource,
    sync::atomic::{AtomicU32, Ordering},
};
use core::{error::Error, fmt, mem::ManuallyDrop, ptr::NonNull};
use crossbeam_utils::CachePadded;

/// What a pool can still guarantee.
#[derive(Debug)]
pub(super) struct Guarantees {
    left: AtomicU32,
}

impl Guarantees {
    pub(super) fn new(frames: u32) -> Self {
        Self { left: AtomicU32::new(frames) }
    }

    /// Guarantees `frames` frames more, or says how many are left.
    fn promise(&self, frames: u32) -> Result<(), u32> {
        let promise = |left: u32| left.checked_sub(frames);
        // Ordering: Relaxed; the count limits itself and publishes nothing.
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, promise).map(drop)
    }

    fn release(&self, frames: u32) {
        // Ordering: Relaxed; as above.
        self.left.fetch_add(frames, Ordering::Relaxed);
    }
}

/// An account on a pool: a guaranteed share, and a limit.
///
/// Frames are charged and given back from any context, without locks. With the feature `vtd` a quota is an allocator of table
/// frames, so that the tables of one device cannot take the whole pool.
///
/// Dropping it gives the frames that it keeps back to the pool. Frames laid down as bare addresses are then nobody's:
/// the pool counts them as out.
///
/// ```
/// # #[cfg(feature = "std")] {
/// use framepool::{AllocError, AnonymousMemory, Builder, FallbackPolicy, Request, Watermarks};
///
/// let marks = Watermarks { min: 0, low: 0, high: 64, max: 64 };
/// let builder = Builder::new(64).watermarks(marks).guarantees(16).fallback(FallbackPolicy::Never);
/// let pool = builder.start(AnonymousMemory::new(64)?)?;
/// let quota = pool.quota(16, 32)?;
/// let rest: Vec<_> = std::iter::from_fn(|| pool.alloc().ok()).collect(); // somebody takes all that there is
/// let frames: Vec<_> = std::iter::from_fn(|| quota.alloc().ok()).collect();
/// assert_eq!((rest.len(), frames.len()), (48, 16), "the share is there all the same");
/// drop(rest);
/// let more: Vec<_> = std::iter::from_fn(|| quota.alloc().ok()).collect();
/// assert_eq!((more.len(), quota.alloc().err()), (16, Some(AllocError::OverQuota)), "and no more than the limit");
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Quota<'p, S: FrameSource, P: Platform> {
    pool: &'p FramePool<S, P>,
    account: CachePadded<Account>,
    cells: CachePadded<TaggedStack>,
}

/// One frame, charged to a quota. Dropping it gives it back, from any context.
/// At most 450 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
#[must_use = "a frame that is dropped at once was allocated for nothing"]
pub struct QuotaFrame<'q, S: FrameSource, P: Platform> {
    quota: &'q Quota<'q, S, P>,
    number: FrameNumber,
}

/// A quota could not be made. Nothing is left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuotaError {
    /// The guaranteed share is above the limit.
    AboveLimit {
        /// The share, in frames.
        guarantee: u32,
        /// The limit, in frames.
        limit: u32,
    },
    /// All guarantees together are more than the pool was built for.
    TooMuchGuaranteed {
        /// What was asked for, in frames.
        guarantee: u32,
        /// What the pool can still guarantee, in frames.
        left: u32,
    },
    /// The pool does not have the guaranteed frames now.
    Frames(ReserveError),
}

impl fmt::Display for QuotaError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AboveLimit { guarantee, limit } => {
                write!(
                    formatter,
                    "a guarantee of {guarantee} frames above the limit of {limit}: raise the limit"
                )
            }
            Self::TooMuchGuaranteed { guarantee, left } => write!(
                formatter,
                "a guarantee of {guarantee} frames, and {left} are left to be guaranteed: give Builder::guarantees more"
            ),
            Self::Frames(error) => error.fmt(formatter),
        }
    }
}

impl Error for QuotaError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Frames(error) => Some(error),
            Self::AboveLimit { .. } | Self::TooMuchGuaranteed { .. } => None,
        }
    }
}

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    /// Makes an account with a guaranteed share and a limit, both in frames, and sets the share aside.
    ///
    /// Thread or interrupt context, not an NMI; lock-free. Bounded by the share. All shares together are limited by
    /// [`Builder::guarantees`](crate::Builder::guarantees).
    ///
    /// # Errors
    /// [`QuotaError`].
    pub fn quota(&self, guarantee: u32, limit: u32) -> Result<Quota<'_, S, P>, QuotaError> {
        if guarantee > limit {
            return Err(QuotaError::AboveLimit { guarantee, limit });
        }
        self.guarantees
            .promise(guarantee)
            .map_err(|left| QuotaError::TooMuchGuaranteed { guarantee, left })?;
        let reserved = self.reserve_with(Request::ORDINARY, guarantee).map_err(|error| {
            self.guarantees.release(guarantee);
            QuotaError::Frames(error)
        })?;
        let account = CachePadded::new(Account::new(guarantee, limit));
        let quota = Quota { pool: self, account, cells: CachePadded::new(self.cells.owner()) };
        while let Some(frame) = reserved.draw() {
            let frame = frame.into_number();
            if let Some(kind) = self.check_in(Kind::Dirty, frame) {
                quota.put_into_cell(kind, frame);
            }
        }
        Ok(quota)
    }
}

impl<'p, S: FrameSource, P: Platform> Quota<'p, S, P> {
    /// Takes one frame, as an ordinary caller.
    ///
    /// From any context. Lock-free: within the guarantee a constant number of steps, and beyond it one step more than
    /// [`FramePool::alloc`].
    /// At most 2,300 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`AllocError::OverQuota`] at the limit, otherwise as the pool says. Within the guarantee none.
    pub fn alloc(&self) -> Result<QuotaFrame<'_, S, P>, AllocError> {
        self.alloc_with(Request::ORDINARY)
    }

    /// Takes one frame, as the request says. Contexts and bound as for [`alloc`](Self::alloc).
    ///
    /// # Errors
    /// As for `alloc`.
    pub fn alloc_with(&self, request: Request) -> Result<QuotaFrame<'_, S, P>, AllocError> {
        self.take(request).map(|number| QuotaFrame { quota: self, number })
    }

    /// How many frames are used. A momentary figure.
    pub fn used(&self) -> u32 {
        self.account.used()
    }

    /// The guaranteed share, in frames.
    pub fn guarantee(&self) -> u32 {
        self.account.guarantee()
    }

    /// The limit, in frames.
    pub fn limit(&self) -> u32 {
        self.account.limit()
    }

    /// The pool behind it.
    pub fn pool(&self) -> &'p FramePool<S, P> {
        self.pool
    }

    fn take(&self, request: Request) -> Result<FrameNumber, AllocError> {
        let own = self.account.claim(1).ok_or(AllocError::OverQuota)?;
        if own > 0 {
            // `raw/account.rs` argues that there is one.
            return self.take_from_cell(request).ok_or(AllocError::Exhausted);
        }
        let frame = self.pool.take(request)?;
        if self.account.charge(1) {
            return Ok(frame);
        }
        self.pool.give(request.kind(), frame);
        Err(AllocError::OverQuota)
    }

    /// A frame that a Claim has found in the cells.
    fn take_from_cell(&self, request: Request) -> Option<FrameNumber> {
        let (frame, kind) = self.pool.cells.take(&self.cells)?;
        if request.is_zeroed() {
            self.pool.count_zeroed(kind, 1);
            if kind == Kind::Dirty {
                self.pool.clear_inline(frame);
            }
        }
        // In the place of one that nobody gets any more there is another, if the pool has one.
        if self.pool.check_out(frame) { Some(frame) } else { self.pool.take(request).ok() }
    }

    fn put_into_cell(&self, kind: Kind, frame: FrameNumber) {
        if let Err(frame) = self.pool.cells.put(&self.cells, kind, frame) {
            // `raw/account.rs` argues that there is a cell.
            self.pool.put(kind, frame);
        }
    }

    fn give(&self, kind: Kind, frame: FrameNumber) {
        // What does not come in stays charged to whoever misused it.
        let Some(kind) = self.pool.check_in(kind, frame) else { return };
        if self.account.discharge() {
            return self.pool.put(kind, frame);
        }
        self.put_into_cell(kind, frame);
        self.account.keep();
    }

    /// `count` zeroed frames, all or none, each to `each`; otherwise how many were lacking.
    #[cfg(feature = "vtd")]
    pub(crate) fn take_table_frames(
        &self,
        count: u64,
        each: &mut dyn FnMut(PhysAddr),
    ) -> Result<(), (AllocError, u64)> {
        if self.pool.frame_size() != super::TABLE {
            return Err((AllocError::Exhausted, count));
        }
        let room = u64::from(self.limit().saturating_sub(self.used()));
        let over = (AllocError::OverQuota, count.saturating_sub(room).max(1));
        let frames = u32::try_from(count).map_err(|_| over)?;
        let own = self.account.claim(frames).ok_or(over)?;
        let reserved =
            match self.pool.reserve_table_frames(Request::ORDINARY.zeroed(), u64::from(frames - own)) {
                Ok(reserved) if self.account.charge(frames - own) => Ok(reserved),
                Ok(_) => Err(over),
                Err(error) => Err(error),
            };
        let claimed = || self.take_from_cell(Request::ORDINARY.zeroed());
        let claimed = core::iter::from_fn(claimed).take(own as usize);
        match reserved {
            Ok(reserved) => {
                claimed.map(|frame| self.pool.address_of(frame)).chain(reserved).for_each(each);
                Ok(())
            }
            Err(error) => {
                claimed.for_each(|frame| self.give(Kind::Clean, frame));
                Err(error)
            }
        }
    }

    /// Gives back a frame that was laid down as its address.
    #[cfg(feature = "vtd")]
    pub(crate) fn give_address(&self, kind: Kind, frame: PhysAddr) {
        self.give(kind, self.pool.number_of(frame));
    }
}

impl<S: FrameSource, P: Platform> Drop for Quota<'_, S, P> {
    fn drop(&mut self) {
        while let Some((frame, kind)) = self.pool.cells.take(&self.cells) {
            self.pool.put(kind, frame);
        }
        self.pool.guarantees.release(self.guarantee());
    }
}

impl<S: FrameSource, P: Platform> fmt::Debug for Quota<'_, S, P> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Quota")
            .field("used", &self.used())
            .field("guarantee", &self.guarantee())
            .field("limit", &self.limit())
            .finish_non_exhaustive()
    }
}

impl<'q, S: FrameSource, P: Platform> QuotaFrame<'q, S, P> {
    /// The frame's physical address, for a device or a page-table entry.
    pub fn phys_addr(&self) -> PhysAddr {
        self.quota.pool.address_of(self.number)
    }

    /// Where the CPU reads and writes the frame: as many bytes as [`FramePool::frame_size`] says.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.quota.pool.source().pointer(self.phys_addr())
    }

    /// Gives up the handle and keeps the frame charged, for a place that holds bare addresses. Come back with
    /// [`from_raw`](Self::from_raw).
    pub fn into_raw(self) -> PhysAddr {
        ManuallyDrop::new(self).phys_addr()
    }

    /// Takes the handle up again.
    ///
    /// Any context; constant time.
    ///
    /// # Safety
    /// `frame` came from [`into_raw`](Self::into_raw) of a frame of `quota`, has not been taken up since, and nothing reaches the
    /// frame any more, hardware included.
    #[allow(unsafe_code, reason = "the handle is taken up from a bare address")]
    pub unsafe fn from_raw(quota: &'q Quota<'q, S, P>, frame: PhysAddr) -> Self {
        Self { quota, number: quota.pool.number_of(frame) }
    }
}

impl<S: FrameSource, P: Platform> Drop for QuotaFrame<'_, S, P> {
    fn drop(&mut self) {
        self.quota.give(Kind::Dirty, self.number);
    }
}

impl<S: FrameSource, P: Platform> fmt::Debug for QuotaFrame<'_, S, P> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "QuotaFrame({})", self.phys_addr())
    }
}
