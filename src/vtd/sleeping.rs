//! Mapping for callers that may sleep (V13): where a map would report that frames are lacking, it waits for them. Asks the pool's queue.
//!
//! A sleeping map is the ordinary one, with frames from a reservation: try; if frames are lacking, wait for as many, outside of the tables and
//! without a frame in hand; try again. Between both, others may have linked some of the tables, so fewer are needed, and the rest goes
//! back; or given some up, so more are: then what there is goes back too, and the larger number is waited for. Each round means that
//! others have changed tables on the way.
//!
//! Who waits for frames for a long time says so by a type: only an allocator behind which the queue of a pool stands has these calls. A
//! [`Quota`](crate::Quota) does not: at its limit it gets no frame, however long it waits for others.

use super::{
    Domain, FlushedFrames, Format, Iova, LineFlush, MapError, Permissions, TableFrames, TooFewFrames,
    error::AdvanceError, frame_list::FrameList,
};
use crate::{
    AllocError, FramePool, FrameSource, PhysAddr, Platform, Request,
    pool::{Reservation, TABLE},
};

/// An allocator of table frames behind which a pool stands, for whose frames callers can wait: the pool itself, a reference to one, either
/// of them in [`FlushedFrames`]. Sealed: what is drawn from the pool goes back through the allocator.
pub trait PooledFrames: TableFrames + sealed::Sealed {
    /// The pool's source.
    type Source: FrameSource;
    /// The pool's platform.
    type Platform: Platform;

    /// The pool.
    ///
    /// Any context; constant time.
    fn pool(&self) -> &FramePool<Self::Source, Self::Platform>;
}

mod sealed {
    pub trait Sealed {}
}

impl<S: FrameSource, P: Platform> sealed::Sealed for FramePool<S, P> {}

impl<S: FrameSource, P: Platform> PooledFrames for FramePool<S, P> {
    type Source = S;
    type Platform = P;

    fn pool(&self) -> &FramePool<S, P> {
        self
    }
}

impl<A: PooledFrames> sealed::Sealed for &A {}

impl<A: PooledFrames> PooledFrames for &A {
    type Source = A::Source;
    type Platform = A::Platform;

    fn pool(&self) -> &FramePool<A::Source, A::Platform> {
        (**self).pool()
    }
}

impl<A: PooledFrames, H: LineFlush> sealed::Sealed for FlushedFrames<A, H> {}

impl<A: PooledFrames, H: LineFlush> PooledFrames for FlushedFrames<A, H> {
    type Source = A::Source;
    type Platform = A::Platform;

    fn pool(&self) -> &FramePool<A::Source, A::Platform> {
        self.frames().pool()
    }
}

impl<F: Format, A: PooledFrames> Domain<F, A> {
    /// Maps as [`map`](Self::map) does, but waits for table frames where that would report a shortage, behind those who wait already.
    ///
    /// Tasks only, never an interrupt or a signal handler, which have [`map`](Self::map). Somebody must maintain the pool, as for
    /// [`FramePool::alloc_async`], and table frames come back when invalidations are completed: a task that waits with one in hand that it has
    /// not completed may wait for itself. Dropping the future gives up the place in the queue; until it is ready nothing is mapped, and
    /// no frame is lost.
    ///
    /// # Errors
    /// As for [`map`](Self::map); [`MapError::NotServed`] instead of a shortage says why waiting does not help: the pool is being closed,
    /// or can never have so many frames for ordinary callers.
    ///
    /// # Safety
    /// As for [`map`](Self::map), from this call until the future is over or dropped.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// # let domain = SecondStageDomain::new(DomainConfig::new(Levels::Four), &*pool)?;
    /// // SAFETY: no device walks this domain.
    /// let mapped = unsafe { domain.map_async(Iova::new(0x1000), PhysAddr::new(0), 0x1000, Permissions::READ) };
    /// futures_executor::block_on(mapped)?;
    /// assert!(domain.translate(Iova::new(0x1000)).is_some());
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[allow(unsafe_code, reason = "states duties that only the caller can keep")]
    pub async unsafe fn map_async(
        &self,
        iova: Iova,
        target: PhysAddr,
        length: u64,
        permissions: Permissions,
    ) -> Result<F::Mapped<'_, A>, MapError> {
        let (span, wish) = self.wish_to_map(iova, target, length, permissions)?;
        let pool = self.allocator().pool();
        let mut held: Option<Reservation<'_, A::Source, A::Platform>> = None;
        loop {
            let outcome = self.carry_out(span, wish, |missing| match &held {
                Some(reservation) => self.draw(reservation, missing.total()).map(Into::into),
                None => self.advance_all(missing),
            });
            let Err(MapError::OutOfFrames { missing }) = outcome else { return outcome };
            // Nothing in hand while it waits, so that no two who wait block each other.
            let wanted = held.take().map_or(0, |reservation| u64::from(reservation.left())) + missing;
            held = Some(wait_for(pool, wanted).await.map_err(|reason| MapError::NotServed { reason })?);
        }
    }

    /// Maps as [`map_async`](Self::map_async) does, and blocks the thread meanwhile, for at most `timeout`.
    ///
    /// Threads only: never an interrupt or a signal handler, which would sleep in the thread that it interrupted. Waiting takes memory from
    /// the heap, a few words.
    ///
    /// # Errors
    /// As for [`map_async`](Self::map_async), and [`MapError::NotServed`] with [`AllocError::TimedOut`].
    ///
    /// # Safety
    /// As for [`map`](Self::map).
    ///
    /// ```
    /// use core::time::Duration;
    /// # use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// # let domain = SecondStageDomain::new(DomainConfig::new(Levels::Four), &*pool)?;
    /// let (iova, target) = (Iova::new(0x1000), PhysAddr::new(0));
    /// // SAFETY: no device walks this domain.
    /// unsafe { domain.map_blocking(iova, target, 0x1000, Permissions::READ, Duration::from_secs(1))? };
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "std")]
    #[allow(unsafe_code, reason = "states duties that only the caller can keep")]
    pub unsafe fn map_blocking(
        &self,
        iova: Iova,
        target: PhysAddr,
        length: u64,
        permissions: Permissions,
        timeout: core::time::Duration,
    ) -> Result<F::Mapped<'_, A>, MapError> {
        // SAFETY: the caller's.
        let mapped = unsafe { self.map_async(iova, target, length, permissions) };
        let timed_out = MapError::NotServed { reason: AllocError::TimedOut };
        crate::pool::blocking::block_on(mapped, timeout).unwrap_or(Err(timed_out))
    }

    /// Takes `count` frames out of a reservation, or none.
    fn draw(
        &self,
        reservation: &Reservation<'_, A::Source, A::Platform>,
        count: u64,
    ) -> Result<FrameList, AdvanceError> {
        let missing = count.saturating_sub(reservation.left().into());
        if missing > 0 {
            return Err(TooFewFrames { missing }.into());
        }
        self.gather(|each| {
            // The reservation is ours alone, so it has them.
            let frames = core::iter::from_fn(|| reservation.draw()).take(count as usize);
            frames.for_each(|frame| each(frame.into_raw()));
            Ok(())
        })
    }
}

/// Waits for a reservation of `frames` zeroed frames.
async fn wait_for<S: FrameSource, P: Platform>(
    pool: &FramePool<S, P>,
    frames: u64,
) -> Result<Reservation<'_, S, P>, AllocError> {
    let frames = u32::try_from(frames).ok().filter(|_| pool.frame_size() == TABLE);
    let frames = frames.ok_or(AllocError::BeyondCapacity)?;
    pool.reserve_async_with(Request::ORDINARY.zeroed(), frames).await.map_err(|error| error.reason())
}
