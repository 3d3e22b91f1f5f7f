//! Several threads: what a pair costs when others use the same pool.

mod common;

use common::{
    criterion,
    implementations::*,
    workloads::{producer_consumer, threads_batch, two_threads_pair},
};
use criterion::Criterion;

fn main() {
    let mut criterion = criterion();
    run(&mut criterion);
    criterion.final_summary();
}

fn run(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("contention");
    macro_rules! each {
        ($($implementation:ty),*) => {$(
            two_threads_pair::<$implementation>(&mut group);
            threads_batch::<$implementation>(&mut group, 2, "two_threads_batch");
            threads_batch::<$implementation>(&mut group, 16, "sixteen_threads_batch");
        )*};
    }
    macro_rules! each_shared {
        ($($implementation:ty),*) => {$(
            producer_consumer::<$implementation>(&mut group);
        )*};
    }
    // The floors are a stack of each thread's own, so nothing can go from one thread to another.
    each!(FloorVec, FloorTwoExchanges);
    each!(Rseq, Claim, Pinned, Slitter);
    each_shared!(Rseq, Claim, Pinned, Slitter);
    each!(ArrayQueue, SegQueue, MutexVec, Heapless, ObjectPool, FrameAlloc, Buddy, Mimalloc);
    each_shared!(ArrayQueue, SegQueue, MutexVec, Heapless, ObjectPool, FrameAlloc, Buddy, Mimalloc);
    each!(Jemalloc);
    each_shared!(Jemalloc);
    group.finish();
}
