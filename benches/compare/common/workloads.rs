//! The workloads, each the same for every implementation.
//!
//! An iteration is one pair of take and give, a batch of 1,024 pairs, or 64 pairs. With several threads all start at once, each on a
//! CPU, and an iteration is one of each thread; what is reported is the time from the first start to the last end. With more threads
//! than CPUs it is multiplied by the CPUs and divided by the threads: the time of a core.

use super::implementations::{Implementation, Zeroed};
use criterion::{BenchmarkGroup, BenchmarkId, measurement::WallTime};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use std::{
    hint::{black_box, spin_loop},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

/// Pairs in a batch.
pub const BATCH: usize = 1024;
/// Frames on their way from the producer to the consumer.
const RING: usize = 256;

type Group<'c> = BenchmarkGroup<'c, WallTime>;

/// In which order a batch goes back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As it was taken.
    Fifo,
    /// Shuffled, the same in every batch.
    Random,
}

/// The places of a batch in the order in which they are given back.
pub fn places(order: Order) -> Vec<usize> {
    let mut places: Vec<_> = (0..BATCH).collect();
    if order == Order::Random {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        for last in (1..BATCH).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            places.swap(last, (state >> 33) as usize % (last + 1));
        }
    }
    places
}

pub fn on_cpu(cpu: usize) {
    let mut set = CpuSet::new();
    // A CPU that this process may not use leaves the thread where it is.
    if set.set(cpu).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}

fn cpus() -> usize {
    static CPUS: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *CPUS.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
}

#[inline(always)]
fn pair<'p, I: Implementation>(pool: &'p I, thread: &mut I::Thread<'p>) {
    let token = black_box(pool.take(thread));
    pool.give(thread, token);
}

#[inline(always)]
fn batch<'p, I: Implementation>(
    pool: &'p I,
    thread: &mut I::Thread<'p>,
    tokens: &mut [Option<I::Token<'p>>],
    places: &[usize],
) {
    for place in tokens.iter_mut() {
        *place = Some(black_box(pool.take(thread)));
    }
    for &place in places {
        if let Some(token) = tokens[place].take() {
            pool.give(thread, token);
        }
    }
}

/// What the thread has of its own, where a driver would have it: behind a pointer, so that no length stays in a register or is renamed
/// by the processor as a place on the stack is.
fn enter<I: Implementation>(pool: &I) -> Box<I::Thread<'_>> {
    black_box(Box::new(pool.enter()))
}

fn empty<T>() -> Vec<Option<T>> {
    std::iter::repeat_with(|| None).take(BATCH).collect()
}

/// One thread, the same frame over and over.
pub fn hot_pair<I: Implementation>(group: &mut Group<'_>) {
    let Some(pool) = I::new() else { return };
    on_cpu(0);
    let mut thread = enter(&pool);
    group.bench_function(BenchmarkId::new("hot_pair", I::NAME), |bencher| {
        bencher.iter(|| pair(&pool, &mut thread));
    });
}

/// One thread, 1,024 frames taken and then given back.
pub fn batch_1024<I: Implementation>(group: &mut Group<'_>, order: Order) {
    let Some(pool) = I::new() else { return };
    on_cpu(0);
    let mut thread = enter(&pool);
    let (mut tokens, places) = (empty(), places(order));
    let workload = if order == Order::Fifo { "batch_1024_fifo" } else { "batch_1024_random" };
    group.bench_function(BenchmarkId::new(workload, I::NAME), |bencher| {
        bencher.iter(|| batch(&pool, &mut thread, &mut tokens, &places));
    });
}

/// One thread, 64 frames at a time.
pub fn bulk_64<I: Implementation>(group: &mut Group<'_>) {
    let Some(pool) = I::new() else { return };
    on_cpu(0);
    let mut thread = enter(&pool);
    let mut tokens = [const { None }; 64];
    group.bench_function(BenchmarkId::new("bulk_64", I::NAME), |bencher| {
        bencher.iter(|| pool.pass_64(&mut thread, &mut tokens));
    });
}

/// One thread, the same zeroed frame over and over.
pub fn zeroed_pair<I: Zeroed>(group: &mut Group<'_>) {
    let Some(pool) = I::new() else { return };
    on_cpu(0);
    let mut thread = enter(&pool);
    group.bench_function(BenchmarkId::new("zeroed_pair", I::NAME), |bencher| {
        bencher.iter(|| pool.pass_zeroed(&mut thread));
    });
}

/// Runs `body` on `threads` threads that start at once; the time from the first start to the last end.
fn at_once(threads: usize, body: impl Fn(usize) + Sync) -> Duration {
    let ready = AtomicUsize::new(0);
    let spans: Vec<(Instant, Instant)> = thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|number| {
                let (ready, body) = (&ready, &body);
                scope.spawn(move || {
                    on_cpu(number % cpus());
                    ready.fetch_add(1, SeqCst);
                    while ready.load(SeqCst) < threads {
                        if threads > cpus() {
                            thread::yield_now();
                        } else {
                            spin_loop();
                        }
                    }
                    let start = Instant::now();
                    body(number);
                    (start, Instant::now())
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().expect("no panic")).collect()
    });
    let start = spans.iter().map(|span| span.0).min().expect("a thread");
    let end = spans.iter().map(|span| span.1).max().expect("a thread");
    end - start
}

/// Two threads, each with the same frame over and over.
pub fn two_threads_pair<I: Implementation>(group: &mut Group<'_>) {
    let Some(pool) = I::new() else { return };
    group.bench_function(BenchmarkId::new("two_threads_pair", I::NAME), |bencher| {
        bencher.iter_custom(|iterations| {
            at_once(2, |_| {
                let mut thread = enter(&pool);
                (0..iterations).for_each(|_| pair(&pool, &mut thread));
            })
        });
    });
}

/// Several threads, each with batches of 1,024 given back in random order.
pub fn threads_batch<I: Implementation>(group: &mut Group<'_>, threads: usize, workload: &str) {
    let Some(pool) = I::new() else { return };
    let places = places(Order::Random);
    group.bench_function(BenchmarkId::new(workload, I::NAME), |bencher| {
        bencher.iter_custom(|iterations| {
            let time = at_once(threads, |_| {
                let (mut thread, mut tokens) = (enter(&pool), empty());
                (0..iterations).for_each(|_| batch(&pool, &mut thread, &mut tokens, &places));
            });
            time.mul_f64(cpus().min(threads) as f64 / threads as f64)
        });
    });
}

/// One thread takes, another gives back what comes through a ring.
pub fn producer_consumer<I: Implementation>(group: &mut Group<'_>) {
    let Some(pool) = I::new() else { return };
    group.bench_function(BenchmarkId::new("producer_consumer", I::NAME), |bencher| {
        bencher.iter_custom(|iterations| {
            let (producer, consumer) = rtrb::RingBuffer::new(RING);
            let ends = std::sync::Mutex::new((Some(producer), Some(consumer)));
            at_once(2, |number| {
                let mut thread = enter(&pool);
                if number == 0 {
                    let mut producer = ends.lock().expect("no panic").0.take().expect("one producer");
                    for _ in 0..iterations {
                        let mut token = black_box(pool.take(&mut thread));
                        while let Err(rtrb::PushError::Full(back)) = producer.push(token) {
                            token = back;
                            spin_loop();
                        }
                    }
                } else {
                    let mut consumer = ends.lock().expect("no panic").1.take().expect("one consumer");
                    for _ in 0..iterations {
                        let token = loop {
                            match consumer.pop() {
                                Ok(token) => break token,
                                Err(_) => spin_loop(),
                            }
                        };
                        pool.give(&mut thread, token);
                    }
                }
            })
        });
    });
}
