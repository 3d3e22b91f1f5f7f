//! Owns the pool and the domain under observation: built anew for each run in the same place, audited, and taken apart again.

use crate::{
    hand::Hand,
    host::{CpuLocal, Kernel, PhysicalMemory, Pool},
    ledger,
    machine::place::{Place, Room},
};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use framepool::{
    Builder, FallbackPolicy, Outcome, Request, Reservation, Watermarks,
    vtd::{DomainConfig, Levels, PageSizes, SecondStageDomain},
};

pub type Domain = SecondStageDomain<&'static Pool>;

/// Frames in a magazine: small, so that every exchange is near.
pub const MAGAZINE: usize = 2;
/// Frames that are out before a case begins, whole magazines of them: the root table, and what the handlers hold.
const EXTRA: u32 = 1 + HELD_BY_HANDLER + HELD_BY_NMI;
const HELD_BY_HANDLER: u32 = 3;
const HELD_BY_NMI: u32 = 2;
const CAPACITY: u32 = 48;
/// The watermarks of every case, in frames.
pub const MARKS: Watermarks = Watermarks { min: 2, low: 6, high: 10, max: 24 };

/// How the pool of a case is built.
#[derive(Clone, Copy)]
pub struct Setup {
    /// Frames in the depot and the reserve when the case begins.
    pub initial: u32,
    pub fallback: FallbackPolicy,
    /// Frames that quotas may guarantee.
    pub guarantees: u32,
}

/// Sixteen frames, two of them in the reserve, and the host may be asked.
pub const ORDINARY: Setup = Setup { initial: 16, fallback: FallbackPolicy::Always, guarantees: 0 };

/// The frames of each context.
pub static THREAD: Hand = Hand::new(1);
pub static HANDLER: Hand = Hand::new(2);
pub static UNMASKABLE: Hand = Hand::new(3);

static POOL: Place<Pool> = Place::new();
static DOMAIN: Place<Domain> = Place::new();
static BOOKKEEPING: Room<{ 64 << 10 }> = Room::new();

/// A reservation of the thread, from which handlers draw too, while there is one.
static RESERVATION: Place<PoolReservation> = Place::new();
static RESERVED: AtomicBool = AtomicBool::new(false);

pub type PoolReservation = Reservation<'static, &'static PhysicalMemory, Kernel>;

/// Passes of `maintain`, and whether the last one brought the stock to where it should be.
static PASSES: AtomicU32 = AtomicU32::new(0);
/// Callers that have waited for a frame: each may have rung.
static WAITS: AtomicU32 = AtomicU32::new(0);
static SATISFIED: AtomicU32 = AtomicU32::new(0);

/// The pool, between `build` and `take_apart`.
pub fn pool() -> &'static Pool {
    // SAFETY: the callers run between `build`, which writes it, and `take_apart`.
    unsafe { POOL.get() }
}

/// Lets every context draw from `reservation`.
pub fn set_aside(reservation: PoolReservation) {
    // SAFETY: `put_back` took the last one out.
    unsafe { RESERVATION.put(reservation) };
    RESERVED.store(true, Relaxed);
}

/// The reservation, if there is one.
pub fn reservation() -> Option<&'static PoolReservation> {
    // SAFETY: it is there between `set_aside` and `put_back`, which the thread calls while no handler can be inside.
    RESERVED.load(Relaxed).then(|| unsafe { RESERVATION.get() })
}

/// Takes the reservation back, if there is one: from here on no handler finds it.
pub fn put_back() -> Option<PoolReservation> {
    // SAFETY: as for `reservation`; it is taken once.
    RESERVED.swap(false, Relaxed).then(|| unsafe { RESERVATION.take() })
}

/// The domain, between `build` and `take_apart`.
pub fn domain() -> &'static Domain {
    // SAFETY: as for `pool`.
    unsafe { DOMAIN.get() }
}

/// Builds pool and domain. The slot of CPU 0 is empty then.
pub fn build(memory: &'static PhysicalMemory, setup: Setup) {
    CpuLocal::set_number(0);
    PASSES.store(0, Relaxed);
    WAITS.store(0, Relaxed);
    SATISFIED.store(0, Relaxed);
    let builder = Builder::new(CAPACITY)
        .watermarks(MARKS)
        .magazine_size(MAGAZINE as u32)
        .cpus(2)
        .initial(setup.initial + EXTRA)
        .fallback(setup.fallback)
        .guarantees(setup.guarantees);
    // SAFETY: the last pool is gone, and with it its hold on the bookkeeping and every reference to itself and its domain.
    unsafe {
        let pool = builder.build_in(BOOKKEEPING.all(), memory, Kernel::new());
        POOL.put(pool.expect("a pool of a few frames"));
        let mut config = DomainConfig { page_sizes: PageSizes::all(), ..DomainConfig::new(Levels::Three) };
        (config.accessed_dirty, config.hardware.accessed_dirty) = (true, true);
        DOMAIN.put(Domain::new(config, self::pool()).expect("a frame for the root"));
    }
    HANDLER.take(pool(), Request::ORDINARY, HELD_BY_HANDLER as usize).expect("frames for the handler");
    UNMASKABLE.take(pool(), Request::ORDINARY, HELD_BY_NMI as usize).expect("frames for the NMI");
}

/// Somebody waits for a frame.
pub fn wait() {
    WAITS.fetch_add(1, Relaxed);
}

/// One pass of the refill thread.
pub fn maintain() {
    PASSES.fetch_add(1, Relaxed);
    let pass = pool().maintain();
    SATISFIED.store(u32::from(pass.outcome == Outcome::Done), Relaxed);
}

/// Demands what must hold when no operation is in progress. `critical`: whether somebody may have taken from the reserve; `rings`
/// before the operation; `others`: frames in structures of the case.
pub fn audit(memory: &PhysicalMemory, critical: bool, rings: u32, others: u64) {
    // Tables that were taken out while the interrupted call was walking have waited for its end.
    ledger::demand(domain().maintain() == 0, &"INV-10: a table frame waits for a call that is over");
    let stats = pool().stats();
    let set_aside = reservation().map_or(0, |reservation| reservation.left() as usize);
    let held = THREAD.count() + HANDLER.count() + UNMASKABLE.count() + set_aside;
    let tables = domain().table_frames();
    ledger::demand(
        stats.in_use == held as u64 + tables + others,
        &"INV-4: the frames in use are not those that are held",
    );
    ledger::demand(
        stats.owned == u64::from(memory.audit().0),
        &"INV-1: the pool and its source count different frames",
    );
    ledger::demand(stats.refused == 0 && stats.table_frames_leaked == 0, &"frames were refused or leaked");
    ledger::demand(stats.overflow == 0, &"a free found no magazine");
    let missing = u64::from(MARKS.min) - stats.reserve;
    ledger::demand(critical || missing == 0, &"INV-5: an ordinary caller took from the reserve");
    let rang = pool().platform().rings() - rings;
    ledger::demand(rang <= 1 + PASSES.load(Relaxed) + WAITS.load(Relaxed), &"INV-6: one crossing rang twice");
    let depot = stats.stock - stats.reserve;
    let answered = PASSES.load(Relaxed) > 0 && SATISFIED.load(Relaxed) == 0;
    let wanted = pool().platform().take_refill_wanted();
    let due = depot < u64::from(MARKS.low - MARKS.min);
    ledger::demand(!due || wanted || answered, &"INV-6: a crossing of low rang no doorbell");
}

/// Gives everything back to where it came from and demands that all of it arrives.
pub fn take_apart(memory: &'static PhysicalMemory) {
    drop(put_back());
    THREAD.give_all(pool());
    HANDLER.give_all(pool());
    UNMASKABLE.give_all(pool());
    // SAFETY: nobody else reaches the pool and the domain; each is moved out once, the domain first, no hardware walks it.
    unsafe {
        let domain = DOMAIN.take();
        domain.close().complete();
        let pool = POOL.take();
        if pool.close().is_err() {
            ledger::violation(&"INV-1: frames are missing at the end");
        }
    }
    let (out, strays) = memory.audit();
    ledger::demand(out == 0 && strays == 0, &"INV-1: the source did not get back what it gave");
    ledger::demand(ledger::owned() == 0, &"INV-1: somebody holds a frame of a pool that is gone");
}
