//! Devices and their PASIDs attached and detached in scalable mode.

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
    Capabilities, DomainId, Pasid, SourceId,
    context::{DeviceConfig, PasidEntry, ScalableTables},
};

type Tables = ScalableTables<&'static Pool>;
static TABLES: Place<Tables> = Place::new();
/// A unit that snoops, with scalable mode, and accessed and dirty bits in it; otherwise the one that is emulated.
const UNIT: Capabilities =
    Capabilities::from_registers(0x00d2_008c_222f_0606, 0x0001_c800_00f0_0f4b | 1 << 45);
const DEVICE: SourceId = SourceId::from_bits(0x20);

fn tables() -> &'static Tables {
    // SAFETY: `prepare_tables` put them there, and `close_tables` takes them out last.
    unsafe { TABLES.get() }
}

fn prepare_tables() {
    match Tables::new(UNIT, 39, pool()) {
        // SAFETY: the last tables were taken out with their case.
        Ok(tables) => drop(unsafe { TABLES.put(tables) }),
        Err(_) => ledger::violation(&"a case could not be prepared: no tables"),
    }
}

fn attach_device() -> bool {
    tables().attach_device(DEVICE, DeviceConfig::default()).is_ok()
}

fn attach_pasid() -> bool {
    let entry = PasidEntry::second_stage(domain(), DomainId::FIRST);
    // SAFETY: no unit reads these tables, and nobody detaches the device meanwhile.
    unsafe { tables().attach(DEVICE, Pasid::ZERO, entry).is_ok() }
}

fn prepare_device() {
    prepare_tables();
    ledger::demand(attach_device(), &"a case could not be prepared: no device");
}

fn prepare_pasid() {
    prepare_device();
    ledger::demand(attach_pasid(), &"a case could not be prepared: no PASID");
}

/// Demands that the device has an entry or none, and its PASID, and takes the tables apart.
fn close_tables(device: bool, pasid: bool) {
    let entry = tables().device(DEVICE);
    ledger::demand(
        matches!(entry, Ok(entry) if entry.is_some() == device),
        &"the entry of a device is there in part",
    );
    // SAFETY: nobody else uses the tables, which no unit reads.
    unsafe {
        let entry = tables().entry(DEVICE, Pasid::ZERO);
        ledger::demand(
            entry.is_ok_and(|entry| entry.is_some()) == pasid,
            &"the entry of a PASID is there in part",
        );
        TABLES.take().close().complete();
    }
}

pub const CASES: &[Case] = &[
    Case {
        name: "attach_device: the first of its half of the bus",
        operation: Operation::AttachDevice,
        prepare: prepare_tables,
        run: || DONE.0.set(observed(attach_device)),
        check: || close_tables(DONE.0.get(), false),
        others: || tables().table_frames(),
        reached: |before, after| after.in_use == before.in_use + 2,
        ..BASE
    },
    Case {
        name: "attach: the first PASID of its 64",
        operation: Operation::AttachPasid,
        prepare: prepare_device,
        run: || DONE.0.set(observed(attach_pasid)),
        check: || close_tables(true, DONE.0.get()),
        others: || tables().table_frames(),
        reached: |before, after| after.in_use == before.in_use + 1,
        ..BASE
    },
    Case {
        name: "detach: a PASID",
        operation: Operation::DetachPasid,
        prepare: prepare_pasid,
        // SAFETY: nobody detaches the device meanwhile, and no unit reads these tables.
        run: || match observed(|| unsafe { tables().detach(DEVICE, Pasid::ZERO) }) {
            // SAFETY: as above.
            Ok(detached) => unsafe { detached.complete() },
            Err(_) => ledger::violation(&"what was attached could not be detached"),
        },
        check: || close_tables(true, false),
        others: || tables().table_frames(),
        ..BASE
    },
    Case {
        name: "detach_device",
        operation: Operation::DetachDevice,
        prepare: prepare_device,
        // SAFETY: nobody uses its PASIDs meanwhile, and no unit reads these tables.
        run: || match observed(|| unsafe { tables().detach_device(DEVICE) }) {
            // SAFETY: as above.
            Ok(detached) => unsafe { detached.complete() },
            Err(_) => ledger::violation(&"what was attached could not be detached"),
        },
        check: || close_tables(false, false),
        others: || tables().table_frames(),
        reached: |before, after| after.in_use == before.in_use - 1,
        ..BASE
    },
    Case {
        name: "complete: a device that is gone, its directory comes back",
        operation: Operation::CompleteDetached,
        prepare: prepare_device,
        // SAFETY: nobody uses its PASIDs meanwhile, and no unit reads these tables.
        run: || match unsafe { tables().detach_device(DEVICE) } {
            // SAFETY: as above.
            Ok(detached) => observed(|| unsafe { detached.complete() }),
            Err(_) => ledger::violation(&"what was attached could not be detached"),
        },
        check: || close_tables(false, false),
        others: || tables().table_frames(),
        reached: |before, after| after.in_use == before.in_use - 1,
        ..BASE
    },
];
