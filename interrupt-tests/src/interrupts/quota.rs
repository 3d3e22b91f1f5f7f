//! The operations of a quota, from which all contexts draw: what they hold of it is charged to it, and is not mixed with what they
//! hold of the pool.

use super::{
    host::{Host, Supply},
    operations::{Of, Operation, Role},
    world::{Hand, Violation, World},
};
use framepool::{AllocError, PhysAddr, Quota, QuotaFrame, Request};
use std::{ops::RangeInclusive, sync::atomic::Ordering::SeqCst};

/// The guaranteed share, and the limit, in frames.
pub const GUARANTEE: u32 = 2;
pub const LIMIT: u32 = 5;

pub type Account<'w> = Quota<'w, Supply<'w>, Host>;

// Those that bring a quota into a state.
pub const CHARGE: Operation =
    Operation::new("Quota::alloc", Role::Any, alloc).needs(note_used).settled_by(check_alloc).of(Of::Quota);

/// These operations.
pub static QUOTA: &[Operation] = &[
    CHARGE,
    Operation::new("Quota::alloc, zeroed", Role::Any, alloc_zeroed)
        .zeroed()
        .needs(note_used)
        .settled_by(check_alloc)
        .of(Of::Quota),
    Operation::new("free of a quota's frame", Role::Any, free)
        .needs(|world, hand| world.quota.is_some() && world.open_up(&world.charged[hand.level], 1))
        .of(Of::Quota),
];

const TAKEN: u32 = 1;
const OVER: u32 = 2;
const REFUSED: u32 = 3;

/// How many frames the account uses before the call.
fn note_used(world: &World<'_>, hand: &Hand) -> bool {
    let used = world.quota.as_ref().map(Quota::used);
    world.charged[hand.level].outcome.store(used.unwrap_or(0), SeqCst);
    used.is_some()
}

#[inline(always)]
fn charge(world: &World<'_>, hand: &Hand, request: Request) {
    let Some(quota) = &world.quota else { return };
    let (frame, outcome) = match quota.alloc_with(request) {
        Ok(frame) => (frame.into_raw().as_u64(), TAKEN),
        Err(AllocError::OverQuota) => (0, OVER),
        Err(_) => (0, REFUSED),
    };
    world.charged[hand.level].open[0].store(frame, SeqCst);
    hand.outcome.store(outcome, SeqCst);
}

extern "C" fn alloc(world: &World<'_>, hand: &Hand) {
    charge(world, hand, Request::ORDINARY);
}

extern "C" fn alloc_zeroed(world: &World<'_>, hand: &Hand) {
    charge(world, hand, Request::ORDINARY.zeroed());
}

/// INV-13: within the guarantee there is a frame, and at the limit there is none. Whoever interrupted the call is through with what it did,
/// so the account stood as it did before the call or as it does now.
fn check_alloc(world: &World<'_>, hand: &Hand) {
    let Some(quota) = &world.quota else { return };
    let charged = &world.charged[hand.level];
    let (before, now) = (charged.outcome.load(SeqCst), quota.used());
    let wrong = match hand.outcome.load(SeqCst) {
        TAKEN => now > LIMIT,
        OVER => before.max(now) < LIMIT,
        _ => before.max(now) < GUARANTEE,
    };
    if wrong {
        world.report(Violation::Outcome);
    }
}

extern "C" fn free(world: &World<'_>, hand: &Hand) {
    let Some(quota) = &world.quota else { return };
    let frame = PhysAddr::new(world.charged[hand.level].open[0].swap(0, SeqCst));
    // SAFETY: the context owned the frame, laid it down as this address, and takes it up once.
    drop(unsafe { QuotaFrame::from_raw(quota, frame) });
}

impl World<'_> {
    /// INV-13: what is charged is held. How many frames are kept beside it, which nobody sees: at least what makes up the guarantee, and no more
    /// than that is.
    pub fn audit_quota(&self) -> Result<RangeInclusive<u64>, String> {
        let Some(quota) = &self.quota else { return Ok(0..=0) };
        let (used, held) = (quota.used(), self.charged.iter().flat_map(Hand::kept).count());
        if used as usize != held || used > LIMIT {
            return Err(format!("INV-13: {held} frames are held, and {used} of at most {LIMIT} charged"));
        }
        Ok(u64::from(GUARANTEE.saturating_sub(used))..=u64::from(GUARANTEE))
    }

    /// Gives back what is charged.
    pub fn discharge_all(&self) {
        for level in 0..self.charged.len() {
            while self.quota.is_some() && self.open_up(&self.charged[level], 1) {
                free(self, &self.hands[level]);
            }
        }
    }
}
