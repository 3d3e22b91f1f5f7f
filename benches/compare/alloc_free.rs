//! One thread: what a pair of take and give costs when nobody else is there.

mod common;

use common::{
    bare_sequence::FloorSequence,
    claimed_stacks::FloorClaim,
    criterion,
    implementations::*,
    workloads::{Order, batch_1024, bulk_64, hot_pair, zeroed_pair},
};
use criterion::Criterion;

fn main() {
    let mut criterion = criterion();
    run(&mut criterion);
    criterion.final_summary();
}

fn run(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("alloc_free");
    macro_rules! each {
        ($($implementation:ty),*) => {$(
            hot_pair::<$implementation>(&mut group);
            batch_1024::<$implementation>(&mut group, Order::Fifo);
            batch_1024::<$implementation>(&mut group, Order::Random);
            bulk_64::<$implementation>(&mut group);
        )*};
    }
    each!(FloorVec, FloorTwoExchanges, FloorSequence, FloorClaim, Rseq, Claim, Pinned, Slitter);
    each!(ArrayQueue, SegQueue, MutexVec, Heapless, ObjectPool, FrameAlloc, Buddy, Mimalloc);
    each!(Jemalloc);
    zeroed_pair::<Rseq>(&mut group);
    zeroed_pair::<Claim>(&mut group);
    zeroed_pair::<Pinned>(&mut group);
    group.finish();
}
