//! Owns the largest number of instructions that each operation took, in each context.

use super::{
    Part,
    observation::{away, now},
};
use crate::say;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Where an operation runs.
#[derive(Clone, Copy)]
pub enum Context {
    /// In a thread, never interrupted.
    Alone,
    /// In a thread, interrupted once; the handler's instructions are not counted.
    Interrupted,
    /// In the handler of an interrupt.
    Interrupt,
    /// In the handler of an NMI.
    Nmi,
}

const CONTEXTS: usize = 4;

/// The operations of pool and builder.
#[derive(Clone, Copy, PartialEq)]
pub enum Operation {
    Alloc,
    AllocZeroed,
    Free,
    FreeZeroed,
    AllocBulk,
    FreeBulk,
    Reserve,
    Draw,
    DropReservation,
    QuotaAlloc,
    QuotaFree,
    Stats,
    Maintain,
    Vacate,
    DrainCpu,
    ShrinkTo,
    Map,
    MapPages,
    Protect,
    Join,
    Unmap,
    Complete,
    Reclaim,
    Preallocate,
    Release,
    Translate,
    Mappings,
    Dump,
    Share,
    Withdraw,
    Attach,
    Detach,
    AttachDevice,
    DetachDevice,
    AttachPasid,
    DetachPasid,
    CompleteDetached,
}

impl Operation {
    /// Which sweep observes it.
    pub fn part(self) -> Part {
        if (self as usize) < Self::Map as usize { Part::Pool } else { Part::Builder }
    }
}

/// What the documents promise: the most instructions of each operation in each context (alone, interrupted, in an interrupt, in an
/// NMI), in the situations of the sweep; those of the frame source and the clearing of tables are among them. Measured with the
/// compiler named in the documents, and a quarter for others.
const LIMITS: [(Operation, &str, [u64; CONTEXTS]); 37] = [
    (Operation::Alloc, "alloc", [1900, 1900, 1900, 1900]),
    (Operation::AllocZeroed, "alloc_zeroed", [1200, 2700, 1100, 0]),
    (Operation::Free, "free", [350, 420, 420, 360]),
    (Operation::FreeZeroed, "free_zeroed", [60, 60, 220, 0]),
    (Operation::AllocBulk, "alloc_bulk", [2200, 10400, 6200, 0]),
    (Operation::FreeBulk, "free_bulk", [670, 1300, 1300, 0]),
    (Operation::Reserve, "reserve", [1500, 10200, 2700, 0]),
    (Operation::Draw, "draw", [110, 180, 150, 150]),
    (Operation::DropReservation, "drop reservation", [480, 790, 490, 0]),
    (Operation::QuotaAlloc, "quota alloc", [140, 2100, 480, 480]),
    (Operation::QuotaFree, "quota free", [120, 390, 280, 280]),
    (Operation::Stats, "stats", [500, 500, 550, 0]),
    (Operation::Maintain, "maintain", [20500, 29700, 0, 0]),
    (Operation::Vacate, "vacate", [810, 810, 0, 0]),
    (Operation::DrainCpu, "drain_cpu", [670, 830, 0, 0]),
    (Operation::ShrinkTo, "shrink_to", [2300, 6600, 0, 0]),
    (Operation::Map, "map", [4900, 10500, 9000, 0]),
    (Operation::MapPages, "map_pages", [0, 0, 0, 0]),
    (Operation::Protect, "protect", [0, 0, 0, 0]),
    (Operation::Join, "join", [0, 0, 0, 0]),
    (Operation::Unmap, "unmap", [5900, 7600, 6700, 0]),
    (Operation::Complete, "complete", [600, 920, 920, 0]),
    (Operation::Reclaim, "reclaim", [0, 0, 0, 0]),
    (Operation::Preallocate, "preallocate", [0, 0, 0, 0]),
    (Operation::Release, "release", [0, 0, 0, 0]),
    (Operation::Translate, "translate", [400, 400, 0, 0]),
    (Operation::Mappings, "mappings", [0, 0, 0, 0]),
    (Operation::Dump, "dump", [0, 0, 0, 0]),
    (Operation::Share, "share", [8700, 16100, 0, 0]),
    (Operation::Withdraw, "withdraw", [2400, 2600, 0, 0]),
    (Operation::Attach, "attach", [1100, 2900, 0, 0]),
    (Operation::Detach, "detach", [350, 350, 0, 0]),
    (Operation::AttachDevice, "attach_device", [0, 0, 0, 0]),
    (Operation::DetachDevice, "detach_device", [0, 0, 0, 0]),
    (Operation::AttachPasid, "attach PASID", [0, 0, 0, 0]),
    (Operation::DetachPasid, "detach PASID", [0, 0, 0, 0]),
    (Operation::CompleteDetached, "complete detached", [0, 0, 0, 0]),
];

static MOST: [[AtomicU64; CONTEXTS]; LIMITS.len()] =
    [const { [const { AtomicU64::new(0) }; CONTEXTS] }; LIMITS.len()];
/// The context of what [`measured`] measures.
static CURRENT: AtomicUsize = AtomicUsize::new(Context::Interrupt as usize);
/// What the counter says of nothing.
static NOTHING: AtomicU64 = AtomicU64::new(0);

/// Notes that `operation` took `instructions` in `context`.
pub fn note(operation: Operation, context: Context, instructions: u64) {
    MOST[operation as usize][context as usize].fetch_max(instructions, Relaxed);
}

/// Prints the largest numbers; whether each is within its limit.
pub fn report() -> bool {
    let mut good = true;
    say!(
        "{:<16} {:>12} {:>12} {:>12} {:>12}",
        "instructions",
        "alone",
        "interrupted",
        "in interrupt",
        "in NMI"
    );
    for ((operation, name, limits), most) in LIMITS.iter().zip(&MOST) {
        let [alone, interrupted, interrupt, nmi] = most.each_ref().map(|most| most.load(Relaxed));
        say!("{name:<16} {alone:>12} {interrupted:>12} {interrupt:>12} {nmi:>12}");
        for (most, limit) in [alone, interrupted, interrupt, nmi].into_iter().zip(limits) {
            if most > *limit {
                say!("FAIL {name} took {most} instructions where {limit} are promised");
                good = false;
            }
        }
        debug_assert!(LIMITS[*operation as usize].0 == *operation);
    }
    good
}

/// What handlers measure from now on is in `context`.
pub fn enter(context: Context) -> usize {
    CURRENT.swap(context as usize, Relaxed)
}

/// Undoes [`enter`].
pub fn leave(previous: usize) {
    CURRENT.store(previous, Relaxed);
}

/// Finds out what the counter says of nothing.
pub fn calibrate() {
    let start = own_time();
    core::hint::black_box(());
    NOTHING.store(own_time() - start, Relaxed);
}

/// Instructions that were not those of a handler, since the machine started.
#[inline(always)]
fn own_time() -> u64 {
    loop {
        let before = away();
        let time = now();
        // A handler that came between the two reads has changed the first.
        if away() == before {
            return time - before;
        }
    }
}

/// Runs an operation in a handler and notes its instructions.
#[inline(always)]
pub fn measured<R>(operation: Operation, work: impl FnOnce() -> R) -> R {
    let start = own_time();
    let result = core::hint::black_box(work());
    let instructions = (own_time() - start).saturating_sub(NOTHING.load(Relaxed));
    MOST[operation as usize][CURRENT.load(Relaxed)].fetch_max(instructions, Relaxed);
    result
}
