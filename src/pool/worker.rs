//! The worker: the one thread that maintains a pool, and how it starts, sleeps and stops.
//!
//! It calls [`FramePool::maintain`] when the doorbell rings, and now and then without; after a failure of the source it
//! leaves the source alone for as long as the pass says, whoever rings; a panic of the source is a failure of it, and counted. It holds the pool itself, so that a source that hangs
//! never hangs in memory that is gone: dropping the pool waits a moment, and then leaves worker, pool and source to finish on
//! their own.

use super::{BuildError, Builder, CloseError, FramePool, config::CPUS_LIMIT};
use crate::{
    platform::{DoorbellPlatform, LinuxPlatform},
    source::FrameSource,
    sync::atomic::{AtomicBool, Ordering},
};
use alloc::sync::Arc;
use core::{fmt, ops::Deref, time::Duration};
use parking_lot::{Condvar, Mutex};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread::{self, JoinHandle},
    time::Instant,
};

/// The longest sleep of a worker that nobody rings: demand decays pass by pass.
const IDLE: Duration = Duration::from_secs(1);
/// How soon a worker looks again for those who wait into a cache that was in use.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// How long stopping waits for a worker that is with the source.
const GRACE: Duration = Duration::from_secs(1);

/// A pool in a Linux process together with its worker thread, which stops when this is dropped.
///
/// Everything else is [`FramePool`], to which this dereferences.
///
/// ```
/// # use framepool::{AnonymousMemory, Builder};
/// let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
/// std::thread::scope(|scope| {
///     scope.spawn(|| drop(pool.alloc()));
///     scope.spawn(|| drop(pool.alloc()));
/// });
/// let _source = pool.close()?; // every frame is back
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct WorkedPool<S: FrameSource + Send + Sync + 'static, P: DoorbellPlatform = LinuxPlatform> {
    /// None if the system refused a thread when the worker was to be started again.
    worker: Option<Worker>,
    pool: Arc<FramePool<S, P>>,
}

/// The thread, as the owner of the pool sees it.
struct Worker {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

/// What the owner and the thread share.
struct Control {
    stop: AtomicBool,
    exited: Mutex<bool>,
    exit: Condvar,
    ring: std::boxed::Box<dyn Fn() + Send + Sync>,
}

impl Builder {
    /// Builds the pool in this Linux process and starts its worker.
    ///
    /// Thread context: the source may sleep.
    ///
    /// # Errors
    /// [`BuildError`]; nothing is left behind.
    pub fn start<S: FrameSource + Send + Sync + 'static>(
        self,
        source: S,
    ) -> Result<WorkedPool<S>, BuildError> {
        self.start_on(LinuxPlatform::new(), source)
    }

    /// As [`start`](Self::start), on a platform that was made by hand.
    ///
    /// # Errors
    /// As for `start`.
    pub fn start_on<S: FrameSource + Send + Sync + 'static, P: DoorbellPlatform>(
        self,
        platform: P,
        source: S,
    ) -> Result<WorkedPool<S, P>, BuildError> {
        let cpus = self.cpus.unwrap_or_else(LinuxPlatform::possible_cpus);
        // As many as there may be: what has no cache of its own shares one.
        let slots = (cpus + platform.extra_caches()).min(CPUS_LIMIT.max(cpus));
        let pool = Arc::new(self.cpus(slots).build(source, platform)?);
        let worker = Worker::spawn(&pool).ok_or(BuildError::NoThread)?;
        Ok(WorkedPool { worker: Some(worker), pool })
    }
}

impl Worker {
    fn spawn<S: FrameSource + Send + Sync + 'static, P: DoorbellPlatform>(
        pool: &Arc<FramePool<S, P>>,
    ) -> Option<Self> {
        let (ringer, pool) = (Arc::downgrade(pool), Arc::clone(pool));
        let ring = move || {
            if let Some(pool) = ringer.upgrade() {
                pool.platform().doorbell().ring();
            }
        };
        let control = Arc::new(Control {
            stop: AtomicBool::new(false),
            exited: Mutex::new(false),
            exit: Condvar::new(),
            ring: std::boxed::Box::new(ring),
        });
        let exit = Exit(Arc::clone(&control));
        let body = move || {
            // In this order: the pool is let go before the exit is announced, also when the source panics.
            let (exit, pool) = (exit, pool);
            exit.0.work(&pool);
        };
        let thread = thread::Builder::new().name("framepool".into()).spawn(body).ok()?;
        Some(Self { control, thread: Some(thread) })
    }

    /// Asks the thread to stop and waits for it for a moment; whether it did. If not, it goes on with its pool.
    fn stop(&mut self) -> bool {
        // Ordering: Release; with the ring behind it, the worker that answers sees the flag (Acquire in `is_stopping`).
        self.control.stop.store(true, Ordering::Release);
        (self.control.ring)();
        let mut exited = self.control.exited.lock();
        self.control.exit.wait_while_for(&mut exited, |exited| !*exited, GRACE);
        if *exited && let Some(thread) = self.thread.take() {
            drop(exited);
            // A source that panicked has said so itself.
            let _ = thread.join();
            return true;
        }
        false
    }
}

impl Drop for Worker {
    /// Stops the thread, or leaves it to finish on its own when it is stuck in the source.
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop();
        }
    }
}

impl Control {
    fn is_stopping(&self) -> bool {
        // Ordering: Acquire pairs with the Release in `stop`; nothing but the flag itself is read behind it.
        self.stop.load(Ordering::Acquire)
    }

    fn work<S: FrameSource, P: DoorbellPlatform>(&self, pool: &FramePool<S, P>) {
        while !self.is_stopping() {
            // A pass that is left half done leaves the pool in order: what it had in its hands has owners that put it back.
            let pass = catch_unwind(AssertUnwindSafe(|| pool.maintain()))
                .unwrap_or_else(|_| pool.back_off_after_panic());
            #[cfg(feature = "tracing")]
            tell(&pass);
            if pass.more && pass.retry_after.is_none() {
                continue;
            }
            let doorbell = pool.platform().doorbell();
            // While the source is left alone, those who wait are served when somebody rings, and nothing else is done.
            let until = Instant::now() + pass.retry_after.unwrap_or(IDLE);
            let mut look_again = pass.look_again;
            loop {
                let left = until.saturating_duration_since(Instant::now());
                let rung = doorbell.wait(Some(if look_again { left.min(LOOK_AGAIN) } else { left }));
                let is_left_alone = pass.retry_after.is_some() && Instant::now() < until;
                if self.is_stopping() || rung && !is_left_alone || Instant::now() >= until {
                    break;
                }
                look_again = pool.serve_waiters();
            }
        }
    }
}

/// Tells a subscriber what a pass has done, if it has done anything. The worker alone does so: never a caller of the pool.
#[cfg(feature = "tracing")]
fn tell(pass: &super::Maintenance) {
    let &super::Maintenance { outcome, fetched, trimmed, cleared, retry_after, .. } = pass;
    if retry_after.is_some() {
        tracing::warn!(target: "framepool", ?outcome, fetched, ?retry_after, "the source is left alone");
    } else if fetched + trimmed + cleared > 0 {
        tracing::debug!(target: "framepool", ?outcome, fetched, trimmed, cleared, "maintained");
    }
}

/// Announces the thread's end when it is dropped.
struct Exit(Arc<Control>);

impl Drop for Exit {
    fn drop(&mut self) {
        *self.0.exited.lock() = true;
        self.0.exit.notify_all();
    }
}

impl<S: FrameSource + Send + Sync + 'static, P: DoorbellPlatform> WorkedPool<S, P> {
    /// Stops the worker, gives every frame back to the source, and the source to the caller.
    ///
    /// Thread context; waits for the worker for a moment.
    ///
    /// # Errors
    /// [`CloseError`] gives the pool back, with a worker, when frames are out or the worker is stuck in the source.
    pub fn close(self) -> Result<S, CloseError<Self>> {
        let Self { worker, pool } = self;
        if let Some(mut worker) = worker
            && !worker.stop()
        {
            // Ordering: Release; as in `stop`. The thread goes on when the source lets it.
            worker.control.stop.store(false, Ordering::Release);
            return Err(CloseError::new(Self { worker: Some(worker), pool }, 0));
        }
        let again = |pool: Arc<FramePool<S, P>>| Self { worker: Worker::spawn(&pool), pool };
        match Arc::try_unwrap(pool) {
            Ok(pool) => pool.close().map_err(|error| error.map(|pool| again(Arc::new(pool)))),
            Err(pool) => Err(CloseError::new(again(pool), 0)),
        }
    }
}

impl<S: FrameSource + Send + Sync + 'static, P: DoorbellPlatform> Deref for WorkedPool<S, P> {
    type Target = FramePool<S, P>;

    #[inline(always)]
    fn deref(&self) -> &Self::Target {
        &self.pool
    }
}

impl<S: FrameSource + Send + Sync + 'static, P: DoorbellPlatform> fmt::Debug for WorkedPool<S, P> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("WorkedPool").field("pool", &**self).finish_non_exhaustive()
    }
}
