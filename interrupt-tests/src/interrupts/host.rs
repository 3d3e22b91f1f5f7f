//! A machine of two CPUs, and the memory of a small pool.

use framepool::{Claim, FramePool, FrameSource, PhysAddr, Platform, SourceError};
use std::{
    cell::UnsafeCell,
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst},
};

/// Frames of memory behind the pool; at most 64, so that one word says which are out.
pub const FRAMES: usize = 48;
pub const FRAME: usize = 4096;
/// The physical address of the first of them.
const BASE: u64 = 0x10_0000;

/// Which CPU the code runs on, and whether the worker has been rung.
#[derive(Debug, Default)]
pub struct Host {
    pub cpu: AtomicUsize,
    pub rung: AtomicBool,
    pub rings: AtomicU32,
}

impl Platform for Host {
    type Ownership = Claim;
    #[inline]
    fn ownership(&self) -> &Claim {
        &Claim
    }
    #[inline]
    fn current_cpu(&self) -> usize {
        self.cpu.load(SeqCst)
    }
    fn ring(&self) {
        self.rings.fetch_add(1, SeqCst);
        self.rung.store(true, SeqCst);
    }
}

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u64; FRAME / 8]>);

/// The memory of all frames, used by one pool after the other.
pub struct Memory {
    pages: Box<[Page; FRAMES]>,
    /// The last random number.
    random: AtomicU32,
}

// SAFETY: each page is reached through the frame that stands for it, which has one owner; that this is so is what is tested, with
// stamps that are atomics.
unsafe impl Sync for Memory {}

impl Default for Memory {
    fn default() -> Self {
        let pages: Vec<_> = (0..FRAMES).map(|_| Page(UnsafeCell::new([0; FRAME / 8]))).collect();
        Self { pages: pages.try_into().ok().unwrap(), random: AtomicU32::new(1) }
    }
}

impl Memory {
    /// A random number, the next of a series that is the same for every memory: a linear congruential generator (Knuth, The Art of
    /// Computer Programming, volume 2, section 3.2.1) of which the upper bits are of use.
    fn random(&self) -> u32 {
        let next = self.random.load(SeqCst).wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.random.store(next, SeqCst);
        next
    }
}

/// The source: notices a frame that comes back twice, and can be told to have nothing.
pub struct Supply<'m> {
    memory: &'m Memory,
    /// One bit for each frame that the pool or its users have.
    out: AtomicU64,
    pub failing: AtomicBool,
    pub returned_twice: AtomicBool,
}

impl<'m> Supply<'m> {
    pub fn new(memory: &'m Memory) -> Self {
        let (failing, returned_twice) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { memory, out: AtomicU64::new(0), failing, returned_twice }
    }

    /// The memory behind it.
    pub fn memory(&self) -> &'m Memory {
        self.memory
    }

    /// A random number, see [`Memory::random`].
    pub fn random(&self) -> u32 {
        self.memory.random()
    }

    /// Whether the frame `number` is with the pool or its users.
    pub fn is_out(&self, number: usize) -> bool {
        self.out.load(SeqCst) & 1 << number != 0
    }

    pub fn out(&self) -> u32 {
        self.out.load(SeqCst).count_ones()
    }
}

/// Which frame an address is, if it is one.
pub fn number_of(frame: PhysAddr) -> Option<usize> {
    let distance = usize::try_from(frame.as_u64().checked_sub(BASE)?).ok()?;
    (distance % FRAME == 0 && distance / FRAME < FRAMES).then_some(distance / FRAME)
}

pub fn address_of(number: usize) -> PhysAddr {
    PhysAddr::new(BASE + (number * FRAME) as u64)
}

// SAFETY: a frame is out at most once, every frame of the memory is mapped, and nothing here sleeps, locks, allocates or panics.
unsafe impl FrameSource for Supply<'_> {
    fn supply(&self, frames: &mut [PhysAddr]) -> Result<usize, SourceError> {
        let mut supplied = 0;
        for (place, frame) in frames.iter_mut().zip(std::iter::from_fn(|| self.try_supply())) {
            *place = frame;
            supplied += 1;
        }
        if supplied == 0 {
            Err(SourceError::new("every frame is out, or the test says so"))
        } else {
            Ok(supplied)
        }
    }
    fn try_supply(&self) -> Option<PhysAddr> {
        if self.failing.load(SeqCst) {
            return None;
        }
        let lowest = |out: u64| Some(out | (out + 1)).filter(|_| out.trailing_ones() < FRAMES as u32);
        let out = self.out.fetch_update(SeqCst, SeqCst, lowest).ok()?;
        Some(address_of(out.trailing_ones() as usize))
    }
    unsafe fn reclaim(&self, frames: &[PhysAddr]) {
        for &frame in frames {
            let bit = number_of(frame).map_or(0, |number| 1 << number);
            if self.out.fetch_and(!bit, SeqCst) & bit == 0 {
                self.returned_twice.store(true, SeqCst);
            }
        }
    }
    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        let page = &self.memory.pages[number_of(frame).unwrap_or(0)];
        NonNull::new(page.0.get().cast()).unwrap_or(NonNull::dangling())
    }
    fn base(&self) -> PhysAddr {
        PhysAddr::new(BASE)
    }
}

pub type Pool<'m> = FramePool<Supply<'m>, Host>;
