//! One small pool in one state, and what each context that uses it holds: stamped, so that two owners of a frame are noticed.

use super::{
    audit::Before,
    crowd::CROWD,
    fixed::Fixed,
    host::{FRAME, FRAMES, Host, Memory, Pool, Supply, number_of},
    operations::Operation,
    quota::{Account, GUARANTEE, LIMIT},
    situations::Situation,
};
use framepool::{Builder, FallbackPolicy, Frame, PhysAddr, Reservation, Watermarks};
use std::{
    cell::{Cell, UnsafeCell},
    sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst},
};

/// How deep contexts nest: a thread, an interrupt in it, an interrupt in that one.
pub const LEVELS: usize = 3;
/// Frames that a context keeps at most.
const KEPT: usize = 40;
/// Frames that go into or come out of one call at most.
pub const OPEN: usize = 8;

/// Frames of one magazine: the least for which a partial magazine has more than one length.
pub const MAGAZINE: u32 = 3;
pub const MARKS: Watermarks = Watermarks { min: RESERVE, low: 5, high: 11, max: 13 };
/// Frames that each interrupt has before it comes, so that it can give some.
pub const PROVIDED: u32 = 3;
/// Frames for ordinary callers, beyond those, in the depot of a fresh pool: three full magazines and a partial one.
pub const ORDINARY: u32 = 11;
/// Frames of the reserve.
pub const RESERVE: u32 = 2;

pub type Set<'w> = Reservation<'w, Supply<'w>, Host>;
#[cfg(feature = "vtd")]
pub type Domain<'w> = framepool::vtd::SecondStageDomain<&'w Pool<'w>>;

/// What went wrong inside an operation; found afterwards.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Violation {
    /// A frame was handed out that had an owner.
    TwoOwners = 1,
    /// Somebody wrote into a frame while it had an owner.
    Overwritten = 2,
    /// An operation returned what it never may.
    Outcome = 4,
    /// An address was handed out that is no frame.
    NoFrame = 8,
    /// A frame was handed out as zeroed that is not.
    NotZero = 32,
    /// A context kept more than there are frames.
    TooMany = 16,
}

/// What one context holds.
pub struct Hand {
    pub level: usize,
    /// Frames that it owns, stamped, and how many: the last one kept goes first.
    kept: [AtomicU64; KEPT],
    count: AtomicUsize,
    /// Frames that go into the next call, or came out of it; not stamped. Zero is none.
    pub open: [AtomicU64; OPEN],
    /// What a call returned, as it says itself.
    pub outcome: AtomicU32,
}

impl Hand {
    fn new(level: usize) -> Self {
        Self {
            level,
            kept: [const { AtomicU64::new(0) }; KEPT],
            count: AtomicUsize::new(0),
            open: [const { AtomicU64::new(0) }; OPEN],
            outcome: AtomicU32::new(0),
        }
    }

    /// The frames that it keeps.
    pub fn kept(&self) -> impl Iterator<Item = PhysAddr> + '_ {
        self.kept.iter().take(self.count.load(SeqCst)).map(|frame| PhysAddr::new(frame.load(SeqCst)))
    }
}

/// A value that outlives the call that made it. Each is touched by one context, or by the auditor when no context is at work.
pub struct Kept<T>(UnsafeCell<Option<T>>);

impl<T> Kept<T> {
    pub const fn nothing() -> Self {
        Self(UnsafeCell::new(None))
    }

    pub fn get(&self) -> Option<&T> {
        // SAFETY: nobody changes it meanwhile, see above.
        unsafe { (*self.0.get()).as_ref() }
    }

    pub fn put(&self, value: T) {
        // SAFETY: nobody looks at it meanwhile, see above.
        unsafe { *self.0.get() = Some(value) }
    }

    pub fn take(&self) -> Option<T> {
        // SAFETY: as in `put`.
        unsafe { (*self.0.get()).take() }
    }
}

/// A pool at work.
pub struct World<'w> {
    pub pool: &'w Pool<'w>,
    #[cfg(feature = "vtd")]
    pub space: Option<super::tables::Space<'w>>,
    #[cfg(feature = "vtd")]
    pub units: Option<super::units::Units<'w>>,
    /// A place for another pool.
    pub fixed: Option<Fixed<'w>>,
    /// A quota of the pool, and what each context holds of it.
    pub quota: Option<Account<'w>>,
    pub charged: [Hand; LEVELS],
    /// What each context has set aside.
    pub reservations: [Kept<Set<'w>>; LEVELS],
    /// What all draw from, also in the middle of each other's draws; never changed while they are at work.
    pub shared: Kept<Set<'w>>,
    /// Those of the contexts, and behind them those of a crowd.
    pub hands: [Hand; LEVELS + CROWD],
    pub magazine: u32,
    pub depots: u32,
    owners: [AtomicU8; FRAMES],
    violations: AtomicU32,
    /// Somebody has asked for frames of the reserve.
    pub critical: AtomicBool,
    /// The worker has passed since the state was prepared, and how often.
    pub passes: AtomicU32,
    /// A pass could not bring the stock to where it should be.
    pub short: AtomicBool,
    /// How often somebody has waited for frames and given up.
    pub waits: AtomicU32,
    /// Frames drawn from what is shared.
    pub drawn: AtomicU32,
    /// Somebody is emptying the pool.
    pub vacating: AtomicBool,
    /// How things were when the state was prepared.
    pub before: Cell<Before>,
}

impl<'w> World<'w> {
    fn new(pool: &'w Pool<'w>, magazine: u32, depots: u32) -> Self {
        Self {
            pool,
            #[cfg(feature = "vtd")]
            space: None,
            #[cfg(feature = "vtd")]
            units: None,
            fixed: None,
            quota: None,
            charged: std::array::from_fn(Hand::new),
            reservations: [const { Kept::nothing() }; LEVELS],
            shared: Kept::nothing(),
            hands: std::array::from_fn(Hand::new),
            magazine,
            depots,
            owners: [const { AtomicU8::new(0) }; FRAMES],
            violations: AtomicU32::new(0),
            critical: AtomicBool::new(false),
            passes: AtomicU32::new(0),
            short: AtomicBool::new(false),
            waits: AtomicU32::new(0),
            drawn: AtomicU32::new(0),
            vacating: AtomicBool::new(false),
            before: Cell::new(Before::default()),
        }
    }

    pub fn host(&self) -> &Host {
        self.pool.platform()
    }

    pub fn supply(&self) -> &Supply<'w> {
        self.pool.source()
    }

    pub fn report(&self, violation: Violation) {
        self.violations.fetch_or(violation as u32, SeqCst);
    }

    /// Everything that went wrong inside operations.
    pub fn violations(&self) -> Vec<Violation> {
        use Violation::{NoFrame, NotZero, Outcome, Overwritten, TooMany, TwoOwners};
        let found = self.violations.load(SeqCst);
        [TwoOwners, Overwritten, Outcome, NoFrame, NotZero, TooMany]
            .into_iter()
            .filter(|&violation| found & violation as u32 != 0)
            .collect()
    }

    /// The state is prepared: from here on it counts.
    pub fn start(&self) {
        self.critical.store(false, SeqCst);
        self.short.store(false, SeqCst);
        self.passes.store(0, SeqCst);
        self.drawn.store(0, SeqCst);
        self.before.set(Before::of(self));
    }

    /// Runs an operation that can run.
    pub fn must_perform(&self, operation: &Operation, level: usize) {
        assert!(self.perform(operation, level), "{} cannot run here", operation.name);
    }

    /// Runs a whole operation as the context `level`; whether it could run there.
    pub fn perform(&self, operation: &Operation, level: usize) -> bool {
        let hand = &self.hands[level];
        if !self.prepare(operation, hand) {
            return false;
        }
        (operation.call)(self, hand);
        self.settle(operation, hand);
        true
    }

    /// What goes before a call; whether it can be made.
    pub fn prepare(&self, operation: &Operation, hand: &Hand) -> bool {
        let ready = (operation.ready)(self, hand);
        if ready && operation.critical {
            self.critical.store(true, SeqCst);
        }
        ready
    }

    /// What comes after it: the frames that it got are the context's.
    pub fn settle(&self, operation: &Operation, hand: &Hand) {
        [Some(hand), self.charged.get(hand.level)]
            .into_iter()
            .flatten()
            .for_each(|hand| self.keep_open(hand, operation.zeroed));
        (operation.settle)(self, hand);
    }

    /// Moves `count` frames that the context keeps to where a call takes them from; whether it had so many.
    pub fn open_up(&self, hand: &Hand, count: usize) -> bool {
        let Some(left) = hand.count.load(SeqCst).checked_sub(count) else { return false };
        hand.count.store(left, SeqCst);
        for (kept, open) in hand.kept.iter().skip(left).zip(&hand.open).take(count) {
            self.disown(hand, kept.load(SeqCst));
            open.store(kept.load(SeqCst), SeqCst);
        }
        true
    }

    fn keep_open(&self, hand: &Hand, zeroed: bool) {
        for open in hand.open.iter().filter(|open| open.load(SeqCst) != 0) {
            let frame = open.swap(0, SeqCst);
            if zeroed && !self.is_zero(PhysAddr::new(frame)) {
                self.report(Violation::NotZero);
            }
            self.own(hand, frame);
            match hand.kept.get(hand.count.fetch_add(1, SeqCst)) {
                Some(place) => place.store(frame, SeqCst),
                None => self.report(Violation::TooMany),
            }
        }
    }

    fn words(&self, frame: PhysAddr) -> &[AtomicU64] {
        let start = framepool::FrameSource::pointer(self.supply(), frame).cast::<AtomicU64>();
        // SAFETY: every frame is mapped; whoever else thinks that this one is his is caught by these atomics.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), FRAME / size_of::<AtomicU64>()) }
    }

    /// Whether a frame is zero in every byte.
    pub fn is_zero(&self, frame: PhysAddr) -> bool {
        self.words(frame).iter().all(|word| word.load(SeqCst) == 0)
    }

    /// Fills what the context is about to give with zeros.
    pub fn clear_open(&self, hand: &Hand) {
        for open in hand.open.iter().filter(|open| open.load(SeqCst) != 0) {
            self.words(PhysAddr::new(open.load(SeqCst))).iter().for_each(|word| word.store(0, SeqCst));
        }
    }

    /// Two words of a frame that its owner fills, and that nobody else may touch.
    fn marks(&self, frame: u64) -> impl Iterator<Item = &AtomicU64> {
        let words = self.words(PhysAddr::new(frame));
        words.get(1).into_iter().chain(words.last())
    }

    fn mark(hand: &Hand, frame: u64) -> u64 {
        !frame ^ (hand.level as u64 + 1) << 48
    }

    /// Stamps a frame as owned by the context.
    pub fn own(&self, hand: &Hand, frame: u64) {
        let Some(number) = number_of(PhysAddr::new(frame)) else { return self.report(Violation::NoFrame) };
        if self.owners[number].swap(hand.level as u8 + 1, SeqCst) != 0 {
            self.report(Violation::TwoOwners);
        }
        self.marks(frame).for_each(|word| word.store(Self::mark(hand, frame), SeqCst));
    }

    /// Takes the stamp off again.
    pub fn disown(&self, hand: &Hand, frame: u64) {
        let Some(number) = number_of(PhysAddr::new(frame)) else { return self.report(Violation::NoFrame) };
        if self.marks(frame).any(|word| word.load(SeqCst) != Self::mark(hand, frame)) {
            self.report(Violation::Overwritten);
        }
        if self.owners[number].swap(0, SeqCst) != hand.level as u8 + 1 {
            self.report(Violation::TwoOwners);
        }
    }

    /// Gives every frame back that anybody keeps.
    fn give_back_all(&self) {
        for hand in &self.hands {
            while self.open_up(hand, 1) {
                let frame = PhysAddr::new(hand.open[0].swap(0, SeqCst));
                // SAFETY: the context kept the frame, and has just let go of it.
                drop(unsafe { Frame::from_raw(self.pool, frame) });
            }
        }
    }
}

/// Builds a pool in the state `situation`, lets `play` use it, and audits it: what `play` says, and what is wrong.
pub fn stage<R>(
    memory: &Memory,
    situation: &Situation,
    play: impl FnOnce(&World<'_>) -> R,
) -> (R, Result<(), String>) {
    let builder = Builder::new(situation.capacity())
        .watermarks(Watermarks { max: MARKS.max + situation.for_tables(), ..MARKS })
        .guarantees(situation.guaranteed())
        .initial(situation.initial())
        .cpus(situation.cpus())
        .depots(situation.depots)
        .magazine_size(situation.magazine())
        .reservations(situation.reservations())
        .idle_passes(1)
        .fallback(FallbackPolicy::Always);
    let pool = builder.build(Supply::new(memory), Host::default()).unwrap();
    let (result, verdict) = perform_on(&pool, situation, play);
    let verdict = match verdict {
        Ok(()) => close(pool),
        // A pool in which something is wrong cannot be taken apart in order.
        Err(wrong) => {
            std::mem::forget(pool);
            Err(wrong)
        }
    };
    (result, verdict)
}

fn perform_on<'p, R>(
    pool: &'p Pool<'p>,
    situation: &Situation,
    play: impl FnOnce(&World<'_>) -> R,
) -> (R, Result<(), String>) {
    #[cfg(feature = "vtd")]
    let domain = situation.has_tables().then(|| super::tables::domain(pool));
    let mut world = World::new(pool, situation.magazine(), situation.depots as u32);
    #[cfg(feature = "vtd")]
    {
        world.space = domain.as_ref().map(super::tables::Space::new);
        world.units = situation.has_units().then(|| super::units::Units::new(pool));
    }
    world.fixed = situation.has_place().then(|| Fixed::new(pool.source().memory()));
    world.quota = situation.has_quota().then(|| pool.quota(GUARANTEE, LIMIT).unwrap());
    situation.prepare(&world);
    let result = play(&world);
    let verdict = world.audit();
    if verdict.is_ok() {
        #[cfg(feature = "vtd")]
        {
            world.empty_space();
            world.units.take().into_iter().for_each(super::units::Units::close);
        }
        world.discharge_all();
        world.give_back_all();
    }
    drop(world);
    #[cfg(feature = "vtd")]
    if let (Ok(()), Some(domain)) = (&verdict, domain) {
        // SAFETY: no device walks these tables.
        unsafe { domain.close().complete() };
    }
    (result, verdict)
}

/// INV-1, at the very end: every frame goes back to the source.
fn close(pool: Pool<'_>) -> Result<(), String> {
    match pool.close() {
        Ok(supply) if supply.out() == 0 && !supply.returned_twice.load(SeqCst) => Ok(()),
        Ok(supply) => {
            Err(format!("the pool is closed, and {} frames are not back or came back twice", supply.out()))
        }
        Err(refused) => {
            let out = refused.frames_out();
            std::mem::forget(refused);
            Err(format!("every frame was given back, and the pool says that {out} are out"))
        }
    }
}
