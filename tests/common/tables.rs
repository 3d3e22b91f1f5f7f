//! An allocator of table frames for tests: real memory, every misuse noticed, failure on demand.

use framepool::{
    PhysAddr,
    vtd::{LineFlush, TableFrames},
};
use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    collections::HashSet,
    ptr::NonNull,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

const FRAME: Layout = match Layout::from_size_align(4096, 4096) {
    Ok(layout) => layout,
    Err(_) => unreachable!(),
};

/// Hands out frames of this process's memory and poisons those that come back.
#[derive(Debug)]
pub struct TestFrames {
    live: Mutex<HashSet<u64>>,
    idle: Mutex<Vec<u64>>,
    /// How many more allocations succeed.
    pub left: AtomicU64,
    pub leaked: AtomicU64,
}

impl Default for TestFrames {
    fn default() -> Self {
        Self {
            live: Mutex::default(),
            idle: Mutex::default(),
            left: AtomicU64::new(u64::MAX),
            leaked: AtomicU64::new(0),
        }
    }
}

impl TestFrames {
    pub fn live(&self) -> u64 {
        self.live.lock().unwrap().len() as u64
    }

    pub fn leaked_so_far(&self) -> u64 {
        self.leaked.load(SeqCst)
    }

    pub fn allow(&self, frames: u64) {
        self.left.store(frames, SeqCst);
    }

    /// The words of a table.
    pub fn words(&self, frame: PhysAddr) -> [u64; 512] {
        assert!(self.live.lock().unwrap().contains(&frame.as_u64()), "{frame} is no table");
        // SAFETY: the frame is live and 4 KiB large.
        unsafe { self.pointer(frame).cast::<[u64; 512]>().read_volatile() }
    }
}

// SAFETY: frames are live between allocate and free, which checks that they were; nothing here sleeps for long.
unsafe impl TableFrames for TestFrames {
    fn allocate(&self) -> Option<PhysAddr> {
        self.left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).ok()?;
        // Frames come back last in, first out, so that a frame freed too early is used again at once.
        let frame = match self.idle.lock().unwrap().pop() {
            Some(frame) => {
                // SAFETY: an idle frame is ours.
                unsafe { (frame as *mut u8).write_bytes(0, 4096) };
                frame
            }
            None => {
                // SAFETY: the layout has a size.
                let fresh = unsafe { alloc_zeroed(FRAME) };
                fresh as u64
            }
        };
        assert!(self.live.lock().unwrap().insert(frame));
        Some(PhysAddr::new(frame))
    }

    unsafe fn free(&self, frame: PhysAddr) {
        assert!(
            self.live.lock().unwrap().remove(&frame.as_u64()),
            "{frame} was freed twice, or never allocated"
        );
        // SAFETY: the caller gives the frame up.
        unsafe { (frame.as_u64() as *mut u8).write_bytes(0xAA, 4096) };
        self.idle.lock().unwrap().push(frame.as_u64());
    }

    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        NonNull::new(frame.as_u64() as *mut u8).unwrap()
    }

    fn leaked(&self, frames: u64) {
        self.leaked.fetch_add(frames, SeqCst);
    }
}

/// A flush for tests without hardware.
#[derive(Clone, Copy, Debug)]
pub struct NoHardware;

// SAFETY: there is nothing that would have to see it.
unsafe impl LineFlush for NoHardware {
    unsafe fn flush(&self, _start: NonNull<u8>, _bytes: usize) {}
}

impl Drop for TestFrames {
    fn drop(&mut self) {
        for frame in self.idle.get_mut().unwrap().drain(..) {
            // SAFETY: an idle frame is ours and came from `alloc_zeroed` with this layout.
            unsafe { dealloc(frame as *mut u8, FRAME) };
        }
    }
}

/// Every word of every table below `root`, by address: to compare bit for bit.
pub fn snapshot(frames: &TestFrames, root: PhysAddr, levels: u32) -> Vec<(u64, [u64; 512])> {
    let words = frames.words(root);
    let mut all = vec![(root.as_u64(), words)];
    if levels > 1 {
        for entry in words {
            if entry & 3 != 0 && entry & 0x80 == 0 {
                all.extend(snapshot(frames, PhysAddr::new(entry & 0x000F_FFFF_FFFF_F000), levels - 1));
            }
        }
    }
    all
}
