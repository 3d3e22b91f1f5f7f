//! A kernel as the host of a pool: all that it brings, in `kernel`, which names `core` only and needs no heap; and a machine around it,
//! whose timer interrupts are function calls. On a real machine: `guest/src/host.rs`; linked without any library: `tests/no_std`.
//!
//! `cargo run --example kernel`

#![no_std]
#![allow(unreachable_pub, reason = "a program: nothing of it is reachable from elsewhere")]

extern crate std;

/// What a kernel writes.
mod kernel {
    use core::{
        cell::UnsafeCell,
        mem::MaybeUninit,
        ptr::NonNull,
        sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    };
    use framepool::{
        Builder, Claim, Frame, FramePool, FrameSource, PhysAddr, Platform, SourceError, StaticPool,
        Watermarks,
        vtd::{DomainConfig, Iova, Levels, MapError, Permissions, SecondStageDomain},
    };

    /// Physical memory: 128 frames.
    const FRAMES: usize = 128;
    const FRAME: usize = 4096;

    #[repr(C, align(4096))]
    struct Memory(UnsafeCell<[MaybeUninit<u8>; FRAMES * FRAME]>);

    // SAFETY: it is reached through frames only, each of which has one owner.
    unsafe impl Sync for Memory {}

    static MEMORY: Memory = Memory(UnsafeCell::new([MaybeUninit::uninit(); FRAMES * FRAME]));

    /// The page allocator: a bit for each frame, set while it is taken. A kernel has something better; what counts is that nothing here
    /// waits.
    pub struct PageAllocator([AtomicU64; FRAMES / 64]);

    static PAGES: PageAllocator = PageAllocator([const { AtomicU64::new(0) }; FRAMES / 64]);

    impl PageAllocator {
        fn take(&self) -> Option<PhysAddr> {
            for (index, word) in self.0.iter().enumerate() {
                let lowest_free = |bits: u64| (bits != u64::MAX).then(|| bits | (bits + 1));
                if let Ok(before) = word.fetch_update(SeqCst, SeqCst, lowest_free) {
                    let number = index * 64 + before.trailing_ones() as usize;
                    return Some(PhysAddr::new((number * FRAME) as u64));
                }
            }
            None
        }
    }

    /// The pool's way to the page allocator.
    pub struct Pages(&'static PageAllocator);

    // SAFETY: a frame whose bit is set belongs to whoever set it; memory is mapped one to one, at MEMORY; nothing waits.
    unsafe impl FrameSource for Pages {
        fn supply(&self, frames: &mut [PhysAddr]) -> Result<usize, SourceError> {
            // A kernel may sleep here, until it has reclaimed something.
            let mut supplied = 0;
            for (place, frame) in frames.iter_mut().zip(core::iter::from_fn(|| self.0.take())) {
                *place = frame;
                supplied += 1;
            }
            if supplied == 0 { Err(SourceError::new("no page is free")) } else { Ok(supplied) }
        }
        fn try_supply(&self) -> Option<PhysAddr> {
            self.0.take()
        }
        unsafe fn reclaim(&self, frames: &[PhysAddr]) {
            for frame in frames {
                let number = frame.as_u64() as usize / FRAME;
                self.0.0[number / 64].fetch_and(!(1 << (number % 64)), SeqCst);
            }
        }
        fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
            let start = NonNull::from(&MEMORY.0).cast::<u8>();
            // SAFETY: the pool asks for frames that were handed out, which lie in the memory.
            unsafe { start.byte_add(frame.as_u64() as usize) }
        }
    }

    /// This CPU, and the bell of the thread that refills the pool: here, the idle loop.
    pub struct Machine;

    static REFILL_WANTED: AtomicBool = AtomicBool::new(false);

    impl Platform for Machine {
        type Ownership = Claim;
        fn ownership(&self) -> &Claim {
            &Claim
        }
        fn current_cpu(&self) -> usize {
            // A read of a per-CPU variable. Only a hint: the wrong number costs time.
            0
        }
        fn ring(&self) {
            REFILL_WANTED.store(true, SeqCst);
        }
    }

    static POOL: StaticPool<Pages, Machine> = StaticPool::new();
    /// Frames whose owner is an interrupt handler, as bare addresses.
    static HELD: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
    pub static DENIED: AtomicUsize = AtomicUsize::new(0);

    /// Once, before interrupts are let in. Handlers that come earlier find no pool, and say so.
    pub fn boot(bookkeeping: &'static mut [MaybeUninit<u8>]) -> Option<&'static FramePool<Pages, Machine>> {
        // A page that is never handed out, so that no frame has the address 0.
        PAGES.take()?;
        let watermarks = Watermarks { min: 4, low: 16, high: 32, max: 64 };
        let builder = Builder::new(FRAMES as u32).cpus(1).watermarks(watermarks).magazine_size(7);
        let pool = builder.build_in(bookkeeping, Pages(&PAGES), Machine).ok()?;
        POOL.init(pool).ok()?;
        POOL.get()
    }

    /// A device wants a buffer, or is done with one.
    pub fn interrupt(number: usize) {
        let Some(pool) = POOL.get() else { return };
        let place = &HELD[number % HELD.len()];
        match place.swap(0, SeqCst) {
            0 => match pool.alloc() {
                Ok(frame) => place.store(frame.into_raw().as_u64(), SeqCst),
                Err(_) => _ = DENIED.fetch_add(1, SeqCst),
            },
            // SAFETY: an interrupt laid it down here, and took it away just now.
            held => drop(unsafe { Frame::from_raw(pool, PhysAddr::new(held)) }),
        }
    }

    /// What a CPU does when it has nothing to do.
    pub fn idle() {
        if let Some(pool) = POOL.get()
            && REFILL_WANTED.swap(false, SeqCst)
        {
            pool.maintain();
        }
    }

    /// A driver lets a device write to a page, and takes it back.
    pub fn let_a_device_write(page: PhysAddr) -> Result<u64, MapError> {
        let Some(pool) = POOL.get() else { return Ok(0) };
        let Ok(domain) = SecondStageDomain::new(DomainConfig::new(Levels::Three), pool) else { return Ok(0) };
        // SAFETY: the page is the caller's, and there is no device.
        unsafe { domain.map(Iova::new(0x1000), page, 4096, Permissions::WRITE)? };
        let tables = domain.table_frames();
        if let Ok(invalidation) = domain.unmap(Iova::new(0x1000), 4096) {
            // The unit is told here, and waited for.
            // SAFETY: there is no unit.
            unsafe { invalidation.complete() };
        }
        // SAFETY: as above.
        unsafe { domain.close().complete() };
        Ok(tables)
    }
}

use core::{mem::MaybeUninit, sync::atomic::Ordering::SeqCst};
use std::{boxed::Box, error::Error, println};

/// The machine: runs the kernel with a timer interrupt now and then.
fn main() -> Result<(), Box<dyn Error>> {
    kernel::interrupt(0); // too early, and harmless
    let bookkeeping = Box::leak(Box::new([MaybeUninit::uninit(); 1 << 15]));
    let pool = kernel::boot(bookkeeping).ok_or("the bookkeeping does not fit")?;
    for number in 0..10_000 {
        kernel::interrupt(number * 7);
        if number % 16 == 0 {
            kernel::idle();
        }
    }
    let page = pool.alloc()?;
    println!("a map took {} table frames", kernel::let_a_device_write(page.phys_addr())?);
    drop(page);
    println!("10000 interrupts, {} without a frame\n{}", kernel::DENIED.load(SeqCst), pool.stats());
    Ok(())
}
