//! Callers that wait: who is served when, by whom they are woken, and what comes of those who give up.
#![cfg(not(loom))]

mod common;

use common::{Scripted, TestHost, assert_accounts, assert_settles, pool, rings, set_cpu};
use framepool::{
    AllocError, AllocFuture, AnonymousMemory, Builder, FallbackPolicy, Frame, LinuxPlatform, Request,
    Watermarks, WorkedPool,
};
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Barrier,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(30);

/// Two CPUs, magazines of four, all frames in the depot, nothing from the host.
fn shape(frames: u32) -> Builder {
    let marks = Watermarks { min: 0, low: 0, high: frames, max: frames };
    Builder::new(frames).watermarks(marks).cpus(2).magazine_size(4).fallback(FallbackPolicy::Never)
}

#[derive(Debug, Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A future, and how often it was woken.
struct Task<F> {
    future: Pin<Box<F>>,
    woken: Arc<Woken>,
}

impl<F: Future> Task<F> {
    fn new(future: F) -> Self {
        Self { future: Box::pin(future), woken: Arc::default() }
    }

    fn poll(&mut self) -> Poll<F::Output> {
        let waker = Waker::from(Arc::clone(&self.woken));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }

    fn is_woken(&self) -> bool {
        self.woken.0.load(SeqCst) > 0
    }

    fn ready(&mut self) -> F::Output {
        match self.poll() {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => panic!("still waits"),
        }
    }
}

fn take_all(pool: &common::TestPool) -> Vec<Frame<'_, Scripted, TestHost>> {
    std::iter::from_fn(|| pool.alloc().ok()).collect()
}

#[test]
fn a_frame_that_is_there_is_taken_at_once() {
    let pool = pool(shape(8), 8);
    let frame = Task::new(pool.alloc_async()).ready().unwrap();
    assert!(pool.alloc_blocking(Duration::ZERO).is_ok());
    let zeroed = Task::new(pool.alloc_async_with(Request::ORDINARY.zeroed())).ready().unwrap();
    assert!(common::is_zero(&zeroed));
    assert_eq!(pool.stats().waits, 0);
    drop((frame, zeroed));
    assert_accounts(&pool, 0);
}

#[test]
fn whoever_waits_is_served_in_the_order_of_arrival() {
    let pool = pool(shape(8), 8);
    let mut frames = take_all(&pool);
    let mut tasks: Vec<_> = (0..3).map(|_| Task::new(pool.alloc_async())).collect();
    assert!(tasks.iter_mut().all(|task| task.poll().is_pending()));
    assert_eq!((pool.stats().waiters, pool.stats().waits), (3, 3));
    for served in 0..3 {
        drop(frames.pop());
        assert!(!tasks[served].is_woken(), "a free itself wakes nobody");
        assert_eq!(pool.stats().promised, 1);
        assert_accounts(&pool, 7);
        assert!(!pool.serve_waiters(), "every cache could be looked into");
        assert!(tasks[served].is_woken() && tasks[served + 1..].iter().all(|task| !task.is_woken()));
        frames.push(tasks[served].ready().unwrap());
        assert_eq!(pool.stats().waiters, 2 - served as u64);
    }
    drop((tasks, frames));
    assert_accounts(&pool, 0);
}

#[test]
fn every_free_that_is_wanted_rings_once_until_it_is_answered() {
    let pool = pool(shape(8), 8);
    let mut frames = take_all(&pool);
    let mut tasks: Vec<_> = (0..4).map(|_| Task::new(pool.alloc_async())).collect();
    assert!(tasks.iter_mut().all(|task| task.poll().is_pending()));
    let before = rings(&pool);
    frames.truncate(6);
    assert_eq!(rings(&pool), before + 1, "two frames, one ring");
    pool.serve_waiters();
    frames.truncate(4);
    assert_eq!(rings(&pool), before + 2);
    pool.serve_waiters();
    let held: Vec<_> = tasks.iter_mut().map(|task| task.ready().unwrap()).collect();
    frames.truncate(2);
    assert_eq!(
        (rings(&pool), pool.stats().cached),
        (before + 2, 2),
        "nobody waits: the frames go to the cache"
    );
    drop((held, frames, tasks));
    assert_accounts(&pool, 0);
}

#[test]
fn whoever_begins_to_wait_gets_what_lies_idle_anywhere() {
    let pool = pool(shape(8), 8);
    set_cpu(&pool, 1);
    let frames = take_all(&pool);
    drop(frames); // all eight are in the magazines of CPU 1
    set_cpu(&pool, 0);
    let all = Task::new(pool.reserve_async(8)).ready().unwrap();
    assert_eq!((all.left(), pool.stats().waits), (8, 0));
    drop(all);
    assert_accounts(&pool, 0);
}

#[test]
fn a_reservation_gathers_what_comes_back_and_those_behind_it_wait_for_it() {
    let pool = pool(shape(8), 8);
    let mut frames = take_all(&pool);
    let mut large = Task::new(pool.reserve_async(5));
    let mut small = Task::new(pool.alloc_async());
    assert!(large.poll().is_pending() && small.poll().is_pending());
    for _ in 0..4 {
        drop(frames.pop());
        pool.serve_waiters();
    }
    assert!(!large.is_woken() && !small.is_woken());
    assert_eq!((pool.stats().promised, pool.stats().waiters), (4, 2), "gathered for the first");
    assert!(pool.alloc().is_err(), "nobody goes before those who wait");
    drop(frames.pop());
    drop(frames.pop());
    pool.serve_waiters();
    assert!(large.is_woken() && small.is_woken());
    let reservation = large.ready().unwrap();
    assert_eq!(reservation.left(), 5);
    let drawn: Vec<_> = std::iter::from_fn(|| reservation.draw()).collect();
    assert_eq!(drawn.len(), 5, "INV-8");
    drop((small.ready().unwrap(), drawn, reservation, frames));
    assert_accounts(&pool, 0);
}

#[test]
fn large_reservations_come_in_magazines_of_their_own() {
    let pool = pool(shape(96).magazine_size(32), 96);
    let mut frames = take_all(&pool);
    let mut task = Task::new(pool.reserve_async_with(Request::ORDINARY.zeroed(), 70));
    assert!(task.poll().is_pending());
    frames.iter().for_each(common::soil);
    frames.truncate(26);
    pool.serve_waiters();
    let reservation = task.ready().unwrap();
    assert_accounts(&pool, 96);
    let drawn: Vec<_> = std::iter::from_fn(|| reservation.draw()).collect();
    assert!(drawn.len() == 70 && drawn.iter().all(common::is_zero), "INV-8, INV-9");
    drop((reservation, drawn, frames));
    assert_accounts(&pool, 0);
}

#[test]
fn whoever_gives_up_passes_on_what_it_has() {
    let pool = pool(shape(8), 8);
    let mut frames = take_all(&pool);
    let mut first = Task::new(pool.reserve_async(6));
    let mut second = Task::new(pool.reserve_async(2));
    let mut third = Task::new(pool.alloc_async());
    assert!(first.poll().is_pending() && second.poll().is_pending() && third.poll().is_pending());
    frames.truncate(4);
    pool.serve_waiters();
    assert!(!second.is_woken());
    drop(first);
    assert!(second.is_woken() && third.is_woken(), "four frames were gathered, two and one were lacking");
    assert_eq!(pool.stats().promised, 3, "the fourth went back");
    assert_accounts(&pool, 4);
    drop(second);
    drop(third);
    assert_eq!((pool.stats().promised, pool.stats().waiters), (0, 0));
    assert_accounts(&pool, 4);
    drop(frames);
    assert_accounts(&pool, 0);
}

#[test]
fn the_reserve_is_filled_before_those_who_wait() {
    let builder = shape(8).watermarks(Watermarks { min: 2, low: 2, high: 8, max: 8 });
    let pool = pool(builder, 8);
    let mut frames = take_all(&pool);
    let critical = [(); 2].map(|()| pool.alloc_with(Request::CRITICAL).unwrap());
    let mut task = Task::new(pool.alloc_async());
    assert!(task.poll().is_pending());
    frames.truncate(4);
    assert_eq!((pool.stats().reserve, pool.stats().promised), (2, 0), "INV-5");
    pool.serve_waiters();
    assert!(!task.is_woken());
    drop(critical);
    pool.serve_waiters();
    drop(task.ready().unwrap());
    drop(frames);
    assert_accounts(&pool, 0);
}

#[test]
fn waiting_for_what_can_never_be_is_refused() {
    let builder = shape(8).watermarks(Watermarks { min: 2, low: 2, high: 8, max: 8 });
    let pool = pool(builder, 8);
    let refused = Task::new(pool.reserve_async(7)).ready().unwrap_err();
    assert_eq!((refused.reason(), refused.missing()), (AllocError::BeyondCapacity, 7));
    assert!(Task::new(pool.reserve_async(6)).ready().is_ok());
    let all_reserve = common::pool(shape(2).watermarks(Watermarks { min: 2, low: 2, high: 2, max: 2 }), 2);
    assert_eq!(all_reserve.alloc_blocking(LONG).unwrap_err(), AllocError::BeyondCapacity);
}

#[test]
fn a_pool_that_closes_says_so_to_those_who_wait() {
    let pool = pool(shape(8), 8);
    let mut frames = take_all(&pool);
    let mut tasks = [3, 7].map(|frames| Task::new(pool.reserve_async(frames)));
    assert!(tasks.iter_mut().all(|task| task.poll().is_pending()));
    frames.truncate(6);
    pool.serve_waiters();
    assert_eq!(pool.stats().promised, 2);
    assert_eq!(pool.vacate().unwrap_err().frames_out(), 6);
    for task in &mut tasks {
        assert!(task.is_woken());
        assert_eq!(task.ready().map(drop).map_err(|refused| refused.reason()), Err(AllocError::Closed));
    }
    assert_accounts(&pool, 6);
    drop((tasks, frames));
    pool.vacate().unwrap();
    assert_accounts(&pool, 0);
}

#[test]
fn without_a_worker_one_pass_fetches_what_those_who_wait_lack() {
    let pool = pool(shape(8).initial(1), 8);
    let held = pool.alloc().unwrap();
    let mut task = Task::new(pool.reserve_async(6));
    assert!(task.poll().is_pending());
    assert_eq!(rings(&pool), 1, "a miss asks for a pass");
    let pass = pool.maintain();
    assert!(pass.fetched >= 6 && !pass.look_again, "{pass:?}");
    assert!(task.is_woken());
    assert_eq!(task.ready().unwrap().left(), 6);
    drop((held, task));
    assert_accounts(&pool, 0);
}

#[test]
fn a_future_that_is_moved_between_tasks_wakes_the_last() {
    let pool = pool(shape(1), 1);
    let frame = pool.alloc().unwrap();
    let mut task = Task::new(pool.alloc_async());
    assert!(task.poll().is_pending());
    let first = std::mem::take(&mut task.woken);
    assert!(task.poll().is_pending());
    drop(frame);
    pool.serve_waiters();
    assert_eq!((first.0.load(SeqCst), task.woken.0.load(SeqCst)), (0, 1));
    drop(task.ready().unwrap());
    assert!(task.poll().is_pending(), "polled again after its end it says nothing, and does not panic");
    assert_accounts(&pool, 0);
}

fn started(frames: u32) -> WorkedPool<AnonymousMemory> {
    shape(frames).start(AnonymousMemory::new(frames).unwrap()).unwrap()
}

#[test]
fn a_blocking_caller_goes_home_after_its_timeout_and_leaves_nothing_behind() {
    let pool = started(1);
    let frame = pool.alloc().unwrap();
    let start = Instant::now();
    assert_eq!(pool.alloc_blocking(SOON).unwrap_err(), AllocError::TimedOut);
    assert_eq!(pool.reserve_blocking(1, SOON).unwrap_err().reason(), AllocError::TimedOut);
    assert!((2 * SOON..LONG).contains(&start.elapsed()));
    assert_eq!(pool.stats().waiters, 0);
    drop(frame);
    assert!(pool.alloc().is_ok());
}

#[test]
fn a_blocking_caller_is_woken_by_a_free_on_another_thread() {
    let pool = started(1);
    for _ in 0..100 {
        let frame = pool.alloc().unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| pool.alloc_blocking(LONG).map(drop));
            while pool.stats().waiters == 0 {
                thread::yield_now();
            }
            drop(frame);
            waiter.join().unwrap().unwrap();
        });
    }
    assert_eq!((pool.stats().waits, pool.stats().promised), (100, 0));
}

#[test]
fn a_blocking_caller_is_woken_while_the_worker_leaves_the_source_alone() {
    let pool = shape(8).initial(1).start(Scripted::new(8)).unwrap();
    pool.source().failing.store(true, SeqCst);
    let frame = pool.alloc().unwrap();
    let waiter = thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let outcome = pool.alloc_blocking(LONG).map(drop);
            (outcome, Instant::now())
        });
        // After that many failures in a row the source is left alone for a quarter of a second and longer.
        while pool.stats().source_failures < 9 {
            thread::sleep(Duration::from_millis(1));
        }
        let freed = Instant::now();
        drop(frame);
        let (outcome, woken) = waiter.join().unwrap();
        outcome.map(|()| woken.saturating_duration_since(freed))
    });
    assert!(waiter.unwrap() < Duration::from_millis(200), "{waiter:?}");
}

/// The frame that the handler gives back, as its address; 0 for none.
static TO_BE_FREED: AtomicU64 = AtomicU64::new(0);
static POOL: AtomicU64 = AtomicU64::new(0);

extern "C" fn free_in_handler(_signal: i32) {
    let frame = TO_BE_FREED.swap(0, SeqCst);
    if frame != 0 {
        // SAFETY: the test stored a pool that outlives its signals, and a frame of it that was laid down once.
        unsafe {
            let pool = &*(POOL.load(SeqCst) as *const WorkedPool<AnonymousMemory>);
            drop(Frame::from_raw(pool, framepool::PhysAddr::new(frame)));
        }
    }
}

#[test]
fn a_blocking_caller_is_woken_by_a_free_in_a_signal_handler_that_interrupts_its_own_wait() {
    use nix::sys::{
        pthread::{pthread_kill, pthread_self},
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
    };
    let handler = SigHandler::Handler(free_in_handler);
    // SAFETY: the handler does nothing but exchange atomics and free a frame.
    unsafe { sigaction(Signal::SIGUSR1, &SigAction::new(handler, SaFlags::empty(), SigSet::empty())) }
        .unwrap();
    let pool = started(1);
    POOL.store(&raw const pool as u64, SeqCst);
    for _ in 0..50 {
        TO_BE_FREED.store(pool.alloc().unwrap().into_raw().as_u64(), SeqCst);
        thread::scope(|scope| {
            let (sender, receiver) = std::sync::mpsc::channel();
            let pool = &pool;
            let waiter = scope.spawn(move || {
                sender.send(pthread_self()).unwrap();
                pool.alloc_blocking(LONG).map(drop)
            });
            let thread = receiver.recv().unwrap();
            while pool.stats().waiters == 0 {
                thread::yield_now();
            }
            pthread_kill(thread, Signal::SIGUSR1).unwrap();
            waiter.join().unwrap().unwrap();
        });
    }
    assert_settles(&pool, 0);
}

#[test]
fn nobody_starves_behind_callers_that_never_wait() {
    let pool = started(16);
    let stop = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut held = Vec::new();
                while stop.load(SeqCst) == 0 {
                    held.extend(std::iter::from_fn(|| pool.alloc().ok()));
                    held.clear();
                }
            });
        }
        for round in 0..200 {
            let frames = [1, 3, 16][round % 3];
            let reservation = pool.reserve_blocking(frames, LONG).unwrap();
            assert_eq!(reservation.left(), frames);
        }
        stop.store(1, SeqCst);
    });
    assert_settles(&pool, 0);
}

/// Many tasks on the threads of an executor, which wait for one frame or several, and give up at random.
#[test]
fn tasks_of_an_executor_share_few_frames_and_lose_none() {
    let pool = started(8);
    let executor = futures_executor::ThreadPoolBuilder::new().pool_size(3).create().unwrap();
    let pool: &'static WorkedPool<AnonymousMemory> = Box::leak(Box::new(pool));
    let (served, gave_up) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let finished = Arc::new(Barrier::new(2));
    let tasks = 64;
    let left = Arc::new(AtomicUsize::new(tasks));
    for task in 0..tasks {
        let (served, gave_up) = (Arc::clone(&served), Arc::clone(&gave_up));
        let (left, finished) = (Arc::clone(&left), Arc::clone(&finished));
        executor.spawn_ok(async move {
            for round in 0..50 {
                let frames = [1, 1, 2, 5][(task + round) % 4];
                if (task * 31 + round * 17) % 5 == 0 {
                    give_up_soon(pool.alloc_async()).await;
                    gave_up.fetch_add(1, SeqCst);
                }
                let reservation = pool.reserve_async(frames).await.unwrap();
                assert_eq!(std::iter::from_fn(|| reservation.draw()).count(), frames as usize, "INV-8");
                served.fetch_add(1, SeqCst);
            }
            if left.fetch_sub(1, SeqCst) == 1 {
                finished.wait();
            }
        });
    }
    finished.wait();
    assert_eq!(served.load(SeqCst), tasks * 50);
    assert!(gave_up.load(SeqCst) > 0);
    assert_settles(pool, 0);
    assert_eq!(pool.stats().waiters, 0);
}

/// Polls once or twice, and drops the future whatever came of it.
async fn give_up_soon(future: AllocFuture<'static, AnonymousMemory, LinuxPlatform>) {
    let mut future = Box::pin(future);
    let mut polls = 0;
    std::future::poll_fn(|context| {
        polls += 1;
        if polls == 2 || future.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
