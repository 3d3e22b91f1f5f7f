//! Waiting for frames as a call that blocks its thread: the future of `pool/wait.rs`, and a thread that sleeps until it is woken.

use super::{AllocError, FramePool, Request, Reservation, ReserveError};
use crate::{frame::Frame, platform::Platform, source::FrameSource};
use alloc::sync::Arc;
use core::{
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};
use parking_lot::{Condvar, Mutex};
use std::{task::Wake, time::Instant};

/// What a thread sleeps on: whether it was woken. The waker is called by tasks only, so parking_lot will do.
#[derive(Debug, Default)]
struct Alarm {
    woken: Mutex<bool>,
    rung: Condvar,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        *self.woken.lock() = true;
        self.rung.notify_one();
    }
}

impl Alarm {
    /// Sleeps until it is woken, at most to `end`; whether it was.
    fn sleep(&self, end: Option<Instant>) -> bool {
        let mut woken = self.woken.lock();
        match end {
            None => self.rung.wait_while(&mut woken, |woken| !*woken),
            Some(end) => {
                self.rung.wait_while_until(&mut woken, |woken| !*woken, end);
            }
        }
        core::mem::take(&mut woken)
    }
}

/// Polls `future` until it is ready, or `timeout` is over: then nothing.
pub(crate) fn block_on<T>(future: impl Future<Output = T>, timeout: Duration) -> Option<T> {
    // A time beyond what the clock can say is for ever.
    let end = Instant::now().checked_add(timeout);
    let alarm = Arc::new(Alarm::default());
    let waker = Waker::from(Arc::clone(&alarm));
    let mut future = pin!(future);
    let mut in_time = true;
    loop {
        if let Poll::Ready(outcome) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(outcome);
        }
        if !in_time {
            return None;
        }
        in_time = alarm.sleep(end);
    }
}

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    /// Takes one frame, and waits for it for at most `timeout` if there is none, behind those who wait already: the blocking form of
    /// [`alloc_async`](Self::alloc_async), which says who wakes it.
    ///
    /// Threads only: never an interrupt or a signal handler, which would sleep in the thread that it interrupted. Waiting
    /// takes memory from the heap, a few words.
    ///
    /// # Errors
    /// [`AllocError::TimedOut`] after `timeout`, and as for `alloc_async`.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// use core::time::Duration;
    /// # use framepool::{AnonymousMemory, Builder};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// let frame = pool.alloc_blocking(Duration::from_millis(100))?;
    /// # drop(frame);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn alloc_blocking(&self, timeout: Duration) -> Result<Frame<'_, S, P>, AllocError> {
        self.alloc_blocking_with(Request::ORDINARY, timeout)
    }

    /// Takes one frame, zeroed if the request says so, and waits for it: the blocking form of
    /// [`alloc_async_with`](Self::alloc_async_with). Otherwise as [`alloc_blocking`](Self::alloc_blocking).
    ///
    /// # Errors
    /// As for `alloc_blocking`.
    pub fn alloc_blocking_with(
        &self,
        request: Request,
        timeout: Duration,
    ) -> Result<Frame<'_, S, P>, AllocError> {
        block_on(self.alloc_async_with(request), timeout).unwrap_or(Err(AllocError::TimedOut))
    }

    /// Sets `frames` frames aside, and waits for them for at most `timeout`: the blocking form of
    /// [`reserve_async`](Self::reserve_async). Contexts as for [`alloc_blocking`](Self::alloc_blocking).
    ///
    /// # Errors
    /// [`ReserveError`] with the reason [`AllocError::TimedOut`] after `timeout`, and as for `reserve_async`.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// use core::time::Duration;
    /// # use framepool::{AllocError, AnonymousMemory, Builder};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// assert_eq!(pool.reserve_blocking(20, Duration::from_secs(1))?.left(), 20);
    /// let never = pool.reserve_blocking(65, Duration::MAX).unwrap_err();
    /// assert_eq!(never.reason(), AllocError::BeyondCapacity);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reserve_blocking(
        &self,
        frames: u32,
        timeout: Duration,
    ) -> Result<Reservation<'_, S, P>, ReserveError> {
        self.reserve_blocking_with(Request::ORDINARY, frames, timeout)
    }

    /// Sets frames aside, zeroed ones if the request says so, and waits for them: the blocking form of
    /// [`reserve_async_with`](Self::reserve_async_with). Otherwise as [`reserve_blocking`](Self::reserve_blocking).
    ///
    /// # Errors
    /// As for `reserve_blocking`.
    pub fn reserve_blocking_with(
        &self,
        request: Request,
        frames: u32,
        timeout: Duration,
    ) -> Result<Reservation<'_, S, P>, ReserveError> {
        block_on(self.reserve_async_with(request, frames), timeout)
            .unwrap_or(Err(ReserveError::new(frames, AllocError::TimedOut)))
    }
}
