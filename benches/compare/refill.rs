//! The way from the source into the pool and back: what a pass of the worker costs.

mod common;

use common::criterion;
use criterion::{BatchSize, BenchmarkId, Criterion};
use framepool::{AnonymousMemory, Builder, FallbackPolicy, LinuxPlatform, Watermarks};

/// Frames that each pass fetches.
const FRAMES: u32 = 4096;

fn main() {
    let mut criterion = criterion();
    run(&mut criterion);
    criterion.final_summary();
}

fn run(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("refill");
    let marks = Watermarks { min: 0, low: FRAMES, high: FRAMES, max: FRAMES };
    let builder = Builder::new(FRAMES).watermarks(marks).fallback(FallbackPolicy::Never);
    let pool = builder
        .initial(0)
        .build(AnonymousMemory::new(FRAMES).expect("memory"), LinuxPlatform::new())
        .expect("a pool");
    group.bench_function(BenchmarkId::new("pass_4096", "framepool"), |bencher| {
        bencher.iter_batched(
            || pool.vacate().expect("no frame is out"),
            |()| pool.maintain(),
            BatchSize::PerIteration,
        );
    });
    // The same frames into a vector, one at a time: what is left when there is no pool to put them in order.
    let source = AnonymousMemory::new(FRAMES).expect("memory");
    group.bench_function(BenchmarkId::new("pass_4096", "floor-vec"), |bencher| {
        bencher.iter_batched(
            || Vec::with_capacity(FRAMES as usize),
            |mut frames| {
                use framepool::FrameSource;
                frames.extend(std::iter::from_fn(|| source.try_supply()));
                // SAFETY: each came from this source and is nobody's.
                unsafe { source.reclaim(&frames) };
                frames
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}
