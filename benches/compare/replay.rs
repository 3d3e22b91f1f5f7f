//! A recorded trace of drivers, call by call on one thread: what the builder and the pool cost together.

mod common;
#[allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    reason = "of the trace, the events alone are used here"
)]
#[path = "../../examples/replay/trace.rs"]
mod trace;

use common::{
    criterion,
    table_floors::FloorGuardedWalk,
    tables::{BuddyPages, X86},
};
use criterion::{BenchmarkId, Criterion};
use framepool::{
    AnonymousMemory, Builder, FramePool, LinuxPlatform, PhysAddr,
    vtd::{DomainConfig, Iova, Levels, SecondStageDomain},
};
use std::{path::Path, sync::Mutex, time::Instant};
use trace::{Event, Operation};

const PAGE: u64 = 4096;
/// Frames for the tables of all domains.
const FRAMES: u32 = 1 << 14;

fn main() {
    let mut criterion = criterion();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/traces/mix_strict.txt.zst");
    let events = trace::read(&path).expect("the trace in the repository");
    run(&mut criterion, &events);
    criterion.final_summary();
}

fn domains(events: &[Event]) -> usize {
    usize::from(events.iter().map(|event| event.domain).max().unwrap_or(0)) + 1
}

fn run(criterion: &mut Criterion, events: &[Event]) {
    let mut group = criterion.benchmark_group("replay");
    group.sample_size(10);
    group.bench_function(BenchmarkId::new("mix_strict", "framepool"), |bencher| {
        let source = AnonymousMemory::new(FRAMES).expect("memory");
        let pool = Builder::new(FRAMES).build(source, LinuxPlatform::new()).expect("a pool");
        bencher.iter_custom(|iterations| {
            (0..iterations)
                .map(|_| {
                    let config = DomainConfig::new(Levels::Four);
                    let domain = |_| SecondStageDomain::new(config, &pool).expect("a domain");
                    let domains: Vec<_> = (0..domains(events)).map(domain).collect();
                    let start = Instant::now();
                    events.iter().for_each(|event| with_framepool(&domains, event));
                    let time = start.elapsed();
                    for domain in domains {
                        // SAFETY: no hardware walks these tables.
                        unsafe { domain.close().complete() };
                    }
                    while pool.maintain().more {}
                    time
                })
                .sum()
        });
    });
    group.bench_function(BenchmarkId::new("mix_strict", "x86_64"), |bencher| {
        bencher.iter_custom(|iterations| {
            (0..iterations)
                .map(|_| {
                    let domain = |_| Mutex::new(X86::over(BuddyPages::new(FRAMES as usize / 4)));
                    let domains: Vec<_> = (0..domains(events)).map(domain).collect();
                    let start = Instant::now();
                    events.iter().for_each(|event| with_x86(&domains, event));
                    start.elapsed()
                })
                .sum()
        });
    });
    group.bench_function(BenchmarkId::new("mix_strict", "floor-guarded-walk"), |bencher| {
        let mut domains: Vec<_> = (0..domains(events)).map(|_| FloorGuardedWalk::bare()).collect();
        for event in events {
            if let Operation::Map { .. } = event.operation {
                domains[usize::from(event.domain)].prepare(event.iova, event.length / PAGE);
            }
        }
        bencher.iter_custom(|iterations| {
            (0..iterations)
                .map(|_| {
                    let start = Instant::now();
                    events.iter().for_each(|event| with_guarded_walk(&domains, event));
                    let time = start.elapsed();
                    // Some of what is mapped stays mapped at the end of the trace.
                    domains.iter_mut().for_each(FloorGuardedWalk::unmap_all);
                    time
                })
                .sum()
        });
    });
    group.finish();
}

type Pool = FramePool<AnonymousMemory, LinuxPlatform>;

fn with_framepool(domains: &[SecondStageDomain<&Pool>], event: &Event) {
    let domain = &domains[usize::from(event.domain)];
    let iova = Iova::new(event.iova);
    match event.operation {
        Operation::Map { target, permissions } => {
            // SAFETY: no hardware walks these tables.
            unsafe { domain.map(iova, PhysAddr::new(target), event.length, permissions).expect("mapped") }
        }
        Operation::Unmap => {
            let invalidation = domain.unmap(iova, event.length).expect("unmapped");
            // SAFETY: as above.
            unsafe { invalidation.complete() }
        }
        Operation::Sync | Operation::Flush | Operation::Attach => {}
    }
}

/// Behind a lock, as a mapper must be that takes itself mutably: the calls of the trace come from two CPUs, and from their interrupts.
fn with_x86(domains: &[Mutex<X86<BuddyPages>>], event: &Event) {
    let mut domain = domains[usize::from(event.domain)].lock().expect("no panic");
    match event.operation {
        Operation::Map { target, permissions } => {
            assert!(!permissions.is_empty());
            domain.map_to(event.iova, target, event.length / PAGE);
        }
        Operation::Unmap => domain.unmap(event.iova, event.length / PAGE),
        Operation::Sync | Operation::Flush | Operation::Attach => {}
    }
}

fn with_guarded_walk(domains: &[FloorGuardedWalk], event: &Event) {
    let domain = &domains[usize::from(event.domain)];
    match event.operation {
        Operation::Map { target, permissions } => {
            assert!(!permissions.is_empty());
            domain.map_to(event.iova, target, event.length / PAGE);
        }
        Operation::Unmap => domain.clear(event.iova, event.length / PAGE),
        Operation::Sync | Operation::Flush | Operation::Attach => {}
    }
}
