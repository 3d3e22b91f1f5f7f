//! Waiting for frames as a future: `alloc_async` and `reserve_async`, for any executor. Asks the tiers once, then the queue.

use super::{AllocError, FramePool, Request, Reservation, ReserveError, waiters::Waiter};
use crate::{
    frame::Frame,
    platform::Platform,
    raw::{overflow::Chain, queue::Entry},
    source::FrameSource,
};
use core::{
    cell::Cell,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

/// Becomes ready when the frames are there; made by [`FramePool::alloc_async`] and [`FramePool::reserve_async`].
///
/// It uses plain [`core::task`] wakers, so every executor will do; it needs no heap. Poll and drop it in tasks only, never in an
/// interrupt or a signal handler. Dropping it gives up the place in the queue, and what was handed over so far goes to
/// the next; nothing is lost, also when the frames arrive at that very moment.
#[must_use = "a future does nothing until it is polled"]
pub struct WhenFree<'p, S: FrameSource, P: Platform, T> {
    pool: &'p FramePool<S, P>,
    request: Request,
    frames: u32,
    stage: Cell<Stage>,
    at_once: AtOnce<'p, S, P, T>,
    made_of: MadeOf<'p, S, P, T>,
    entry: Entry<Waiter>,
}

type AtOnce<'p, S, P, T> = fn(&'p FramePool<S, P>, Request, u32) -> Option<T>;
type MadeOf<'p, S, P, T> = fn(&'p FramePool<S, P>, Request, u32, Result<Chain, AllocError>) -> T;

/// The future of one frame.
pub type AllocFuture<'p, S, P> = WhenFree<'p, S, P, Result<Frame<'p, S, P>, AllocError>>;
/// The future of a reservation.
pub type ReserveFuture<'p, S, P> = WhenFree<'p, S, P, Result<Reservation<'p, S, P>, ReserveError>>;

/// How far a future is, as its task sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Fresh,
    Enrolled,
    Over,
}

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    /// Waits for one frame, behind those who wait already. From then on the caller is woken by any free in any context that
    /// leaves a frame for it, and by frames that the worker fetches (INV-7).
    ///
    /// Tasks only, never an interrupt. Somebody must maintain the pool: a worker thread ([`Builder::start`](crate::Builder::start)),
    /// or a host that calls [`maintain`](Self::maintain) when its [`Platform::ring`] asks for it.
    /// A poll is at most 2,500 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// Ready with [`AllocError::Closed`] when the pool is being closed, and with [`AllocError::BeyondCapacity`] if there can never
    /// be a frame for an ordinary caller. The host's non-sleeping allocation (R6) is not asked: the worker can do more.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// let frame = futures_executor::block_on(pool.alloc_async())?;
    /// # drop(frame);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn alloc_async(&self) -> AllocFuture<'_, S, P> {
        self.alloc_async_with(Request::ORDINARY)
    }

    /// Waits for one frame, zeroed if the request says so. Otherwise as [`alloc_async`](Self::alloc_async); the request's class
    /// counts for the first look only, since frames come to those who wait from what comes back, and the reserve is not for
    /// those who can wait.
    pub fn alloc_async_with(&self, request: Request) -> AllocFuture<'_, S, P> {
        WhenFree::new(
            (self, request, 1),
            |pool, request, _| pool.alloc_with(request).ok().map(Ok),
            |pool, request, _, outcome| {
                let frame = pool.next_for(request, &mut outcome?).ok_or(AllocError::Exhausted)?;
                Ok(Frame::new(pool, frame))
            },
        )
    }

    /// Waits for a reservation of `frames` frames. The first in the queue gathers what comes back until it has all; those behind it
    /// have nothing in hand, so two that wait never block each other. A caller that keeps frames while it waits can of course wait
    /// for itself.
    ///
    /// Contexts and ends as for [`alloc_async`](Self::alloc_async), as a [`ReserveError`].
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// let reservation = futures_executor::block_on(pool.reserve_async(20))?;
    /// assert_eq!(reservation.left(), 20);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reserve_async(&self, frames: u32) -> ReserveFuture<'_, S, P> {
        self.reserve_async_with(Request::ORDINARY, frames)
    }

    /// Waits for a reservation, of zeroed frames if the request says so. Otherwise as [`reserve_async`](Self::reserve_async) and
    /// [`alloc_async_with`](Self::alloc_async_with).
    pub fn reserve_async_with(&self, request: Request, frames: u32) -> ReserveFuture<'_, S, P> {
        WhenFree::new(
            (self, request, frames),
            |pool, request, frames| pool.reserve_with(request, frames).ok().map(Ok),
            |pool, request, frames, outcome| match outcome {
                Ok(chain) => pool.reserve_chain(request, frames, chain),
                Err(reason) => Err(ReserveError::new(frames, reason)),
            },
        )
    }
}

impl<'p, S: FrameSource, P: Platform, T> WhenFree<'p, S, P, T> {
    fn new(
        (pool, request, frames): (&'p FramePool<S, P>, Request, u32),
        at_once: AtOnce<'p, S, P, T>,
        made_of: MadeOf<'p, S, P, T>,
    ) -> Self {
        let (stage, entry) = (Cell::new(Stage::Fresh), Entry::new(Waiter::new(frames)));
        Self { pool, request: request.without_fallback(), frames, stage, at_once, made_of, entry }
    }

    /// The outcome, if it is decided already.
    #[allow(unsafe_code, reason = "the entry is part of this value")]
    fn step(self: Pin<&Self>, context: &mut Context<'_>) -> Poll<Result<Chain, AllocError>> {
        let this = self.get_ref();
        // SAFETY: the entry is a field of a pinned value, and is never moved out of it.
        let entry = unsafe { Pin::new_unchecked(&this.entry) };
        if this.stage.get() == Stage::Fresh {
            if this.frames > this.pool.most_for_ordinary() {
                return Poll::Ready(Err(AllocError::BeyondCapacity));
            }
            // SAFETY: the entry is fresh and of this pool, and leaves below or when it is dropped.
            if let Err(refusal) = unsafe { this.pool.enrol(entry, context.waker().clone()) } {
                return Poll::Ready(Err(refusal));
            }
            this.stage.set(Stage::Enrolled);
        }
        // SAFETY: it has enrolled.
        unsafe { this.pool.collect(entry, context.waker().clone()) }
    }
}

impl<S: FrameSource, P: Platform, T> Future for WhenFree<'_, S, P, T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let this = self.into_ref();
        match this.stage.get() {
            Stage::Over => return Poll::Pending,
            Stage::Fresh => {
                if let Some(done) = (this.at_once)(this.pool, this.request, this.frames) {
                    this.stage.set(Stage::Over);
                    return Poll::Ready(done);
                }
            }
            Stage::Enrolled => {}
        }
        this.step(context).map(|outcome| {
            this.stage.set(Stage::Over);
            (this.made_of)(this.pool, this.request, this.frames, outcome)
        })
    }
}

impl<S: FrameSource, P: Platform, T> Drop for WhenFree<'_, S, P, T> {
    #[allow(unsafe_code, reason = "the entry is part of this value")]
    fn drop(&mut self) {
        if self.stage.get() == Stage::Enrolled {
            // SAFETY: it has enrolled, and nothing came of it yet.
            unsafe { self.pool.withdraw(&self.entry) };
        }
    }
}

impl<S: FrameSource, P: Platform, T> fmt::Debug for WhenFree<'_, S, P, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("WhenFree")
            .field("frames", &self.frames)
            .field("stage", &self.stage.get())
            .finish_non_exhaustive()
    }
}
