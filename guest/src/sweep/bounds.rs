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
    ServeWaiters,
    AllocAsync,
    InitStatic,
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
    TakeDirty,
    TakeId,
    GiveId,
}

impl Operation {
    /// Which sweep observes it.
    pub fn part(self) -> Part {
        if (self as usize) < Self::Map as usize { Part::Pool } else { Part::Builder }
    }
}

/// What the documents promise: the most instructions of each operation in each context (alone, interrupted, in an interrupt, in an
/// NMI), in the situations of the sweep; those of the frame source and the clearing of tables are among them. Measured with the
/// compiler named in the documents, and a quarter for others. The largest of them, or the limit of the sweep on the host if that is larger,
/// stands in the documentation of the operation.
const LIMITS: [(Operation, &str, [u64; CONTEXTS]); 43] = [
    (Operation::Alloc, "alloc", [2100, 2200, 2300, 2200]),
    (Operation::AllocZeroed, "alloc_zeroed", [1300, 3000, 1300, 0]),
    (Operation::Free, "free", [510, 530, 530, 530]),
    (Operation::FreeZeroed, "free_zeroed", [70, 70, 330, 0]),
    (Operation::AllocBulk, "alloc_bulk", [2800, 11800, 7100, 0]),
    (Operation::FreeBulk, "free_bulk", [810, 1600, 1500, 0]),
    (Operation::Reserve, "reserve", [1900, 11700, 4100, 0]),
    (Operation::Draw, "draw", [110, 180, 160, 160]),
    (Operation::DropReservation, "drop reservation", [530, 940, 670, 0]),
    (Operation::QuotaAlloc, "quota alloc", [160, 2300, 570, 570]),
    (Operation::QuotaFree, "quota free", [150, 450, 290, 300]),
    (Operation::Stats, "stats", [560, 560, 630, 0]),
    (Operation::Maintain, "maintain", [21300, 30500, 0, 0]),
    (Operation::Vacate, "vacate", [1100, 1100, 0, 0]),
    (Operation::DrainCpu, "drain_cpu", [830, 1000, 0, 0]),
    (Operation::ShrinkTo, "shrink_to", [2500, 8500, 0, 0]),
    (Operation::ServeWaiters, "serve_waiters", [220, 220, 0, 0]),
    (Operation::AllocAsync, "alloc_async", [2500, 2500, 0, 0]),
    (Operation::InitStatic, "StaticPool::init", [430, 430, 0, 0]),
    (Operation::Map, "map", [5500, 11700, 9800, 0]),
    (Operation::MapPages, "map_pages", [5500, 11700, 0, 0]),
    (Operation::Protect, "protect", [6200, 8200, 0, 0]),
    (Operation::Join, "join", [8800, 8800, 0, 0]),
    (Operation::Unmap, "unmap", [6300, 8300, 3400, 0]),
    (Operation::Complete, "complete", [8400, 8700, 1100, 0]),
    (Operation::Reclaim, "reclaim", [45200, 45200, 0, 0]),
    (Operation::Preallocate, "preallocate", [3400, 8000, 0, 0]),
    (Operation::Release, "release", [3200, 3200, 0, 0]),
    (Operation::Translate, "translate", [390, 390, 0, 0]),
    (Operation::Mappings, "mappings", [520, 520, 0, 0]),
    (Operation::Dump, "dump", [86100, 105500, 0, 0]),
    (Operation::Share, "share", [7500, 15700, 0, 0]),
    (Operation::Withdraw, "withdraw", [1500, 1800, 0, 0]),
    (Operation::Attach, "attach", [1100, 3200, 0, 0]),
    (Operation::Detach, "detach", [350, 350, 0, 0]),
    (Operation::AttachDevice, "attach_device", [2500, 6100, 0, 0]),
    (Operation::DetachDevice, "detach_device", [1300, 1300, 0, 0]),
    (Operation::AttachPasid, "attach PASID", [1900, 3900, 0, 0]),
    (Operation::DetachPasid, "detach PASID", [1800, 1800, 0, 0]),
    (Operation::CompleteDetached, "complete detached", [6000, 6400, 0, 0]),
    (Operation::TakeDirty, "take_dirty", [750, 750, 0, 0]),
    (Operation::TakeId, "DomainIds::take", [40, 40, 40, 0]),
    (Operation::GiveId, "DomainIds::give", [20, 20, 30, 0]),
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
