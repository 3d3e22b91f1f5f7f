//! The table of operations: every public call that may be interrupted or that an interrupt may make.

use super::{
    host::{Host, Supply},
    world::{Hand, Violation, World},
};
use framepool::{AllocError, Frame, Outcome, PhysAddr, Request, Reservation};
use std::{hint::black_box, sync::atomic::Ordering::SeqCst};

/// Where an operation may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// From any context: it is interrupted everywhere, and interrupts.
    Any,
    /// In threads: it is interrupted everywhere, and runs in the middle of others as a thread that has preempted them.
    Thread,
    /// Interrupted everywhere; does not interrupt, since it waits for others (in threads only), touches nothing that
    /// others share, or is the call of another operation with other arguments.
    Interrupted,
    /// Several calls, or calls on the other CPU: it interrupts.
    Interrupting,
}

/// What an operation uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    Pool,
    Reservation,
    Quota,
    Tables,
    Place,
    /// All tables.
    Mappings,
    /// The tables that lead to a domain, and its id.
    Units,
}

impl Role {
    pub fn is_interrupted(self) -> bool {
        self != Self::Interrupting
    }

    pub fn interrupts(self) -> bool {
        self != Self::Interrupted
    }
}

/// One operation.
pub struct Operation {
    pub name: &'static str,
    pub role: Role,
    /// Whether it may take from the reserve.
    pub critical: bool,
    /// Whether the frames that it gets are zero.
    pub zeroed: bool,
    /// Whether it takes the lock of tasks: a thread that runs in the middle of it must not wait for that.
    pub locks: bool,
    /// What it uses.
    pub of: Of,
    /// Gets ready what it needs; whether it can run in this state.
    pub ready: fn(&World<'_>, &Hand) -> bool,
    /// The call itself, and nothing but what it takes to get its result out: this is what is interrupted.
    pub call: extern "C" fn(&World<'_>, &Hand),
    /// Takes note of what came of it.
    pub settle: fn(&World<'_>, &Hand),
}

impl Operation {
    pub const fn new(name: &'static str, role: Role, call: extern "C" fn(&World<'_>, &Hand)) -> Self {
        Self {
            name,
            role,
            critical: false,
            zeroed: false,
            locks: false,
            of: Of::Pool,
            ready: |_, _| true,
            call,
            settle: |_, _| {},
        }
    }

    pub const fn critical(self) -> Self {
        Self { critical: true, ..self }
    }

    pub const fn zeroed(self) -> Self {
        Self { zeroed: true, ..self }
    }

    pub const fn locks(self) -> Self {
        Self { locks: true, ..self }
    }

    pub const fn of(self, of: Of) -> Self {
        Self { of, ..self }
    }

    pub const fn needs(self, ready: fn(&World<'_>, &Hand) -> bool) -> Self {
        Self { ready, ..self }
    }

    pub const fn settled_by(self, settle: fn(&World<'_>, &Hand)) -> Self {
        Self { settle, ..self }
    }
}

/// Every operation.
pub fn all() -> impl Iterator<Item = &'static Operation> {
    #[cfg(feature = "vtd")]
    let tables = super::tables::TABLES
        .iter()
        .chain(super::changes::CHANGES)
        .chain(super::pieces::PIECEWISE)
        .chain(super::notes::NOTES)
        .chain(super::looks::LOOKS)
        .chain(super::units::UNITS);
    #[cfg(not(feature = "vtd"))]
    let tables = [].iter();
    let pools =
        POOL.iter().chain(super::waiting::WAITING).chain(super::quota::QUOTA).chain(super::fixed::FIXED);
    pools.chain(tables)
}

/// Changes of direction in one [`walk`].
const STRETCHES: usize = 10;

// Those that bring a pool into a state.
pub const ALLOC: Operation = Operation::new("alloc", Role::Any, alloc).settled_by(check_refusal);
pub const ALLOC_CRITICAL: Operation =
    Operation::new("alloc, critical", Role::Any, alloc_critical).critical().settled_by(check_refusal);
pub const ALLOC_ZEROED: Operation =
    Operation::new("alloc_zeroed", Role::Any, alloc_zeroed).zeroed().settled_by(check_refusal);
pub const FREE_ZEROED: Operation =
    Operation::new("free_zeroed", Role::Any, free_zeroed).needs(|world, hand| {
        let ready = world.open_up(hand, 1);
        world.clear_open(hand);
        ready
    });
pub const FREE: Operation =
    Operation::new("free", Role::Any, free).needs(|world, hand| world.open_up(hand, 1));
pub const MAINTAIN: Operation = Operation::new("maintain", Role::Thread, maintain);
pub const SET_ASIDE: Operation = Operation::new("reserve 4", Role::Any, reserve)
    .needs(|world, hand| world.reservations[hand.level].get().is_none())
    .settled_by(check_refusal);
pub const SET_ASIDE_ZEROED: Operation =
    Operation::new("reserve 4, zeroed", Role::Interrupted, reserve_zeroed)
        .needs(|world, hand| world.reservations[hand.level].get().is_none())
        .settled_by(check_refusal)
        .of(Of::Reservation);
pub const DRAW: Operation = Operation::new("draw", Role::Any, draw)
    .needs(|world, _| world.shared.get().is_some_and(|shared| !shared.is_zeroed()))
    .settled_by(check_draw)
    .of(Of::Reservation);
pub const DRAW_ZEROED: Operation = Operation::new("draw, zeroed", Role::Any, draw)
    .zeroed()
    .needs(|world, _| world.shared.get().is_some_and(Reservation::is_zeroed))
    .settled_by(check_draw)
    .of(Of::Reservation);

/// The operations of the pool.
static POOL: &[Operation] = &[
    ALLOC,
    ALLOC_CRITICAL,
    Operation::new("alloc, no fallback", Role::Interrupted, alloc_without_fallback).settled_by(check_refusal),
    ALLOC_ZEROED,
    FREE,
    FREE_ZEROED,
    Operation::new("alloc_bulk of 2", Role::Interrupted, alloc_bulk),
    Operation::new("alloc_bulk_exact of 4", Role::Any, alloc_bulk_exact),
    Operation::new("alloc_bulk of 2, zeroed", Role::Interrupted, alloc_bulk_zeroed).zeroed(),
    Operation::new("free_bulk of 2", Role::Any, free_bulk).needs(|world, hand| world.open_up(hand, 2)),
    Operation::new("stats", Role::Any, stats),
    Operation::new("from_raw, into_raw", Role::Interrupted, round_trip)
        .needs(|world, hand| world.open_up(hand, 1)),
    SET_ASIDE,
    SET_ASIDE_ZEROED,
    DRAW,
    DRAW_ZEROED,
    Operation::new("drop a reservation", Role::Any, drop_reservation)
        .needs(|world, hand| world.reservations[hand.level].get().is_some())
        .of(Of::Reservation),
    MAINTAIN,
    Operation::new("shrink_to 6", Role::Thread, shrink),
    Operation::new("drain_cpu 0", Role::Interrupted, drain),
    Operation::new("vacate", Role::Interrupted, vacate).needs(start_vacating).settled_by(stop_vacating),
    Operation::new("alloc and free", Role::Interrupting, alloc_and_free),
    Operation::new("free two", Role::Interrupting, free_two).needs(|world, hand| world.open_up(hand, 2)),
    Operation::new("take all, give all", Role::Interrupting, churn).critical(),
    Operation::new("walk at random", Role::Interrupting, walk),
    Operation::new("alloc on the other CPU", Role::Interrupting, alloc_elsewhere),
    Operation::new("free on the other CPU", Role::Interrupting, free_elsewhere)
        .needs(|world, hand| world.open_up(hand, 1)),
    Operation::new("migrate", Role::Interrupting, migrate),
];

/// What an allocation came to, as [`Hand::outcome`] has it.
const TAKEN: u32 = 1;
const REFUSED: u32 = 2;
const CLOSED: u32 = 3;

/// Lays the frame down, if there is one, for the context to keep.
#[inline(always)]
fn lay_down(hand: &Hand, place: usize, outcome: Result<Frame<'_, Supply<'_>, Host>, AllocError>) {
    let (frame, outcome) = match outcome {
        Ok(frame) => (frame.into_raw().as_u64(), TAKEN),
        Err(AllocError::Closed) => (0, CLOSED),
        Err(_) => (0, REFUSED),
    };
    hand.open[place].store(frame, SeqCst);
    hand.outcome.store(outcome, SeqCst);
}

/// Takes a frame up again that the context has let go of.
#[inline(always)]
fn take_up<'w>(world: &World<'w>, hand: &Hand, place: usize) -> Frame<'w, Supply<'w>, Host> {
    // SAFETY: the context owned the frame, laid it down as this address, and takes it up once.
    unsafe { Frame::from_raw(world.pool, PhysAddr::new(hand.open[place].swap(0, SeqCst))) }
}

/// A pool refuses for want of a frame, or because it is being closed; nothing else.
fn check_refusal(world: &World<'_>, hand: &Hand) {
    if hand.outcome.load(SeqCst) == CLOSED && !world.vacating.load(SeqCst) {
        world.report(Violation::Outcome);
    }
}

extern "C" fn alloc(world: &World<'_>, hand: &Hand) {
    lay_down(hand, 0, world.pool.alloc());
}

extern "C" fn alloc_critical(world: &World<'_>, hand: &Hand) {
    lay_down(hand, 0, world.pool.alloc_with(Request::CRITICAL));
}

extern "C" fn alloc_without_fallback(world: &World<'_>, hand: &Hand) {
    lay_down(hand, 0, world.pool.alloc_with(Request::ORDINARY.without_fallback()));
}

extern "C" fn alloc_zeroed(world: &World<'_>, hand: &Hand) {
    lay_down(hand, 0, world.pool.alloc_zeroed());
}

extern "C" fn free_zeroed(world: &World<'_>, hand: &Hand) {
    // SAFETY: the frame was cleared when the context let go of it.
    unsafe { take_up(world, hand, 0).free_zeroed() };
}

extern "C" fn free(world: &World<'_>, hand: &Hand) {
    drop(take_up(world, hand, 0));
}

extern "C" fn alloc_bulk(world: &World<'_>, hand: &Hand) {
    let mut frames = [const { None }; 2];
    let _ = world.pool.alloc_bulk(Request::ORDINARY, &mut frames);
    for (frame, open) in frames.into_iter().flatten().zip(&hand.open) {
        open.store(frame.into_raw().as_u64(), SeqCst);
    }
}

extern "C" fn alloc_bulk_zeroed(world: &World<'_>, hand: &Hand) {
    let mut frames = [const { None }; 2];
    let _ = world.pool.alloc_bulk(Request::ORDINARY.zeroed(), &mut frames);
    for (frame, open) in frames.into_iter().flatten().zip(&hand.open) {
        open.store(frame.into_raw().as_u64(), SeqCst);
    }
}

extern "C" fn alloc_bulk_exact(world: &World<'_>, hand: &Hand) {
    let mut frames = [const { None }; 4];
    let _ = world.pool.alloc_bulk_exact(Request::ORDINARY, &mut frames);
    for (frame, open) in frames.into_iter().flatten().zip(&hand.open) {
        open.store(frame.into_raw().as_u64(), SeqCst);
    }
}

extern "C" fn free_bulk(world: &World<'_>, hand: &Hand) {
    world.pool.free_bulk(&mut [Some(take_up(world, hand, 0)), Some(take_up(world, hand, 1))]);
}

extern "C" fn stats(world: &World<'_>, _hand: &Hand) {
    black_box(world.pool.stats());
}

extern "C" fn round_trip(world: &World<'_>, hand: &Hand) {
    let address = take_up(world, hand, 0).into_raw();
    hand.open[0].store(address.as_u64(), SeqCst);
}

extern "C" fn reserve(world: &World<'_>, hand: &Hand) {
    set_aside(world, hand, Request::ORDINARY);
}

extern "C" fn reserve_zeroed(world: &World<'_>, hand: &Hand) {
    set_aside(world, hand, Request::ORDINARY.zeroed());
}

#[inline(always)]
fn set_aside(world: &World<'_>, hand: &Hand, request: Request) {
    let outcome = match world.pool.reserve_with(request, 4) {
        Ok(reservation) => {
            world.reservations[hand.level].put(reservation);
            TAKEN
        }
        Err(refused) if refused.reason() == AllocError::Closed => CLOSED,
        Err(_) => REFUSED,
    };
    hand.outcome.store(outcome, SeqCst);
}

extern "C" fn draw(world: &World<'_>, hand: &Hand) {
    let frame = world.shared.get().and_then(Reservation::draw);
    let outcome = if frame.is_some() { TAKEN } else { REFUSED };
    hand.open[0].store(frame.map_or(0, |frame| frame.into_raw().as_u64()), SeqCst);
    hand.outcome.store(outcome, SeqCst);
}

/// INV-8: a draw fails only when everything is drawn. What is left only falls, so it may be looked at afterwards.
fn check_draw(world: &World<'_>, hand: &Hand) {
    if hand.outcome.load(SeqCst) == TAKEN {
        world.drawn.fetch_add(1, SeqCst);
    } else if world.shared.get().is_some_and(|shared| shared.left() > 0) {
        world.report(Violation::Outcome);
    }
}

extern "C" fn drop_reservation(world: &World<'_>, hand: &Hand) {
    drop(world.reservations[hand.level].take());
}

/// What the worker does when it gets up: it takes note of the bell, then makes a pass.
extern "C" fn maintain(world: &World<'_>, _hand: &Hand) {
    world.passes.fetch_add(1, SeqCst);
    world.host().rung.store(false, SeqCst);
    if world.pool.maintain().outcome != Outcome::Done {
        world.short.store(true, SeqCst);
    }
}

extern "C" fn shrink(world: &World<'_>, _hand: &Hand) {
    black_box(world.pool.shrink_to(6));
}

extern "C" fn drain(world: &World<'_>, _hand: &Hand) {
    let _ = black_box(world.pool.drain_cpu(0));
}

fn start_vacating(world: &World<'_>, _hand: &Hand) -> bool {
    !world.vacating.swap(true, SeqCst)
}

extern "C" fn vacate(world: &World<'_>, hand: &Hand) {
    hand.outcome.store(u32::from(world.pool.vacate().is_ok()), SeqCst);
}

/// Somebody holds frames all the time, so nothing may have been given away.
fn stop_vacating(world: &World<'_>, hand: &Hand) {
    world.vacating.store(false, SeqCst);
    if hand.outcome.load(SeqCst) != 0 {
        world.report(Violation::Outcome);
    }
}

extern "C" fn alloc_and_free(world: &World<'_>, hand: &Hand) {
    if let Ok(frame) = world.pool.alloc() {
        let address = frame.into_raw();
        world.own(hand, address.as_u64());
        world.disown(hand, address.as_u64());
        // SAFETY: laid down three lines above, and not taken up since.
        drop(unsafe { Frame::from_raw(world.pool, address) });
    }
}

extern "C" fn free_two(world: &World<'_>, hand: &Hand) {
    drop(take_up(world, hand, 0));
    drop(take_up(world, hand, 1));
}

/// Every frame that can be had is taken, used, and given back: nothing stays where it was.
pub extern "C" fn churn(world: &World<'_>, hand: &Hand) {
    let mut taken = [PhysAddr::new(0); super::host::FRAMES];
    let request = Request::CRITICAL.without_fallback();
    let mut count = 0;
    for (place, frame) in taken.iter_mut().zip(std::iter::from_fn(|| world.pool.alloc_with(request).ok())) {
        *place = frame.into_raw();
        world.own(hand, place.as_u64());
        count += 1;
    }
    for &frame in taken.iter().take(count) {
        world.disown(hand, frame.as_u64());
        // SAFETY: laid down in the loop above, and not taken up since.
        drop(unsafe { Frame::from_raw(world.pool, frame) });
    }
}

/// A walk of allocations and frees, on both CPUs, that is another one each time: magazines go down and come up again in every order, so
/// that a stack's head is often what it was while the rest is not.
extern "C" fn walk(world: &World<'_>, hand: &Hand) {
    for _ in 0..STRETCHES {
        let next = world.supply().random();
        let (operation, count) = (if next >> 31 == 0 { &ALLOC } else { &FREE }, 1 + (next >> 28) % 6);
        let stretch = || (0..count).for_each(|_| _ = world.perform(operation, hand.level));
        if next >> 27 & 1 == 0 { stretch() } else { elsewhere(world, stretch) }
    }
}

/// Runs `call` on the other CPU, which is as if it came to its end while this one stands still.
fn elsewhere(world: &World<'_>, call: impl FnOnce()) {
    let here = world.host().cpu.fetch_xor(1, SeqCst);
    call();
    world.host().cpu.store(here, SeqCst);
}

extern "C" fn alloc_elsewhere(world: &World<'_>, hand: &Hand) {
    elsewhere(world, || alloc(world, hand));
}

extern "C" fn free_elsewhere(world: &World<'_>, hand: &Hand) {
    elsewhere(world, || free(world, hand));
}

/// The interrupted code goes on on the other CPU.
extern "C" fn migrate(world: &World<'_>, _hand: &Hand) {
    world.host().cpu.fetch_xor(1, SeqCst);
}
