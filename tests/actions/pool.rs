//! The pool against a set: any sequence of operations, on any CPU, interrupted at times, with a source that fails when it likes.

use crate::common::{Scripted, TestHost, TestPool, assert_accounts, interrupt, is_zero, set_cpu, soil};
use arbitrary::{Arbitrary, Unstructured};
use framepool::{
    AllocError, Builder, Class, FallbackPolicy, Frame, Outcome, PhysAddr, Request, Reservation, Watermarks,
};
use std::{
    cell::RefCell,
    collections::{HashSet, VecDeque},
    rc::Rc,
    sync::atomic::Ordering::SeqCst,
};

/// One call, or one thing that happens to the pool.
#[derive(Clone, Debug, Arbitrary)]
pub enum Action {
    Alloc {
        #[arbitrary(with = request)]
        request: Request,
        soil: bool,
    },
    Bulk {
        #[arbitrary(with = request)]
        request: Request,
        #[arbitrary(with = up_to::<20>)]
        count: usize,
        exact: bool,
        soil: bool,
    },
    Free {
        which: usize,
        promise: bool,
    },
    FreeBulk {
        #[arbitrary(with = up_to::<20>)]
        count: usize,
        promise: bool,
    },
    Reserve {
        #[arbitrary(with = request)]
        request: Request,
        #[arbitrary(with = |bytes: &mut Unstructured<'_>| bytes.int_in_range(0..=39))]
        frames: u32,
    },
    Draw {
        #[arbitrary(with = up_to::<20>)]
        count: usize,
        soil: bool,
    },
    Release,
    Migrate(#[arbitrary(with = up_to::<4>)] usize),
    Maintain,
    Drain(#[arbitrary(with = up_to::<4>)] usize),
    Shrink(#[arbitrary(with = |bytes: &mut Unstructured<'_>| bytes.int_in_range(0..=47))] u32),
    Failing(bool),
    Vacate,
    /// A handler interrupts a call where that asks the host or the source for something, the `after`th time, and does this.
    Interrupt {
        call: Call,
        after: u8,
        nested: Nested,
    },
}

/// What is interrupted.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Call {
    Alloc(#[arbitrary(with = request)] Request),
    Free,
    Reserve(#[arbitrary(with = |bytes: &mut Unstructured<'_>| bytes.int_in_range(0..=39))] u32),
    Maintain,
    Shrink(#[arbitrary(with = |bytes: &mut Unstructured<'_>| bytes.int_in_range(0..=47))] u32),
}

/// What a handler does.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Nested {
    Alloc(#[arbitrary(with = request)] Request),
    Free,
    /// The interrupted code goes on on another CPU.
    Migrate(#[arbitrary(with = up_to::<4>)] usize),
}

/// How a pool is built.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub builder: Builder,
    pub zeroed: bool,
}

impl Shape {
    /// Watermarks of any numbers, in their order.
    pub fn new(capacity: u32, cpus: usize, magazine_size: u32, marks: [u32; 4], zeroed: bool) -> Self {
        let mut marks = marks.map(|mark| mark.min(capacity));
        marks.sort_unstable();
        let [min, low, high, max] = marks;
        // One depot up to one for each CPU.
        let depots = 1 + capacity as usize % cpus;
        let builder = Builder::new(capacity).cpus(cpus).depots(depots).magazine_size(magazine_size);
        let builder = builder.watermarks(Watermarks { min, low, high, max });
        Self { builder: builder.fallback(FallbackPolicy::Always).idle_passes(2), zeroed }
    }
}

impl<'a> Arbitrary<'a> for Shape {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let (capacity, cpus) = (bytes.int_in_range(1..=47)?, bytes.int_in_range(1..=3)?);
        let (magazine_size, zeroed) = (bytes.int_in_range(1..=5)?, bytes.arbitrary()?);
        let mut marks = [0; 4];
        for mark in &mut marks {
            *mark = bytes.int_in_range(0..=47)?;
        }
        Ok(Self::new(capacity, cpus, magazine_size, marks, zeroed))
    }
}

/// The request that three answers make.
pub fn request_of(critical: bool, fallback: bool, zeroed: bool) -> Request {
    let request = if critical { Request::CRITICAL } else { Request::ORDINARY };
    let request = if fallback { request } else { request.without_fallback() };
    if zeroed { request.zeroed() } else { request }
}

fn request(bytes: &mut Unstructured<'_>) -> arbitrary::Result<Request> {
    let bits = u8::arbitrary(bytes)?;
    Ok(request_of(bits & 1 != 0, bits & 2 != 0, bits & 4 != 0))
}

fn up_to<const END: usize>(bytes: &mut Unstructured<'_>) -> arbitrary::Result<usize> {
    bytes.int_in_range(0..=END - 1)
}

type Handle<'p> = Frame<'p, Scripted, TestHost>;
type Held<'p> = Vec<Handle<'p>>;
/// Reservations, and whether their frames are to be zero.
type Reserved<'p> = VecDeque<(Reservation<'p, Scripted, TestHost>, bool)>;

fn in_use(held: &Held<'_>, reserved: &Reserved<'_>) -> u64 {
    held.len() as u64 + reserved.iter().map(|(reservation, _)| u64::from(reservation.left())).sum::<u64>()
}

/// INV-9 for a frame that was just handed out, which its owner then soils or not.
fn receive(frame: &Handle<'_>, zeroed: bool, soiled: bool) {
    assert!(!zeroed || is_zero(frame), "INV-9");
    if soiled {
        soil(frame);
    }
}

fn assert_distinct(held: &Held<'_>) {
    let addresses: HashSet<PhysAddr> = held.iter().map(Frame::phys_addr).collect();
    assert_eq!(addresses.len(), held.len(), "INV-1: a frame was handed out twice");
}

/// A call with a handler in it; whether it came.
#[allow(unsafe_code, reason = "handlers lay frames down and take them up")]
fn interrupted<'p>(
    pool: &'p TestPool,
    (held, reserved): (&mut Held<'p>, &mut Reserved<'p>),
    call: Call,
    (after, nested): (u8, Nested),
) -> bool {
    let laid_down = Rc::new(RefCell::new(Vec::new()));
    // The handler's own frame, and the one that the call frees.
    let theirs = held.pop();
    let mine = if matches!(call, Call::Free) { held.pop() } else { None };
    laid_down.borrow_mut().extend(theirs.map(Frame::into_raw));
    let (address, handler_frames) = (std::ptr::from_ref(pool).expose_provenance(), Rc::clone(&laid_down));
    interrupt::after(after % 8, move || {
        // SAFETY: the handler is disarmed below, while the pool lives.
        let pool = unsafe { &*std::ptr::with_exposed_provenance::<TestPool>(address) };
        match nested {
            Nested::Alloc(request) => {
                let frame = pool.alloc_with(request);
                handler_frames.borrow_mut().extend(frame.ok().map(Frame::into_raw));
            }
            Nested::Free => {
                if let Some(frame) = handler_frames.borrow_mut().pop() {
                    // SAFETY: laid down above, once.
                    drop(unsafe { Frame::from_raw(pool, frame) });
                }
            }
            Nested::Migrate(cpu) => set_cpu(pool, cpu),
        }
    });
    match call {
        Call::Alloc(request) => held.extend(pool.alloc_with(request)),
        Call::Free => drop(mine),
        Call::Reserve(frames) => {
            let reservation = pool.reserve_with(Request::ORDINARY, frames);
            reserved.extend(reservation.ok().map(|reservation| (reservation, false)));
        }
        Call::Maintain => drop(pool.maintain()),
        Call::Shrink(frames) => drop(pool.shrink_to(frames)),
    }
    let came = !interrupt::disarm();
    // SAFETY: laid down by the handler or above, once.
    held.extend(laid_down.take().into_iter().map(|frame| unsafe { Frame::from_raw(pool, frame) }));
    came
}

/// Does it all, and checks after each action that every frame is somewhere, once; how many handlers came.
pub fn run(shape: Shape, actions: Vec<Action>) -> usize {
    let mut handlers = 0;
    let source = Scripted { zeroed: shape.zeroed, ..Scripted::new(48) };
    let pool = shape.builder.build(source, TestHost::default()).unwrap();
    let mut held: Held<'_> = Vec::new();
    let mut reserved = Reserved::new();
    for action in actions {
        match action {
            Action::Alloc { request, soil } => {
                let critical = request.class() == Class::Critical;
                let before = pool.stats();
                match pool.alloc_with(request) {
                    Ok(frame) => {
                        receive(&frame, request.is_zeroed(), soil);
                        held.push(frame);
                    }
                    Err(error) => {
                        assert_eq!(before.cached + before.stock - before.reserve, 0, "R8: {}", before);
                        assert!(!critical || before.reserve == 0, "the reserve is for critical callers");
                        assert_eq!(error == AllocError::ReserveOnly, !critical && before.reserve > 0);
                    }
                }
            }
            Action::Bulk { request, count, exact, soil } => {
                let mut out: Vec<_> = (0..count).map(|_| None).collect();
                let outcome = if exact {
                    pool.alloc_bulk_exact(request, &mut out).map(|()| count)
                } else {
                    pool.alloc_bulk(request, &mut out)
                };
                let got = out.iter().flatten().count();
                assert_eq!(got, outcome.unwrap_or(0));
                for frame in out.into_iter().flatten() {
                    receive(&frame, request.is_zeroed(), soil);
                    held.push(frame);
                }
            }
            Action::Free { which, promise } => {
                if !held.is_empty() {
                    let frame = held.swap_remove(which % held.len());
                    if promise && is_zero(&frame) {
                        // SAFETY: it is, and ours.
                        unsafe { frame.free_zeroed() };
                    }
                }
            }
            Action::FreeBulk { count, promise } => {
                let rest = held.split_off(held.len().saturating_sub(count));
                let promise = promise && rest.iter().all(is_zero);
                let mut rest = rest.into_iter().map(Some).collect::<Vec<_>>();
                if promise {
                    // SAFETY: all of them are zero, and ours.
                    unsafe { pool.free_bulk_zeroed(&mut rest) };
                } else {
                    pool.free_bulk(&mut rest);
                }
            }
            Action::Reserve { request, frames } => {
                let before = pool.stats();
                let critical = request.class() == Class::Critical;
                let idle = before.cached + before.stock - if critical { 0 } else { before.reserve };
                match pool.reserve_with(request.without_fallback(), frames) {
                    Ok(reservation) => {
                        assert!(u64::from(frames) <= idle, "INV-5: {}", before);
                        assert_eq!(reservation.left(), frames);
                        reserved.push_back((reservation, request.is_zeroed()));
                    }
                    Err(refused) => {
                        assert_eq!(u64::from(refused.missing()), u64::from(frames) - idle, "all or nothing")
                    }
                }
            }
            Action::Draw { count, soil } => {
                if let Some((reservation, zeroed)) = reserved.back() {
                    let left = reservation.left();
                    for frame in std::iter::from_fn(|| reservation.draw()).take(count) {
                        receive(&frame, *zeroed, soil);
                        held.push(frame);
                    }
                    assert_eq!(left - reservation.left(), left.min(count as u32), "INV-8");
                }
            }
            Action::Release => drop(reserved.pop_front()),
            Action::Migrate(cpu) => set_cpu(&pool, cpu),
            Action::Maintain => {
                pool.maintain();
                let stats = pool.stats();
                assert!(
                    stats.stock <= u64::from(pool.watermarks().max).max(stats.reserve),
                    "trimmed: {}",
                    stats
                );
            }
            Action::Drain(cpu) => {
                let before = pool.stats();
                let moved = pool.drain_cpu(cpu).unwrap();
                let stats = pool.stats();
                assert_eq!((stats.cached + u64::from(moved), stats.clean), (before.cached, before.clean));
            }
            Action::Shrink(frames) => {
                let before = pool.stats();
                let shrunk = pool.shrink_to(frames);
                let stats = pool.stats();
                assert_eq!(before.owned - stats.owned, u64::from(shrunk.trimmed));
                let reached = stats.owned <= u64::from(frames);
                assert_eq!(shrunk.outcome == Outcome::Done, reached);
                let low = u64::from(pool.watermarks().low);
                assert!(reached || stats.cached == 0 && stats.stock <= low, "no more to give: {}", stats);
                assert!(stats.owned == before.owned || stats.owned >= u64::from(frames));
            }
            Action::Interrupt { call, after, nested } => {
                let came = interrupted(&pool, (&mut held, &mut reserved), call, (after, nested));
                handlers += usize::from(came);
            }
            Action::Failing(failing) => pool.source().failing.store(failing, SeqCst),
            Action::Vacate => {
                let before = pool.stats();
                let outcome = pool.vacate();
                let out = in_use(&held, &reserved);
                assert_eq!(outcome.is_ok(), out == 0);
                if let Err(error) = outcome {
                    assert_eq!(u64::from(error.frames_out()), out);
                    assert_eq!(pool.stats().owned, before.owned, "nothing has changed");
                }
            }
        }
        assert_distinct(&held);
        assert_accounts(&pool, in_use(&held, &reserved));
        let stats = pool.stats();
        assert!(stats.clean <= stats.cached + stats.stock - stats.reserve, "{}", stats);
    }
    drop((held, reserved));
    assert_accounts(&pool, 0);
    assert_eq!(pool.close().unwrap().out(), 0);
    handlers
}

/// Any bytes as a pool and what happens to it.
pub fn bytes(bytes: &[u8]) {
    let mut bytes = Unstructured::new(bytes);
    if let Ok(shape) = bytes.arbitrary() {
        run(shape, super::rest(&mut bytes, 256));
    }
}
