//! Owns the quota of a case, if it has one, and the frames of it that each context holds.

use super::rig::pool;
use crate::{
    hand::Hand,
    host::{Kernel, PhysicalMemory},
    ledger,
    machine::place::Place,
};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use framepool::{Quota, QuotaFrame};

pub type PoolQuota = Quota<'static, &'static PhysicalMemory, Kernel>;
pub type Charged = QuotaFrame<'static, &'static PhysicalMemory, Kernel>;

/// The frames of each context.
pub static THREAD: Hand = Hand::new(4);
pub static HANDLER: Hand = Hand::new(5);
pub static UNMASKABLE: Hand = Hand::new(6);

static QUOTA: Place<PoolQuota> = Place::new();
static OPEN: AtomicBool = AtomicBool::new(false);

/// Lets every context take from `quota`.
pub fn open(quota: PoolQuota) {
    // SAFETY: `close` took the last one out.
    unsafe { QUOTA.put(quota) };
    OPEN.store(true, Relaxed);
}

/// The quota, if there is one.
pub fn quota() -> Option<&'static PoolQuota> {
    // SAFETY: it is there between `open` and `close`, which the thread calls while no handler can be inside.
    OPEN.load(Relaxed).then(|| unsafe { QUOTA.get() })
}

/// Keeps a frame.
pub fn keep(hand: &Hand, frame: Charged) {
    hand.lay_down(frame.into_raw());
}

/// Lets go of the frame that came last.
pub fn release(hand: &Hand) -> Option<Charged> {
    let quota = quota()?;
    // SAFETY: `keep` laid the frame down, and nobody else knows it.
    hand.pick_up().map(|frame| unsafe { Charged::from_raw(quota, frame) })
}

/// How many frames of the quota are held.
pub fn held() -> usize {
    THREAD.count() + HANDLER.count() + UNMASKABLE.count()
}

/// Gives the frames back, and then the quota. From here on no handler finds it.
pub fn close() {
    for hand in [&THREAD, &HANDLER, &UNMASKABLE] {
        core::iter::from_fn(|| release(hand)).for_each(drop);
    }
    if OPEN.swap(false, Relaxed) {
        let before = pool().stats().in_use;
        // SAFETY: as for `quota`; it is taken once, and its frames are back.
        let quota = unsafe { QUOTA.take() };
        let guarantee = u64::from(quota.guarantee());
        drop(quota);
        ledger::demand(
            pool().stats().in_use == before - guarantee,
            &"INV-13: a quota did not keep its guarantee",
        );
    }
}
