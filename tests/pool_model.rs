//! The pool against a set: any sequence of operations, on any CPU, with a source that fails when it likes.
#![cfg(not(loom))]

mod common;

use common::{Scripted, TestHost, assert_accounts, pool, set_cpu};
use framepool::{AllocError, Builder, FallbackPolicy, Frame, PhysAddr, Request, Reservation, Watermarks};
use proptest::prelude::*;
use std::{
    collections::{HashSet, VecDeque},
    sync::atomic::Ordering::SeqCst,
};

#[derive(Clone, Debug)]
enum Action {
    Alloc { critical: bool, fallback: bool },
    Bulk { count: usize, exact: bool },
    Free(usize),
    FreeBulk(usize),
    Reserve { frames: u32, critical: bool },
    Draw(usize),
    Release,
    Migrate(usize),
    Maintain,
    Failing(bool),
    Vacate,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (any::<bool>(), any::<bool>()).prop_map(|(critical, fallback)| Action::Alloc { critical, fallback }),
        1 => (0..20usize, any::<bool>()).prop_map(|(count, exact)| Action::Bulk { count, exact }),
        5 => any::<usize>().prop_map(Action::Free),
        1 => (0..20usize).prop_map(Action::FreeBulk),
        1 => (0..40u32, any::<bool>()).prop_map(|(frames, critical)| Action::Reserve { frames, critical }),
        1 => (0..20usize).prop_map(Action::Draw),
        1 => Just(Action::Release),
        2 => (0..4usize).prop_map(Action::Migrate),
        1 => Just(Action::Maintain),
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
            .fallback(FallbackPolicy::Always)
    }
}

type Held<'p> = Vec<Frame<'p, Scripted, TestHost>>;

fn in_use(held: &Held<'_>, reserved: &VecDeque<Reservation<'_, Scripted, TestHost>>) -> u64 {
    held.len() as u64 + reserved.iter().map(|reservation| u64::from(reservation.left())).sum::<u64>()
}

fn assert_distinct(held: &Held<'_>) {
    let addresses: HashSet<PhysAddr> = held.iter().map(Frame::phys_addr).collect();
    assert_eq!(addresses.len(), held.len(), "INV-1: a frame was handed out twice");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_frame_is_somewhere_whatever_is_done(builder in shape(), actions in prop::collection::vec(action(), 0..200)) {
        let pool = pool(builder, 48);
        let mut held: Held<'_> = Vec::new();
        let mut reserved: VecDeque<Reservation<'_, Scripted, TestHost>> = VecDeque::new();
        for action in actions {
            match action {
                Action::Alloc { critical, fallback } => {
                    let request = if critical { Request::CRITICAL } else { Request::ORDINARY };
                    let request = if fallback { request } else { request.without_fallback() };
                    let before = pool.stats();
                    match pool.alloc_with(request) {
                        Ok(frame) => held.push(frame),
                        Err(error) => {
                            prop_assert_eq!(before.cached + before.stock - before.reserve, 0, "R8: {}", before);
                            prop_assert!(!critical || before.reserve == 0, "the reserve is for critical callers");
                            prop_assert_eq!(error == AllocError::ReserveOnly, !critical && before.reserve > 0);
                        }
                    }
                }
                Action::Bulk { count, exact } => {
                    let mut out: Vec<_> = (0..count).map(|_| None).collect();
                    let outcome = if exact {
                        pool.alloc_bulk_exact(Request::ORDINARY, &mut out).map(|()| count)
                    } else {
                        pool.alloc_bulk(Request::ORDINARY, &mut out)
                    };
                    let got = out.iter().flatten().count();
                    prop_assert_eq!(got, outcome.unwrap_or(0));
                    held.extend(out.into_iter().flatten());
                }
                Action::Free(which) if !held.is_empty() => drop(held.swap_remove(which % held.len())),
                Action::Free(_) => {}
                Action::FreeBulk(count) => {
                    let rest = held.split_off(held.len().saturating_sub(count));
                    pool.free_bulk(&mut rest.into_iter().map(Some).collect::<Vec<_>>());
                }
                Action::Reserve { frames, critical } => {
                    let request = if critical { Request::CRITICAL } else { Request::ORDINARY };
                    let before = pool.stats();
                    let idle = before.cached + before.stock - if critical { 0 } else { before.reserve };
                    match pool.reserve_with(request.without_fallback(), frames) {
                        Ok(reservation) => {
                            prop_assert!(u64::from(frames) <= idle, "INV-5: {}", before);
                            prop_assert_eq!(reservation.left(), frames);
                            reserved.push_back(reservation);
                        }
                        Err(refused) => prop_assert_eq!(u64::from(refused.missing()), u64::from(frames) - idle, "all or nothing"),
                    }
                }
                Action::Draw(count) => if let Some(reservation) = reserved.back() {
                    let left = reservation.left();
                    let drawn = std::iter::from_fn(|| reservation.draw()).take(count);
                    held.extend(drawn);
                    prop_assert_eq!(left - reservation.left(), left.min(count as u32), "INV-8");
                },
                Action::Release => drop(reserved.pop_front()),
                Action::Migrate(cpu) => set_cpu(&pool, cpu),
                Action::Maintain => {
                    pool.maintain();
                    let stats = pool.stats();
                    prop_assert!(stats.stock <= u64::from(pool.watermarks().max).max(stats.reserve), "trimmed: {}", stats);
                }
                Action::Failing(failing) => pool.source().failing.store(failing, SeqCst),
                Action::Vacate => {
                    let outcome = pool.vacate();
                    let out = in_use(&held, &reserved);
                    prop_assert_eq!(outcome.is_ok(), out == 0);
                    if let Err(error) = outcome {
                        prop_assert_eq!(u64::from(error.frames_out()), out);
                    }
                }
            }
            assert_distinct(&held);
            assert_accounts(&pool, in_use(&held, &reserved));
        }
        drop((held, reserved));
        assert_accounts(&pool, 0);
        prop_assert_eq!(pool.close().unwrap().out(), 0);
    }
}
