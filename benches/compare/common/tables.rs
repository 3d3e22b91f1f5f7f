//! The page tables that are compared: framepool's, and rivals. What no table can beat is in `table_floors.rs`.
//!
//! A rival gets its tables from a vector of zeroed pages, which costs it less than any pool would, and keeps those that it has: only
//! framepool takes tables away that an unmap has emptied, and is timed with it.

use aarch64_paging::{
    descriptor::{El1Attributes, PagingAttributes, PhysicalAddress},
    paging::{Constraints, El1And0, MemoryRegion, PageTable as ArmTable, RootTable, Translation, VaRange},
};
use framepool::{
    AnonymousMemory, Builder, FallbackPolicy, FramePool, LinuxPlatform, PhysAddr, Watermarks,
    vtd::{DomainConfig, Iova, Levels, PageSizes, Permissions, SecondStageDomain},
};
use page_table_entry::x86_64::X64PTE;
use page_table_multiarch::{
    MappingFlags, PageSize as MultiarchSize, PageTable64, PagingHandler, PagingMetaData,
};
use std::{ptr::NonNull, sync::Mutex};
use x86_64::{
    VirtAddr,
    structures::paging::{
        FrameAllocator, Mapper, OffsetPageTable, Page, PageSize, PageTable, PageTableFlags, PhysFrame,
        Size2MiB, Size4KiB, Translate,
    },
};

pub const PAGE: u64 = 4096;
pub const LARGE: u64 = 2 << 20;
/// Where targets begin: what is mapped is never touched, so it need not be there.
pub const TARGET: u64 = 0x40_0000_0000;

/// A page of zeros that lives as long as the process.
fn zeroed_page() -> NonNull<u8> {
    #[repr(align(4096))]
    struct Zeros([u8; PAGE as usize]);
    NonNull::from(Box::leak(Box::new(Zeros([0; PAGE as usize])))).cast()
}

/// Page tables under test, with leaves of 4 KiB.
pub trait Tables: Sized {
    /// How the results call them.
    const NAME: &'static str;

    /// Tables in which nothing is mapped, for leaves of 4 KiB, or of 2 MiB too.
    fn new(large: bool) -> Self;

    /// Maps `pages` of 4 KiB from `iova` on.
    fn map(&mut self, iova: u64, pages: u64);

    /// Unmaps them.
    fn unmap(&mut self, iova: u64, pages: u64);

    /// What is done beside the calls, by a worker or never.
    fn settle(&mut self) {}
}

/// Those that have larger leaves.
pub trait LargeTables: Tables {
    /// Maps `pages` of 2 MiB from `iova` on.
    fn map_large(&mut self, iova: u64, pages: u64);

    /// Unmaps them.
    fn unmap_large(&mut self, iova: u64, pages: u64);
}

/// Those that can be asked.
pub trait Lookup: Tables {
    /// Where a mapped address goes.
    fn translate(&mut self, iova: u64) -> u64;
}

type Pool = FramePool<AnonymousMemory, LinuxPlatform>;

/// framepool's builder over its pool, with everything that it does for drivers.
pub struct Framepool {
    pool: &'static Pool,
    domain: SecondStageDomain<&'static Pool>,
}

impl Tables for Framepool {
    const NAME: &'static str = "framepool";

    fn new(large: bool) -> Self {
        const FRAMES: u32 = 4096;
        let marks = Watermarks { min: 0, low: FRAMES / 2, high: FRAMES, max: FRAMES };
        let builder = Builder::new(FRAMES).watermarks(marks).fallback(FallbackPolicy::Never);
        let source = AnonymousMemory::new(FRAMES).expect("memory");
        let pool = Box::leak(Box::new(builder.build(source, LinuxPlatform::new()).expect("a pool")));
        let page_sizes = if large { PageSizes::SIZE_2M } else { PageSizes::empty() };
        let config = DomainConfig { page_sizes, ..DomainConfig::new(Levels::Four) };
        Self { pool, domain: SecondStageDomain::new(config, &*pool).expect("a domain") }
    }
    #[inline]
    fn map(&mut self, iova: u64, pages: u64) {
        let target = PhysAddr::new(TARGET + iova);
        // SAFETY: no hardware walks these tables.
        unsafe { self.domain.map(Iova::new(iova), target, pages * PAGE, Permissions::all()).expect("mapped") }
    }
    #[inline]
    fn unmap(&mut self, iova: u64, pages: u64) {
        let invalidation = self.domain.unmap(Iova::new(iova), pages * PAGE).expect("unmapped");
        // SAFETY: no hardware walks these tables.
        unsafe { invalidation.complete() }
    }
    fn settle(&mut self) {
        while self.pool.maintain().more {}
    }
}

impl LargeTables for Framepool {
    #[inline]
    fn map_large(&mut self, iova: u64, pages: u64) {
        self.map(iova, pages * (LARGE / PAGE));
    }
    #[inline]
    fn unmap_large(&mut self, iova: u64, pages: u64) {
        self.unmap(iova, pages * (LARGE / PAGE));
    }
}

impl Lookup for Framepool {
    #[inline]
    fn translate(&mut self, iova: u64) -> u64 {
        self.domain.translate(Iova::new(iova)).expect("mapped").target.as_u64()
    }
}

/// Pages of zeros at their own addresses, from a stack of one thread.
pub struct Pages(Vec<NonNull<u8>>);

impl Pages {
    fn new() -> Self {
        Self((0..600).map(|_| zeroed_page()).collect())
    }
}

// SAFETY: each page is handed out once.
unsafe impl FrameAllocator<Size4KiB> for Pages {
    #[inline]
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let page = self.0.pop()?;
        PhysFrame::from_start_address(x86_64::PhysAddr::new(page.as_ptr().expose_provenance() as u64)).ok()
    }
}

/// The crate x86_64, whose tables are not for several threads.
pub struct X86<A> {
    tables: OffsetPageTable<'static>,
    /// Where tables come from.
    pub pages: A,
}

impl<A: FrameAllocator<Size4KiB>> X86<A> {
    /// Over tables from `pages`.
    pub fn over(pages: A) -> Self {
        // SAFETY: a page of zeros is an empty table, and this one is nobody else's.
        let root: &'static mut PageTable = unsafe { zeroed_page().cast().as_mut() };
        // SAFETY: the tables are reached at their own addresses.
        Self { tables: unsafe { OffsetPageTable::new(root, VirtAddr::new(0)) }, pages }
    }

    #[inline]
    fn map_pages<Z: PageSize>(&mut self, iova: u64, target: u64, pages: u64)
    where
        OffsetPageTable<'static>: Mapper<Z>,
    {
        let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
        for page in 0..pages {
            let from = Page::<Z>::containing_address(VirtAddr::new(iova + page * Z::SIZE));
            let to = PhysFrame::containing_address(x86_64::PhysAddr::new(target + page * Z::SIZE));
            // SAFETY: no hardware walks these tables.
            unsafe {
                self.tables
                    .map_to(from, to, flags, &mut self.pages)
                    .map_or_else(|_| panic!("not mapped"), |flush| flush.ignore())
            };
        }
    }

    #[inline]
    fn unmap_pages<Z: PageSize>(&mut self, iova: u64, pages: u64)
    where
        OffsetPageTable<'static>: Mapper<Z>,
    {
        for page in 0..pages {
            let from = Page::<Z>::containing_address(VirtAddr::new(iova + page * Z::SIZE));
            self.tables.unmap(from).expect("unmapped").1.ignore();
        }
    }

    /// Maps pages of 4 KiB to memory from `target` on.
    #[inline]
    pub fn map_to(&mut self, iova: u64, target: u64, pages: u64) {
        self.map_pages::<Size4KiB>(iova, target, pages);
    }

    /// Unmaps them.
    #[inline]
    pub fn unmap(&mut self, iova: u64, pages: u64) {
        self.unmap_pages::<Size4KiB>(iova, pages);
    }
}

impl Tables for X86<Pages> {
    const NAME: &'static str = "x86_64";

    fn new(_: bool) -> Self {
        Self::over(Pages::new())
    }
    #[inline]
    fn map(&mut self, iova: u64, pages: u64) {
        self.map_to(iova, TARGET + iova, pages);
    }
    #[inline]
    fn unmap(&mut self, iova: u64, pages: u64) {
        X86::unmap(self, iova, pages);
    }
}

impl LargeTables for X86<Pages> {
    #[inline]
    fn map_large(&mut self, iova: u64, pages: u64) {
        self.map_pages::<Size2MiB>(iova, TARGET + iova, pages);
    }
    #[inline]
    fn unmap_large(&mut self, iova: u64, pages: u64) {
        self.unmap_pages::<Size2MiB>(iova, pages);
    }
}

impl Lookup for X86<Pages> {
    #[inline]
    fn translate(&mut self, iova: u64) -> u64 {
        self.tables.translate_addr(VirtAddr::new(iova)).expect("mapped").as_u64()
    }
}

/// Where page_table_multiarch's tables come from.
pub struct LeakedPages;

impl PagingHandler for LeakedPages {
    fn alloc_frames(count: usize, _: usize) -> Option<memory_addr::PhysAddr> {
        (count == 1).then(|| memory_addr::PhysAddr::from(zeroed_page().as_ptr().expose_provenance()))
    }
    fn dealloc_frames(_: memory_addr::PhysAddr, _: usize) {}
    #[inline]
    fn phys_to_virt(address: memory_addr::PhysAddr) -> memory_addr::VirtAddr {
        memory_addr::VirtAddr::from(address.as_usize())
    }
}

/// Four levels for nobody's TLB.
pub struct NoTlb;

impl PagingMetaData for NoTlb {
    const LEVELS: usize = 4;
    const PA_MAX_BITS: usize = 52;
    const VA_MAX_BITS: usize = 48;
    type VirtAddr = memory_addr::VirtAddr;
    #[inline]
    fn flush_tlb(_: Option<memory_addr::VirtAddr>) {}
}

/// page_table_multiarch, whose tables are not for several threads.
pub struct Multiarch(PageTable64<NoTlb, X64PTE, LeakedPages>);

impl Multiarch {
    #[inline]
    fn map_region(&mut self, iova: u64, bytes: u64, large: bool) {
        let target = |address: memory_addr::VirtAddr| {
            memory_addr::PhysAddr::from(TARGET as usize + address.as_usize())
        };
        let (from, rights) = ((iova as usize).into(), MappingFlags::READ | MappingFlags::WRITE);
        self.0.cursor().map_region(from, target, bytes as usize, rights, large).expect("mapped");
    }
}

impl Tables for Multiarch {
    const NAME: &'static str = "page_table_multiarch";

    fn new(_: bool) -> Self {
        Self(PageTable64::try_new().expect("a root"))
    }
    #[inline]
    fn map(&mut self, iova: u64, pages: u64) {
        self.map_region(iova, pages * PAGE, false);
    }
    #[inline]
    fn unmap(&mut self, iova: u64, pages: u64) {
        self.0.cursor().unmap_region((iova as usize).into(), (pages * PAGE) as usize).expect("unmapped");
    }
}

impl LargeTables for Multiarch {
    #[inline]
    fn map_large(&mut self, iova: u64, pages: u64) {
        self.map_region(iova, pages * MultiarchSize::Size2M as u64, true);
    }
    #[inline]
    fn unmap_large(&mut self, iova: u64, pages: u64) {
        self.unmap(iova, pages * (LARGE / PAGE));
    }
}

impl Lookup for Multiarch {
    #[inline]
    fn translate(&mut self, iova: u64) -> u64 {
        self.0.query((iova as usize).into()).expect("mapped").0.as_usize() as u64
    }
}

impl<A: PagingAttributes> Translation<A> for Pages {
    #[inline]
    fn allocate_table(&mut self) -> (NonNull<ArmTable<A>>, PhysicalAddress) {
        let page = self.0.pop().expect("a page");
        (page.cast(), PhysicalAddress(page.as_ptr().expose_provenance()))
    }
    unsafe fn deallocate_table(&mut self, table: NonNull<ArmTable<A>>) {
        // SAFETY: the caller gives the table up, which was one page.
        unsafe { table.cast::<u8>().write_bytes(0, PAGE as usize) };
        self.0.push(table.cast());
    }
    #[inline]
    fn physical_to_virtual(&self, address: PhysicalAddress) -> NonNull<ArmTable<A>> {
        NonNull::new(std::ptr::with_exposed_provenance_mut(address.0)).expect("a page of ours")
    }
}

/// aarch64-paging, whose tables are not for several threads.
pub struct Aarch64(RootTable<El1And0, Pages>);

impl Aarch64 {
    #[inline]
    fn write(&mut self, iova: u64, bytes: u64, attributes: El1Attributes, constraints: Constraints) {
        let region = MemoryRegion::new(iova as usize, (iova + bytes) as usize);
        let target = PhysicalAddress((TARGET + iova) as usize);
        assert!(self.0.map_range(&region, target, attributes, constraints).is_ok());
    }
}

/// What a leaf says that may be read and written.
const ARM_LEAF: El1Attributes = El1Attributes::VALID.union(El1Attributes::ACCESSED);

impl Tables for Aarch64 {
    const NAME: &'static str = "aarch64-paging";

    fn new(_: bool) -> Self {
        Self(RootTable::with_va_range(Pages::new(), 0, El1And0, VaRange::Lower))
    }
    #[inline]
    fn map(&mut self, iova: u64, pages: u64) {
        self.write(
            iova,
            pages * PAGE,
            ARM_LEAF,
            Constraints::NO_BLOCK_MAPPINGS | Constraints::NO_CONTIGUOUS_HINT,
        );
    }
    #[inline]
    fn unmap(&mut self, iova: u64, pages: u64) {
        let constraints = Constraints::NO_BLOCK_MAPPINGS | Constraints::NO_CONTIGUOUS_HINT;
        self.write(iova, pages * PAGE, El1Attributes::empty(), constraints);
    }
}

impl LargeTables for Aarch64 {
    #[inline]
    fn map_large(&mut self, iova: u64, pages: u64) {
        self.write(iova, pages * LARGE, ARM_LEAF, Constraints::NO_CONTIGUOUS_HINT);
    }
    #[inline]
    fn unmap_large(&mut self, iova: u64, pages: u64) {
        self.write(iova, pages * LARGE, El1Attributes::empty(), Constraints::NO_CONTIGUOUS_HINT);
    }
}

impl Lookup for Aarch64 {
    #[inline]
    fn translate(&mut self, iova: u64) -> u64 {
        let region = MemoryRegion::new(iova as usize, iova as usize + 1);
        let mut found = 0;
        let walked = self.0.walk_range(&region, &mut |_, descriptor, _| {
            found = descriptor.output_address().0;
            Ok(())
        });
        assert!(walked.is_ok());
        found as u64
    }
}

/// buddy_system_allocator behind a lock, over pages of its own.
pub struct BuddyPages {
    frames: Mutex<buddy_system_allocator::FrameAllocator<32>>,
}

impl BuddyPages {
    /// `pages` of them.
    pub fn new(pages: usize) -> Self {
        let bytes = pages * PAGE as usize;
        let layout = std::alloc::Layout::from_size_align(bytes, PAGE as usize).expect("a layout");
        // SAFETY: the layout is not empty. The memory is never given back.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        assert!(!start.is_null(), "no memory");
        let first = start.expose_provenance() / PAGE as usize;
        let mut frames = buddy_system_allocator::FrameAllocator::new();
        frames.add_frame(first, first + pages);
        Self { frames: Mutex::new(frames) }
    }
}

// SAFETY: each page is handed out once.
unsafe impl FrameAllocator<Size4KiB> for BuddyPages {
    #[inline]
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let frame = self.frames.lock().expect("no panic").alloc(1)?;
        PhysFrame::from_start_address(x86_64::PhysAddr::new(frame as u64 * PAGE)).ok()
    }
}
