//! Callers that wait against a plain queue: any sequence of waiting, giving up, taking, freeing and passes of the worker.
#![cfg(not(loom))]

mod common;

use common::{Scripted, TestHost, assert_accounts, pool, set_cpu};
use framepool::{Builder, FallbackPolicy, Frame, Request, Reservation, ReserveFuture, Watermarks};
use proptest::prelude::*;
use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

#[derive(Clone, Debug)]
enum Action {
    Alloc { critical: bool },
    Free(usize),
    Wait { frames: u32 },
    GiveUp(usize),
    Collect,
    Release(usize),
    Serve,
    Maintain,
    Drain(usize),
    Migrate(usize),
    Failing(bool),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => any::<bool>().prop_map(|critical| Action::Alloc { critical }),
        6 => any::<usize>().prop_map(Action::Free),
        3 => (1..12u32).prop_map(|frames| Action::Wait { frames }),
        1 => any::<usize>().prop_map(Action::GiveUp),
        2 => Just(Action::Collect),
        2 => any::<usize>().prop_map(Action::Release),
        3 => Just(Action::Serve),
        2 => Just(Action::Maintain),
        1 => (0..3usize).prop_map(Action::Drain),
        1 => (0..3usize).prop_map(Action::Migrate),
        1 => any::<bool>().prop_map(Action::Failing),
    ]
}

prop_compose! {
    fn shape()(capacity in 1..32u32, cpus in 1..3usize, magazine in 1..6u32, marks in prop::array::uniform4(0..32u32)) -> Builder {
        let mut marks = marks.map(|mark| mark.min(capacity));
        marks.sort_unstable();
        let [min, low, high, max] = marks;
        Builder::new(capacity).cpus(cpus).magazine_size(magazine).watermarks(Watermarks { min, low, high, max })
            .fallback(FallbackPolicy::Never)
    }
}

#[derive(Debug, Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        assert!(!self.0.swap(true, SeqCst), "woken twice for one outcome");
    }
}

/// One that waits, with what the model knows about it.
struct Task<'p> {
    future: Pin<Box<ReserveFuture<'p, Scripted, TestHost>>>,
    woken: Arc<Woken>,
    frames: u32,
}

impl<'p> Task<'p> {
    fn poll(&mut self) -> Poll<Reservation<'p, Scripted, TestHost>> {
        let waker = Waker::from(Arc::clone(&self.woken));
        self.future.as_mut().poll(&mut Context::from_waker(&waker)).map(Result::unwrap)
    }

    fn is_woken(&self) -> bool {
        self.woken.0.load(SeqCst)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn first_come_first_served_and_nobody_sleeps_while_a_frame_lies_idle(
        builder in shape(), actions in prop::collection::vec(action(), 0..200)
    ) {
        let pool = pool(builder, 32);
        let most = pool.stats().capacity - u64::from(pool.watermarks().min);
        let mut held: Vec<Frame<'_, Scripted, TestHost>> = Vec::new();
        let mut reserved: Vec<Reservation<'_, Scripted, TestHost>> = Vec::new();
        let mut waiting: VecDeque<Task<'_>> = VecDeque::new();
        for action in actions {
            match action {
                Action::Alloc { critical } => {
                    let request = if critical { Request::CRITICAL } else { Request::ORDINARY };
                    held.extend(pool.alloc_with(request));
                }
                Action::Free(which) if !held.is_empty() => drop(held.swap_remove(which % held.len())),
                Action::Free(_) => {}
                Action::Wait { frames } if u64::from(frames) <= most => {
                    let mut task = Task { future: Box::pin(pool.reserve_async(frames)), woken: Arc::default(), frames };
                    match task.poll() {
                        Poll::Ready(reservation) => reserved.push(reservation),
                        Poll::Pending => waiting.push_back(task),
                    }
                }
                Action::Wait { .. } => {}
                Action::GiveUp(which) if !waiting.is_empty() => drop(waiting.remove(which % waiting.len())),
                Action::GiveUp(_) => {}
                Action::Collect => while waiting.front().is_some_and(Task::is_woken) {
                    let mut task = waiting.pop_front().unwrap();
                    let Poll::Ready(reservation) = task.poll() else { panic!("woken for nothing") };
                    prop_assert_eq!(reservation.left(), task.frames, "INV-8");
                    reserved.push(reservation);
                },
                Action::Release(which) if !reserved.is_empty() => {
                    let reservation = reserved.swap_remove(which % reserved.len());
                    held.extend(reservation.draw());
                }
                Action::Release(_) => {}
                Action::Serve => {
                    prop_assert!(!pool.serve_waiters(), "no cache is in use");
                }
                Action::Maintain => {
                    pool.maintain();
                }
                Action::Drain(cpu) => {
                    pool.drain_cpu(cpu).unwrap();
                }
                Action::Migrate(cpu) => set_cpu(&pool, cpu),
                Action::Failing(failing) => pool.source().failing.store(failing, SeqCst),
            }
            let woken: Vec<_> = waiting.iter().map(Task::is_woken).collect();
            prop_assert!(woken.is_sorted_by(|earlier, later| earlier >= later), "first come, first served: {:?}", woken);
            let stats = pool.stats();
            prop_assert_eq!(stats.waiters, woken.iter().filter(|woken| !**woken).count() as u64);
            // INV-7, at rest: a frame lies idle only if all that is lacked is on its way, and then the bell has rung.
            let frames_of = |is_woken| {
                let tasks = waiting.iter().filter(|task| task.is_woken() == is_woken);
                tasks.map(|task| u64::from(task.frames)).sum::<u64>()
            };
            let on_the_way = stats.promised - frames_of(true);
            if on_the_way < frames_of(false) {
                let idle = stats.cached + stats.stock - stats.reserve + stats.overflow;
                prop_assert_eq!(idle, 0, "INV-7: {}", stats);
            }
            let out = held.len() as u64 + reserved.iter().map(|reservation| u64::from(reservation.left())).sum::<u64>();
            assert_accounts(&pool, out);
        }
        drop((held, reserved));
        pool.source().failing.store(false, SeqCst);
        while !waiting.is_empty() {
            pool.maintain();
            let before = waiting.len();
            while waiting.front().is_some_and(Task::is_woken) {
                let Poll::Ready(reservation) = waiting.pop_front().unwrap().poll() else { panic!("woken for nothing") };
                drop(reservation);
            }
            prop_assert!(waiting.len() < before, "everything is back, and the first can have what it wants: {}", pool.stats());
        }
        drop(waiting);
        pool.serve_waiters();
        assert_accounts(&pool, 0);
        prop_assert_eq!(pool.close().unwrap().out(), 0);
    }
}
