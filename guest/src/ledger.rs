//! Owns the proof that no frame has two owners: a stamp for each frame, beside the pool and in the frame itself.
//!
//! Whoever receives a frame exchanges its stamp for his own and must find it vacant; whoever gives one up exchanges it back and must
//! find his own, there and in the frame's memory. Every context may call it, at any instruction: a violation is noted, not printed.

use core::sync::atomic::{
    AtomicPtr, AtomicU32,
    Ordering::{AcqRel, Relaxed},
};
use framepool::PhysAddr;

/// The most frames whose owners are known.
const FRAMES: usize = 32 << 10;
const FRAME_SIZE: u64 = 4096;
const VACANT: u32 = 0;

static STAMPS: [AtomicU32; FRAMES] = [const { AtomicU32::new(VACANT) }; FRAMES];
static BASE: AtomicU32 = AtomicU32::new(0);
static OWNED: AtomicU32 = AtomicU32::new(0);
static VIOLATIONS: AtomicU32 = AtomicU32::new(0);
static FIRST: AtomicPtr<&'static str> = AtomicPtr::new(core::ptr::null_mut());

/// The frames from `base` on are known from now on.
pub fn begin(base: PhysAddr) {
    BASE.store((base.as_u64() / FRAME_SIZE) as u32, Relaxed);
}

/// Notes that something must not have happened.
pub fn violation(what: &'static &'static str) {
    VIOLATIONS.fetch_add(1, Relaxed);
    let _ =
        FIRST.compare_exchange(core::ptr::null_mut(), core::ptr::from_ref(what).cast_mut(), Relaxed, Relaxed);
}

/// Notes a violation unless `holds`.
pub fn demand(holds: bool, what: &'static &'static str) {
    if !holds {
        violation(what);
    }
}

/// How many violations there were, and what the first was.
pub fn violations() -> (u32, &'static str) {
    // SAFETY: only references to static strings are stored.
    let first = unsafe { FIRST.load(Relaxed).as_ref() };
    (VIOLATIONS.load(Relaxed), first.copied().unwrap_or("none"))
}

fn stamp(frame: PhysAddr) -> Option<&'static AtomicU32> {
    let number = (frame.as_u64() / FRAME_SIZE).wrapping_sub(u64::from(BASE.load(Relaxed)));
    STAMPS.get(number as usize)
}

/// The place in the frame where its owner's stamp stands: away from the first word, which the pool may use while it owns the frame.
fn mark(frame: PhysAddr) -> *mut u64 {
    (frame.as_u64() + FRAME_SIZE / 2) as *mut u64
}

fn signature(frame: PhysAddr, owner: u32) -> u64 {
    frame.as_u64() | u64::from(owner)
}

/// The frame `frame` now belongs to `owner` (1 to 4,095).
pub fn received(frame: PhysAddr, owner: u32) {
    let Some(stamp) = stamp(frame) else { return violation(&"a frame that no source has") };
    // Ordering: AcqRel; what the last owner wrote into the frame is behind its stamp.
    if stamp.swap(owner, AcqRel) != VACANT {
        violation(&"a frame was handed out twice");
    }
    OWNED.fetch_add(1, Relaxed);
    // SAFETY: the frame is ours, as the stamp says.
    unsafe { mark(frame).write_volatile(signature(frame, owner)) };
}

/// The frame `frame` belongs to `owner` no longer.
pub fn given_up(frame: PhysAddr, owner: u32) {
    let Some(stamp) = stamp(frame) else { return violation(&"a frame that no source has") };
    // SAFETY: the frame is still ours.
    if unsafe { mark(frame).read_volatile() } != signature(frame, owner) {
        violation(&"somebody wrote into a frame that was not his");
    }
    OWNED.fetch_sub(1, Relaxed);
    // Ordering: AcqRel; as in `received`.
    if stamp.swap(VACANT, AcqRel) != owner {
        violation(&"a frame changed hands without its owner");
    }
}

/// How many frames have an owner.
pub fn owned() -> u32 {
    OWNED.load(Relaxed)
}
