//! The pool against a set: any sequence of operations, on any CPU, with a source that fails when it likes.
#![cfg(not(loom))]

mod common;

use common::{Scripted, TestHost, assert_accounts, is_zero, set_cpu, soil};
use framepool::{
    AllocError, Builder, Class, FallbackPolicy, Frame, Outcome, PhysAddr, Request, Reservation, Watermarks,
};
use proptest::prelude::*;
use std::{
    collections::{HashSet, VecDeque},
    sync::atomic::Ordering::SeqCst,
};

#[derive(Clone, Debug)]
enum Action {
    Alloc { request: Request, soil: bool },
    Bulk { request: Request, count: usize, exact: bool, soil: bool },
    Free { which: usize, promise: bool },
    FreeBulk { count: usize, promise: bool },
    Reserve { request: Request, frames: u32 },
    Draw { count: usize, soil: bool },
    Release,
    Migrate(usize),
    Maintain,
    Drain(usize),
    Shrink(u32),
    Failing(bool),
    Vacate,
}

fn request() -> impl Strategy<Value = Request> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(critical, fallback, zeroed)| {
        let request = if critical { Request::CRITICAL } else { Request::ORDINARY };
        let request = if fallback { request } else { request.without_fallback() };
        if zeroed { request.zeroed() } else { request }
    })
}

fn action() -> impl Strategy<Value = Action> {
    let yes = any::<bool>;
    prop_oneof![
        6 => (request(), yes()).prop_map(|(request, soil)| Action::Alloc { request, soil }),
        1 => (request(), 0..20usize, yes(), yes())
            .prop_map(|(request, count, exact, soil)| Action::Bulk { request, count, exact, soil }),
        5 => (any::<usize>(), yes()).prop_map(|(which, promise)| Action::Free { which, promise }),
        1 => (0..20usize, yes()).prop_map(|(count, promise)| Action::FreeBulk { count, promise }),
        1 => (request(), 0..40u32).prop_map(|(request, frames)| Action::Reserve { request, frames }),
        1 => (0..20usize, yes()).prop_map(|(count, soil)| Action::Draw { count, soil }),
        1 => Just(Action::Release),
        2 => (0..4usize).prop_map(Action::Migrate),
        2 => Just(Action::Maintain),
        1 => (0..4usize).prop_map(Action::Drain),
        1 => (0..48u32).prop_map(Action::Shrink),
        1 => any::<bool>().prop_map(Action::Failing),
        1 => Just(Action::Vacate),
    ]
}

prop_compose! {
    fn shape()(capacity in 1..48u32, cpus in 1..4usize, magazine in 1..6u32, marks in prop::array::uniform4(0..48u32))
        -> Builder {
        let mut marks = marks.map(|mark| mark.min(capacity));
        marks.sort_unstable();
        let [min, low, high, max] = marks;
        Builder::new(capacity).cpus(cpus).magazine_size(magazine).watermarks(Watermarks { min, low, high, max })
            .fallback(FallbackPolicy::Always).idle_passes(2)
    }
}

type Handle<'p> = Frame<'p, Scripted, TestHost>;
type Held<'p> = Vec<Handle<'p>>;
/// Reservations, and whether their frames are to be zero.
type Reserved<'p> = VecDeque<(Reservation<'p, Scripted, TestHost>, bool)>;

fn in_use(held: &Held<'_>, reserved: &Reserved<'_>) -> u64 {
    held.len() as u64 + reserved.iter().map(|(reservation, _)| u64::from(reservation.left())).sum::<u64>()
}

/// INV-9 for a frame that was just handed out, which its owner then soils or not.
fn receive(frame: &Handle<'_>, zeroed: bool, soiled: bool) -> Result<(), TestCaseError> {
    prop_assert!(!zeroed || is_zero(frame), "INV-9");
    if soiled {
        soil(frame);
    }
    Ok(())
}

fn assert_distinct(held: &Held<'_>) {
    let addresses: HashSet<PhysAddr> = held.iter().map(Frame::phys_addr).collect();
    assert_eq!(addresses.len(), held.len(), "INV-1: a frame was handed out twice");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_frame_is_somewhere_whatever_is_done(
        builder in shape(),
        zeroed in any::<bool>(),
        actions in prop::collection::vec(action(), 0..200),
    ) {
        let pool = builder.build(Scripted { zeroed, ..Scripted::new(48) }, TestHost::default()).unwrap();
        let mut held: Held<'_> = Vec::new();
        let mut reserved = Reserved::new();
        for action in actions {
            match action {
                Action::Alloc { request, soil } => {
                    let critical = request.class() == Class::Critical;
                    let before = pool.stats();
                    match pool.alloc_with(request) {
                        Ok(frame) => {
                            receive(&frame, request.is_zeroed(), soil)?;
                            held.push(frame);
                        }
                        Err(error) => {
                            prop_assert_eq!(before.cached + before.stock - before.reserve, 0, "R8: {}", before);
                            prop_assert!(!critical || before.reserve == 0, "the reserve is for critical callers");
                            prop_assert_eq!(error == AllocError::ReserveOnly, !critical && before.reserve > 0);
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
                    prop_assert_eq!(got, outcome.unwrap_or(0));
                    for frame in out.into_iter().flatten() {
                        receive(&frame, request.is_zeroed(), soil)?;
                        held.push(frame);
                    }
                }
                Action::Free { which, promise } => if !held.is_empty() {
                    let frame = held.swap_remove(which % held.len());
                    if promise && is_zero(&frame) {
                        // SAFETY: it is, and ours.
                        unsafe { frame.free_zeroed() };
                    }
                },
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
                            prop_assert!(u64::from(frames) <= idle, "INV-5: {}", before);
                            prop_assert_eq!(reservation.left(), frames);
                            reserved.push_back((reservation, request.is_zeroed()));
                        }
                        Err(refused) => prop_assert_eq!(u64::from(refused.missing()), u64::from(frames) - idle, "all or nothing"),
                    }
                }
                Action::Draw { count, soil } => if let Some((reservation, zeroed)) = reserved.back() {
                    let left = reservation.left();
                    for frame in std::iter::from_fn(|| reservation.draw()).take(count) {
                        receive(&frame, *zeroed, soil)?;
                        held.push(frame);
                    }
                    prop_assert_eq!(left - reservation.left(), left.min(count as u32), "INV-8");
                },
                Action::Release => drop(reserved.pop_front()),
                Action::Migrate(cpu) => set_cpu(&pool, cpu),
                Action::Maintain => {
                    pool.maintain();
                    let stats = pool.stats();
                    prop_assert!(stats.stock <= u64::from(pool.watermarks().max).max(stats.reserve), "trimmed: {}", stats);
                }
                Action::Drain(cpu) => {
                    let before = pool.stats();
                    let moved = pool.drain_cpu(cpu).unwrap();
                    let stats = pool.stats();
                    prop_assert_eq!((stats.cached + u64::from(moved), stats.clean), (before.cached, before.clean));
                }
                Action::Shrink(frames) => {
                    let before = pool.stats();
                    let shrunk = pool.shrink_to(frames);
                    let stats = pool.stats();
                    prop_assert_eq!(before.owned - stats.owned, u64::from(shrunk.trimmed));
                    let reached = stats.owned <= u64::from(frames);
                    prop_assert_eq!(shrunk.outcome == Outcome::Done, reached);
                    let low = u64::from(pool.watermarks().low);
                    prop_assert!(reached || stats.cached == 0 && stats.stock <= low, "no more to give: {}", stats);
                    prop_assert!(stats.owned == before.owned || stats.owned >= u64::from(frames));
                }
                Action::Failing(failing) => pool.source().failing.store(failing, SeqCst),
                Action::Vacate => {
                    let before = pool.stats();
                    let outcome = pool.vacate();
                    let out = in_use(&held, &reserved);
                    prop_assert_eq!(outcome.is_ok(), out == 0);
                    if let Err(error) = outcome {
                        prop_assert_eq!(u64::from(error.frames_out()), out);
                        prop_assert_eq!(pool.stats().owned, before.owned, "nothing has changed");
                    }
                }
            }
            assert_distinct(&held);
            assert_accounts(&pool, in_use(&held, &reserved));
            let stats = pool.stats();
            prop_assert!(stats.clean <= stats.cached + stats.stock - stats.reserve, "{}", stats);
        }
        drop((held, reserved));
        assert_accounts(&pool, 0);
        prop_assert_eq!(pool.close().unwrap().out(), 0);
    }
}
