//! How a pool is built: every number is checked before the first frame is asked for.

use crate::{
    frame::{FrameSize, PhysAddr},
    pool::{depot, depot::Depot, fallback::FallbackPolicy, refill::Growth, reserve},
    raw::{
        arena::Measure,
        level::LEVEL_LIMIT,
        magazine::{FrameNumber, MAGAZINE_LIMIT, MAGAZINE_SIZE_LIMIT, Shape},
        registry::Registry,
        slot::Slot,
    },
    sync::{
        atomic::{AtomicU32, AtomicU64},
        cell::UnsafeCell,
    },
};
use core::alloc::Layout;
use crossbeam_utils::CachePadded;

mod error;

pub use error::BuildError;

/// The fill levels at which something happens, in frames of the shared stock (depot and reserve; the caches of the
/// CPUs come on top). `min` ≤ `low` ≤ `high` ≤ `max` ≤ capacity.
///
/// ```
/// use framepool::Watermarks;
/// let marks = Watermarks::for_capacity(1024);
/// assert_eq!(marks, Watermarks { min: 32, low: 128, high: 512, max: 768 });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// The reserve: frames that only [`Class::Critical`](crate::Class::Critical) takes.
    pub min: u32,
    /// Below this the worker is rung and refills.
    pub low: u32,
    /// The worker never fills beyond this, and trims down to it.
    pub high: u32,
    /// Above this the worker is rung and gives frames back to the source.
    pub max: u32,
}

impl Watermarks {
    /// Watermarks for a pool of `capacity` frames about whose use nothing is known: a reserve of one thirty-second, refill
    /// from an eighth up to a half, trimming above three quarters.
    pub const fn for_capacity(capacity: u32) -> Self {
        Self { min: capacity / 32, low: capacity / 8, high: capacity / 2, max: capacity - capacity / 4 }
    }

    /// Watermarks for a pool from which up to `burst` frames are taken between two passes of the worker: that many are there when
    /// it is rung, as many again are fetched, and what is more than three times as many is given back. No reserve, see
    /// [`with_reserve`](Self::with_reserve).
    ///
    /// ```
    /// use framepool::Watermarks;
    /// const MARKS: Watermarks = Watermarks::for_burst(100).with_reserve(4, 3);
    /// assert_eq!(MARKS, Watermarks { min: 12, low: 112, high: 212, max: 312 });
    /// ```
    pub const fn for_burst(burst: u32) -> Self {
        Self { min: 0, low: burst, high: burst.saturating_mul(2), max: burst.saturating_mul(3) }
    }

    /// The same watermarks on top of a larger reserve: `holders` is how many contexts at once are on the path that frees memory,
    /// and `frames` how many frames each of them takes, as [`Class::Critical`](crate::Class::Critical), before it gives any
    /// back.
    ///
    /// With this reserve none of them ever finds the pool empty, whatever ordinary callers do, since together they cannot hold
    /// more. With fewer they may have to try again, and with `holders` × (`frames` − 1) or fewer they can block each other for
    /// ever: each holds all but one of the frames that it needs.
    pub const fn with_reserve(self, holders: u32, frames: u32) -> Self {
        let reserve = holders.saturating_mul(frames);
        Self {
            min: self.min.saturating_add(reserve),
            low: self.low.saturating_add(reserve),
            high: self.high.saturating_add(reserve),
            max: self.max.saturating_add(reserve),
        }
    }
}

/// Builds a [`FramePool`](crate::FramePool).
///
/// ```
/// # #[cfg(feature = "std")] {
/// use framepool::{AnonymousMemory, Builder, FallbackPolicy, LinuxPlatform, Watermarks};
///
/// let pool = Builder::new(1024)
///     .watermarks(Watermarks { min: 16, low: 128, high: 512, max: 768 })
///     .fallback(FallbackPolicy::Budget(8))
///     .build(AnonymousMemory::new(1024).unwrap(), LinuxPlatform::new())
///     .unwrap();
/// assert_eq!(pool.stats().stock, 512, "filled up to `high`");
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Builder {
    pub(crate) capacity: u32,
    pub(crate) watermarks: Watermarks,
    pub(crate) magazine_size: Option<u32>,
    pub(crate) cpus: Option<usize>,
    pub(crate) depots: usize,
    pub(crate) fallback: FallbackPolicy,
    pub(crate) frame_size: FrameSize,
    pub(crate) address_limit: PhysAddr,
    pub(crate) initial: Option<u32>,
    pub(crate) reservations: Option<u32>,
    pub(crate) guarantees: u32,
    pub(crate) idle_passes: u32,
    #[cfg(feature = "hardened")]
    pub(crate) on_misuse: Option<fn(&super::Misuse)>,
    pub(crate) growth: Growth,
}

/// The number of CPUs assumed when neither the host nor the platform says.
const CPUS_DEFAULT: usize = 16;
pub(super) const CPUS_LIMIT: usize = 4096;
/// The two magazines of a slot hold more than a thousand frames: threads that take and give as many at a time do not meet at the depot
/// (`docs/scale.md`).
const MAGAZINE_SIZE_DEFAULT: u32 = 1023;
/// Magazines in the slots of one CPU: two for each kind of frames.
pub(crate) const SLOT_MAGAZINES: usize = 4;
/// Passes come at least once a second.
const IDLE_PASSES_DEFAULT: u32 = 4;

impl Builder {
    /// A pool that may own up to `capacity` frames, 1 to 2³¹ − 1.
    pub const fn new(capacity: u32) -> Self {
        Self {
            capacity,
            watermarks: Watermarks::for_capacity(capacity),
            magazine_size: None,
            cpus: None,
            depots: 1,
            fallback: FallbackPolicy::Always,
            frame_size: FrameSize::Size4K,
            address_limit: PhysAddr::new(u64::MAX),
            initial: None,
            reservations: None,
            guarantees: 0,
            idle_passes: IDLE_PASSES_DEFAULT,
            #[cfg(feature = "hardened")]
            on_misuse: None,
            growth: Growth::ByUse,
        }
    }

    /// The watermarks, in frames. Default: [`Watermarks::for_capacity`].
    pub const fn watermarks(self, watermarks: Watermarks) -> Self {
        Self { watermarks, ..self }
    }

    /// How many frames a magazine takes, 1 to 4,095; one less than a power of two wastes no memory. Default: 1,023, less for a
    /// small pool, so that the caches of all CPUs together cannot hold more than half of it.
    pub const fn magazine_size(self, frames: u32) -> Self {
        Self { magazine_size: Some(frames), ..self }
    }

    /// How many CPUs have a cache of their own, 1 to 4,096: the number of possible CPUs. CPUs beyond it share. Default: what
    /// Linux says is possible for `start`, 16 otherwise.
    ///
    /// On a platform with restartable sequences the last cache is shared by the threads that have none, so give `build` one
    /// more than there are CPUs; `start` adds it by itself.
    pub const fn cpus(self, cpus: usize) -> Self {
        Self { cpus: Some(cpus), ..self }
    }

    /// How many depots the pool has, 1 up to the number of CPUs: shared stocks of frames, each near a group of CPUs. A CPU that finds
    /// nothing in its own looks into the others, so frames are found wherever they are. Default: 1.
    ///
    /// One is right while few CPUs at a time take and give more than their caches hold: up to about sixteen that do nothing else
    /// (`docs/scale.md`). Machines on which many do should have one for each eight CPUs or so, that share a cache at best. Which CPU
    /// is near which is the platform's to say ([`Platform::depot_near`]); as provided, CPUs with neighbouring numbers share one.
    ///
    /// The limits in instructions that the calls name are for one depot; each further one adds what a look into it takes to a call that
    /// finds nothing nearer. That the pool is above `max` the worker sees when it next passes; it is rung for it when one depot alone is.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder};
    /// let pool = Builder::new(4096).cpus(64).depots(8).start(AnonymousMemory::new(4096)?)?;
    /// assert!(pool.alloc().is_ok());
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// [`Platform::depot_near`]: crate::Platform::depot_near
    pub const fn depots(self, depots: usize) -> Self {
        Self { depots, ..self }
    }

    /// How large the frames are; the source must hand out frames of the same size. Default: 4 KiB.
    pub const fn frame_size(self, frame_size: FrameSize) -> Self {
        Self { frame_size, ..self }
    }

    /// The first physical address that no byte of a frame may have, for example 2³² for devices that send addresses of 32 bits.
    /// It is the source that has to keep it: what it hands out beyond is refused, counted in
    /// [`Stats::refused`](crate::Stats::refused), and not given back. Default: none.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, BuildError, Builder, LinuxPlatform, PhysAddr};
    /// let below_4g = Builder::new(64).address_limit(PhysAddr::new(1 << 32));
    /// let refused = below_4g.build(AnonymousMemory::new(64).unwrap(), LinuxPlatform::new()).err();
    /// assert!(matches!(refused, Some(BuildError::BeyondLimit { .. })), "this memory is far above");
    /// # }
    /// ```
    pub const fn address_limit(self, limit: PhysAddr) -> Self {
        Self { address_limit: limit, ..self }
    }

    /// What an empty pool does for a caller that needs a frame at once. Default: [`FallbackPolicy::Always`].
    pub const fn fallback(self, policy: FallbackPolicy) -> Self {
        Self { fallback: policy, ..self }
    }

    /// How many frames to fetch at construction. Default: the `high` watermark.
    pub const fn initial(self, frames: u32) -> Self {
        Self { initial: Some(frames), ..self }
    }

    /// How many reservations of more than 16 frames may be alive at once; each costs a magazine. Default: four for each CPU.
    pub const fn reservations(self, count: u32) -> Self {
        Self { reservations: Some(count), ..self }
    }

    /// After how many passes without use, one at least, the frames in a CPU's cache go back to the depot, where other CPUs find
    /// them and from where they can be trimmed. Default: 4.
    pub const fn idle_passes(self, passes: u32) -> Self {
        Self { idle_passes: if passes == 0 { 1 } else { passes }, ..self }
    }

    /// Up to where a pass fills the stock. Default: [`Growth::ByUse`].
    pub const fn growth(self, growth: Growth) -> Self {
        Self { growth, ..self }
    }

    /// Who is told of each misuse that is found, with the feature `hardened`. It is called in the context of whoever called the pool, which may be an
    /// interrupt: it must not sleep, lock, allocate or panic. Default: nobody; [`Stats::misuses`](crate::Stats::misuses) counts.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use core::sync::atomic::{AtomicU64, Ordering};
    /// # use framepool::{AnonymousMemory, Builder, Frame, Misuse, PhysAddr};
    /// static LAST: AtomicU64 = AtomicU64::new(0);
    /// let note = |misuse: &Misuse| {
    ///     if let Misuse::Foreign { address } = misuse {
    ///         LAST.store(address.as_u64(), Ordering::Relaxed);
    ///     }
    /// };
    /// let pool = Builder::new(64).on_misuse(note).start(AnonymousMemory::new(64)?)?;
    /// // SAFETY: none; this is the misuse.
    /// drop(unsafe { Frame::from_raw(&pool, PhysAddr::new(0x5000)) });
    /// assert_eq!((LAST.load(Ordering::Relaxed), pool.stats().misuses), (0x5000, 1));
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "hardened")]
    pub const fn on_misuse(self, report: fn(&super::Misuse)) -> Self {
        Self { on_misuse: Some(report), ..self }
    }

    /// How many frames the guarantees of all quotas may add up to: at most the capacity without the reserve. Each costs twelve bytes of
    /// bookkeeping. Default: none.
    pub const fn guarantees(self, frames: u32) -> Self {
        Self { guarantees: frames, ..self }
    }

    /// The bookkeeping memory that the pool needs, in bytes and alignment: for `build_in`.
    ///
    /// # Errors
    /// As the construction itself; nothing is asked from the source.
    pub fn memory_layout(&self) -> Result<Layout, BuildError> {
        self.extents()?.layout()
    }

    /// Checks every number and derives the sizes of the structures.
    pub(crate) fn extents(&self) -> Result<Extents, BuildError> {
        let Watermarks { min, low, high, max } = self.watermarks;
        if self.capacity == 0 {
            return Err(BuildError::CapacityZero);
        }
        if self.capacity > LEVEL_LIMIT {
            return Err(BuildError::CapacityTooLarge { capacity: self.capacity });
        }
        if min > low || low > high || high > max || max > self.capacity {
            return Err(BuildError::Watermarks { watermarks: self.watermarks, capacity: self.capacity });
        }
        let initial = self.initial.unwrap_or(high);
        if initial < min || initial > self.capacity {
            return Err(BuildError::Initial { initial, min, capacity: self.capacity });
        }
        if self.guarantees > self.capacity - min {
            return Err(BuildError::Guarantees { guarantees: self.guarantees, most: self.capacity - min });
        }
        let cpus = self.cpus.unwrap_or(CPUS_DEFAULT);
        if cpus == 0 || cpus > CPUS_LIMIT {
            return Err(BuildError::Cpus { cpus });
        }
        let depots = self.depots;
        if depots == 0 || depots > cpus {
            return Err(BuildError::Depots { depots, cpus });
        }
        let magazine_size = self.magazine_size.unwrap_or_else(|| {
            let share = self.capacity / (2 * (SLOT_MAGAZINES * cpus) as u32);
            // The largest that is one less than a power of two.
            ((1 << (share + 1).ilog2()) - 1).clamp(1, MAGAZINE_SIZE_DEFAULT)
        });
        if magazine_size == 0 || magazine_size > MAGAZINE_SIZE_LIMIT {
            return Err(BuildError::MagazineSize { magazine_size });
        }
        let reservations = self.reservations.map_or(cpus * depot::IN_PROGRESS, |count| count as usize);
        let in_use = cpus * (SLOT_MAGAZINES + depot::IN_PROGRESS) + reservations;
        let magazines = self.capacity.div_ceil(magazine_size) as usize + in_use;
        if magazines >= MAGAZINE_LIMIT as usize {
            return Err(BuildError::TooManyMagazines { magazine_size });
        }
        let Self { capacity, guarantees, .. } = *self;
        Ok(Extents { capacity, reserve: min, guarantees, initial, cpus, depots, magazine_size, magazines })
    }
}

/// How large each structure of a pool is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extents {
    pub(crate) capacity: u32,
    pub(crate) reserve: u32,
    pub(crate) guarantees: u32,
    pub(crate) initial: u32,
    pub(crate) cpus: usize,
    pub(crate) depots: usize,
    pub(crate) magazine_size: u32,
    pub(crate) magazines: usize,
}

impl Extents {
    pub(crate) fn entries(&self) -> usize {
        self.magazines * Shape::new(self.magazine_size).stride()
    }

    /// Cells for single frames: the reserve's, which stand first, and those of all quotas.
    pub(crate) fn cells(&self) -> usize {
        self.reserve_cells() + self.guarantees as usize
    }

    /// Cells of the reserve, none if there is none.
    pub(crate) fn reserve_cells(&self) -> usize {
        let spare = if self.reserve > 0 { self.cpus * reserve::SPARE } else { 0 };
        self.reserve as usize + spare
    }

    pub(crate) fn positions(&self) -> usize {
        Registry::positions(self.capacity)
    }

    /// The memory for all structures, in the order in which `FramePool` carves them.
    pub(crate) fn layout(&self) -> Result<Layout, BuildError> {
        let measure = Measure::new()
            .array::<CachePadded<Slot>>(self.cpus)
            .array::<CachePadded<Slot>>(self.cpus)
            .array::<UnsafeCell<FrameNumber>>(self.entries())
            .array::<AtomicU32>(self.magazines) // links
            .array::<AtomicU32>(self.magazines) // lengths
            .array::<AtomicU32>(self.cells()) // links
            .array::<AtomicU64>(self.cells()) // contents
            .array::<AtomicU32>(self.positions())
            .array::<CachePadded<Depot>>(self.depots - 1);
        #[cfg(feature = "hardened")]
        let measure = measure.array::<AtomicU32>(self.positions()); // custodies
        measure.finish().ok_or(BuildError::CapacityTooLarge { capacity: self.capacity })
    }
}
