//! Owns the largest number of instructions that each operation took, in each context.

use super::observation::{away, now};
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
    Free,
    AllocBulk,
    FreeBulk,
    Stats,
    Maintain,
    Vacate,
    Map,
    Unmap,
    Complete,
    Translate,
}

pub const OPERATIONS: [(Operation, &str); 11] = [
    (Operation::Alloc, "alloc"),
    (Operation::Free, "free"),
    (Operation::AllocBulk, "alloc_bulk"),
    (Operation::FreeBulk, "free_bulk"),
    (Operation::Stats, "stats"),
    (Operation::Maintain, "maintain"),
    (Operation::Vacate, "vacate"),
    (Operation::Map, "map"),
    (Operation::Unmap, "unmap"),
    (Operation::Complete, "complete"),
    (Operation::Translate, "translate"),
];

static MOST: [[AtomicU64; CONTEXTS]; OPERATIONS.len()] =
    [const { [const { AtomicU64::new(0) }; CONTEXTS] }; OPERATIONS.len()];
/// The context of what [`measured`] measures.
static CURRENT: AtomicUsize = AtomicUsize::new(Context::Interrupt as usize);
/// What the counter says of nothing.
static NOTHING: AtomicU64 = AtomicU64::new(0);

/// Notes that `operation` took `instructions` in `context`.
pub fn note(operation: Operation, context: Context, instructions: u64) {
    MOST[operation as usize][context as usize].fetch_max(instructions, Relaxed);
}

/// The most instructions that `operation` took in `context`.
pub fn most(operation: Operation, context: Context) -> u64 {
    MOST[operation as usize][context as usize].load(Relaxed)
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
