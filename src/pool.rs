//! The pool: asks the tiers in their order, cache, depot, other CPUs' caches, reserve, fallback.
//!
//! This file decides who is asked next and nothing else. Each tier is a file of its own under `pool/`; how contexts share
//! it is under `raw/`.

use crate::{
    frame::{Frame, PhysAddr},
    platform::Platform,
    raw::{
        arena::{Arena, Memory},
        contents::Contents,
        level::{FillLevel, Ring},
        magazine::{FrameNumber, Magazine, Magazines},
        overflow::{Chain, Overflow},
        registry::Registry,
        slot::{Slot, SlotMiss, SlotState, Slots},
        turn::Turn,
    },
    source::FrameSource,
    sync::{
        atomic::{AtomicBool, AtomicU32, Ordering},
        cell::UnsafeCell,
        counter,
    },
};
use core::{fmt, mem::ManuallyDrop, ptr::NonNull};
use crossbeam_utils::CachePadded;

#[cfg(feature = "vtd")]
use crate::raw::contents::clear;

mod bulk;
mod cache;
mod close;
mod config;
mod depot;
mod door;
mod fallback;
mod refill;
mod request;
mod reserve;
mod stats;
#[cfg(feature = "std")]
mod worker;

pub use close::CloseError;
pub use config::{BuildError, Builder, Watermarks};
pub use fallback::FallbackPolicy;
pub use refill::{Maintenance, Outcome};
pub use request::{AllocError, Class, Request};
pub use stats::Stats;
#[cfg(feature = "std")]
pub use worker::WorkedPool;

use cache::Cache;
use config::Extents;
pub(crate) use config::FRAME_SIZE;
use depot::Depot;
use door::Door;
use fallback::Fallback;
use refill::Policy;
use reserve::Reserve;

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
    reserve: Reserve,
    depot: Depot,
    overflow: Overflow,
    door: Door,
    fallback: Fallback,
    maintenance: Turn<Policy>,
    watermarks: Watermarks,
    closing: AtomicBool,
    counters: Counters,
    platform: P,
    /// Dropped by hand: not at all while frames are out (INV-12).
    source: ManuallyDrop<S>,
    memory: Memory,
}

/// Events that are not counted where they are owned.
#[derive(Debug, Default)]
struct Counters {
    depot_hits: counter::Shared,
    steals: counter::Shared,
    reserve_hits: counter::Shared,
    exhausted: counter::Shared,
    freed_below: counter::Shared,
    refills: counter::Shared,
    refilled: counter::Shared,
    source_failures: counter::Shared,
    trimmed: counter::Shared,
    rings: counter::Shared,
    collisions: counter::Shared,
    overflowed: counter::Shared,
    recovered: counter::Shared,
    in_use_peak: counter::Shared,
    #[cfg(feature = "vtd")]
    table_frames_leaked: counter::Shared,
}

/// The contents of a pool's frames, as its source maps them.
struct SourceContents<'s, S>(&'s S);

impl<S: FrameSource> Contents for SourceContents<'_, S> {
    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        self.0.pointer(frame)
    }
}

impl Builder {
    /// Builds the pool in bookkeeping memory from the heap, and fetches the initial frames. The heap is not touched again
    /// until the pool goes.
    ///
    /// Thread context: the source may sleep.
    ///
    /// # Errors
    /// [`BuildError`]; nothing is left behind.
    #[cfg(feature = "alloc")]
    pub fn build<S: FrameSource, P: Platform>(
        self,
        source: S,
        platform: P,
    ) -> Result<FramePool<S, P>, BuildError> {
        let extents = self.extents()?;
        let layout = extents.layout()?;
        let (arena, memory) = Arena::on_heap(layout).ok_or(BuildError::NoHeap { needed: layout.size() })?;
        FramePool::assemble(&self, extents, (arena, memory, layout.size()), source, platform)
    }

    /// Builds the pool in bookkeeping memory that the caller gives away, see [`memory_layout`](Self::memory_layout), and
    /// fetches the initial frames. Needs no heap.
    ///
    /// Thread context: the source may sleep.
    ///
    /// # Errors
    /// [`BuildError`]; the memory stays given away.
    ///
    /// ```
    /// use core::mem::MaybeUninit;
    /// # use framepool::{Builder, Claim, FixedRegion, Platform};
    /// # struct OneCpu;
    /// # impl Platform for OneCpu {
    /// #     type Ownership = Claim;
    /// #     fn ownership(&self) -> &Claim { &Claim }
    /// #     fn current_cpu(&self) -> usize { 0 }
    /// #     fn ring(&self) {}
    /// # }
    /// # let memory: &'static mut [MaybeUninit<u8>] = Box::leak(Box::new_uninit_slice(1 << 16));
    /// # let region: &'static mut [MaybeUninit<u8>] = Box::leak(Box::new_uninit_slice(40 << 12));
    /// let pool = Builder::new(32).cpus(1).build_in(memory, FixedRegion::new(region).unwrap(), OneCpu)?;
    /// assert!(pool.alloc().is_ok());
    /// # Ok::<(), framepool::BuildError>(())
    /// ```
    pub fn build_in<S: FrameSource, P: Platform>(
        self,
        memory: &'static mut [core::mem::MaybeUninit<u8>],
        source: S,
        platform: P,
    ) -> Result<FramePool<S, P>, BuildError> {
        let extents = self.extents()?;
        let given = memory.len();
        let (arena, memory) = Arena::given(memory);
        FramePool::assemble(&self, extents, (arena, memory, given), source, platform)
    }
}

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    fn assemble(
        builder: &Builder,
        extents: Extents,
        (mut arena, memory, given): (Arena, Memory, usize),
        source: S,
        platform: P,
    ) -> Result<Self, BuildError> {
        let base = source.base();
        if !base.is_aligned(u64::from(builder.frame_size)) {
            return Err(BuildError::BaseMisaligned);
        }
        let layout = extents.layout()?;
        let needed = layout.size() + layout.align();
        let too_small = BuildError::MemoryTooSmall { given, needed };
        let word = |_| AtomicU32::new(0);
        // The first two magazines of each slot are empty; all others start on the empty stack.
        let slot = |cpu: usize| {
            let first = 2 * cpu as u32;
            CachePadded::new(Slot::new(SlotState::holding(new_magazine(first), new_magazine(first + 1))))
        };
        let slots = arena.carve(extents.cpus, slot).ok_or(too_small)?;
        let entries = arena.carve(extents.entries(), |_| UnsafeCell::new(0)).ok_or(too_small)?;
        let links = arena.carve(extents.magazines, word).ok_or(too_small)?;
        let lengths = arena.carve(extents.magazines, word).ok_or(too_small)?;
        let reserve_links = arena.carve(extents.reserve as usize, word).ok_or(too_small)?;
        let reserve_cells = arena.carve(extents.reserve as usize, word).ok_or(too_small)?;
        let positions = arena.carve(extents.positions(), |_| Registry::vacant()).ok_or(too_small)?;

        let watermarks = builder.watermarks;
        // The level counts the depot alone; the reserve is there on top of it.
        let level = FillLevel::new(watermarks.low - watermarks.min, watermarks.max - watermarks.min);
        let magazines = Magazines::new(entries, extents.magazine_size);
        let depot = Depot::new(&links, lengths, extents.magazine_size, level);
        for index in 2 * extents.cpus..extents.magazines {
            depot.put(new_magazine(index as u32));
        }
        let door = Door::new(Registry::new(positions), base, builder.frame_size, extents.capacity);
        let pool = Self {
            cache: Cache::new(Slots { slots, magazines }),
            reserve: Reserve::new(&reserve_links, reserve_cells),
            depot,
            overflow: Overflow::new(),
            door,
            fallback: Fallback::new(builder.fallback),
            maintenance: Turn::new(Policy::default()),
            watermarks,
            closing: AtomicBool::new(false),
            counters: Counters::default(),
            platform,
            source: ManuallyDrop::new(source),
            memory,
        };
        pool.fill_at_construction(extents.initial)?;
        Ok(pool)
    }

    /// Takes one frame, as an ordinary caller.
    ///
    /// From any context. Lock-free; on a hit wait-free: one exchange and one store with [`Claim`](crate::Claim). A miss
    /// adds a constant number of steps, one look at each CPU's cache before it fails, and retries that each mean that another
    /// context finished an operation. The content of the frame is whatever it was when it came back.
    ///
    /// # Errors
    /// [`AllocError`] says what was missing. Exhaustion is normal and counted; nothing else changes.
    #[inline]
    pub fn alloc(&self) -> Result<Frame<'_, S, P>, AllocError> {
        self.alloc_with(Request::ORDINARY)
    }

    /// Takes one frame, as the request says. Contexts, bound and errors as for [`alloc`](Self::alloc).
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

    /// A snapshot of the pool's state and counters.
    ///
    /// From thread and interrupt context; bounded by the number of CPUs. Exact when no operation is in progress.
    pub fn stats(&self) -> Stats {
        let totals = self.cache.totals();
        let counters = &self.counters;
        let reserve = u64::from(self.reserve.target().saturating_sub(self.reserve.missing()));
        let overflow = counters.overflowed.get().saturating_sub(counters.recovered.get());
        let stock = u64::from(self.depot.level().frames()) + reserve;
        let owned = u64::from(self.door.owned());
        let in_use = owned.saturating_sub(totals.frames + stock + overflow);
        counters.in_use_peak.raise_to(in_use);
        Stats {
            capacity: u64::from(self.door.capacity()),
            owned,
            in_use,
            in_use_peak: counters.in_use_peak.get(),
            cached: totals.frames,
            stock,
            reserve,
            overflow,
            cache_hits: totals.popped,
            depot_hits: counters.depot_hits.get(),
            steals: counters.steals.get(),
            reserve_hits: counters.reserve_hits.get(),
            fallback_taken: self.fallback.taken.get(),
            fallback_failed: self.fallback.failed.get(),
            exhausted: counters.exhausted.get(),
            freed: totals.pushed + counters.freed_below.get(),
            refills: counters.refills.get(),
            refilled: counters.refilled.get(),
            source_failures: counters.source_failures.get(),
            refused: self.door.refused(),
            trimmed: counters.trimmed.get(),
            rings: counters.rings.get(),
            collisions: counters.collisions.get(),
            #[cfg(feature = "vtd")]
            table_frames_leaked: counters.table_frames_leaked.get(),
            #[cfg(not(feature = "vtd"))]
            table_frames_leaked: 0,
        }
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
        self.door.number(frame).unwrap_or(FrameNumber::MAX)
    }

    /// A frame filled with zeros, laid down as its address, for a table; none if the pool's frames are not of a table's size.
    #[cfg(feature = "vtd")]
    #[allow(unsafe_code, reason = "the contents of a frame that was just taken are cleared")]
    pub(crate) fn alloc_table_frame(&self) -> Option<PhysAddr> {
        if self.door.frame_size() != FRAME_SIZE {
            return None;
        }
        let address = self.alloc().ok()?.into_raw();
        // SAFETY: the frame is ours, and the source maps all of it.
        unsafe { clear(&SourceContents(&*self.source), address, FRAME_SIZE as usize) };
        Some(address)
    }

    #[cfg(feature = "vtd")]
    pub(crate) fn count_leaked_table_frames(&self, frames: u64) {
        self.counters.table_frames_leaked.add(frames);
    }

    #[inline(always)]
    pub(crate) fn take(&self, request: Request) -> Result<FrameNumber, AllocError> {
        match self.cache.pop(&self.platform) {
            Ok(frame) => Ok(frame),
            Err(miss) => self.take_below(request, miss),
        }
    }

    #[inline(always)]
    pub(crate) fn give(&self, frame: FrameNumber) {
        let frame = if self.reserve.missing() == 0 { Err(frame) } else { self.reserve.put(frame) };
        let Err(frame) = frame else { return self.counters.freed_below.add(1) };
        if let Err(miss) = self.cache.push(&self.platform, frame) {
            self.counters.freed_below.add(1);
            self.give_below(frame, miss);
        }
    }

    /// The tiers below the cache, in their order.
    #[cold]
    #[inline(never)]
    fn take_below(&self, request: Request, miss: SlotMiss) -> Result<FrameNumber, AllocError> {
        self.count_collision(miss);
        if self.is_closing() {
            return Err(AllocError::Closed);
        }
        if let Some(frame) = self.take_from_depot(miss) {
            self.counters.depot_hits.add(1);
            return Ok(frame);
        }
        let ring = self.depot.level().missed();
        self.ring(ring);
        if let Some(frame) = self.steal(miss) {
            self.counters.steals.add(1);
            return Ok(frame);
        }
        // INV-5: below `min` only Critical takes.
        if request.class() == Class::Critical
            && let Some(frame) = self.reserve.take()
        {
            self.counters.reserve_hits.add(1);
            return Ok(frame);
        }
        if request.allows_fallback()
            && self.fallback.is_allowed()
            && let Some(frame) = self.take_from_host()
        {
            self.fallback.taken.add(1);
            return Ok(frame);
        }
        self.counters.exhausted.add(1);
        Err(self.reason(request))
    }

    fn reason(&self, request: Request) -> AllocError {
        if request.class() == Class::Ordinary && self.reserve.missing() < self.reserve.target() {
            AllocError::ReserveOnly
        } else if request.allows_fallback() && self.fallback.is_allowed() {
            AllocError::FallbackFailed
        } else {
            AllocError::Exhausted
        }
    }

    /// Tier 2: loads a whole magazine into the slot, or takes one frame when the slot is busy.
    fn take_from_depot(&self, miss: SlotMiss) -> Option<FrameNumber> {
        let magazines = self.cache.magazines();
        if miss == SlotMiss::Busy {
            if let Some((frame, ring)) = self.depot.take_one(magazines) {
                self.ring(ring);
                return Some(frame);
            }
        } else if let Some(mut magazine) = self.depot.take_stocked() {
            let frame = magazines.pop(&mut magazine);
            let loaded = self.load_stocked(magazine);
            let ring = self.depot.count_drawn(loaded + u32::from(frame.is_some()));
            self.ring(ring);
            return frame;
        }
        self.take_from_overflow()
    }

    /// Loads what is left of a magazine into the slot, or puts it on the depot when the slot is not empty any more; how many
    /// frames went into the slot. Does not count.
    fn load_stocked(&self, magazine: Magazine) -> u32 {
        let frames = magazine.length();
        if frames == 0 {
            self.depot.put(magazine);
            return 0;
        }
        match self.cache.load_stocked(&self.platform, magazine) {
            Ok(empty) => {
                self.depot.put(empty);
                frames
            }
            Err(unchanged) => {
                self.depot.put(unchanged);
                0
            }
        }
    }

    /// Frames that found no magazine when they came back: one is taken, the others get another chance.
    fn take_from_overflow(&self) -> Option<FrameNumber> {
        let mut chain = self.overflow.take_all();
        let first = self.next_of(&mut chain)?;
        while let Some(frame) = self.next_of(&mut chain) {
            self.put_one(frame);
        }
        Some(first)
    }

    /// Gives every frame of the overflow another chance to find a magazine.
    fn recover_overflow(&self) {
        let mut chain = self.overflow.take_all();
        while let Some(frame) = self.next_of(&mut chain) {
            self.put_one(frame);
        }
    }

    #[allow(unsafe_code, reason = "the overflow runs through the frames themselves")]
    fn next_of(&self, chain: &mut Chain) -> Option<FrameNumber> {
        // SAFETY: the frames of the chain are the pool's, and the source maps every frame of the pool.
        let frame = unsafe { chain.pop(&SourceContents(&*self.source), |number| self.door.address(number)) }?;
        self.counters.recovered.add(1);
        Some(frame)
    }

    /// Tier 3: another CPU's magazine, from which one frame is taken and the rest goes into the slot.
    fn steal(&self, miss: SlotMiss) -> Option<FrameNumber> {
        let empty = self.depot.take_empty()?;
        let mut stolen = match self.cache.steal(&self.platform, empty) {
            Ok(stolen) => stolen,
            Err(empty) => {
                self.depot.put(empty);
                return None;
            }
        };
        let frame = self.cache.magazines().pop(&mut stolen);
        let left = stolen.length();
        if miss == SlotMiss::Busy || left == 0 {
            self.return_to_stock(stolen);
        } else {
            match self.cache.load_stocked(&self.platform, stolen) {
                Ok(empty) => self.depot.put(empty),
                Err(stolen) => self.return_to_stock(stolen),
            }
        }
        frame
    }

    /// Puts a magazine on the depot whose frames the level does not count yet.
    fn return_to_stock(&self, magazine: Magazine) {
        if magazine.length() > 0 {
            let ring = self.depot.level().added(magazine.length());
            self.ring(ring);
        }
        self.depot.put(magazine);
    }

    /// Tier 5: one request to the host, without sleeping.
    fn take_from_host(&self) -> Option<FrameNumber> {
        let frame = self.fallback.spend().then(|| self.ask_host()).flatten();
        if frame.is_none() {
            self.fallback.failed.add(1);
        }
        frame
    }

    fn ask_host(&self) -> Option<FrameNumber> {
        if self.door.make_room(1) == 0 {
            return None;
        }
        let frame = self.source.try_supply().and_then(|address| self.door.admit(address));
        if frame.is_none() {
            self.door.return_room(1);
        }
        frame
    }

    /// What a free does when the slot is full or busy.
    #[cold]
    #[inline(never)]
    fn give_below(&self, frame: FrameNumber, miss: SlotMiss) {
        self.count_collision(miss);
        let magazines = self.cache.magazines();
        if miss == SlotMiss::Unsuited
            && let Some(mut magazine) = self.depot.take_vacant()
        {
            let from_stock = magazine.length();
            let pushed = magazines.push(&mut magazine, frame);
            match self.cache.load_vacant(&self.platform, magazine) {
                Ok(full) => {
                    self.return_to_stock(full);
                    if from_stock > 0 {
                        let ring = self.depot.level().removed(from_stock);
                        self.ring(ring);
                    }
                }
                Err(magazine) => {
                    let ring = self.depot.level().added(magazine.length() - from_stock);
                    self.ring(ring);
                    self.depot.put(magazine);
                }
            }
            if pushed.is_ok() {
                return;
            }
        }
        self.put_one(frame);
    }

    /// Puts one frame into the stock, or the overflow when there is no magazine with room.
    #[allow(unsafe_code, reason = "the overflow runs through the frames themselves")]
    fn put_one(&self, frame: FrameNumber) {
        match self.depot.put_one(self.cache.magazines(), frame) {
            Ok(ring) => self.ring(ring),
            Err(frame) => {
                self.counters.overflowed.add(1);
                // SAFETY: the frame is the pool's and in no other place, and the source maps it.
                unsafe { self.overflow.push(&SourceContents(&*self.source), frame, self.door.address(frame)) }
            }
        }
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

/// A magazine at construction: empty, and nowhere yet.
#[allow(unsafe_code, reason = "construction is where magazines come into being")]
fn new_magazine(index: u32) -> Magazine {
    // SAFETY: each index is used once, by `assemble`, and no entry is filled.
    unsafe { Magazine::from_parts(index, 0) }
}

impl<S: FrameSource, P: Platform> fmt::Debug for FramePool<S, P> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("FramePool").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
