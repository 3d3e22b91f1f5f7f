//! The Linux process as a host whose threads may have caches of their own, which they use without a locked instruction.

use super::{DoorbellPlatform, LinuxPlatform, Platform};
use crate::{
    pool::FramePool,
    raw::{
        doorbell::Doorbell,
        pinned::Pinned,
        threads::{NoNumber, STOCKS_LIMIT, ThreadNumbers},
    },
    source::FrameSource,
};
use core::{error::Error, fmt, marker::PhantomData};

/// A pool's host in a Linux process: a thread that is [pinned](FramePool::pin_thread) keeps a cache of its own, by [`Pinned`]; all others
/// claim those of their CPUs.
///
/// For a few threads that do most of the work, on any architecture; the worker, and threads that come and go, use the same pool.
///
/// ```
/// use framepool::{AnonymousMemory, Builder, ThreadPlatform};
///
/// let pool = Builder::new(256).start_on(ThreadPlatform::new(4)?, AnonymousMemory::new(256)?)?;
/// let pinned = pool.pin_thread()?;
/// let frame = pool.alloc()?; // from this thread's cache, also in its signal handlers
/// drop(frame);
/// drop(pinned); // what is in the cache goes to the depot
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ThreadPlatform {
    ownership: Pinned<ThreadNumbers>,
    threads: u32,
    linux: LinuxPlatform,
}

impl ThreadPlatform {
    /// For up to `threads` threads with a cache of their own at a time, 1 to 4,095.
    ///
    /// Thread context.
    ///
    /// # Errors
    /// [`PinError::NoHeap`] if there is no room for the numbers of the threads.
    pub fn new(threads: u32) -> Result<Self, PinError> {
        let numbers = ThreadNumbers::new(threads).ok_or(PinError::NoHeap)?;
        Ok(Self { ownership: Pinned::new(numbers), threads, linux: LinuxPlatform::claiming() })
    }
}

impl Platform for ThreadPlatform {
    type Ownership = Pinned<ThreadNumbers>;

    #[inline(always)]
    fn ownership(&self) -> &Pinned<ThreadNumbers> {
        &self.ownership
    }

    /// The thread's number, or that of the CPU behind those of all threads.
    fn current_cpu(&self) -> usize {
        match self.ownership.context().number() {
            ThreadNumbers::NONE => self.threads as usize + self.linux.current_cpu(),
            number => number as usize,
        }
    }

    fn ring(&self) {
        self.linux.ring();
    }
}

impl DoorbellPlatform for ThreadPlatform {
    fn doorbell(&self) -> &Doorbell {
        self.linux.doorbell()
    }

    fn extra_caches(&self) -> usize {
        self.threads as usize
    }
}

/// A thread with a cache of its own, as long as this lives; it does not leave its thread.
///
/// When it is dropped, the frames in the cache go to the depot. If it is forgotten, the cache stays with the thread, and its frames
/// are had again when the pool is closed or dropped.
#[must_use = "the thread is pinned only as long as this lives"]
pub struct PinnedThread<'p, S: FrameSource> {
    pool: &'p FramePool<S, ThreadPlatform>,
    number: u32,
    not_send: PhantomData<*const ()>,
}

impl<S: FrameSource> FramePool<S, ThreadPlatform> {
    /// Gives this thread a cache of its own in this pool. Its signal handlers use it too, at any instruction of what they interrupt.
    ///
    /// Thread context; constant. Frames are still anybody's: they may come from one thread and go back on another. A handler must
    /// return, not jump out of the call that it interrupted.
    ///
    /// # Errors
    /// [`PinError`] if the thread has one, or as many threads as the platform was made for, or the thread has those of too many
    /// pools. Nothing has changed then.
    pub fn pin_thread(&self) -> Result<PinnedThread<'_, S>, PinError> {
        let number = self.platform().ownership.context().take()?;
        Ok(PinnedThread { pool: self, number, not_send: PhantomData })
    }
}

impl<S: FrameSource> Drop for PinnedThread<'_, S> {
    fn drop(&mut self) {
        // If another CPU is at the cache right now, it is in everybody's reach already. A handler that keeps it again leaves it to the
        // next thread with this number, as it is.
        let _ = self.pool.drain_cpu(self.number as usize);
        self.pool.platform().ownership.context().give_back();
    }
}

impl<S: FrameSource> fmt::Debug for PinnedThread<'_, S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PinnedThread").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Why a thread got no cache of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PinError {
    /// As many threads are pinned as the platform was made for.
    AllInUse,
    /// The thread is pinned already.
    Pinned,
    /// The thread is pinned to as many pools as it can be.
    TooManyPools,
    /// The heap has no room for the numbers.
    NoHeap,
}

impl From<NoNumber> for PinError {
    fn from(reason: NoNumber) -> Self {
        match reason {
            NoNumber::AllInUse => Self::AllInUse,
            NoNumber::HasOne => Self::Pinned,
            NoNumber::TableFull => Self::TooManyPools,
        }
    }
}

impl fmt::Display for PinError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllInUse => formatter.write_str(
                "every cache for threads is in use: make the platform for more threads, or go unpinned",
            ),
            Self::Pinned => formatter.write_str("this thread is pinned already: keep what came back then"),
            Self::TooManyPools => {
                write!(formatter, "this thread is pinned to {STOCKS_LIMIT} pools: let go of one of them")
            }
            Self::NoHeap => formatter.write_str("the heap has no room for the numbers of the threads"),
        }
    }
}

impl Error for PinError {}
