//! Tables that loom sees: two entries each, in frames of loom's atomics, every use after free and every double free noticed, and a
//! hook that shows what hardware that does not snoop would see.

use framepool::{
    PhysAddr,
    internals::cell::UnsafeCell,
    vtd::{
        Domain, DomainConfig, Entry, Format, Hardware, Invalidation, Iova, Levels, MapError, PageSizes,
        Permissions, Stage, TableFrames, internals::Sealed,
    },
};
use loom::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed},
};
use std::{
    ptr::NonNull,
    sync::{Arc, Mutex},
};

pub const PAGE: u64 = 4096;
const ENTRIES: usize = 2;
/// What stands in a frame that is free: no word that the builder may see.
const FREE: u64 = 0xDEAD;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// The smallest format: tables of two entries. Reading a free frame fails the model.
#[derive(Debug)]
pub struct Tiny;

impl Sealed for Tiny {}

impl Format for Tiny {
    const INDEX_BITS: u32 = 1;
    const STAGE: Stage = Stage::Second;
    const PRESENT: u64 = PRESENT;
    const PAGE_SIZE: u64 = LARGE;
    const SNOOP: u64 = 0;
    const ACCESSED: u64 = ACCESSED;
    const DIRTY: u64 = DIRTY;
    const TELLS_MAPS: bool = false;
    type Mapped<'d, A: TableFrames + 'd> = ();

    fn mapped<'d, A: TableFrames + 'd>(_: impl FnOnce() -> Invalidation<'d, A>) {}

    fn leaf(target: PhysAddr, permissions: Permissions, level: u32) -> u64 {
        let leaf = target.as_u64() | PRESENT | if level > 1 { LARGE } else { 0 };
        Self::with_permissions(leaf, permissions)
    }

    fn with_permissions(leaf: u64, permissions: Permissions) -> u64 {
        leaf & !WRITE | if permissions.contains(Permissions::WRITE) { WRITE } else { 0 }
    }

    fn table(table: PhysAddr) -> u64 {
        table.as_u64() | PRESENT
    }

    fn decode(entry: u64, level: u32) -> Entry {
        assert_ne!(entry, FREE, "INV-10: somebody walks a frame that is free");
        let address = PhysAddr::new(entry & ADDRESS);
        match (entry & PRESENT, entry & LARGE) {
            (0, _) => Entry::Empty,
            (_, 0) if level > 1 => Entry::Table(address),
            _ => {
                let mut permissions = Permissions::READ;
                permissions.set(Permissions::WRITE, entry & WRITE != 0);
                Entry::Leaf { target: address, permissions }
            }
        }
    }
}

/// What an entry says, for hardware.
enum Seen {
    Nothing,
    Table(usize),
    Leaf,
}

#[derive(Debug)]
struct TinyFrame {
    entries: [AtomicU64; ENTRIES],
    /// What hardware sees of them: what was flushed.
    flushed: [AtomicU64; ENTRIES],
    /// Read by whoever reaches the frame, written when it comes and goes: loom reports both at once, and a frame that goes before
    /// all others are known to be through with it.
    reached: UnsafeCell<()>,
}

/// An allocator of a few frames. As any does, it publishes to who takes a frame what was done to it before it came back.
#[derive(Clone, Debug)]
pub struct TinyFrames(Arc<Inner>);

// SAFETY: the cells hold nothing; loom watches how they are used.
unsafe impl Send for Inner {}
// SAFETY: as for `Send`.
unsafe impl Sync for Inner {}

#[derive(Debug)]
struct Inner {
    frames: Vec<TinyFrame>,
    out: loom::sync::Mutex<Vec<bool>>,
    leaked: Mutex<u64>,
    /// A line goes to memory whole, at one moment.
    bus: loom::sync::Mutex<()>,
}

impl TinyFrames {
    pub fn new(frames: usize) -> Self {
        let words = || core::array::from_fn(|_| AtomicU64::new(FREE));
        let frame = |_| TinyFrame { entries: words(), flushed: words(), reached: UnsafeCell::new(()) };
        Self(Arc::new(Inner {
            frames: (0..frames).map(frame).collect(),
            out: loom::sync::Mutex::new(vec![false; frames]),
            leaked: Mutex::new(0),
            bus: loom::sync::Mutex::new(()),
        }))
    }

    /// How many frames are out, and how many were said to be leaked.
    pub fn out_and_leaked(&self) -> (usize, u64) {
        (self.0.out.lock().unwrap().iter().filter(|&&out| out).count(), *self.0.leaked.lock().unwrap())
    }

    fn number(frame: PhysAddr) -> usize {
        (frame.as_u64() / PAGE) as usize - 1
    }

    /// Whether hardware that does not snoop finds a page at `iova`, from the root down.
    pub fn hardware_finds(&self, root: PhysAddr, iova: u64) -> bool {
        let mut table = Self::number(root);
        for level in (1..=3).rev() {
            let index = (iova / PAGE) as usize >> (level - 1) & (ENTRIES - 1);
            // Ordering: Relaxed; what was flushed is in memory, which all see alike.
            let entry = self.0.frames[table].flushed[index].load(Relaxed);
            match Self::seen(entry, level) {
                Seen::Nothing => return false,
                Seen::Leaf => return true,
                Seen::Table(below) => table = below,
            }
        }
        false
    }

    fn seen(entry: u64, level: u32) -> Seen {
        assert_ne!(entry, FREE, "hardware reads a line that was not flushed since its frame was taken");
        match Tiny::decode(entry, level) {
            Entry::Empty => Seen::Nothing,
            Entry::Table(table) => Seen::Table(Self::number(table)),
            Entry::Leaf { .. } => Seen::Leaf,
        }
    }
}

// SAFETY: a frame is out at most once, its entries are those that the builder takes them for, and they are never moved.
unsafe impl TableFrames for TinyFrames {
    fn allocate(&self) -> Option<PhysAddr> {
        let number = {
            let mut out = self.0.out.lock().unwrap();
            let number = out.iter().position(|out| !out)?;
            out[number] = true;
            number
        };
        self.0.frames[number].reached.with_mut(|_| ());
        for (entry, flushed) in self.0.frames[number].entries.iter().zip(&self.0.frames[number].flushed) {
            // Ordering: Relaxed; the frame is ours.
            assert_eq!(entry.load(Relaxed), FREE, "INV-10: somebody wrote into a frame that was free");
            entry.store(0, Relaxed);
            flushed.store(FREE, Relaxed);
        }
        Some(PhysAddr::new((number as u64 + 1) * PAGE))
    }

    unsafe fn free(&self, frame: PhysAddr) {
        let number = Self::number(frame);
        self.0.frames[number].reached.with_mut(|_| ());
        for entry in &self.0.frames[number].entries {
            // Ordering: Relaxed; the frame is ours.
            entry.store(FREE, Relaxed);
        }
        let was_out = std::mem::take(&mut self.0.out.lock().unwrap()[number]);
        assert!(was_out, "INV-1: {frame} came back twice");
    }

    unsafe fn free_zeroed(&self, frame: PhysAddr) {
        for entry in &self.0.frames[Self::number(frame)].entries {
            // Ordering: Relaxed; the frame is ours.
            assert_eq!(entry.load(Relaxed), 0, "a frame is said to be zero that is not");
        }
        // SAFETY: the caller's.
        unsafe { self.free(frame) }
    }

    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        let frame = &self.0.frames[Self::number(frame)];
        frame.reached.with(|_| ());
        NonNull::from(&frame.entries).cast()
    }

    fn leaked(&self, frames: u64) {
        *self.0.leaked.lock().unwrap() += frames;
    }

    fn can_flush(&self) -> bool {
        true
    }

    unsafe fn flush(&self, start: NonNull<u8>, bytes: usize) {
        let _line = self.0.bus.lock().unwrap();
        let (first, last) = (start.as_ptr().addr(), start.as_ptr().addr() + bytes);
        for frame in &self.0.frames {
            for (entry, flushed) in frame.entries.iter().zip(&frame.flushed) {
                if (first..last).contains(&std::ptr::from_ref(entry).addr()) {
                    // Ordering: Relaxed; a flush writes back what this CPU sees.
                    flushed.store(entry.load(Relaxed), Relaxed);
                }
            }
        }
    }
}

/// A domain of three levels: eight pages.
pub type TinyDomain = Domain<Tiny, TinyFrames>;

/// A domain over `frames` frames, for hardware that snoops or not.
pub fn tiny_domain(frames: &TinyFrames, coherent: bool) -> TinyDomain {
    let config = DomainConfig {
        address_width: 15,
        hardware: Hardware { coherent, ..Hardware::default() },
        concurrent_calls: 3,
        ..DomainConfig::new(Levels::Three)
    };
    Domain::new(config, frames.clone()).unwrap()
}

/// Maps the pages from number `page` on to the same physical addresses.
pub fn map(domain: &TinyDomain, page: u64, pages: u64) -> Result<(), MapError> {
    let target = PhysAddr::new(page * PAGE);
    // SAFETY: nothing walks these tables but the model.
    unsafe { domain.map(Iova::new(page * PAGE), target, pages * PAGE, Permissions::all()) }
}

/// Unmaps the pages, and says at once that hardware has let go of them; whether they were mapped.
pub fn unmap(domain: &TinyDomain, page: u64, pages: u64) -> bool {
    let invalidation = domain.unmap(Iova::new(page * PAGE), pages * PAGE);
    // SAFETY: nothing walks these tables but the model.
    invalidation.map(|invalidation| unsafe { invalidation.complete() }).is_ok()
}

/// Builds the tables for the pages beforehand.
pub fn preallocate(domain: &TinyDomain, page: u64, pages: u64) {
    domain.preallocate(Iova::new(page * PAGE), pages * PAGE).unwrap();
}

/// Takes the empty tables for the pages out, and says at once that hardware has let go of them; whether it was nobody else's turn.
pub fn reclaim(domain: &TinyDomain, page: u64, pages: u64) -> bool {
    let invalidation = domain.reclaim(Iova::new(page * PAGE), pages * PAGE);
    // SAFETY: nothing walks these tables but the model.
    invalidation.map(|invalidation| unsafe { invalidation.complete() }).is_ok()
}

/// Whether page number `page` is mapped, to where `map` maps it.
pub fn is_mapped(domain: &TinyDomain, page: u64) -> bool {
    let found = domain.translate(Iova::new(page * PAGE)).map(|found| found.target);
    assert!(found.is_none_or(|target| target == PhysAddr::new(page * PAGE)));
    found.is_some()
}

/// The end of a model: every frame comes back, each once.
pub fn close(domain: TinyDomain) {
    let frames = domain.allocator().clone();
    // SAFETY: nothing walks these tables but the model.
    unsafe { domain.close().complete() };
    assert_eq!(frames.out_and_leaked(), (0, 0), "INV-1: every frame is back");
}

/// The device.
impl TinyFrames {
    /// Writes to page number `page` of the domain with the root `root`, as hardware does that notes it: walks down, and sets D in the leaf,
    /// unless that has changed meanwhile. Whether it may.
    pub fn device_writes(&self, root: PhysAddr, page: u64) -> bool {
        'walk: loop {
            let mut table = Self::number(root);
            for level in (1..=3).rev() {
                let entry = &self.0.frames[table].entries[page as usize >> (level - 1) & (ENTRIES - 1)];
                // Ordering: Acquire, as the builder's own walks; hardware walks in order.
                let found = entry.load(Acquire);
                match Self::seen(found, level) {
                    Seen::Nothing => return false,
                    Seen::Table(below) => table = below,
                    Seen::Leaf if found & WRITE == 0 => return false,
                    // Ordering: Relaxed; one word is all that it is about.
                    Seen::Leaf
                        if entry
                            .compare_exchange(found, found | ACCESSED | DIRTY, Relaxed, Relaxed)
                            .is_ok() =>
                    {
                        return true;
                    }
                    Seen::Leaf => continue 'walk,
                }
            }
            return false;
        }
    }
}

/// A domain over `frames` frames whose hardware notes writes, with leaves of two pages too.
pub fn noting_domain(frames: &TinyFrames) -> TinyDomain {
    let config = DomainConfig {
        address_width: 15,
        page_sizes: PageSizes::SIZE_2M,
        hardware: Hardware { accessed_dirty: true, ..Hardware::default() },
        accessed_dirty: true,
        concurrent_calls: 2,
        ..DomainConfig::new(Levels::Three)
    };
    Domain::new(config, frames.clone()).unwrap()
}

/// Takes writing to the page away.
pub fn protect(domain: &TinyDomain, page: u64) {
    // SAFETY: nothing walks these tables but the model.
    let invalidation = unsafe { domain.protect(Iova::new(page * PAGE), PAGE, Permissions::READ) };
    // SAFETY: as above.
    unsafe { invalidation.unwrap().complete() }
}

/// Puts one leaf in the place of each table of leaves in a row, and says at once that hardware has let go of the tables.
pub fn join(domain: &TinyDomain) {
    join_in(domain, 0, 8);
}

/// The same for some pages only.
pub fn join_in(domain: &TinyDomain, page: u64, pages: u64) {
    // SAFETY: nothing walks these tables but the model.
    let invalidation = unsafe { domain.join(Iova::new(page * PAGE), pages * PAGE) };
    // SAFETY: as above.
    unsafe { invalidation.unwrap().complete() }
}

/// Which of the first eight pages were read or written, as bits.
pub fn take_accessed(domain: &TinyDomain) -> u64 {
    let mut bitmap = [0];
    let invalidation = domain.take_accessed(Iova::new(0), 8 * PAGE, &mut bitmap).unwrap();
    // SAFETY: nothing walks these tables but the model.
    unsafe { invalidation.complete() };
    bitmap[0]
}

/// Which of the first eight pages were written, as bits.
pub fn take_dirty(domain: &TinyDomain) -> u64 {
    let mut bitmap = [0];
    let invalidation = domain.take_dirty(Iova::new(0), 8 * PAGE, &mut bitmap).unwrap();
    // SAFETY: nothing walks these tables but the model.
    unsafe { invalidation.complete() };
    bitmap[0]
}
