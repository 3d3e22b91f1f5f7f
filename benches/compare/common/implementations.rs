//! The pools that are compared: framepool with each way to own a cache, floors, and rivals.

use super::FRAMES;
use frame_alloc::{
    CpuId, DepotAllocator, PageSize, PhysicalAllocator, Provenance, RegionInit, SummaryBuddyAllocator,
};
use framepool::{
    AnonymousMemory, Builder, FallbackPolicy, Frame, FramePool, LinuxPlatform, PinnedThread, Platform,
    Request, ThreadPlatform, Watermarks,
};
use heapless::{
    box_pool,
    pool::boxed::{Box as Pooled, BoxBlock},
};
use lockfree_object_pool::{LinearObjectPool, LinearReusable};
use std::{
    alloc::{Layout, alloc},
    cell::Cell,
    num::NonZeroUsize,
    ptr::NonNull,
    sync::{
        Mutex, Once,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// A pool of frames under test.
pub trait Implementation: Sync + Sized {
    /// How the results call it.
    const NAME: &'static str;
    /// A frame that was taken.
    type Token<'p>: Send
    where
        Self: 'p;
    /// What a thread has of its own.
    type Thread<'p>
    where
        Self: 'p;

    /// A pool of [`FRAMES`] frames, or nothing if this machine has not what it needs.
    fn new() -> Option<Self>;

    /// What the calling thread needs to use the pool.
    fn enter(&self) -> Self::Thread<'_>;

    /// Takes a frame.
    fn take<'p>(&'p self, thread: &mut Self::Thread<'p>) -> Self::Token<'p>;

    /// Gives a frame back.
    fn give<'p>(&'p self, thread: &mut Self::Thread<'p>, token: Self::Token<'p>);

    /// Takes 64 frames into `tokens` and gives them back, by the call for many if there is one.
    #[inline]
    fn pass_64<'p>(&'p self, thread: &mut Self::Thread<'p>, tokens: &mut [Option<Self::Token<'p>>; 64]) {
        tokens.iter_mut().for_each(|place| *place = Some(self.take(thread)));
        std::hint::black_box(&tokens);
        tokens.iter_mut().filter_map(Option::take).for_each(|token| self.give(thread, token));
    }
}

/// What framepool is built with: every frame there from the beginning, so that nothing but the caches and the depot is at work.
fn build<P: Platform>(platform: P, caches: usize) -> FramePool<AnonymousMemory, P> {
    let marks = Watermarks { min: 0, low: 0, high: FRAMES, max: FRAMES };
    let builder = Builder::new(FRAMES).watermarks(marks).fallback(FallbackPolicy::Never).cpus(caches);
    builder.build(AnonymousMemory::new(FRAMES).expect("memory"), platform).expect("a pool")
}

/// framepool, as each implementation has it.
macro_rules! framepool {
    ($type:ident, $name:literal, $platform:ty, $thread:ty, $new:expr, $enter:expr) => {
        /// framepool.
        pub struct $type(FramePool<AnonymousMemory, $platform>);

        impl Implementation for $type {
            const NAME: &'static str = $name;
            type Token<'p> = Frame<'p, AnonymousMemory, $platform>;
            type Thread<'p> = $thread;

            fn new() -> Option<Self> {
                $new.map(Self)
            }
            fn enter(&self) -> Self::Thread<'_> {
                $enter(&self.0)
            }
            #[inline(always)]
            fn take<'p>(&'p self, _: &mut Self::Thread<'p>) -> Self::Token<'p> {
                self.0.alloc().expect("a frame")
            }
            #[inline(always)]
            fn give<'p>(&'p self, _: &mut Self::Thread<'p>, token: Self::Token<'p>) {
                drop(token);
            }
            #[inline]
            fn pass_64<'p>(&'p self, _: &mut Self::Thread<'p>, tokens: &mut [Option<Self::Token<'p>>; 64]) {
                self.0.alloc_bulk_exact(Request::ORDINARY, tokens).expect("frames");
                std::hint::black_box(&tokens);
                self.0.free_bulk(tokens);
            }
        }

        impl Reentrant for $type {
            fn take_anywhere(&self) -> Option<Self::Token<'_>> {
                self.0.alloc().ok()
            }
            fn give_anywhere<'p>(&'p self, token: Self::Token<'p>) {
                drop(token);
            }
            fn number(token: &Self::Token<'_>) -> usize {
                token.phys_addr().as_u64() as usize >> 12
            }
        }

        impl Zeroed for $type {
            #[inline(always)]
            fn pass_zeroed<'p>(&'p self, _: &mut Self::Thread<'p>) {
                let frame = std::hint::black_box(self.0.alloc_zeroed().expect("a frame"));
                // SAFETY: nobody wrote to it.
                unsafe { frame.free_zeroed() };
            }
        }
    };
}

/// A pool that is used by a signal handler while a call of the thread is in progress, whether it bears that or not.
pub trait Reentrant: Implementation {
    /// Takes a frame, if there is one.
    fn take_anywhere(&self) -> Option<Self::Token<'_>>;

    /// Gives a frame back.
    fn give_anywhere<'p>(&'p self, token: Self::Token<'p>);

    /// A number that no other frame of the pool has.
    fn number(token: &Self::Token<'_>) -> usize;
}

/// A pool that knows of frames that are zero.
pub trait Zeroed: Implementation {
    /// Takes a zeroed frame and gives it back, as it is.
    fn pass_zeroed<'p>(&'p self, thread: &mut Self::Thread<'p>);
}

fn cpus() -> usize {
    LinuxPlatform::possible_cpus()
}

framepool!(
    Rseq,
    "framepool-rseq",
    LinuxPlatform,
    (),
    Some(LinuxPlatform::new())
        .filter(LinuxPlatform::uses_restartable_sequences)
        .map(|platform| build(platform, cpus() + 1)),
    |_| ()
);
framepool!(
    Claim,
    "framepool-claim",
    LinuxPlatform,
    (),
    Some(build(LinuxPlatform::claiming(), cpus())),
    |_| ()
);
framepool!(
    Pinned,
    "framepool-pinned",
    ThreadPlatform,
    PinnedThread<'p, AnonymousMemory>,
    ThreadPlatform::new(THREADS).ok().map(|platform| build(platform, THREADS as usize + cpus())),
    enter_pinned
);

/// The most threads at a time, each of which has a cache of its own.
const THREADS: u32 = 16;

fn enter_pinned(pool: &FramePool<AnonymousMemory, ThreadPlatform>) -> PinnedThread<'_, AnonymousMemory> {
    pool.pin_thread().expect("a cache")
}

/// The floor: a vector of each thread's own, without any protection.
pub struct FloorVec;

impl Implementation for FloorVec {
    const NAME: &'static str = "floor-vec";
    type Token<'p> = u64;
    type Thread<'p> = Vec<u64>;

    fn new() -> Option<Self> {
        Some(Self)
    }
    fn enter(&self) -> Vec<u64> {
        (0..u64::from(FRAMES)).map(|number| number << 12).collect()
    }
    #[inline(always)]
    fn take(&self, thread: &mut Vec<u64>) -> u64 {
        thread.pop().expect("a frame")
    }
    #[inline(always)]
    fn give(&self, thread: &mut Vec<u64>, token: u64) {
        thread.push(token);
    }
}

/// The floor of a claim: a stack of each thread's own, whose length is exchanged for a mark and stored back.
pub struct FloorTwoExchanges;

/// The stack of one thread.
pub struct ClaimedStack {
    length: AtomicU64,
    frames: Box<[u64]>,
}

const TAKEN: u64 = u64::MAX;

impl Implementation for FloorTwoExchanges {
    const NAME: &'static str = "floor-two-xchg";
    type Token<'p> = u64;
    type Thread<'p> = ClaimedStack;

    fn new() -> Option<Self> {
        Some(Self)
    }
    fn enter(&self) -> ClaimedStack {
        let frames = (0..u64::from(FRAMES)).map(|number| number << 12).collect();
        ClaimedStack { length: AtomicU64::new(FRAMES.into()), frames }
    }
    #[inline(always)]
    fn take(&self, thread: &mut ClaimedStack) -> u64 {
        // Ordering: Acquire and Release, as a claim has them.
        let length = thread.length.swap(TAKEN, Ordering::Acquire);
        let frame = thread.frames[length as usize - 1];
        thread.length.store(length - 1, Ordering::Release);
        frame
    }
    #[inline(always)]
    fn give(&self, thread: &mut ClaimedStack, token: u64) {
        // Ordering: as above.
        let length = thread.length.swap(TAKEN, Ordering::Acquire);
        thread.frames[length as usize] = token;
        thread.length.store(length + 1, Ordering::Release);
    }
}

/// A rival that is one shared value, with frames by their numbers.
macro_rules! shared {
    ($(#[$doc:meta])* $type:ident($inner:ty), $name:literal, $token:ty, $new:expr, $take:expr, $give:expr, $number:expr) => {
        $(#[$doc])*
        pub struct $type($inner);

        impl Implementation for $type {
            const NAME: &'static str = $name;
            type Token<'p> = $token;
            type Thread<'p> = ();

            fn new() -> Option<Self> {
                Some(Self($new))
            }
            fn enter(&self) {
                CPU.set(NEXT_CPU.fetch_add(1, Ordering::Relaxed) % 2);
            }
            #[inline(always)]
            fn take<'p>(&'p self, (): &mut ()) -> Self::Token<'p> {
                $take(&self.0).expect("a frame")
            }
            #[inline(always)]
            fn give<'p>(&'p self, (): &mut (), token: Self::Token<'p>) {
                $give(&self.0, token);
            }
        }

        impl Reentrant for $type {
            fn take_anywhere(&self) -> Option<Self::Token<'_>> {
                $take(&self.0)
            }
            fn give_anywhere<'p>(&'p self, token: Self::Token<'p>) {
                $give(&self.0, token);
            }
            fn number(token: &Self::Token<'_>) -> usize {
                $number(token)
            }
        }
    };
}

thread_local! {
    /// The CPU that a thread passes for, where a rival asks.
    static CPU: Cell<usize> = const { Cell::new(0) };
}
static NEXT_CPU: AtomicUsize = AtomicUsize::new(0);

/// It grows instead of having none.
fn some_object(pool: &LinearObjectPool<u64>) -> Option<LinearReusable<'_, u64>> {
    Some(pool.pull())
}

fn address(frame: &u64) -> usize {
    *frame as usize >> 12
}

fn frame_numbers() -> impl Iterator<Item = u64> {
    (0..u64::from(FRAMES)).map(|number| number << 12)
}

shared!(
    /// crossbeam's bounded queue.
    ArrayQueue(crossbeam_queue::ArrayQueue<u64>), "array-queue", u64,
    {
        let queue = crossbeam_queue::ArrayQueue::new(FRAMES as usize);
        frame_numbers().for_each(|frame| queue.push(frame).expect("room"));
        queue
    },
    |queue: &crossbeam_queue::ArrayQueue<u64>| queue.pop(),
    |queue: &crossbeam_queue::ArrayQueue<u64>, frame| queue.push(frame).expect("room"),
    address
);
shared!(
    /// crossbeam's unbounded queue.
    SegQueue(crossbeam_queue::SegQueue<u64>), "seg-queue", u64,
    {
        let queue = crossbeam_queue::SegQueue::new();
        frame_numbers().for_each(|frame| queue.push(frame));
        queue
    },
    |queue: &crossbeam_queue::SegQueue<u64>| queue.pop(),
    |queue: &crossbeam_queue::SegQueue<u64>, frame| queue.push(frame),
    address
);
shared!(
    /// A vector behind a mutex.
    MutexVec(Mutex<Vec<u64>>), "mutex-vec", u64,
    Mutex::new(frame_numbers().collect()),
    |frames: &Mutex<Vec<u64>>| frames.lock().expect("no panic").pop(),
    |frames: &Mutex<Vec<u64>>, frame| frames.lock().expect("no panic").push(frame),
    address
);
shared!(
    /// lockfree-object-pool.
    ObjectPool(LinearObjectPool<u64>), "lockfree-object-pool", LinearReusable<'p, u64>,
    LinearObjectPool::new(|| 0, |_| ()),
    some_object,
    |_: &LinearObjectPool<u64>, frame| drop(frame),
    |frame: &LinearReusable<'_, u64>| std::ptr::from_ref::<u64>(frame).addr() / size_of::<u64>()
);
shared!(
    /// buddy_system_allocator.
    Buddy(buddy_system_allocator::LockedFrameAllocator<32>), "buddy-system", usize,
    {
        let frames = buddy_system_allocator::LockedFrameAllocator::new();
        frames.lock().add_frame(0, FRAMES as usize);
        frames
    },
    |frames: &buddy_system_allocator::LockedFrameAllocator<32>| frames.lock().alloc(1),
    |frames: &buddy_system_allocator::LockedFrameAllocator<32>, frame| frames.lock().dealloc(frame, 1),
    |&frame: &usize| frame
);
shared!(
    /// slitter.
    Slitter(native::Slitter), "slitter", native::Block,
    native::Slitter::new(),
    |class: &native::Slitter| Some(class.take()),
    native::Slitter::give,
    native::Block::number
);
shared!(
    /// mimalloc.
    Mimalloc(()), "mimalloc", native::Block, (), |(): &()| Some(native::MIMALLOC.take()), |(): &(), block| native::MIMALLOC.give(block),
    native::Block::number
);
shared!(
    /// jemalloc.
    Jemalloc(()), "jemalloc", native::Block, (), |(): &()| Some(native::JEMALLOC.take()), |(): &(), block| native::JEMALLOC.give(block),
    native::Block::number
);

box_pool!(HeaplessFrames: u64);

shared!(
    /// heapless.
    Heapless(()), "heapless-pool", Pooled<HeaplessFrames>,
    {
        static MANAGED: Once = Once::new();
        MANAGED.call_once(|| {
            let blocks: Vec<_> = (0..FRAMES).map(|_| BoxBlock::new()).collect();
            blocks.leak().iter_mut().for_each(|block| HeaplessFrames.manage(block));
        });
    },
    |(): &()| HeaplessFrames.alloc(0).ok(),
    |(): &(), frame: Pooled<HeaplessFrames>| drop(frame),
    |frame: &Pooled<HeaplessFrames>| std::ptr::from_ref::<u64>(frame).addr() / size_of::<u64>()
);

/// What frame-alloc asks of a kernel.
pub struct Kernel;

// SAFETY: the region is memory of this process, at its own address.
unsafe impl Provenance for Kernel {
    unsafe fn create(phys: usize) -> NonNull<u8> {
        // SAFETY: the caller's address is in the region.
        unsafe { NonNull::new_unchecked(std::ptr::with_exposed_provenance_mut(phys)) }
    }
    unsafe fn destroy<T>(p: NonNull<T>) -> usize {
        p.addr().get()
    }
}

impl CpuId for Kernel {
    #[inline(always)]
    fn current_cpu() -> usize {
        CPU.get()
    }
}

const BASE: PageSize = PageSize::from_log2(12);
const ONE: NonZeroUsize = NonZeroUsize::MIN;

type FrameAllocator = DepotAllocator<SummaryBuddyAllocator<11, Kernel>, Kernel, 2, 128, 512>;

shared!(
    /// frame-alloc: its depot over its buddies.
    FrameAlloc(Box<FrameAllocator>), "frame-alloc", usize,
    {
        let frames = Box::new(FrameAllocator::new(BASE, SummaryBuddyAllocator::new(BASE)));
        let bytes = (FRAMES as usize) << 12;
        let layout = Layout::from_size_align(bytes, 4 << 20).expect("a layout");
        // SAFETY: the layout is not empty. The memory is never given back.
        let region = unsafe { alloc(layout) };
        assert!(!region.is_null(), "no memory");
        // SAFETY: called once, with memory of our own that the provider reaches at its address.
        unsafe { frames.init_region(region.expose_provenance(), bytes) };
        frames
    },
    |frames: &FrameAllocator| frames.allocate_physical(BASE, ONE).ok(),
    // SAFETY: each frame was taken above, and goes back once.
    |frames: &FrameAllocator, frame| unsafe { frames.deallocate_physical(BASE, ONE, frame) },
    |&frame: &usize| frame >> 12
);
