//! The Intel VT-d page-table builder: maps a device's addresses (IOVA) to physical memory, in tables made of frames from the
//! pool, from any context that may take an interrupt.
//!
//! A [`Domain`] is one address space. [`Domain::map`] takes every table frame that it can need before it writes the first entry,
//! so it never fails half-way; [`Domain::unmap`] returns an [`Invalidation`], the only way by which table frames come
//! back, since hardware may walk them until it has been told. Both run from several CPUs and from interrupts at once,
//! without locks, as long as their ranges are disjoint.
//!
//! ```
//! # #[cfg(feature = "std")] {
//! use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
//!
//! let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
//! let config = DomainConfig { page_sizes: PageSizes::SIZE_2M, ..DomainConfig::new(Levels::Four) };
//! let domain = SecondStageDomain::new(config, &*pool)?;
//! // SAFETY: no device walks this domain, so any physical range will do.
//! unsafe { domain.map(Iova::new(0x20_0000), PhysAddr::new(0x4000_0000), 0x40_1000, Permissions::all())? };
//! let at = domain.translate(Iova::new(0x3F_F123)).unwrap();
//! assert_eq!((at.target, at.page_size), (PhysAddr::new(0x401F_F123), 0x20_0000));
//! assert_eq!(domain.mappings().count(), 1, "adjacent leaves, small and large, are one mapping");
//! let invalidation = domain.unmap(Iova::new(0x20_0000), 0x40_1000)?;
//! // SAFETY: no hardware has seen these tables.
//! unsafe { invalidation.complete() };
//! // SAFETY: as above.
//! unsafe { domain.close().complete() };
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::raw::magazine::Kind;
use crate::{AllocError, FramePool, FrameSource, PhysAddr, Platform, Quota, Request};
use core::ptr::NonNull;

mod accessed;
mod advance;
mod bits;
mod caching_mode;
mod capabilities;
#[allow(unsafe_code, reason = "gives table frames back on the caller's word")]
mod close;
pub mod context;
pub mod descriptor;
mod direct;
pub mod dmar;
#[allow(unsafe_code, reason = "map states duties that only the caller can keep")]
mod domain;
mod domain_id;
mod domain_stats;
mod dump;
mod error;
mod first_stage;
mod flush;
mod format;
mod frame_list;
mod hardware;
#[allow(unsafe_code, reason = "takes the caller's word that hardware has let go")]
mod invalidation;
mod join;
mod limits;
mod map;
mod map_pages;
mod mappings;
#[cfg(feature = "model")]
mod model_unit;
mod page_block;
mod preallocate;
mod protect;
mod reclaim;
mod requester;
mod retired;
mod second_stage;
mod sizing;
mod sleeping;
mod split;
#[allow(unsafe_code, reason = "the one file that reads and writes table entries")]
mod table;
mod tables;
mod targets;
mod unmap;
mod walk;
mod walkers;
mod width;
#[allow(unsafe_code, reason = "copies parts of buffers that their owners share")]
mod window;

pub use accessed::AccessedDirtyError;
pub use caching_mode::{CachingMode, MapOutcome};
pub use capabilities::{Capabilities, TranslationMode};
pub use close::ClosedDomain;
pub use context::{ContextEntry, ContextTranslation, EntryError, RootEntry};
pub use descriptor::{
    ContextSelection, Descriptor, DescriptorError, DeviceTlb, FunctionMask, IotlbSelection, Pages,
    PasidSelection, StatusWrite, Wait,
};
pub use dmar::{Dmar, DmarError};
pub use domain::{Domain, DomainConfig, FirstStageDomain, SecondStageDomain};
pub use domain_id::{DomainId, DomainIdNotTaken, DomainIds};
pub use domain_stats::DomainStats;
pub use dump::Dump;
pub use error::{DomainError, MapError, ProtectError, RangeError, TooFewFrames, UnmapError};
pub use first_stage::FirstStage;
#[cfg(target_arch = "x86_64")]
pub use flush::CacheLineFlush;
pub use flush::{FlushedFrames, LineFlush};
pub use format::{Entry, Format, Permissions, Stage};
pub use hardware::{CapabilityError, Hardware};
pub use invalidation::{Invalidation, IovaRange};
pub use mappings::{LeafRun, LeafRuns, Mapping, Mappings, Translation};
#[cfg(feature = "model")]
pub use model_unit::{EntryProblem, Fault, ModelUnit, Violation};
pub use page_block::{Blocks, PageBlock, Selection};
pub use reclaim::ReclaimError;
pub use requester::{Pasid, SourceId};
pub use second_stage::SecondStage;
pub use sleeping::PooledFrames;
pub use width::{INTERRUPT_RANGE, Iova, Levels, PageSizes};
pub use window::{DmaWindow, ShareError, WindowConfig, WindowError, WindowHost};

/// What a format is made of, for the models, whose tables have two entries.
#[cfg(loom)]
#[doc(hidden)]
pub mod internals {
    pub use super::format::sealed::Sealed;
}

/// Where the table frames of a domain come from (V11): the pool, or any allocator of 4 KiB frames.
///
/// # Safety
/// * A frame that `allocate` or `allocate_all` handed out is 4 KiB large and aligned, filled with zeros, and belongs to the caller until `free`.
/// * `pointer` maps it, valid for reads and writes of 4 KiB, at the same place each time, until `free`.
/// * Nothing here sleeps, takes a lock that an interrupt could find taken, or panics.
///
/// ```
/// use core::{alloc::Layout, ptr::NonNull};
/// use framepool::{PhysAddr, vtd::*};
///
/// /// The heap of this process, whose addresses count as physical ones: for a test in a thread.
/// struct Heap;
///
/// #[repr(align(4096))]
/// struct Table([u64; 512]);
/// const TABLE: Layout = Layout::new::<Table>();
///
/// // SAFETY: frames of 4 KiB, aligned, filled with zeros, one to one. The heap takes locks: no interrupt asks this one.
/// unsafe impl TableFrames for Heap {
///     fn allocate(&self) -> Option<PhysAddr> {
///         // SAFETY: the layout is not empty.
///         NonNull::new(unsafe { std::alloc::alloc_zeroed(TABLE) }).map(|at| PhysAddr::new(at.addr().get() as u64))
///     }
///     unsafe fn free(&self, frame: PhysAddr) {
///         // SAFETY: it came from `allocate`, and nobody reaches it any more.
///         unsafe { std::alloc::dealloc(self.pointer(frame).as_ptr(), TABLE) }
///     }
///     fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
///         NonNull::new(frame.as_u64() as *mut u8).unwrap()
///     }
/// }
///
/// let domain = SecondStageDomain::new(DomainConfig::new(Levels::Three), Heap)?;
/// // SAFETY: no device walks this domain.
/// unsafe { domain.map(Iova::new(0), PhysAddr::new(0), 0x1000, Permissions::READ)? };
/// assert_eq!(domain.table_frames(), 3);
/// // SAFETY: as above.
/// unsafe { domain.close().complete() };
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[allow(unsafe_code, reason = "states duties that only the implementer can keep")]
pub unsafe trait TableFrames {
    /// One frame filled with zeros, if there is one now. From any context from which a domain is changed.
    fn allocate(&self) -> Option<PhysAddr>;

    /// Takes `count` frames filled with zeros, all or nothing, and hands each to `each`, which asks this allocator for nothing but
    /// [`pointer`](Self::pointer). From the contexts of `allocate`.
    ///
    /// As provided: one by one. An allocator that can take many at once does better.
    ///
    /// # Errors
    /// [`TooFewFrames`] says how many were lacking. Then `each` was not called, and every frame that there was is back.
    fn allocate_all(&self, count: u64, each: &mut dyn FnMut(PhysAddr)) -> Result<(), TooFewFrames> {
        allocate_one_by_one(self, count, each)
    }

    /// Takes `count` frames, whatever is in them, as [`allocate_all`](Self::allocate_all) does: for tables that are written as a whole before
    /// anybody sees them. As provided, zeroed ones; an allocator that keeps others too, and would have to clear them, does better.
    ///
    /// # Errors
    /// As for `allocate_all`.
    fn allocate_any(&self, count: u64, each: &mut dyn FnMut(PhysAddr)) -> Result<(), TooFewFrames> {
        self.allocate_all(count, each)
    }

    /// Takes a frame back.
    ///
    /// From the contexts of `allocate`.
    ///
    /// # Safety
    /// `frame` came from `allocate` or `allocate_all` of this allocator, was not given back since, and nothing reaches it, hardware
    /// included.
    unsafe fn free(&self, frame: PhysAddr);

    /// Takes a frame back that is still, or again, filled with zeros: a table that was never used, or was emptied. As provided,
    /// like any other.
    ///
    /// # Safety
    /// As for [`free`](Self::free), and every byte of the frame is zero.
    unsafe fn free_zeroed(&self, frame: PhysAddr) {
        // SAFETY: the caller's.
        unsafe { self.free(frame) }
    }

    /// Where the CPU reads and writes `frame`.
    ///
    /// From the contexts of `allocate`.
    fn pointer(&self, frame: PhysAddr) -> NonNull<u8>;

    /// Whether [`flush`](Self::flush) does what it says. An allocator without is refused where hardware does not snoop;
    /// [`FlushedFrames`] adds it.
    fn can_flush(&self) -> bool {
        false
    }

    /// Makes what the CPU has written to `bytes` bytes from `start` on visible to hardware that does not snoop, before anything that
    /// is written afterwards. Called for domains of such hardware only, from the contexts from which they are changed.
    ///
    /// # Safety
    /// The bytes are part of a frame of this allocator that is in use.
    unsafe fn flush(&self, start: NonNull<u8>, bytes: usize) {
        let _ = (start, bytes);
    }

    /// Told that `frames` frames will never come back, because what must be completed was dropped: for statistics.
    ///
    /// From the contexts of `allocate`.
    fn leaked(&self, frames: u64) {
        let _ = frames;
    }
}

#[allow(unsafe_code, reason = "gives back what it has just taken")]
fn allocate_one_by_one<A: TableFrames + ?Sized>(
    frames: &A,
    count: u64,
    each: &mut dyn FnMut(PhysAddr),
) -> Result<(), TooFewFrames> {
    let mut list = frame_list::FrameList::new();
    while list.count() < count {
        let Some(frame) = frames.allocate() else {
            let missing = count - list.count();
            while let Some(frame) = list.pop(frames) {
                // SAFETY: `allocate` has just handed the frame out, and nobody else has seen it.
                unsafe { frames.free(frame) };
            }
            return Err(TooFewFrames { missing });
        };
        list.push(frames, frame);
    }
    while let Some(frame) = list.pop(frames) {
        each(frame);
    }
    Ok(())
}

#[allow(unsafe_code, reason = "passes the contract on")]
// SAFETY: the referent keeps the contract.
unsafe impl<T: TableFrames + ?Sized> TableFrames for &T {
    fn allocate(&self) -> Option<PhysAddr> {
        (**self).allocate()
    }

    fn allocate_all(&self, count: u64, each: &mut dyn FnMut(PhysAddr)) -> Result<(), TooFewFrames> {
        (**self).allocate_all(count, each)
    }

    fn allocate_any(&self, count: u64, each: &mut dyn FnMut(PhysAddr)) -> Result<(), TooFewFrames> {
        (**self).allocate_any(count, each)
    }

    unsafe fn free(&self, frame: PhysAddr) {
        // SAFETY: the caller's.
        unsafe { (**self).free(frame) }
    }

    unsafe fn free_zeroed(&self, frame: PhysAddr) {
        // SAFETY: the caller's.
        unsafe { (**self).free_zeroed(frame) }
    }

    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        (**self).pointer(frame)
    }

    fn leaked(&self, frames: u64) {
        (**self).leaked(frames);
    }

    fn can_flush(&self) -> bool {
        (**self).can_flush()
    }

    unsafe fn flush(&self, start: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller's.
        unsafe { (**self).flush(start, bytes) }
    }
}

#[allow(unsafe_code, reason = "passes the contract on")]
// SAFETY: a pool's frame has one owner from `take` to `give`, its source maps it meanwhile, and neither call sleeps, locks
// or panics; a pool whose frames are smaller than a table gives none.
unsafe impl<S: FrameSource, P: Platform> TableFrames for FramePool<S, P> {
    fn allocate(&self) -> Option<PhysAddr> {
        self.alloc_table_frame()
    }

    fn allocate_all(&self, count: u64, each: &mut dyn FnMut(PhysAddr)) -> Result<(), TooFewFrames> {
        match self.reserve_table_frames(Request::ORDINARY.zeroed(), count) {
            Ok(reserved) => reserved.for_each(each),
            // Frames there may be, but no magazine to keep them together.
            Err((AllocError::TooManyReservations, _)) => return allocate_one_by_one(self, count, each),
            Err((_, missing)) => return Err(TooFewFrames { missing }),
        }
        Ok(())
    }

    fn allocate_any(&self, count: u64, each: &mut dyn FnMut(PhysAddr)) -> Result<(), TooFewFrames> {
        match self.reserve_table_frames(Request::ORDINARY, count) {
            Ok(reserved) => {
                reserved.for_each(each);
                Ok(())
            }
            Err((AllocError::TooManyReservations, _)) => allocate_one_by_one(self, count, each),
            Err((_, missing)) => Err(TooFewFrames { missing }),
        }
    }

    unsafe fn free(&self, frame: PhysAddr) {
        // SAFETY: the caller says that `allocate` laid the frame down, once, and that nothing reaches it.
        drop(unsafe { crate::Frame::from_raw(self, frame) });
    }

    unsafe fn free_zeroed(&self, frame: PhysAddr) {
        // SAFETY: as for `free`, and the caller says that it is zero.
        unsafe { crate::Frame::from_raw(self, frame).free_zeroed() }
    }

    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        self.source().pointer(frame)
    }

    fn leaked(&self, frames: u64) {
        self.count_leaked_table_frames(frames);
    }
}

#[allow(unsafe_code, reason = "passes the contract on")]
// SAFETY: as for the pool, from which the frames come and to which they go back, through the account's cells or not.
unsafe impl<S: FrameSource, P: Platform> TableFrames for Quota<'_, S, P> {
    fn allocate(&self) -> Option<PhysAddr> {
        let mut one = None;
        self.allocate_all(1, &mut |frame| one = Some(frame)).ok()?;
        one
    }

    fn allocate_all(&self, count: u64, each: &mut dyn FnMut(PhysAddr)) -> Result<(), TooFewFrames> {
        match self.take_table_frames(count, each) {
            Err((AllocError::TooManyReservations, _)) => allocate_one_by_one(self, count, each),
            outcome => outcome.map_err(|(_, missing)| TooFewFrames { missing }),
        }
    }

    unsafe fn free(&self, frame: PhysAddr) {
        self.give_address(Kind::Dirty, frame);
    }

    unsafe fn free_zeroed(&self, frame: PhysAddr) {
        self.give_address(Kind::Clean, frame);
    }

    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        self.pool().source().pointer(frame)
    }

    fn leaked(&self, frames: u64) {
        self.pool().count_leaked_table_frames(frames);
    }
}
