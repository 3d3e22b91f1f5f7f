//! What a refill thread or a supervisor does to the whole pool.

use super::{BASE, Case, drain, give, stock_other_cpu, take};
use crate::{
    ledger,
    sweep::{
        bounds::Operation,
        observation::observed,
        rig::{MAGAZINE, MARKS, ORDINARY, Setup, maintain, pool},
    },
};

pub const CASES: &[Case] = &[
    Case {
        name: "stats",
        operation: Operation::Stats,
        prepare: || take(1),
        run: || {
            let _ = observed(|| pool().stats());
        },
        ..BASE
    },
    Case {
        name: "maintain: refill",
        operation: Operation::Maintain,
        prepare: drain,
        run: || observed(maintain),
        reached: |before, after| after.refilled > before.refilled,
        ..BASE
    },
    Case {
        name: "maintain: trim",
        operation: Operation::Maintain,
        setup: Setup { initial: MARKS.max + 4, ..ORDINARY },
        run: || observed(maintain),
        reached: |before, after| after.trimmed > before.trimmed,
        ..BASE
    },
    Case {
        name: "vacate: refused while frames are out",
        operation: Operation::Vacate,
        prepare: || take(1),
        run: || {
            ledger::demand(observed(|| pool().vacate()).is_err(), &"a pool was emptied while frames were out")
        },
        reached: |before, after| after.owned == before.owned,
        ..BASE
    },
    Case {
        name: "drain_cpu: another one",
        operation: Operation::DrainCpu,
        prepare: stock_other_cpu,
        run: || {
            let drained = observed(|| pool().drain_cpu(1));
            ledger::demand(drained.is_ok(), &"nobody uses the cache of the other CPU");
        },
        reached: |before, after| after.cached + 2 * MAGAZINE as u64 == before.cached,
        ..BASE
    },
    Case {
        name: "drain_cpu: its own",
        operation: Operation::DrainCpu,
        prepare: || {
            take(2 * MAGAZINE);
            give(2 * MAGAZINE);
        },
        run: || {
            let _ = observed(|| pool().drain_cpu(0));
        },
        reached: |before, after| before.cached > 0 && after.cached == 0,
        ..BASE
    },
    Case {
        name: "shrink_to",
        operation: Operation::ShrinkTo,
        run: || {
            let _ = observed(|| pool().shrink_to(MARKS.low + 8));
        },
        reached: |before, after| after.owned < before.owned,
        ..BASE
    },
];
