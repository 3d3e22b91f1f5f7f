//! The operations under observation, each brought to the tier that it is to take.

use super::{
    actions::{REMAPPED, is_zero, unmap},
    bounds::Operation,
    observation::observed,
    rig::{
        MAGAZINE, MARKS, ORDINARY, Setup, THREAD, domain, maintain, pool, put_back, reservation, set_aside,
    },
};
use crate::{
    hand::PoolFrame,
    host::{CpuLocal, Pool},
    ledger,
    machine::place::{Place, Room},
};
use core::{
    cell::Cell,
    ptr::NonNull,
    sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
};
use framepool::{
    AllocError, FallbackPolicy, PhysAddr, Request, Stats,
    vtd::{
        Capabilities, ContextEntry, ContextTranslation, DmaWindow, DomainId, Invalidation, Iova, Permissions,
        SecondStage, SourceId, WindowConfig, WindowHost, context::LegacyTables,
    },
};

/// One operation on one way through the pool or the builder.
pub struct Case {
    pub name: &'static str,
    pub operation: Operation,
    pub setup: Setup,
    /// Brings pool and domain to where the operation takes the way that the name says.
    pub prepare: fn(),
    /// Observes the operation.
    pub run: fn(),
    /// Demands what must hold after it, whatever came in between.
    pub check: fn(),
    /// Frames that are in structures of the case after it.
    pub others: fn() -> u64,
    /// Whether an undisturbed run took the way that the name says, by the statistics before and after it.
    pub reached: fn(&Stats, &Stats) -> bool,
    /// Whether the operation may take from the reserve.
    pub critical: bool,
    /// Whether the operation runs in the handler of an interrupt that landed inside an `alloc` of the same CPU.
    pub in_handler: bool,
}

const BASE: Case = Case {
    name: "",
    operation: Operation::Alloc,
    setup: ORDINARY,
    prepare: || {},
    run: || {},
    check: || {},
    others: || 0,
    reached: |_, _| true,
    critical: false,
    in_handler: false,
};

/// Frames of the depot when a case begins.
const DEPOT: usize = (ORDINARY.initial - MARKS.min) as usize;

fn take(count: usize) {
    if THREAD.take(pool(), Request::ORDINARY, count) != Ok(count) {
        ledger::violation(&"a case could not be prepared: too few frames");
    }
}

fn give(count: usize) {
    THREAD.give(pool(), count);
}

/// As if on the other CPU.
fn on_other_cpu(work: impl FnOnce()) {
    CpuLocal::set_number(1);
    work();
    CpuLocal::set_number(0);
}

fn alloc_as(request: Request) {
    match observed(|| pool().alloc_with(request)) {
        Ok(frame) => THREAD.keep(frame),
        Err(AllocError::Closed) => ledger::violation(&"nobody closes the pool"),
        Err(_) => {}
    }
}

fn alloc() {
    alloc_as(Request::ORDINARY);
}

fn alloc_zeroed() {
    if let Ok(frame) = observed(|| pool().alloc_zeroed()) {
        ledger::demand(is_zero(&frame), &"INV-9: a frame handed out as zeroed is not zero");
        THREAD.keep(frame);
    }
}

/// A frame of zeros that its owner has not touched, or 0.
static UNTOUCHED: AtomicU64 = AtomicU64::new(0);

fn free() {
    let Some(frame) = THREAD.release(pool()) else { return ledger::violation(&"nothing to free") };
    observed(|| drop(frame));
}

/// Leaves the depot empty, and the slot of the CPU.
fn drain() {
    take(DEPOT);
}

/// One frame in the depot, in a partial magazine.
const PARTIAL: Setup = Setup { initial: MARKS.min + 1, ..ORDINARY };
/// One magazine of the depot is partial.
const ODD: Setup = Setup { initial: ORDINARY.initial + 1, ..ORDINARY };
const NO_FALLBACK: Setup = Setup { fallback: FallbackPolicy::Never, ..ORDINARY };

const BULK: usize = 5;

fn alloc_bulk_of(exact: bool) {
    let mut frames: [Option<PoolFrame>; BULK] = [const { None }; BULK];
    let _ = observed(|| {
        if exact {
            pool().alloc_bulk_exact(Request::ORDINARY, &mut frames)
        } else {
            pool().alloc_bulk(Request::ORDINARY, &mut frames).map(drop)
        }
    });
    let count = frames.iter().flatten().count();
    ledger::demand(!exact || count == 0 || count == BULK, &"all or nothing, said the caller");
    frames.into_iter().flatten().for_each(|frame| THREAD.keep(frame));
}

fn free_bulk() {
    let mut frames = [const { None }; BULK];
    frames.fill_with(|| THREAD.release(pool()));
    observed(|| pool().free_bulk(&mut frames));
    ledger::demand(frames.iter().all(Option::is_none), &"a bulk free left something");
}

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

/// Where the cases map: page 0 of a table that exists when they begin, next to the handler's range.
const MAPPED: u64 = 1 << 30;
/// A range without tables, under the same table as the handler's.
const FRESH: u64 = 2 << 30;
const PAGE: u64 = 4096;
const LARGE: u64 = 2 << 20;
const TARGET: PhysAddr = PhysAddr::new(0x4000_0000);
const SHIFTED: PhysAddr = PhysAddr::new(0x4000_1000);

fn map_at(iova: u64, target: PhysAddr, length: u64) -> bool {
    // SAFETY: no device walks this domain; the handler uses another range.
    unsafe { domain().map(Iova::new(iova), target, length, Permissions::all()).is_ok() }
}

fn prepare_map(iova: u64, length: u64) {
    ledger::demand(map_at(iova, TARGET, length), &"a case could not be prepared: no mapping");
}

/// Maps 2 MiB as 512 pages, since the target is not aligned for one.
fn prepare_table() {
    ledger::demand(map_at(FRESH, SHIFTED, LARGE), &"a case could not be prepared: no mapping");
}

/// Whether the observed call of the builder said that it succeeded.
struct Flag(Cell<bool>);
// SAFETY: only the one CPU touches it, and never a handler that interrupts who does.
unsafe impl Sync for Flag {}
static DONE: Flag = Flag(Cell::new(false));

fn observe_map(iova: u64, length: u64) {
    DONE.0.set(observed(|| map_at(iova, TARGET, length)));
}

fn observe_unmap(iova: u64, length: u64) {
    let outcome = observed(|| domain().unmap(Iova::new(iova), length));
    DONE.0.set(outcome.is_ok());
    if let Ok(invalidation) = outcome {
        // SAFETY: no hardware walks these tables.
        unsafe { invalidation.complete() };
    }
}

/// Demands that all of the range is mapped to `target`, or none of it.
fn check_range(iova: u64, target: PhysAddr, length: u64, mapped: bool) {
    for at in [0, length / 2, length - 1] {
        let found = domain().translate(Iova::new(iova + at)).map(|at| at.target);
        let expected = mapped.then_some(PhysAddr::new(target.as_u64() + at));
        ledger::demand(found == expected, &"INV-11: a call to the builder was done in part");
    }
}

/// Demands that the observed map did all or nothing, and cleans up.
fn check_map(iova: u64, length: u64) {
    check_range(iova, TARGET, length, DONE.0.get());
    if DONE.0.get() {
        unmap(domain(), iova, length);
    }
    check_empty();
}

/// Demands that nothing is mapped any more.
fn check_empty() {
    ledger::demand(domain().mappings().count() == 0, &"something is mapped that nobody mapped");
}

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
        name: "alloc: hit in the loaded magazine",
        prepare: || take(1),
        run: alloc,
        reached: |before, after| after.cache_hits == before.cache_hits + 1,
        ..BASE
    },
    Case {
        name: "alloc: hit after the magazines change places",
        prepare: || {
            take(4);
            give(3);
            take(1);
        },
        run: alloc,
        reached: |before, after| after.cache_hits == before.cache_hits + 1,
        ..BASE
    },
    Case {
        name: "alloc: full magazine from the depot",
        run: alloc,
        reached: |before, after| after.depot_hits == before.depot_hits + 1 && after.rings == before.rings,
        ..BASE
    },
    Case {
        name: "alloc: full magazine from the depot, ringing",
        prepare: || {
            // The root table has rung for zeros; from here on the doorbell is silent.
            maintain();
            pool().platform().take_refill_wanted();
            take(DEPOT - (MARKS.low - MARKS.min) as usize);
        },
        run: alloc,
        reached: |before, after| after.depot_hits == before.depot_hits + 1 && after.rings == before.rings + 1,
        ..BASE
    },
    Case {
        name: "alloc: partial magazine from the depot",
        setup: PARTIAL,
        run: alloc,
        reached: |before, after| after.depot_hits == before.depot_hits + 1 && after.stock == before.stock - 1,
        ..BASE
    },
    Case {
        name: "alloc: stolen from another CPU",
        prepare: || {
            on_other_cpu(|| {
                take(2 * MAGAZINE);
                give(2 * MAGAZINE);
            });
            take(DEPOT - 2 * MAGAZINE);
        },
        run: alloc,
        reached: |before, after| after.steals == before.steals + 1,
        ..BASE
    },
    Case {
        name: "alloc: from the reserve",
        prepare: drain,
        run: || alloc_as(Request::CRITICAL),
        critical: true,
        reached: |before, after| after.reserve_hits == before.reserve_hits + 1,
        ..BASE
    },
    Case {
        name: "alloc: from the host at once",
        prepare: drain,
        run: alloc,
        reached: |before, after| after.fallback_taken == before.fallback_taken + 1,
        ..BASE
    },
    Case {
        name: "alloc: nothing left but the reserve",
        setup: NO_FALLBACK,
        prepare: drain,
        run: alloc,
        reached: |before, after| after.exhausted == before.exhausted + 1,
        ..BASE
    },
    Case {
        name: "alloc_zeroed: from the clean side",
        operation: Operation::AllocZeroed,
        prepare: maintain,
        run: alloc_zeroed,
        reached: |before, after| after.zeroed_hits == before.zeroed_hits + 1,
        ..BASE
    },
    Case {
        name: "alloc_zeroed: cleared here",
        operation: Operation::AllocZeroed,
        run: alloc_zeroed,
        reached: |before, after| after.cleared_inline == before.cleared_inline + 1,
        ..BASE
    },
    Case {
        name: "free_zeroed",
        operation: Operation::FreeZeroed,
        prepare: || match pool().alloc_zeroed() {
            Ok(frame) => UNTOUCHED.store(frame.into_raw().as_u64(), Relaxed),
            Err(_) => ledger::violation(&"a case could not be prepared: no frame"),
        },
        run: || {
            let frame = PhysAddr::new(UNTOUCHED.swap(0, Relaxed));
            // SAFETY: `prepare` laid it down, and nobody has written to it.
            observed(|| unsafe { PoolFrame::from_raw(pool(), frame).free_zeroed() });
        },
        reached: |before, after| after.in_use == before.in_use - 1,
        ..BASE
    },
    Case {
        name: "free: room in the loaded magazine",
        operation: Operation::Free,
        prepare: || take(1),
        run: free,
        reached: |before, after| after.cached == before.cached + 1,
        ..BASE
    },
    Case {
        name: "free: room after the magazines change places",
        operation: Operation::Free,
        prepare: || {
            take(4);
            give(2);
        },
        run: free,
        reached: |before, after| after.cached == before.cached + 1,
        ..BASE
    },
    Case {
        name: "free: full magazine to the depot",
        operation: Operation::Free,
        prepare: || {
            take(4 * MAGAZINE);
            give(2 * MAGAZINE);
        },
        run: free,
        reached: |before, after| after.stock == before.stock + MAGAZINE as u64,
        ..BASE
    },
    Case {
        name: "free: full magazine to the depot, ringing above max",
        operation: Operation::Free,
        prepare: || {
            // Frames from the host come on top, so that the stock can grow above `max`; the refill thread answers in between.
            take(DEPOT + 13);
            give(DEPOT);
            maintain();
            pool().platform().take_refill_wanted();
            let most = u64::from(MARKS.max);
            while THREAD.count() > 1
                && (pool().stats().stock < most || pool().stats().cached < 2 * MAGAZINE as u64)
            {
                give(1);
            }
        },
        run: free,
        reached: |before, after| after.rings == before.rings + 1,
        ..BASE
    },
    Case {
        name: "free: into the reserve",
        operation: Operation::Free,
        critical: true,
        prepare: || {
            drain();
            let _ = THREAD.take(pool(), Request::CRITICAL, 1);
        },
        run: free,
        reached: |before, after| after.reserve == before.reserve + 1,
        ..BASE
    },
    Case {
        name: "alloc_bulk: from slot and depot",
        operation: Operation::AllocBulk,
        prepare: || take(1),
        run: || alloc_bulk_of(false),
        reached: |before, after| after.in_use == before.in_use + BULK as u64,
        ..BASE
    },
    Case {
        name: "alloc_bulk_exact: too few, nothing stays out",
        operation: Operation::AllocBulk,
        setup: NO_FALLBACK,
        prepare: || take(DEPOT - 3),
        run: || alloc_bulk_of(true),
        reached: |before, after| after.in_use == before.in_use && after.exhausted > before.exhausted,
        ..BASE
    },
    Case {
        name: "free_bulk: to slot and depot",
        operation: Operation::FreeBulk,
        prepare: || take(BULK),
        run: free_bulk,
        reached: |before, after| after.in_use == before.in_use - BULK as u64,
        ..BASE
    },
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
        prepare: || {
            on_other_cpu(|| {
                take(2 * MAGAZINE);
                give(2 * MAGAZINE);
            });
        },
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
    Case {
        name: "alloc in a handler: one frame of a full magazine",
        prepare: || take(1),
        run: alloc,
        in_handler: true,
        reached: |before, after| {
            after.collisions > before.collisions && after.depot_hits == before.depot_hits + 1
        },
        ..BASE
    },
    Case {
        name: "alloc in a handler: the last frame of a magazine",
        setup: ODD,
        prepare: || take(1),
        run: alloc,
        in_handler: true,
        reached: |before, after| {
            after.collisions > before.collisions && after.depot_hits == before.depot_hits + 1
        },
        ..BASE
    },
    Case {
        name: "alloc in a handler: stolen from another CPU",
        prepare: || {
            on_other_cpu(|| {
                take(2 * MAGAZINE);
                give(2 * MAGAZINE);
            });
            take(DEPOT - 2 * MAGAZINE - 1);
        },
        run: alloc,
        in_handler: true,
        reached: |before, after| after.collisions > before.collisions && after.steals == before.steals + 1,
        ..BASE
    },
    Case {
        name: "alloc in a handler: from the host at once",
        prepare: || take(DEPOT - 1),
        run: alloc,
        in_handler: true,
        reached: |before, after| {
            after.collisions > before.collisions && after.fallback_taken == before.fallback_taken + 1
        },
        ..BASE
    },
    Case {
        name: "free in a handler: into an empty magazine",
        operation: Operation::Free,
        prepare: || take(1),
        run: free,
        in_handler: true,
        reached: |before, after| after.collisions > before.collisions && after.stock == before.stock + 1,
        ..BASE
    },
    Case {
        name: "free in a handler: into a partial magazine",
        operation: Operation::Free,
        setup: ODD,
        prepare: || take(1),
        run: free,
        in_handler: true,
        reached: |before, after| after.collisions > before.collisions && after.stock == before.stock + 1,
        ..BASE
    },
    Case {
        name: "alloc_bulk in a handler",
        operation: Operation::AllocBulk,
        prepare: || take(1),
        run: || alloc_bulk_of(false),
        in_handler: true,
        reached: |before, after| after.collisions >= before.collisions + 2,
        ..BASE
    },
    Case {
        name: "free_bulk in a handler",
        operation: Operation::FreeBulk,
        prepare: || take(BULK),
        run: free_bulk,
        in_handler: true,
        reached: |before, after| after.collisions >= before.collisions + 2,
        ..BASE
    },
    Case {
        name: "map: one page in a table that is there",
        operation: Operation::Map,
        prepare: || prepare_map(MAPPED + PAGE, PAGE),
        run: || observe_map(MAPPED, PAGE),
        check: || {
            unmap(domain(), MAPPED + PAGE, PAGE);
            check_map(MAPPED, PAGE);
        },
        ..BASE
    },
    Case {
        name: "map: a row of pages, three tables missing",
        operation: Operation::Map,
        run: || observe_map(FRESH + LARGE - 2 * PAGE, 4 * PAGE),
        check: || check_map(FRESH + LARGE - 2 * PAGE, 4 * PAGE),
        reached: |before, after| after.in_use == before.in_use + 3,
        ..BASE
    },
    Case {
        name: "map: one page, beside a table that the handler links too",
        operation: Operation::Map,
        run: || observe_map(REMAPPED + PAGE, PAGE),
        check: || check_map(REMAPPED + PAGE, PAGE),
        reached: |before, after| after.in_use == before.in_use + 2,
        ..BASE
    },
    Case {
        name: "map: a page of 2 MiB",
        operation: Operation::Map,
        run: || observe_map(FRESH, LARGE),
        check: || check_map(FRESH, LARGE),
        reached: |before, after| after.in_use == before.in_use + 1,
        ..BASE
    },
    Case {
        name: "map: refused, too few frames",
        operation: Operation::Map,
        setup: NO_FALLBACK,
        prepare: || take(DEPOT - 1),
        run: || observe_map(MAPPED, PAGE),
        check: || check_map(MAPPED, PAGE),
        reached: |before, after| after.in_use == before.in_use,
        ..BASE
    },
    Case {
        name: "map: refused, already mapped",
        operation: Operation::Map,
        prepare: || prepare_map(MAPPED + PAGE, PAGE),
        run: || observe_map(MAPPED, 2 * PAGE),
        check: || {
            ledger::demand(!DONE.0.get(), &"what is mapped was mapped again");
            check_range(MAPPED, TARGET, PAGE, false);
            unmap(domain(), MAPPED + PAGE, PAGE);
            check_empty();
        },
        reached: |before, after| after.in_use == before.in_use,
        ..BASE
    },
    Case {
        name: "unmap: one page",
        operation: Operation::Unmap,
        prepare: || prepare_map(MAPPED, 2 * PAGE),
        run: || observe_unmap(MAPPED, PAGE),
        check: || {
            check_range(MAPPED, TARGET, PAGE, false);
            unmap(domain(), MAPPED + PAGE, PAGE);
            check_empty();
        },
        ..BASE
    },
    Case {
        name: "unmap: a table and all in it",
        operation: Operation::Unmap,
        prepare: prepare_table,
        run: || observe_unmap(FRESH, LARGE),
        check: || {
            ledger::demand(DONE.0.get(), &"what was mapped could not be unmapped");
            check_empty();
        },
        reached: |before, after| after.in_use == before.in_use - 1,
        ..BASE
    },
    Case {
        name: "unmap: part of a page of 2 MiB",
        operation: Operation::Unmap,
        prepare: || prepare_map(FRESH, LARGE),
        run: || observe_unmap(FRESH + 3 * PAGE, PAGE),
        check: || {
            if DONE.0.get() {
                check_range(FRESH, TARGET, 3 * PAGE, true);
                check_range(FRESH + 3 * PAGE, TARGET, PAGE, false);
                unmap(domain(), FRESH, 3 * PAGE);
                unmap(domain(), FRESH + 4 * PAGE, LARGE - 4 * PAGE);
            } else {
                check_range(FRESH, TARGET, LARGE, true);
                unmap(domain(), FRESH, LARGE);
            }
            check_empty();
        },
        reached: |before, after| after.in_use == before.in_use + 1,
        ..BASE
    },
    Case {
        name: "complete: a table frame comes back",
        operation: Operation::Complete,
        prepare: prepare_table,
        run: || {
            let Ok(invalidation) = domain().unmap(Iova::new(FRESH), LARGE) else {
                return ledger::violation(&"what was mapped could not be unmapped");
            };
            // SAFETY: no hardware walks these tables.
            observed(|| unsafe { invalidation.complete() });
        },
        check: check_empty,
        reached: |before, after| after.in_use == before.in_use - 1,
        ..BASE
    },
    Case {
        name: "translate",
        operation: Operation::Translate,
        prepare: || prepare_map(MAPPED, PAGE),
        run: || {
            let at = observed(|| domain().translate(Iova::new(MAPPED)));
            ledger::demand(at.is_some_and(|at| at.target == TARGET), &"a translation changed");
        },
        check: || {
            unmap(domain(), MAPPED, PAGE);
            check_empty();
        },
        ..BASE
    },
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
