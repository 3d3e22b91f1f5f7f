//! Page tables: what it costs to map and unmap, beside the same stores without tables and beside other builders.

mod common;

use common::{criterion, table_floors::*, tables::*};
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, measurement::WallTime};
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// Where ranges begin: the start of a leaf table, so that those of 256 pages lie in one.
const IOVA: u64 = 0x40_0000_0000;
const GIB_PAGES: u64 = 1 << 18;

type Group<'c> = BenchmarkGroup<'c, WallTime>;

fn main() {
    let mut criterion = criterion();
    run(&mut criterion);
    criterion.final_summary();
}

fn run(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("map_range");
    macro_rules! each {
        ($workload:ident: $($tables:ty),*) => {$( $workload::<$tables>(&mut group); )*};
    }
    each!(map_unmap_4k: FloorStores, FloorGuardedWalk, Framepool, X86<Pages>, Multiarch, Aarch64);
    each!(map_256x4k: FloorMemset, FloorStores, FloorGuardedWalk, Framepool, X86<Pages>, Multiarch, Aarch64);
    each!(unmap_256x4k: FloorMemset, FloorStores, FloorGuardedWalk, Framepool, X86<Pages>, Multiarch, Aarch64);
    each!(map_256x2m: FloorMemset, FloorStores, Framepool, X86<Pages>, Multiarch, Aarch64);
    each!(translate: Framepool, X86<Pages>, Multiarch, Aarch64);
    group.sample_size(20);
    each!(map_1g_by_4k: FloorMemset, FloorStores, Framepool, X86<Pages>, Multiarch, Aarch64);
    group.finish();
}

/// A range beside, so that the tables stay when what is measured is unmapped: a driver's domain has other mappings.
fn beside<T: Tables>(tables: &mut T) {
    tables.map(IOVA + 300 * 4096, 1);
}

/// One page, mapped and unmapped.
fn map_unmap_4k<T: Tables>(group: &mut Group<'_>) {
    let mut tables = T::new(false);
    beside(&mut tables);
    group.bench_function(BenchmarkId::new("map_unmap_4k", T::NAME), |bencher| {
        bencher.iter(|| {
            tables.map(black_box(IOVA), 1);
            tables.unmap(black_box(IOVA), 1);
        });
    });
}

/// The time of `timed` on each of `iterations` rounds, with `between` after it.
fn timed(iterations: u64, mut timed: impl FnMut(), mut between: impl FnMut()) -> Duration {
    let mut time = Duration::ZERO;
    for _ in 0..iterations {
        let start = Instant::now();
        timed();
        time += start.elapsed();
        between();
    }
    time
}

/// Ranges that are mapped, or unmapped, one after the other, so that the clock is read rarely.
const RANGES: u64 = 64;

fn ranges() -> impl Iterator<Item = u64> {
    // Each in a leaf table of its own.
    (0..RANGES).map(|range| black_box(IOVA + range * (2 << 20)))
}

fn map_256x4k<T: Tables>(group: &mut Group<'_>) {
    let mut tables = T::new(false);
    ranges().for_each(|iova| tables.map(iova + 300 * 4096, 1));
    let tables = std::cell::RefCell::new(tables);
    group.bench_function(BenchmarkId::new("map_256x4k", T::NAME), |bencher| {
        bencher.iter_custom(|iterations| {
            let time = timed(
                iterations,
                || ranges().for_each(|iova| tables.borrow_mut().map(iova, 256)),
                || ranges().for_each(|iova| tables.borrow_mut().unmap(iova, 256)),
            );
            time / RANGES as u32
        });
    });
}

fn unmap_256x4k<T: Tables>(group: &mut Group<'_>) {
    let mut tables = T::new(false);
    ranges().for_each(|iova| tables.map(iova + 300 * 4096, 1));
    ranges().for_each(|iova| tables.map(iova, 256));
    let tables = std::cell::RefCell::new(tables);
    group.bench_function(BenchmarkId::new("unmap_256x4k", T::NAME), |bencher| {
        bencher.iter_custom(|iterations| {
            let time = timed(
                iterations,
                || ranges().for_each(|iova| tables.borrow_mut().unmap(iova, 256)),
                || ranges().for_each(|iova| tables.borrow_mut().map(iova, 256)),
            );
            time / RANGES as u32
        });
    });
}

fn map_256x2m<T: LargeTables>(group: &mut Group<'_>) {
    let mut tables = T::new(true);
    tables.map_large(IOVA + (300 << 21), 1);
    let tables = std::cell::RefCell::new(tables);
    group.bench_function(BenchmarkId::new("map_256x2m", T::NAME), |bencher| {
        bencher.iter_custom(|iterations| {
            timed(
                iterations,
                || tables.borrow_mut().map_large(black_box(IOVA), 256),
                || tables.borrow_mut().unmap_large(black_box(IOVA), 256),
            )
        });
    });
}

/// With tables from the allocator, where they are taken away by the unmap: framepool's.
fn map_1g_by_4k<T: Tables>(group: &mut Group<'_>) {
    let tables = std::cell::RefCell::new(T::new(false));
    group.bench_function(BenchmarkId::new("map_1g_by_4k", T::NAME), |bencher| {
        bencher.iter_custom(|iterations| {
            timed(
                iterations,
                || tables.borrow_mut().map(black_box(IOVA), GIB_PAGES),
                || {
                    let mut tables = tables.borrow_mut();
                    tables.unmap(black_box(IOVA), GIB_PAGES);
                    tables.settle();
                },
            )
        });
    });
}

fn translate<T: Lookup>(group: &mut Group<'_>) {
    let mut tables = T::new(false);
    tables.map(IOVA, 256);
    let mut page = 0;
    group.bench_function(BenchmarkId::new("translate", T::NAME), |bencher| {
        bencher.iter(|| {
            page = (page + 97) % 256;
            tables.translate(black_box(IOVA + page * 4096))
        });
    });
}
