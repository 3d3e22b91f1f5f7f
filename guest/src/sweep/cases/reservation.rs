//! Reservations: made, drawn from and dropped.

use super::{BASE, BULK, Case, DEPOT, NO_FALLBACK, take};
use crate::{
    ledger,
    sweep::{
        bounds::Operation,
        observation::observed,
        rig::{THREAD, pool, put_back, reservation, set_aside},
    },
};

fn prepare_reservation(frames: u32) {
    match pool().reserve(frames) {
        Ok(reservation) => set_aside(reservation),
        Err(_) => ledger::violation(&"a case could not be prepared: no reservation"),
    }
}

/// The handler draws from the same reservation, so there may be nothing left.
fn draw() {
    let Some(reservation) = reservation() else { return ledger::violation(&"no reservation") };
    match observed(|| reservation.draw()) {
        Some(frame) => THREAD.keep(frame),
        None => ledger::demand(reservation.left() == 0, &"INV-8: frames are set aside and cannot be drawn"),
    }
}

pub const CASES: &[Case] = &[
    Case {
        name: "reserve: from slot and depot",
        operation: Operation::Reserve,
        prepare: || take(1),
        run: || {
            if let Ok(reservation) = observed(|| pool().reserve(BULK as u32)) {
                set_aside(reservation);
            }
        },
        reached: |before, after| {
            after.in_use == before.in_use + BULK as u64 && after.reserved > before.reserved
        },
        ..BASE
    },
    Case {
        name: "reserve: too few, nothing stays out",
        operation: Operation::Reserve,
        setup: NO_FALLBACK,
        prepare: || take(DEPOT - 3),
        run: || {
            if let Ok(reservation) = observed(|| pool().reserve(BULK as u32)) {
                set_aside(reservation);
            }
        },
        reached: |before, after| after.in_use == before.in_use,
        ..BASE
    },
    Case {
        name: "draw: a frame that is set aside alone",
        operation: Operation::Draw,
        prepare: || prepare_reservation(1),
        run: draw,
        reached: |before, after| after.in_use == before.in_use,
        ..BASE
    },
    Case {
        name: "draw: from a magazine that is set aside",
        operation: Operation::Draw,
        prepare: || prepare_reservation(BULK as u32 + 1),
        run: draw,
        reached: |before, after| after.in_use == before.in_use,
        ..BASE
    },
    Case {
        name: "drop a reservation: all of it comes back",
        operation: Operation::DropReservation,
        prepare: || prepare_reservation(BULK as u32),
        run: || {
            let reservation = put_back();
            observed(|| drop(reservation));
        },
        reached: |before, after| after.in_use == before.in_use - BULK as u64,
        ..BASE
    },
    Case {
        name: "draw in a handler: from a magazine that is set aside",
        operation: Operation::Draw,
        prepare: || {
            prepare_reservation(BULK as u32 + 1);
            take(1);
        },
        run: draw,
        in_handler: true,
        ..BASE
    },
];
