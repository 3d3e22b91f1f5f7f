//! Threads that no library knows, and frames each of which is a block of the heap: what sanitizers follow best.

use framepool::{FrameSource, PhysAddr, SourceError};
use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    mem,
    ptr::{self, NonNull},
    sync::atomic::{AtomicBool, AtomicPtr, Ordering::Relaxed},
};

/// Bytes of a frame.
pub const FRAME: u64 = 4096;

const LAYOUT: Layout = match Layout::from_size_align(FRAME as usize, FRAME as usize) {
    Ok(layout) => layout,
    Err(_) => unreachable!(),
};

/// Runs `body` on `threads` threads at once, with their numbers, and waits for all of them.
///
/// Threads of the system itself, which a sanitizer sees begin and end: those of `std` begin and end in code that was built without it,
/// and what they hand over seems unordered.
///
/// # Panics
/// If the system refuses a thread. A panic of `body` ends the process.
pub fn on_threads<F: Fn(usize) + Sync>(threads: usize, body: F) {
    struct Start<'b, F>(&'b F, usize);

    extern "C" fn run<F: Fn(usize) + Sync>(start: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: `on_threads` passes one of its starts, which live until this thread was waited for.
        let start = unsafe { &*start.cast::<Start<'_, F>>() };
        start.0(start.1);
        ptr::null_mut()
    }

    let mut starts: Vec<_> = (0..threads).map(|number| Start(&body, number)).collect();
    let begin = |start: &mut Start<'_, F>| {
        let mut thread = mem::MaybeUninit::uninit();
        let argument = ptr::from_mut(start).cast();
        // SAFETY: the argument is what `run` takes, and lives until the thread was waited for, below.
        let refused = unsafe { libc::pthread_create(thread.as_mut_ptr(), ptr::null(), run::<F>, argument) };
        assert_eq!(refused, 0, "the system refuses a thread");
        // SAFETY: the thread was made.
        unsafe { thread.assume_init() }
    };
    let threads: Vec<libc::pthread_t> = starts.iter_mut().map(begin).collect();
    for thread in threads {
        // SAFETY: each thread was made above, and is waited for once.
        assert_eq!(unsafe { libc::pthread_join(thread, ptr::null_mut()) }, 0);
    }
}

/// A source whose frames are blocks of the heap, each of which goes back to the heap when the pool gives it back.
#[derive(Debug)]
pub struct Heap {
    /// Where each frame is or was: who comes too late finds what is no more, as in a map of all memory.
    blocks: Box<[AtomicPtr<u8>]>,
    out: Box<[AtomicBool]>,
}

impl Heap {
    /// A source of up to `frames` frames.
    pub fn new(frames: u32) -> Self {
        let blocks = (0..frames).map(|_| AtomicPtr::default()).collect();
        Self { blocks, out: (0..frames).map(|_| AtomicBool::default()).collect() }
    }

    /// How many frames are out.
    pub fn out(&self) -> usize {
        self.out.iter().filter(|out| out.load(Relaxed)).count()
    }

    fn number(frame: PhysAddr) -> usize {
        (frame.as_u64() / FRAME) as usize
    }
}

// SAFETY: a frame is a block of its own from `supply` to `reclaim`. Nothing is supplied without sleeping.
unsafe impl FrameSource for Heap {
    fn supply(&self, frames: &mut [PhysAddr]) -> Result<usize, SourceError> {
        let vacant = (0..self.out.len()).filter(|&number| !self.out[number].load(Relaxed));
        let mut supplied = 0;
        for (place, number) in frames.iter_mut().zip(vacant) {
            // SAFETY: the layout has a size.
            let fresh = unsafe { alloc_zeroed(LAYOUT) };
            if fresh.is_null() {
                break;
            }
            // Ordering: Relaxed, so that it is the pool that makes the frame known to others. One pass at a time supplies.
            self.blocks[number].store(fresh, Relaxed);
            self.out[number].store(true, Relaxed);
            *place = PhysAddr::new(number as u64 * FRAME);
            supplied += 1;
        }
        if supplied == 0 { Err(SourceError::new("all frames are out")) } else { Ok(supplied) }
    }

    fn try_supply(&self) -> Option<PhysAddr> {
        None
    }

    unsafe fn reclaim(&self, frames: &[PhysAddr]) {
        for &frame in frames {
            // Ordering: Relaxed, so that it is the pool that orders this behind all uses of the frame.
            self.out[Self::number(frame)].store(false, Relaxed);
            let block = self.blocks[Self::number(frame)].load(Relaxed);
            // SAFETY: `supply` allocated the block, and the caller says that nobody reaches it any more.
            unsafe { dealloc(block, LAYOUT) };
        }
    }

    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        // Ordering: Relaxed; who has the frame sees where it is, as it sees what is in it.
        NonNull::new(self.blocks[Self::number(frame)].load(Relaxed)).expect("the frame was supplied once")
    }

    fn supplies_zeroed(&self) -> bool {
        true
    }
}
