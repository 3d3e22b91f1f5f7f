//! Owns a range of a domain that is handed out for buffers, a slot each: maps exactly what a device may reach while a request is
//! under way, and nothing else.
//!
//! A page can be shared with a device only as a whole. Of a buffer that does not fill its first or last page, that page holds data of
//! somebody else too; the device then gets a frame of the allocator in its place, a *bounce frame* that is filled with zeros, and the
//! buffer's part is copied there before and back afterwards. All pages in between are the buffer's alone and are mapped in place.
//!
//! ```text
//!   buffer         |...####|########|########|##......|          # the buffer, . other data
//!   slot           | bounce|in place|in place| bounce |          one range of IOVA without gaps
//! ```
//! A slot is in exactly one place: on the stock, or with one buffer. Its record is written and read by whoever has it.

use super::{
    Domain, Format, Invalidation, Iova, Permissions, TableFrames,
    width::{INTERRUPTS, PAGE, PAGE_SHIFT, Span},
};
use crate::{
    PhysAddr,
    raw::{
        arena::{Arena, Carved, Measure},
        numbers::Numbers,
    },
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};
use core::{alloc::Layout, fmt, mem::MaybeUninit, ptr::NonNull};

mod error;

pub use error::{ShareError, WindowError};

/// What a window asks of its host.
///
/// # Safety
/// * `physical` gives the physical address of the byte at `pointer`, which lies in a buffer that a caller shares.
/// * `forget` returns only after every unit that the domain is attached to has confirmed what the invalidation says.
#[allow(unsafe_code, reason = "states duties that only the implementer can keep")]
pub unsafe trait WindowHost<A: TableFrames>: Sync {
    /// The physical address of the byte at `pointer`. From the contexts in which buffers are shared.
    ///
    /// Must not sleep, lock or panic.
    fn physical(&self, pointer: NonNull<u8>) -> PhysAddr;

    /// Makes hardware forget what was unmapped, waits for it, and completes the invalidation. From the contexts in which buffers are
    /// withdrawn.
    ///
    /// May wait for the unit, which answers in bounded time, and for nothing else.
    fn forget(&self, invalidation: Invalidation<'_, A>);
}

/// Where and how large a window is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowConfig {
    /// The first address, a multiple of 4 KiB and not 0, which drivers take for a failure.
    pub base: Iova,
    /// How many buffers can be shared at a time.
    pub slots: u32,
    /// The most pages that a buffer may touch.
    pub slot_pages: u32,
}

impl WindowConfig {
    /// The bookkeeping memory that the window needs, in bytes and alignment; nothing if it would not fit into the address space.
    pub fn memory_layout(&self) -> Option<Layout> {
        Measure::new().array::<AtomicU32>(self.slots as usize).array::<Record>(self.slots as usize).finish()
    }
}

/// What is known of the buffer in a slot.
struct Record {
    /// Pages that are mapped; 0 while the slot is free.
    pages: AtomicU32,
    /// The bounce frames of the first and the last page, or 0.
    first: AtomicU64,
    last: AtomicU64,
}

/// A range of a domain, cut into slots for buffers.
///
/// Lock-free and usable from several CPUs and from interrupts, as the domain is; not from an NMI.
///
/// ```
/// # #[cfg(feature = "std")] {
/// use core::{mem::MaybeUninit, ptr::NonNull};
/// use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
///
/// struct Machine;
/// // SAFETY: there is no unit that could remember anything, and no device that reads physical addresses.
/// unsafe impl<A: TableFrames> WindowHost<A> for Machine {
///     fn physical(&self, pointer: NonNull<u8>) -> PhysAddr {
///         PhysAddr::new(pointer.addr().get() as u64)
///     }
///     fn forget(&self, invalidation: Invalidation<'_, A>) {
///         // A kernel submits the descriptors and waits, then:
///         // SAFETY: there is no unit.
///         unsafe { invalidation.complete() }
///     }
/// }
///
/// let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
/// let domain = SecondStageDomain::new(DomainConfig::new(Levels::Four), &*pool)?;
/// let memory = Box::leak(Box::new([MaybeUninit::uninit(); 1024]));
/// let config = WindowConfig { base: Iova::new(0x10_0000), slots: 16, slot_pages: 2 };
/// let window = DmaWindow::new_in(memory, &domain, Machine, config)?;
/// let mut request = *b"for the device";
/// let buffer = NonNull::from(&mut request[..]);
/// // SAFETY: nobody touches the buffer until it is withdrawn.
/// let iova = unsafe { window.share(buffer, Permissions::READ)? };
/// assert_eq!(domain.translate(iova).unwrap().permissions, Permissions::READ);
/// // SAFETY: with what it was shared, and there is no device that could still use it.
/// unsafe { window.withdraw(iova, buffer, Permissions::READ) };
/// assert_eq!(domain.translate(iova), None);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct DmaWindow<'d, F: Format, A: TableFrames, H: WindowHost<A>> {
    domain: &'d Domain<F, A>,
    host: H,
    config: WindowConfig,
    free: Numbers,
    records: Carved<Record>,
}

impl<'d, F: Format, A: TableFrames, H: WindowHost<A>> DmaWindow<'d, F, A, H> {
    /// A window of `domain`, which maps nothing else there, with its bookkeeping in `memory`.
    ///
    /// Thread context; bounded by the slots.
    ///
    /// # Errors
    /// [`WindowError`] names what is wrong.
    pub fn new_in(
        memory: &'static mut [MaybeUninit<u8>],
        domain: &'d Domain<F, A>,
        host: H,
        config: WindowConfig,
    ) -> Result<Self, WindowError> {
        let range = WindowError::Range { config };
        let WindowConfig { base, slots, slot_pages } = config;
        let pages = u64::from(slots) * u64::from(slot_pages);
        let end =
            pages.checked_mul(PAGE).and_then(|length| base.as_u64().checked_add(length)).ok_or(range)?;
        let span = Span { start: base.as_u64(), end };
        let lies_well =
            span.start & (PAGE - 1) == 0 && end <= domain.aperture().end && !span.meets(INTERRUPTS);
        if pages == 0 || span.start == 0 || !lies_well {
            return Err(range);
        }
        let too_small = WindowError::MemoryTooSmall { given: memory.len() };
        let (mut arena, _) = Arena::given(memory);
        let links = arena.carve(slots as usize, |_| AtomicU32::new(0)).ok_or(too_small)?;
        let record =
            |_| Record { pages: AtomicU32::new(0), first: AtomicU64::new(0), last: AtomicU64::new(0) };
        let records = arena.carve(slots as usize, record).ok_or(too_small)?;
        Ok(Self { domain, host, config, free: Numbers::new(slots, links), records })
    }

    /// The domain of which this is a part.
    pub fn domain(&self) -> &'d Domain<F, A> {
        self.domain
    }

    /// The host under the window.
    pub fn host(&self) -> &H {
        &self.host
    }

    /// Lets the device reach `buffer`, in the ways that `access` says, at the address that comes back, until it is
    /// [withdrawn](Self::withdraw). What the device may read is what the buffer holds now.
    ///
    /// From thread and interrupt context, not from an NMI. Never sleeps. Bounded by the pages of the buffer, two of which may be
    /// copied.
    /// At most 15,700 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`ShareError`] names what is wrong; the device then reaches nothing.
    ///
    /// # Safety
    /// `buffer` is valid for reads and writes, and until it is withdrawn nobody touches its memory but to read what the device may
    /// only read.
    pub unsafe fn share(&self, buffer: NonNull<[u8]>, access: Permissions) -> Result<Iova, ShareError> {
        let pieces = Pieces::of(buffer);
        if buffer.is_empty() {
            return Err(ShareError::Empty);
        }
        let most = self.config.slot_pages;
        let pages = u32::try_from(pieces.pages)
            .ok()
            .filter(|&pages| pages <= most)
            .ok_or(ShareError::TooLong { pages: pieces.pages, most })?;
        let (slot, record) = self.take_slot()?;
        let base = self.base_of(slot);
        let mut mapped = 0;
        // SAFETY: the caller's; the slot is ours.
        let outcome = unsafe { self.map_pieces(record, base, &pieces, access, &mut mapped) };
        if let Err(error) = outcome {
            if self.unmap(base, mapped) {
                self.vacate(slot, record);
            }
            return Err(error);
        }
        // Ordering: Relaxed; the slot is ours, and goes to the next with the Release of the stock.
        record.pages.store(pages, Ordering::Relaxed);
        Ok(Iova::new(base.as_u64() + pieces.offset))
    }

    /// Maps the pages of a buffer from `base` on; counts those that are mapped.
    unsafe fn map_pieces(
        &self,
        record: &Record,
        base: Iova,
        pieces: &Pieces,
        access: Permissions,
        mapped: &mut u64,
    ) -> Result<(), ShareError> {
        let frames = self.domain.allocator();
        while let Some(piece) = pieces.get(*mapped) {
            let mut target = self.host.physical(piece.start);
            let mut length = PAGE;
            if piece.is_whole() {
                // As many pages in a row as are in a row in memory too.
                while let Some(next) = pieces.get(*mapped + length / PAGE).filter(Piece::is_whole) {
                    if self.host.physical(next.start).as_u64() != target.as_u64() + length {
                        break;
                    }
                    length += PAGE;
                }
            } else {
                target = frames.allocate().ok_or(ShareError::NoFrame)?;
                // Ordering: Relaxed; the slot is ours, and goes to the next with the Release of the stock.
                record.bounce_of(*mapped).store(target.as_u64(), Ordering::Relaxed);
                if access.contains(Permissions::READ) {
                    // SAFETY: the piece is part of the buffer, and the frame is ours, of which it takes the same part.
                    unsafe { piece.place_in(frames.pointer(target)).copy_from(piece.start, piece.length) };
                }
            }
            let iova = Iova::new(base.as_u64() + *mapped * PAGE);
            // SAFETY: whole pages are the buffer's alone, bounce frames ours, until the slot is withdrawn; the range is the slot's.
            unsafe { self.domain.map(iova, target, length, access) }.map_err(ShareError::Map)?;
            *mapped += length / PAGE;
        }
        Ok(())
    }

    /// Takes the buffer back that was shared at `iova`; what the device has written is in it then. Nothing happens if none was.
    ///
    /// From thread and interrupt context, not from an NMI. Bounded by the pages of the buffer, and by the host's
    /// [`forget`](WindowHost::forget).
    /// At most 1,800 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Safety
    /// `buffer` and `access` are those with which the slot was [shared](Self::share), and the device was told to be done with it.
    pub unsafe fn withdraw(&self, iova: Iova, buffer: NonNull<[u8]>, access: Permissions) {
        let Some((slot, record)) = self.slot_at(iova) else { return };
        // Ordering: Relaxed; the slot is the caller's.
        let pages = record.pages.swap(0, Ordering::Relaxed);
        if pages == 0 {
            return;
        }
        if !self.unmap(self.base_of(slot), pages.into()) {
            return;
        }
        if access.contains(Permissions::WRITE) {
            let pieces = Pieces::of(buffer);
            for number in [0, u64::from(pages) - 1] {
                // Ordering: Relaxed; the slot is the caller's.
                let bounce = PhysAddr::new(record.bounce_of(number).load(Ordering::Relaxed));
                let Some(piece) = pieces.get(number).filter(|_| bounce != PhysAddr::new(0)) else { continue };
                // SAFETY: the piece is part of the buffer, and the device reaches the frame no more.
                unsafe {
                    let from = piece.place_in(self.domain.allocator().pointer(bounce));
                    piece.start.copy_from(from, piece.length);
                }
            }
        }
        self.vacate(slot, record);
    }

    /// A page filled with zeros that the device may reach in the ways that `access` says, for a driver's queues; until
    /// [`free_page`](Self::free_page). Contexts and bound as for [`share`](Self::share).
    ///
    /// # Errors
    /// [`ShareError`]; nothing has changed.
    pub fn allocate_page(&self, access: Permissions) -> Result<(Iova, NonNull<u8>), ShareError> {
        let (slot, record) = self.take_slot()?;
        let base = self.base_of(slot);
        let frames = self.domain.allocator();
        let outcome = frames.allocate().ok_or(ShareError::NoFrame).and_then(|frame| {
            // Ordering: Relaxed; the slot is ours.
            record.bounce_of(0).store(frame.as_u64(), Ordering::Relaxed);
            // SAFETY: the frame is ours until the page is freed, and the range is the slot's.
            unsafe { self.domain.map(base, frame, PAGE, access) }.map_err(ShareError::Map)?;
            Ok(frame)
        });
        match outcome {
            Ok(frame) => {
                // Ordering: Relaxed; the slot is ours.
                record.pages.store(1, Ordering::Relaxed);
                Ok((base, frames.pointer(frame)))
            }
            Err(error) => {
                self.vacate(slot, record);
                Err(error)
            }
        }
    }

    /// Takes a page back that [`allocate_page`](Self::allocate_page) handed out. Nothing happens if it did not.
    ///
    /// Contexts and bound as for [`withdraw`](Self::withdraw).
    ///
    /// # Safety
    /// Nobody uses the page any more, the device included.
    pub unsafe fn free_page(&self, iova: Iova) {
        // SAFETY: the caller's; nothing is copied for a device that only reads.
        unsafe {
            self.withdraw(iova, NonNull::slice_from_raw_parts(NonNull::dangling(), 0), Permissions::READ)
        }
    }

    fn take_slot(&self) -> Result<(u32, &Record), ShareError> {
        let slot = self.free.take().ok_or(ShareError::NoSlot)?;
        Ok((slot, self.records.get(slot as usize).ok_or(ShareError::NoSlot)?))
    }

    fn base_of(&self, slot: u32) -> Iova {
        let pages = u64::from(slot) * u64::from(self.config.slot_pages);
        Iova::new(self.config.base.as_u64() + pages * PAGE)
    }

    fn slot_at(&self, iova: Iova) -> Option<(u32, &Record)> {
        let pages = iova.as_u64().checked_sub(self.config.base.as_u64())? >> PAGE_SHIFT;
        let slot = u32::try_from(pages / u64::from(self.config.slot_pages)).ok()?;
        Some((slot, self.records.get(slot as usize)?))
    }

    /// Unmaps the first pages of a slot and makes hardware forget them. Whether nothing is mapped any more: the slot is lost otherwise,
    /// with its frames, which the device may still reach. Only who breaks the contract of the domain gets there.
    fn unmap(&self, base: Iova, pages: u64) -> bool {
        if pages == 0 {
            return true;
        }
        let Ok(invalidation) = self.domain.unmap(base, pages * PAGE) else { return false };
        self.host.forget(invalidation);
        true
    }

    /// Gives a slot and its bounce frames back, which nobody reaches any more.
    fn vacate(&self, slot: u32, record: &Record) {
        for bounce in [&record.first, &record.last] {
            // Ordering: Relaxed; the slot is ours.
            let frame = bounce.swap(0, Ordering::Relaxed);
            if frame != 0 {
                // SAFETY: the frame came from this allocator for this slot, and the hardware has forgotten it, or never knew it.
                unsafe { self.domain.allocator().free(PhysAddr::new(frame)) };
            }
        }
        self.free.give(slot);
    }
}

impl Record {
    /// The bounce frame of the page with this number: the first, or the last, which may be any other.
    fn bounce_of(&self, page: u64) -> &AtomicU64 {
        if page == 0 { &self.first } else { &self.last }
    }
}

/// A buffer, page by page.
struct Pieces {
    buffer: NonNull<[u8]>,
    /// The offset of the first byte in its page.
    offset: u64,
    pages: u64,
}

/// The part of a buffer that lies in one page.
struct Piece {
    start: NonNull<u8>,
    length: usize,
    /// The offset of the start in its page.
    offset: usize,
}

impl Pieces {
    fn of(buffer: NonNull<[u8]>) -> Self {
        let offset = buffer.cast::<u8>().addr().get() as u64 & (PAGE - 1);
        Self { buffer, offset, pages: (offset + buffer.len() as u64).div_ceil(PAGE) }
    }

    fn get(&self, page: u64) -> Option<Piece> {
        if page >= self.pages {
            return None;
        }
        let from = (page * PAGE).max(self.offset);
        let to = ((page + 1) * PAGE).min(self.offset + self.buffer.len() as u64);
        // SAFETY: `from` is in the buffer, counted from the page of its first byte.
        let start = unsafe { self.buffer.cast::<u8>().add((from - self.offset) as usize) };
        Some(Piece { start, length: (to - from) as usize, offset: (from & (PAGE - 1)) as usize })
    }
}

impl Piece {
    fn is_whole(&self) -> bool {
        self.length as u64 == PAGE
    }

    /// The same part of another page.
    fn place_in(&self, page: NonNull<u8>) -> NonNull<u8> {
        // SAFETY: the offset is below the size of a page, all of which is mapped.
        unsafe { page.add(self.offset) }
    }
}

impl<F: Format, A: TableFrames, H: WindowHost<A>> fmt::Debug for DmaWindow<'_, F, A, H> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("DmaWindow").field("config", &self.config).finish_non_exhaustive()
    }
}
