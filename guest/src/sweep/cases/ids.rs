//! Ids of domains: taken and given back beside a handler that does so too.

use super::{BASE, Case};
use crate::{
    ledger,
    machine::place::Place,
    sweep::{
        bounds::{Operation, measured},
        observation::observed,
    },
};
use core::sync::atomic::{AtomicBool, AtomicU16, Ordering::Relaxed};
use framepool::vtd::{DomainId, DomainIds};

/// Ids that there are: one for the thread, and one for its handler; 0 is not handed out.
const COUNT: usize = 2;

static IDS: Place<DomainIds<1>> = Place::new();
static OPEN: AtomicBool = AtomicBool::new(false);
/// The id that the thread has, 0 for none.
static TAKEN: AtomicU16 = AtomicU16::new(0);

/// The ids, if the case has any.
fn ids() -> Option<&'static DomainIds<1>> {
    // SAFETY: they are there between `open` and `close`, which the thread calls while no handler can be inside.
    OPEN.load(Relaxed).then(|| unsafe { IDS.get() })
}

fn open() {
    // SAFETY: the last ones are gone.
    unsafe { IDS.put(DomainIds::new(COUNT as u32 + 1)) };
    TAKEN.store(0, Relaxed);
    OPEN.store(true, Relaxed);
}

fn take() {
    let id = ids().and_then(|ids| observed(|| ids.take()));
    ledger::demand(id.is_some(), &"there is an id for the thread");
    TAKEN.store(id.map_or(0, DomainId::get), Relaxed);
}

fn give() {
    let id = DomainId::new(TAKEN.swap(0, Relaxed));
    let given = ids().zip(id).is_some_and(|(ids, id)| observed(|| ids.give(id).is_ok()));
    ledger::demand(given, &"an id that was taken was not taken back");
}

/// Demands that all ids but the thread's are there, once.
fn close() {
    let Some(ids) = ids() else { return };
    let free = core::iter::from_fn(|| ids.take()).filter(|id| id.get() != TAKEN.load(Relaxed)).count();
    let taken = usize::from(TAKEN.load(Relaxed) != 0);
    ledger::demand(free + taken == COUNT, &"an id is lost or doubled");
    OPEN.store(false, Relaxed);
}

/// What a handler does: an id that only it has, and back.
pub fn turn_over() {
    let Some(ids) = ids() else { return };
    let id = measured(Operation::TakeId, || ids.take());
    ledger::demand(id.is_none_or(|id| id.get() != TAKEN.load(Relaxed)), &"an id was handed out twice");
    ledger::demand(id.is_some(), &"there is an id for the handler");
    if let Some(id) = id {
        let given = measured(Operation::GiveId, || ids.give(id).is_ok());
        ledger::demand(given, &"an id that was taken was not taken back");
    }
}

pub const CASES: &[Case] = &[
    Case {
        name: "DomainIds::take",
        operation: Operation::TakeId,
        prepare: open,
        run: take,
        check: close,
        ..BASE
    },
    Case {
        name: "DomainIds::give",
        operation: Operation::GiveId,
        prepare: || {
            open();
            take();
        },
        run: give,
        check: close,
        ..BASE
    },
];
