//! Shrinking (R12): what goes back to the source, and what idle CPUs' caches give back to the depot.
//!
//! The owner is whoever has the turn: the worker, or a host that calls `maintain`. Frames are taken out of a magazine a few at
//! a time and the magazine is back on the depot before the source sees them, so that a source that sleeps or panics hides
//! no frame but those that it was just given.

use super::{FramePool, Maintenance, Outcome, cache::Cache, depot::Depot, refill::CHUNK};
use crate::{
    frame::PhysAddr,
    platform::Platform,
    raw::magazine::{FrameNumber, Kind, Magazine},
    source::FrameSource,
};
use core::{error::Error, fmt};

/// The cache of a CPU could not be drained: an operation on it stayed in progress (a thread that was preempted in it, or
/// the caller itself). Nothing is lost; drain again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuBusy {
    cpu: usize,
}

impl CpuBusy {
    /// The CPU whose cache is in use.
    pub const fn cpu(&self) -> usize {
        self.cpu
    }
}

impl fmt::Display for CpuBusy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "an operation on the cache of CPU {} is in progress: drain it when that is done",
            self.cpu
        )
    }
}

impl Error for CpuBusy {}

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    /// Moves the frames in the cache of the CPU `cpu`, which goes away or is expected to be idle, into the depot; how many.
    ///
    /// Thread context; waits for an operation in progress in that cache, for a bounded time. Safe against the CPU's own use,
    /// which finds its cache busy meanwhile and goes to the depot; what it does afterwards fills its cache again.
    /// At most 1,000 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`CpuBusy`] if an operation stays in progress; what could be moved was.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, LinuxPlatform};
    /// let pool = Builder::new(64).cpus(1).build(AnonymousMemory::new(64)?, LinuxPlatform::new())?;
    /// drop(pool.alloc()?);
    /// let cached = pool.stats().cached;
    /// assert!(cached > 0);
    /// assert_eq!(u64::from(pool.drain_cpu(0)?), cached);
    /// assert_eq!(pool.stats().cached, 0);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn drain_cpu(&self, cpu: usize) -> Result<u32, CpuBusy> {
        self.drain(cpu, |cache| self.shut_patiently(cache, cpu)).ok_or(CpuBusy { cpu })
    }

    /// Gives free frames back to the source until the pool owns at most `frames`, first from the depot, then from the caches of
    /// all CPUs. The stock does not go below the `low` watermark, up to which the next pass would only fetch again; a pool
    /// that shall have nothing is [vacated](Self::vacate).
    ///
    /// Thread context: the source may sleep. Bounded by the frames that move and the number of CPUs.
    /// At most 8,500 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// The outcome is [`Outcome::Done`] if the pool now owns at most `frames`, [`Outcome::InUse`] if what it owns beyond is out or
    /// kept for the watermarks, and [`Outcome::Busy`] if somebody else is maintaining the pool.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, LinuxPlatform, Outcome, Watermarks};
    /// let marks = Watermarks { min: 0, low: 8, high: 64, max: 64 };
    /// let source = AnonymousMemory::new(64)?;
    /// let pool = Builder::new(64).watermarks(marks).build(source, LinuxPlatform::new())?;
    /// let shrunk = pool.shrink_to(16);
    /// assert_eq!((shrunk.outcome, shrunk.trimmed, pool.stats().owned), (Outcome::Done, 48, 16));
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn shrink_to(&self, frames: u32) -> Maintenance {
        self.maintenance.try_with(|_| self.shrink_alone(frames)).unwrap_or(Maintenance::BUSY)
    }

    fn shrink_alone(&self, frames: u32) -> Maintenance {
        self.recover_overflow();
        let mut trimmed = self.trim(self.excess_over(frames));
        if self.door.owned() > frames {
            for cpu in 0..self.cache.slots() {
                // A cache that is in use now is not idle, and keeps its frames.
                let _ = self.drain(cpu, |cache| cache.shut(&self.platform, cpu));
            }
            trimmed += self.trim(self.excess_over(frames));
        }
        let outcome = if self.door.owned() > frames { Outcome::InUse } else { Outcome::Done };
        Maintenance { outcome, trimmed, ..Maintenance::IDLE }
    }

    /// How many frames of the depot may go so that the pool owns `frames`.
    fn excess_over(&self, frames: u32) -> u32 {
        let low = self.watermarks.low - self.watermarks.min;
        let spare = self.depots.fill().frames.saturating_sub(low);
        self.door.owned().saturating_sub(frames).min(spare)
    }

    /// Moves the caches of CPUs that have done nothing for as many passes as the builder says into the depot.
    pub(super) fn decay_caches(&self) {
        for (kind, cache) in [(Kind::Dirty, &self.cache), (Kind::Clean, &self.clean_cache)] {
            for cpu in 0..cache.slots() {
                if cache.is_idle(cpu, self.idle_passes)
                    && let Some(frames) = cache.shut(&self.platform, cpu)
                {
                    self.drain_shut(kind, cpu);
                    self.counters.decayed.add(u64::from(frames));
                }
            }
        }
    }

    /// Moves both caches of a CPU into the depot, each once `shut` has shut it; how many frames.
    fn drain(&self, cpu: usize, shut: impl Fn(&Cache) -> Option<u32>) -> Option<u32> {
        let mut moved = 0;
        for (kind, cache) in [(Kind::Dirty, &self.cache), (Kind::Clean, &self.clean_cache)] {
            moved += shut(cache)?;
            self.drain_shut(kind, cpu);
        }
        Some(moved)
    }

    /// Moves the magazines of a slot that the caller has shut into the depot, and opens it with empty ones.
    pub(super) fn drain_shut(&self, kind: Kind, cpu: usize) {
        self.cache_of(kind).reopen(&self.platform, cpu, |magazine| self.exchange_for_empty(kind, magazine));
    }

    /// Puts what is in a magazine into the stock; an empty one, or itself emptied.
    fn exchange_for_empty(&self, kind: Kind, mut magazine: Magazine) -> Magazine {
        if magazine.length() == 0 {
            return magazine;
        }
        if let Some(empty) = self.depots.find(&self.platform, Depot::take_empty) {
            self.return_to_stock(kind, magazine);
            return empty;
        }
        while let Some(frame) = self.cache.magazines().pop(&mut magazine) {
            self.put_one(kind, frame);
        }
        magazine
    }

    /// Gives up to `excess` frames of the depot back to the source, and counts them as trimmed; how many.
    pub(super) fn trim(&self, excess: u32) -> u32 {
        let trimmed = self.send_back_stock(excess);
        self.counters.trimmed.add(u64::from(trimmed));
        trimmed
    }

    /// Gives up to `most` frames of the depot back to the source, dirty ones first; how many.
    pub(super) fn send_back_stock(&self, most: u32) -> u32 {
        let mut sent = 0;
        while sent < most {
            let mut chunk: [FrameNumber; CHUNK] = [0; CHUNK];
            let wanted = ((most - sent) as usize).min(CHUNK);
            let wanted = chunk.get_mut(..wanted).unwrap_or_default();
            let mut length = self.take_chunk(Kind::Dirty, wanted);
            if length == 0 {
                length = self.take_chunk(Kind::Clean, wanted);
            }
            if length == 0 {
                break;
            }
            self.send_back(chunk.get(..length).unwrap_or_default());
            sent += length as u32;
        }
        sent
    }

    /// Takes frames out of one magazine of the depot, which goes back at once; how many.
    pub(super) fn take_chunk(&self, kind: Kind, frames: &mut [FrameNumber]) -> usize {
        let (depot, length) = self.take_uncounted(kind, frames);
        self.announce();
        let ring = depot.level().removed(kind, length as u32);
        self.ring(self.depots.after_removal(depot, ring));
        length
    }

    /// As `take_chunk`, but the level of the depot from which they come still counts the frames, and the others of the magazine are
    /// not announced; that depot, and how many.
    pub(super) fn take_uncounted(&self, kind: Kind, frames: &mut [FrameNumber]) -> (&Depot, usize) {
        let begun = self.depots.find(&self.platform, |depot| Some((depot, depot.take_begun(kind)?)));
        let Some((depot, mut magazine)) = begun else { return (self.depot(), 0) };
        let mut length = 0;
        for place in frames {
            let Some(frame) = self.cache.magazines().pop(&mut magazine) else { break };
            *place = frame;
            length += 1;
        }
        depot.put(kind, magazine);
        (depot, length)
    }

    /// Brings up to [`CHUNK`] frames back to the source for good.
    #[allow(unsafe_code, reason = "this is where frames leave the pool")]
    pub(super) fn send_back(&self, frames: &[FrameNumber]) {
        let mut addresses = [PhysAddr::new(0); CHUNK];
        let sound = frames.iter().filter(|&&frame| self.check_dismissal(frame));
        let mut length = 0;
        for (address, &frame) in addresses.iter_mut().zip(sound) {
            *address = self.door.dismiss(frame);
            length += 1;
        }
        let addresses = addresses.get(..length).unwrap_or_default();
        // SAFETY: the frames came from this source, were in the pool and hence with nobody else (INV-1), and the door has
        // just forgotten them.
        unsafe { self.source.reclaim(addresses) }
    }
}
