//! Frames of a quota: those that it keeps, and those beyond its guarantee.

use super::{BASE, Case, take};
use crate::{
    ledger,
    sweep::{
        bounds::Operation,
        observation::observed,
        quota::{self, THREAD, close, held, open, quota},
        rig::{ORDINARY, Setup, pool},
    },
};
use framepool::AllocError;

/// What the quotas of the cases keep at most.
const GUARANTEE: u32 = 2;
/// Room for what the thread and the handlers take.
const LIMIT: u32 = 12;
const GUARANTEED: Setup = Setup { guarantees: GUARANTEE, ..ORDINARY };

/// Makes a quota, of whose frames the thread holds `used`.
fn prepare(guarantee: u32, limit: u32, used: usize) {
    match pool().quota(guarantee, limit) {
        Ok(quota) => open(quota),
        Err(_) => return ledger::violation(&"a case could not be prepared: no quota"),
    }
    for _ in 0..used {
        match quota().and_then(|quota| quota.alloc().ok()) {
            Some(frame) => quota::keep(&THREAD, frame),
            None => ledger::violation(&"a case could not be prepared: no frame"),
        }
    }
    // The magazine that is loaded has a frame.
    take(1);
}

fn alloc() {
    let Some(quota) = quota() else { return ledger::violation(&"no quota") };
    match observed(|| quota.alloc()) {
        Ok(frame) => quota::keep(&THREAD, frame),
        Err(error) => ledger::demand(
            error == AllocError::OverQuota && quota.limit() < LIMIT,
            &"INV-13: a quota refused what it had",
        ),
    }
}

fn free() {
    match quota::release(&THREAD) {
        Some(frame) => observed(|| drop(frame)),
        None => ledger::violation(&"nothing to free"),
    }
}

/// Demands that the account says what is held, and takes the quota apart. Of its frames, none are left.
fn settle() -> u64 {
    if let Some(quota) = quota() {
        ledger::demand(quota.used() as usize == held(), &"INV-13: an account lost count");
        ledger::demand(quota.used() <= quota.limit(), &"INV-13: a quota is above its limit");
    }
    close();
    0
}

const QUOTA: Case = Case { setup: GUARANTEED, operation: Operation::QuotaAlloc, others: settle, ..BASE };

pub const CASES: &[Case] = &[
    Case {
        name: "quota alloc: a frame that is kept",
        prepare: || prepare(GUARANTEE, LIMIT, 0),
        run: alloc,
        reached: |before, after| after.in_use == before.in_use,
        ..QUOTA
    },
    Case {
        name: "quota alloc: beyond the guarantee, from the pool",
        prepare: || prepare(GUARANTEE, LIMIT, GUARANTEE as usize),
        run: alloc,
        reached: |before, after| after.in_use == before.in_use + 1,
        ..QUOTA
    },
    Case {
        name: "quota alloc: refused at the limit",
        prepare: || prepare(GUARANTEE, GUARANTEE + 1, GUARANTEE as usize + 1),
        run: alloc,
        reached: |before, after| after.in_use == before.in_use && after.cache_hits == before.cache_hits,
        ..QUOTA
    },
    Case {
        name: "quota free: kept for the guarantee",
        operation: Operation::QuotaFree,
        prepare: || prepare(GUARANTEE, LIMIT, GUARANTEE as usize),
        run: free,
        reached: |before, after| after.in_use == before.in_use,
        ..QUOTA
    },
    Case {
        name: "quota free: beyond the guarantee, to the pool",
        operation: Operation::QuotaFree,
        prepare: || prepare(GUARANTEE, LIMIT, GUARANTEE as usize + 1),
        run: free,
        reached: |before, after| after.in_use == before.in_use - 1,
        ..QUOTA
    },
    Case {
        name: "quota alloc in a handler: a frame that is kept",
        prepare: || prepare(GUARANTEE, LIMIT, 0),
        run: alloc,
        in_handler: true,
        reached: |before, after| after.in_use == before.in_use + 1,
        ..QUOTA
    },
    Case {
        name: "quota free in a handler: kept for the guarantee",
        operation: Operation::QuotaFree,
        prepare: || prepare(GUARANTEE, LIMIT, GUARANTEE as usize),
        run: free,
        in_handler: true,
        reached: |before, after| after.in_use == before.in_use + 1,
        ..QUOTA
    },
];
