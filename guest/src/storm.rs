//! Several CPUs at once: an allocation storm with a timer on every CPU, messages and NMIs between them, frames that are freed where they
//! were not allocated, mappings in one domain, CPUs that go and come back, and one CPU on which a thread refills the pool.
//!
//! CPU 0 is the manager: it answers the doorbell, sends interrupts, takes CPUs offline. All others are workers. Every context has its
//! own hand of frames and its own random numbers; frames change hands through a row of mailboxes.

use crate::{
    hand::{Hand, PoolFrame},
    host::{CACHES_ARE_HELD, CpuLocal, Kernel, PhysicalMemory, Pool},
    ledger,
    machine::{
        apic::LocalApic,
        boot::CPUS,
        cpus,
        interrupts::{self, CROSS_CALL, Interrupted, NMI, TIMER},
        place::{Place, Room},
    },
    say,
};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use framepool::{
    Builder, FallbackPolicy, Frame, PhysAddr, Request, Watermarks,
    vtd::{DomainConfig, Iova, Levels, PageSizes, Permissions, SecondStageDomain},
};

use Ordering::{AcqRel, Acquire, Relaxed, Release};

type Domain = SecondStageDomain<&'static Pool>;

/// Frames that the pool may own, for each CPU: fewer than all contexts together want at times.
const CAPACITY: u32 = 112;
const MARKS: Watermarks = Watermarks { min: 16, low: 48, high: 96, max: 144 };
/// The most frames that one context holds.
const HELD: usize = 60;
/// The longest time between two interrupts of a timer, in nanoseconds.
const TIMER_MOST: u64 = 20_000;
/// Passes of the manager between two CPUs that go offline.
const UNTIL_OFFLINE: u32 = 5000;

/// The contexts of a CPU.
const THREAD: usize = 0;
const INTERRUPT: usize = 1;
const UNMASKABLE: usize = 2;
const CONTEXTS: usize = 3;

/// What one context of one CPU has for itself.
struct Own {
    hand: Hand,
    random: AtomicU64,
    /// How often this context ran.
    entered: AtomicU32,
}

impl Own {
    const fn new(number: usize) -> Self {
        let random = AtomicU64::new(number as u64 * 0x9E37_79B9_7F4A_7C15 + 1);
        Self { hand: Hand::new(number as u32 + 1), random, entered: AtomicU32::new(0) }
    }

    /// The next random number (Marsaglia, "Xorshift RNGs", 2003).
    fn random(&self) -> u64 {
        let mut value = self.random.load(Relaxed);
        value ^= value << 13;
        value ^= value >> 7;
        value ^= value << 17;
        self.random.store(value, Relaxed);
        value
    }
}

static OWN: [[Own; CONTEXTS]; CPUS] = {
    let mut own = [const { [const { Own::new(0) }; CONTEXTS] }; CPUS];
    let mut number = 0;
    while number < CPUS * CONTEXTS {
        own[number / CONTEXTS][number % CONTEXTS] = Own::new(number);
        number += 1;
    }
    own
};

static POOL: Place<Pool> = Place::new();
static DOMAIN: Place<Domain> = Place::new();
static BOOKKEEPING: Room<{ 256 << 10 }> = Room::new();

/// Frames on their way to whoever looks first: an address each, or 0.
static MAILBOXES: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
/// Steps that each worker is to make, and workers that have made them.
static STEPS: AtomicUsize = AtomicUsize::new(0);
static FINISHED: AtomicUsize = AtomicUsize::new(0);
/// CPUs that shall be offline, and that are.
static SHALL_REST: [AtomicBool; CPUS] = [const { AtomicBool::new(false) }; CPUS];
static RESTS: [AtomicBool; CPUS] = [const { AtomicBool::new(false) }; CPUS];
/// Frames that were taken out of the caches of CPUs that rest.
static DRAINED: AtomicU32 = AtomicU32::new(0);
static MAPPED: AtomicU64 = AtomicU64::new(0);

fn pool() -> &'static Pool {
    // SAFETY: `run` writes it before any other context runs.
    unsafe { POOL.get() }
}

fn domain() -> &'static Domain {
    // SAFETY: as for `pool`.
    unsafe { DOMAIN.get() }
}

/// The storm on `count` CPUs, until each worker has made `steps` steps; whether nothing was lost or doubled.
pub fn run(memory: &'static PhysicalMemory, count: usize, steps: usize) -> bool {
    let builder = Builder::new(CAPACITY * count as u32)
        .watermarks(MARKS)
        .magazine_size(16)
        .cpus(count)
        .fallback(FallbackPolicy::Budget(64));
    // SAFETY: no other context runs yet; each static is borrowed or written here once.
    unsafe {
        let pool = builder.build_in(BOOKKEEPING.all(), memory, Kernel::new());
        POOL.put(pool.expect("a pool"));
        let config = DomainConfig { page_sizes: PageSizes::all(), ..DomainConfig::new(Levels::Four) };
        DOMAIN.put(Domain::new(config, self::pool()).expect("a frame for the root"));
    }
    STEPS.store(steps, Relaxed);
    interrupts::handle(TIMER, on_timer);
    interrupts::handle(CROSS_CALL, on_message);
    interrupts::handle(NMI, on_nmi);
    cpus::start(count);
    for cpu in 1..count {
        cpus::assign(cpu, work);
    }
    let rested = manage(count);
    for cpu in 1..count {
        cpus::wait(cpu);
    }
    settle(memory, count, rested)
}

/// Everything comes back, is counted, and goes to the source.
fn settle(memory: &'static PhysicalMemory, count: usize, rested: u32) -> bool {
    for own in OWN.iter().flatten() {
        own.hand.give_all(pool());
    }
    while let Some(frame) = receive() {
        drop(frame);
    }
    let tables = domain().table_frames();
    ledger::demand(domain().mappings().count() == 0, &"something is still mapped");
    let stats = pool().stats();
    ledger::demand(stats.in_use == tables, &"INV-4: frames are counted as in use that nobody holds");
    ledger::demand(stats.refused == 0 && stats.table_frames_leaked == 0, &"frames were refused or leaked");
    ledger::demand(ledger::owned() == 0, &"INV-1: somebody still holds a frame");
    // SAFETY: no other CPU works any more; both are moved out once, and no hardware walks the domain.
    unsafe {
        DOMAIN.take().close().complete();
        ledger::demand(POOL.take().close().is_ok(), &"INV-1: frames are missing at the end");
    }
    ledger::demand(memory.audit() == (0, 0), &"INV-1: the source did not get back what it gave");
    say!("{stats}");
    let entered = |context: usize| OWN.iter().map(|own| own[context].entered.load(Relaxed)).sum::<u32>();
    let allocated = stats.cache_hits
        + stats.depot_hits
        + stats.steals
        + stats.reserve_hits
        + stats.reserved
        + stats.fallback_taken;
    let (violations, first) = ledger::violations();
    if violations > 0 {
        say!("FAIL {violations} violations, the first: {first}");
    }
    say!(
        "{count} CPUs: {} operations, {} mappings, {} interrupts, {} NMIs, {rested} times offline, {} frames drained, \
         {violations} violations",
        allocated + stats.freed,
        MAPPED.load(Relaxed),
        entered(INTERRUPT),
        entered(UNMASKABLE),
        DRAINED.load(Relaxed)
    );
    violations == 0
        && entered(INTERRUPT) > 0
        && entered(UNMASKABLE) > 0
        && rested > 0
        && DRAINED.load(Relaxed) > 0
        && stats.refills > 0
}

/// CPU 0: the refill thread, and the source of all disturbance. How often a CPU went offline.
fn manage(count: usize) -> u32 {
    let (mut passes, mut rested) = (0u32, 0);
    let own = &OWN[0][THREAD];
    // Ordering: Acquire pairs with the Release at the end of `work`.
    while FINISHED.load(Acquire) < count - 1 {
        passes += 1;
        if pool().platform().take_refill_wanted() {
            pool().maintain();
        }
        let random = own.random();
        let cpu = 1 + random as usize % (count - 1);
        let mut apic = LocalApic::this();
        if random >> 32 & 1 == 0 {
            apic.interrupt_unmaskably(cpu);
        } else {
            apic.interrupt(cpu, CROSS_CALL);
        }
        if passes % UNTIL_OFFLINE == 0 {
            rested += u32::from(rest(cpu, count));
        }
    }
    rested
}

/// Moves the cache of a CPU that goes offline into the depot: itself if it holds the cache, or else who sends it there.
fn drain(cpu: usize) {
    let drained = pool().drain_cpu(cpu);
    ledger::demand(drained.is_ok(), &"the cache of a CPU that rests is in use");
    DRAINED.fetch_add(drained.unwrap_or(0), Relaxed);
}

/// Takes a CPU offline, has its cache drained, and brings it back; whether it had not finished before.
fn rest(cpu: usize, count: usize) -> bool {
    // Ordering: Release; nothing is published, the worker's answer is what counts.
    SHALL_REST[cpu].store(true, Release);
    // Ordering: Acquire pairs with the Releases in `work`.
    while !RESTS[cpu].load(Acquire) {
        if FINISHED.load(Acquire) == count - 1 {
            return false;
        }
        if pool().platform().take_refill_wanted() {
            pool().maintain();
        }
    }
    if !CACHES_ARE_HELD {
        drain(cpu);
    }
    // Ordering: Release, to the Acquire in `work`.
    SHALL_REST[cpu].store(false, Release);
    true
}

/// A worker.
fn work(cpu: usize) {
    let own = &OWN[cpu][THREAD];
    LocalApic::this().start_timer(1 + (own.random() % TIMER_MOST) as u32);
    x86_64::instructions::interrupts::enable();
    for _ in 0..STEPS.load(Relaxed) {
        step(cpu, own);
        // Ordering: Acquire pairs with the Release in `rest`.
        if SHALL_REST[cpu].load(Acquire) {
            x86_64::instructions::interrupts::disable();
            own.hand.give_all(pool());
            if CACHES_ARE_HELD {
                drain(cpu);
            }
            // Ordering: Release: what this CPU did is done.
            RESTS[cpu].store(true, Release);
            // Ordering: Acquire pairs with the Release in `rest`.
            while SHALL_REST[cpu].load(Acquire) {
                core::hint::spin_loop();
            }
            RESTS[cpu].store(false, Relaxed);
            x86_64::instructions::interrupts::enable();
        }
    }
    x86_64::instructions::interrupts::disable();
    // Ordering: Release, to the Acquire in `manage`.
    FINISHED.fetch_add(1, Release);
}

/// One random thing that a context does with the pool.
fn step(cpu: usize, own: &'static Own) {
    let random = own.random();
    let hand = &own.hand;
    match random >> 40 & 31 {
        0..=9 if hand.count() < HELD => {
            if let Ok(frame) = pool().alloc() {
                hand.keep(frame);
            }
        }
        0..=19 => hand.give(pool(), 1),
        20..=22 => {
            if let Some(frame) = hand.release(pool()) {
                send(frame, random as usize);
            }
        }
        23..=25 => drop(receive()),
        26..=28 => bulk(hand),
        29 if random & 1 == 0 => {
            if let Ok(reservation) = pool().reserve(20) {
                // What is not drawn goes back by itself.
                (0..3).filter(|_| hand.count() < HELD).for_each(|_| match reservation.draw() {
                    Some(frame) => hand.keep(frame),
                    None => ledger::violation(&"INV-8: a reserved frame could not be drawn"),
                });
            }
        }
        29 => {
            if let Ok(frame) = pool().alloc_with(Request::CRITICAL.without_fallback()) {
                drop(frame);
            }
        }
        _ => map_and_unmap(cpu, THREAD, random),
    }
}

/// Many frames at once, into the hand or out of it.
fn bulk(hand: &'static Hand) {
    let mut frames = [const { None }; 24];
    if hand.count() + frames.len() <= HELD {
        let _ = pool().alloc_bulk(Request::ORDINARY, &mut frames);
        frames.into_iter().flatten().for_each(|frame| hand.keep(frame));
    } else {
        frames.fill_with(|| hand.release(pool()));
        pool().free_bulk(&mut frames);
    }
}

/// Puts a frame where another CPU finds it, or gives it back when there is no room.
fn send(frame: PoolFrame, place: usize) {
    let mailbox = &MAILBOXES[place % MAILBOXES.len()];
    let address = frame.into_raw();
    // Ordering: Release publishes the frame's contents to the Acquire in `receive`.
    if mailbox.compare_exchange(0, address.as_u64(), AcqRel, Relaxed).is_err() {
        // SAFETY: it was laid down just now.
        drop(unsafe { Frame::from_raw(pool(), address) });
    }
}

/// A frame that another CPU has sent.
fn receive() -> Option<PoolFrame> {
    // Ordering: Acquire pairs with the Release in `send`.
    let full = MAILBOXES.iter().filter(|mailbox| mailbox.load(Relaxed) != 0);
    let address = full.map(|mailbox| mailbox.swap(0, AcqRel)).find(|address| *address != 0)?;
    // SAFETY: `send` laid it down, and the exchange gave it to us alone.
    Some(unsafe { Frame::from_raw(pool(), PhysAddr::new(address)) })
}

/// Maps a few pages in the range of this context, under tables that all share, looks, and unmaps them.
fn map_and_unmap(cpu: usize, context: usize, random: u64) {
    const PAGE: u64 = 4096;
    let table = (CONTEXTS * cpu + context) as u64;
    let iova = table << 21 | (random >> 8 & 1) << 30 | (random & 0xFF) << 12;
    let (target, length) = (PhysAddr::new((random >> 20 & 0xFFFF) << 12), PAGE * (1 + (random >> 3 & 7)));
    // SAFETY: no device walks this domain; the range is this context's alone.
    if unsafe { domain().map(Iova::new(iova), target, length, Permissions::all()) }.is_err() {
        return;
    }
    MAPPED.fetch_add(1, Relaxed);
    let found = domain().translate(Iova::new(iova + length - 1)).map(|at| at.target.as_u64());
    ledger::demand(found == Some(target.as_u64() + length - 1), &"a page went somewhere else");
    match domain().unmap(Iova::new(iova), length) {
        // SAFETY: no hardware walks these tables.
        Ok(invalidation) => unsafe { invalidation.complete() },
        Err(_) => ledger::violation(&"what was mapped could not be unmapped"),
    }
}

/// What a handler does: a few single operations, sometimes more out than in, sometimes the reverse.
fn handle(context: usize, operations: u64) {
    let own = &OWN[CpuLocal::number()][context];
    own.entered.store(own.entered.load(Relaxed) + 1, Relaxed);
    for _ in 0..operations {
        let random = own.random();
        match random >> 40 & 7 {
            7 if context == INTERRUPT => map_and_unmap(CpuLocal::number(), context, random),
            0..=2 if own.hand.count() < HELD => {
                if let Ok(frame) = pool().alloc() {
                    own.hand.keep(frame);
                }
            }
            0..=4 => own.hand.give(pool(), 1),
            5 => {
                if let Some(frame) = own.hand.release(pool()) {
                    send(frame, random as usize);
                }
            }
            _ => drop(receive()),
        }
    }
}

fn on_timer(_: &mut Interrupted) {
    let mut apic = LocalApic::this();
    apic.end_of_interrupt();
    handle(INTERRUPT, 8);
    apic.start_timer(1 + (OWN[CpuLocal::number()][INTERRUPT].random() % TIMER_MOST) as u32);
}

fn on_message(_: &mut Interrupted) {
    LocalApic::this().end_of_interrupt();
    handle(INTERRUPT, 4);
}

fn on_nmi(_: &mut Interrupted) {
    handle(UNMASKABLE, 3);
}
