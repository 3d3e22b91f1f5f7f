//! How long a single call takes at worst: percentiles of taking and giving while another CPU does the same, and while a worker refills
//! and trims.

mod common;

use common::{
    implementations::*,
    workloads::{BATCH, Order, on_cpu, places},
};
use framepool::{AnonymousMemory, Builder, LinuxPlatform, Watermarks};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::{
    hint::black_box,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

const PERCENTILES: [f64; 5] = [50.0, 99.0, 99.9, 99.99, 99.999];
/// How long each is measured.
const TIME: Duration = Duration::from_secs(2);

/// A clock with as little of its own as there is.
#[inline(always)]
fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has both instructions. The fence keeps what is measured on its side.
    unsafe {
        std::arch::x86_64::_mm_lfence();
        std::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        START.elapsed().as_nanos() as u64
    }
}

/// Nanoseconds for each tick.
fn tick() -> f64 {
    let (start, first) = (Instant::now(), ticks());
    thread::sleep(Duration::from_millis(100));
    start.elapsed().as_nanos() as f64 / (ticks() - first) as f64
}

/// What a call took, in ticks.
struct Calls {
    alloc: Histogram<u64>,
    free: Histogram<u64>,
}

impl Calls {
    fn new() -> Self {
        let histogram = || Histogram::new_with_bounds(1, 1 << 36, 3).expect("bounds in order");
        Self { alloc: histogram(), free: histogram() }
    }

    fn results(&self, name: &str, load: &str, tick: f64) -> Value {
        let row = |histogram: &Histogram<u64>| {
            PERCENTILES.map(|percentile| histogram.value_at_percentile(percentile) as f64 * tick)
        };
        let (alloc, free) = (row(&self.alloc), row(&self.free));
        let print = |row: [f64; 5]| row.map(|nanoseconds| format!("{nanoseconds:8.0}")).join(" ");
        println!("{name:<22} {load:<8} alloc {}   free {}", print(alloc), print(free));
        json!({ "implementation": name, "load": load, "calls": self.alloc.len(), "alloc": alloc, "free": free })
    }
}

/// Batches given back in random order on one CPU, each call timed, while another does the same untimed.
fn under_load<I: Implementation>(tick: f64) -> Option<Value> {
    let pool = I::new()?;
    let done = AtomicBool::new(false);
    let places = places(Order::Random);
    let calls = thread::scope(|scope| {
        scope.spawn(|| {
            on_cpu(0);
            let (mut thread, mut tokens) = (pool.enter(), Vec::with_capacity(BATCH));
            while !done.load(SeqCst) {
                tokens.extend((0..BATCH).map(|_| pool.take(&mut thread)));
                tokens.drain(..).for_each(|token| pool.give(&mut thread, token));
            }
        });
        let measured = scope.spawn(|| {
            on_cpu(1);
            let mut thread = Box::new(pool.enter());
            let mut tokens: Vec<_> = std::iter::repeat_with(|| None).take(BATCH).collect();
            let (mut calls, start) = (Calls::new(), Instant::now());
            while start.elapsed() < TIME {
                for place in &mut tokens {
                    let before = ticks();
                    *place = Some(black_box(pool.take(&mut thread)));
                    calls.alloc.saturating_record(ticks() - before);
                }
                for token in places.iter().filter_map(|&place| tokens[place].take()) {
                    let before = ticks();
                    pool.give(&mut thread, token);
                    calls.free.saturating_record(ticks() - before);
                }
            }
            calls
        });
        let calls = measured.join().expect("no panic");
        done.store(true, SeqCst);
        calls
    });
    Some(calls.results(I::NAME, "load", tick))
}

/// Bursts that the stock does not hold: the worker fills behind each and trims what comes back.
fn during_refills(tick: f64) -> Value {
    const BURST: usize = 8192;
    let marks = Watermarks { min: 0, low: 2048, high: 4096, max: 6144 };
    let builder = Builder::new(1 << 16).watermarks(marks);
    let source = AnonymousMemory::new(1 << 16).expect("memory");
    let pool = builder.start_on(LinuxPlatform::new(), source).expect("a pool");
    let mut frames = Vec::with_capacity(BURST);
    let (mut calls, start) = (Calls::new(), Instant::now());
    while start.elapsed() < TIME {
        for _ in 0..BURST {
            let before = ticks();
            let frame = black_box(pool.alloc());
            calls.alloc.saturating_record(ticks() - before);
            frames.extend(frame);
        }
        for frame in frames.drain(..) {
            let before = ticks();
            drop(frame);
            calls.free.saturating_record(ticks() - before);
        }
    }
    let stats = pool.stats();
    println!(
        "{} frames refilled in {} passes, {} by the fallback",
        stats.refilled, stats.refills, stats.fallback_taken
    );
    calls.results("framepool-rseq", "refills", tick)
}

fn main() {
    let tick = tick();
    println!("{:<31} nanoseconds at {PERCENTILES:?} %", "");
    let mut results: Vec<Option<Value>> = Vec::new();
    macro_rules! each {
        ($($implementation:ty),*) => {$( results.push(under_load::<$implementation>(tick)); )*};
    }
    each!(FloorVec, FloorTwoExchanges, Rseq, Claim, Pinned, Slitter);
    each!(ArrayQueue, SegQueue, MutexVec, Heapless, ObjectPool, FrameAlloc, Buddy, Mimalloc, Jemalloc);
    results.push(Some(during_refills(tick)));
    let results: Vec<_> = results.into_iter().flatten().collect();
    common::leave("latency", &results.into());
}
