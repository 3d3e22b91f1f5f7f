//! How a pool is put together: bookkeeping memory carved into the structures, then the first frames.

use super::{
    BuildError, Builder, Counters, FramePool, cache::Cache, config::Extents, config::SLOT_MAGAZINES,
    depot::Depot, depots::Depots, door::Door, fallback::Fallback, quota::Guarantees, refill::Policy,
    reserve::Reserve, waiters::Waiters,
};
use crate::{
    platform::Platform,
    raw::{
        arena::{Arena, Memory},
        cells::Cells,
        level::FillLevel,
        magazine::{Kind, Magazine, Magazines, Shape},
        overflow::Overflow,
        registry::Registry,
        slot::{Slot, SlotState, Slots},
        stack::TaggedStack,
        turn::Turn,
        wanted::Wanted,
    },
    source::FrameSource,
    sync::{
        atomic::{AtomicBool, AtomicU32, AtomicU64},
        cell::UnsafeCell,
    },
};
use core::mem::ManuallyDrop;
use crossbeam_utils::CachePadded;

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
        let frame_size = builder.frame_size;
        if source.frame_size() != frame_size {
            return Err(BuildError::FrameSize { pool: frame_size, source: source.frame_size() });
        }
        if !base.is_aligned(frame_size.bytes() as u64) {
            return Err(BuildError::BaseMisaligned);
        }
        if base
            .as_u64()
            .checked_add(frame_size.bytes() as u64)
            .is_none_or(|end| end > builder.address_limit.as_u64())
        {
            return Err(BuildError::BeyondLimit { base, limit: builder.address_limit });
        }
        let layout = extents.layout()?;
        let needed = layout.size() + layout.align();
        let too_small = BuildError::MemoryTooSmall { given, needed };
        let word = |_| AtomicU32::new(0);
        let shape = Shape::new(extents.magazine_size);
        // The first two magazines of each slot are empty; all others start on the empty stack.
        let slot = |number: usize| {
            let first = 2 * number as u32;
            let (loaded, previous) = (new_magazine(first), new_magazine(first + 1));
            CachePadded::new(Slot::new(shape, SlotState::holding(shape, loaded, previous)))
        };
        let dirty_slots = arena.carve(extents.cpus, slot).ok_or(too_small)?;
        let clean_slots = arena.carve(extents.cpus, |cpu| slot(extents.cpus + cpu)).ok_or(too_small)?;
        let entries = arena.carve(extents.entries(), |_| UnsafeCell::new(0)).ok_or(too_small)?;
        let links = arena.carve(extents.magazines, word).ok_or(too_small)?;
        let lengths = arena.carve(extents.magazines, word).ok_or(too_small)?;
        let cell_links = arena.carve(extents.cells(), word).ok_or(too_small)?;
        let cell_contents = arena.carve(extents.cells(), |_| AtomicU64::new(0)).ok_or(too_small)?;
        let positions = arena.carve(extents.positions(), |_| Registry::vacant()).ok_or(too_small)?;

        let watermarks = builder.watermarks;
        // The levels count the depots alone; the reserve is there on top of them.
        let (low, max) = (watermarks.low - watermarks.min, watermarks.max - watermarks.min);
        let low_of_each = if extents.depots == 1 { low } else { 0 };
        let magazines = Magazines::new(entries, links.share(), lengths.share(), extents.magazine_size);
        let depot = || {
            let level = FillLevel::new(low_of_each, max);
            Depot::new(&links, lengths.share(), extents.magazine_size, level)
        };
        let others = arena.carve(extents.depots - 1, |_| CachePadded::new(depot())).ok_or(too_small)?;
        let depots = Depots::new(depot(), others, extents.cpus, low);
        // Each depot has its share, in a row: magazines that lie side by side have their links and lengths on one line.
        let (first, all) = (SLOT_MAGAZINES * extents.cpus, extents.magazines);
        for index in first..all {
            let depot = (index - first) * extents.depots / (all - first);
            depots.of(depot).put(Kind::Dirty, new_magazine(index as u32));
        }
        let vacant = || TaggedStack::new(cell_links.share());
        let of_reserve = extents.reserve_cells() as u32;
        let reserve_cells = Cells::new(vacant(), cell_contents.share(), 0..of_reserve);
        let cells = Cells::new(vacant(), cell_contents, of_reserve..extents.cells() as u32);
        let door = Door::new(
            Registry::new(positions),
            base,
            frame_size,
            builder.address_limit,
            extents.capacity,
            #[cfg(feature = "hardened")]
            crate::raw::custody::Custodies::new(arena.carve(extents.positions(), word).ok_or(too_small)?),
        );
        let pool = Self {
            clean_cache: Cache::new(Slots::new(clean_slots, magazines.share())),
            cache: Cache::new(Slots::new(dirty_slots, magazines)),
            wanted: CachePadded::new(Wanted::new(extents.reserve)),
            reserve: Reserve::new(reserve_cells, extents.reserve),
            cells,
            guarantees: Guarantees::new(extents.guarantees),
            waiters: Waiters::new(),
            depots,
            overflow: Overflow::new(),
            door,
            fallback: Fallback::new(builder.fallback),
            maintenance: Turn::new(Policy::default()),
            watermarks,
            idle_passes: builder.idle_passes,
            #[cfg(feature = "hardened")]
            on_misuse: builder.on_misuse,
            growth: builder.growth,
            closing: AtomicBool::new(false),
            counters: CachePadded::new(Counters::default()),
            platform,
            source: ManuallyDrop::new(source),
            memory,
        };
        pool.fill_at_construction(extents.initial)?;
        let ring = pool.depots.share_out(true);
        pool.ring(ring);
        Ok(pool)
    }
}

/// A magazine at construction: empty, and nowhere yet.
#[allow(unsafe_code, reason = "construction is where magazines come into being")]
fn new_magazine(index: u32) -> Magazine {
    // SAFETY: each index is used once, by `assemble`, and no entry is filled.
    unsafe { Magazine::from_parts(index, 0) }
}
