//! Devices attached and detached in legacy mode.

use super::{BASE, Case, ranges::DONE};
use crate::{
    host::Pool,
    ledger,
    machine::place::Place,
    sweep::{
        bounds::Operation,
        observation::observed,
        rig::{domain, pool},
    },
};
use framepool::vtd::{
    Capabilities, ContextEntry, ContextTranslation, DomainId, SourceId, context::LegacyTables,
};

type Tables = LegacyTables<&'static Pool>;
static TABLES: Place<Tables> = Place::new();
/// A unit that snoops, otherwise the one that is emulated.
const UNIT: Capabilities = Capabilities::from_registers(0x00d2_008c_222f_0606, 0x00f0_0f4b);
const DEVICE: SourceId = SourceId::from_bits(0x20);

fn prepare_tables() {
    match Tables::new(UNIT, 39, pool()) {
        // SAFETY: the last tables were taken out with their case.
        Ok(tables) => drop(unsafe { TABLES.put(tables) }),
        Err(_) => ledger::violation(&"a case could not be prepared: no tables"),
    }
}

fn attach_device() -> bool {
    let root = ContextTranslation::SecondStage {
        root: domain().root(),
        levels: domain().levels(),
        device_tlb: false,
    };
    // SAFETY: no unit reads these tables.
    unsafe { TABLES.get().attach(DEVICE, ContextEntry::new(root, DomainId::FIRST)).is_ok() }
}

fn table_frames() -> u64 {
    // SAFETY: `prepare_tables` put them there.
    unsafe { TABLES.get() }.table_frames()
}

/// Demands that the device has an entry or none, and takes the tables apart.
fn close_tables(attached: bool) {
    // SAFETY: nobody else uses the tables, which no unit reads.
    unsafe {
        let entry = TABLES.get().entry(DEVICE);
        ledger::demand(
            matches!(entry, Ok(entry) if entry.is_some() == attached),
            &"an entry is there in part",
        );
        TABLES.take().close().complete();
    }
}

pub const CASES: &[Case] = &[
    Case {
        name: "attach: the first device of its bus",
        operation: Operation::Attach,
        prepare: prepare_tables,
        run: || DONE.0.set(observed(attach_device)),
        check: || close_tables(DONE.0.get()),
        others: table_frames,
        reached: |before, after| after.in_use == before.in_use + 1,
        ..BASE
    },
    Case {
        name: "detach",
        operation: Operation::Detach,
        prepare: || {
            prepare_tables();
            ledger::demand(attach_device(), &"a case could not be prepared: no device");
        },
        run: || {
            // SAFETY: `prepare_tables` put them there.
            match observed(|| unsafe { TABLES.get() }.detach(DEVICE)) {
                // SAFETY: no unit reads these tables.
                Ok(detached) => unsafe { detached.complete() },
                Err(_) => ledger::violation(&"what was attached could not be detached"),
            }
        },
        check: || close_tables(false),
        others: table_frames,
        ..BASE
    },
];
