//! A place for a pool: filled while a handler looks whether there is one.

use super::{BASE, Case};
use crate::{
    host::{Kernel, PhysicalMemory, Pool},
    ledger,
    machine::place::{Place, Room},
    sweep::{bounds::Operation, observation::observed, rig::pool},
};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use framepool::{Builder, StaticPool, Watermarks};

type Static = StaticPool<&'static PhysicalMemory, Kernel>;
static PLACE: Place<Static> = Place::new();
static OPEN: AtomicBool = AtomicBool::new(false);
/// What goes there.
static SPARE: Place<Pool> = Place::new();
static BOOKKEEPING: Room<{ 16 << 10 }> = Room::new();

/// The place, if the case has one.
pub fn place() -> Option<&'static Static> {
    // SAFETY: it is there between `open` and `close`, which the thread calls while no handler can be inside.
    OPEN.load(Relaxed).then(|| unsafe { PLACE.get() })
}

/// A place, and a pool that has no frames yet.
fn open() {
    let marks = Watermarks { min: 0, low: 0, high: 0, max: 4 };
    let builder = Builder::new(4).watermarks(marks).initial(0).cpus(1).magazine_size(2);
    // SAFETY: the last ones are gone, and with them their hold on the bookkeeping.
    unsafe {
        match builder.build_in(BOOKKEEPING.all(), *pool().source(), Kernel::new()) {
            Ok(spare) => drop(SPARE.put(spare)),
            Err(_) => ledger::violation(&"a case could not be prepared: no pool"),
        }
        PLACE.put(Static::new());
    }
    OPEN.store(true, Relaxed);
}

/// Demands that there is a pool, and takes everything away.
fn close() {
    let filled = place().is_some_and(|place| place.get().is_some());
    ledger::demand(filled, &"a pool was put into a place and is not there");
    OPEN.store(false, Relaxed);
    // SAFETY: as for `place`; nobody has borrowed the pool any more.
    drop(unsafe { PLACE.take() });
}

/// What a handler does that may come before there is a pool.
pub fn look() {
    if let Some(pool) = place().and_then(Static::get) {
        ledger::demand(pool.stats().owned == 0, &"a pool was seen before it was there");
    }
}

pub const CASES: &[Case] = &[Case {
    name: "StaticPool::init",
    operation: Operation::InitStatic,
    prepare: open,
    run: || {
        // SAFETY: `open` put it there; it is taken once.
        let spare = unsafe { SPARE.take() };
        let filled = place().is_some_and(|place| observed(|| place.init(spare).is_ok()));
        ledger::demand(filled, &"nobody else fills the place");
    },
    check: close,
    ..BASE
}];
