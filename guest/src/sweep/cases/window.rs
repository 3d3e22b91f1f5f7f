//! Buffers shared with a device through a window, whose borders are bounced.

use super::{
    BASE, Case,
    ranges::{FRESH, PAGE, check_empty},
};
use crate::{
    host::Pool,
    ledger,
    machine::place::{Place, Room},
    sweep::{bounds::Operation, observation::observed, rig::domain},
};
use core::{
    ptr::NonNull,
    sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
};
use framepool::{
    PhysAddr,
    vtd::{DmaWindow, Invalidation, Iova, Permissions, SecondStage, WindowConfig, WindowHost},
};

type Window = DmaWindow<'static, SecondStage, &'static Pool, NoUnit>;

/// A machine without a unit: nothing remembers anything.
struct NoUnit;
// SAFETY: memory is mapped at its own address, and no hardware walks these tables.
unsafe impl WindowHost<&'static Pool> for NoUnit {
    fn physical(&self, pointer: NonNull<u8>) -> PhysAddr {
        PhysAddr::new(pointer.addr().get() as u64)
    }

    fn forget(&self, invalidation: Invalidation<'_, &'static Pool>) {
        // SAFETY: as above.
        unsafe { invalidation.complete() };
    }
}

static WINDOW: Place<Window> = Place::new();
static ROOM: Room<4096> = Room::new();
/// A buffer that starts and ends in the middle of a page, with a whole one between them.
static BUFFER: [AtomicU8; 4 * PAGE as usize] = [const { AtomicU8::new(0) }; 4 * PAGE as usize];

fn buffer() -> NonNull<[u8]> {
    let start = BUFFER.as_ptr().addr().next_multiple_of(PAGE as usize) + 0x800;
    NonNull::slice_from_raw_parts(
        NonNull::new(start as *mut u8).unwrap_or(NonNull::dangling()),
        2 * PAGE as usize,
    )
}

fn prepare_window() {
    let config = WindowConfig { base: Iova::new(FRESH), slots: 4, slot_pages: 4 };
    // SAFETY: the last window is gone with its case, and nobody else uses the place and the room.
    unsafe {
        match Window::new_in(ROOM.all(), domain(), NoUnit, config) {
            Ok(window) => drop(WINDOW.put(window)),
            Err(_) => ledger::violation(&"a case could not be prepared: no window"),
        }
    }
}

/// Where the buffer is shared; 0 if it is not.
static SHARED: AtomicU64 = AtomicU64::new(0);

fn share() {
    // SAFETY: `prepare_window` put it there; nobody touches the buffer.
    let shared = observed(|| unsafe { WINDOW.get().share(buffer(), Permissions::all()) });
    SHARED.store(shared.map_or(0, Iova::as_u64), Relaxed);
}

fn withdraw() {
    let iova = Iova::new(SHARED.swap(0, Relaxed));
    // SAFETY: as shared.
    observed(|| unsafe { WINDOW.get().withdraw(iova, buffer(), Permissions::all()) });
}

pub const CASES: &[Case] = &[
    Case {
        name: "share: a buffer over three pages, two of them in part",
        operation: Operation::Share,
        prepare: prepare_window,
        run: share,
        others: || if SHARED.load(Relaxed) == 0 { 0 } else { 2 },
        check: || {
            if SHARED.load(Relaxed) != 0 {
                withdraw();
            }
            check_empty();
        },
        // Two tables and two bounce frames.
        reached: |before, after| after.in_use == before.in_use + 4,
        ..BASE
    },
    Case {
        name: "withdraw: what the device wrote comes back",
        operation: Operation::Withdraw,
        prepare: || {
            prepare_window();
            share();
            ledger::demand(SHARED.load(Relaxed) != 0, &"a case could not be prepared: nothing shared");
        },
        run: withdraw,
        check: check_empty,
        reached: |before, after| after.in_use == before.in_use - 2,
        ..BASE
    },
];
