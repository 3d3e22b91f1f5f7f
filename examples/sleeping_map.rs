//! What it costs and saves to wait for table frames (V13): threads that map and unmap over a pool that is too small for all of them, first with
//! the map that never sleeps and is made again when frames are lacking, then with the one that waits. Both in one run, turn by turn, so
//! that what else the machine does meets both alike; ratios alone mean something.
//!
//! `cargo run --release --example sleeping_map`

use framepool::{AnonymousMemory, Builder, FallbackPolicy, PhysAddr, Watermarks, vtd::*};
use std::{
    error::Error,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

const GIB: u64 = 1 << 30;
const THREADS: u64 = 4;
/// Turns of each kind, and maps of each thread in a turn.
const TURNS: usize = 12;
const MAPS: u64 = 4_000;
/// How long a map is of use, in steps of nothing.
const USE: u32 = 400;

/// How a caller that finds no frames gets them.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Asks again at once, after giving up the processor.
    AskAgain,
    /// Waits in the queue.
    Sleep,
}

/// What a turn came to.
#[derive(Default)]
struct Turn {
    /// Maps that found no frames.
    failures: AtomicU64,
}

fn main() -> Result<(), Box<dyn Error>> {
    println!(
        "frames for  | maps a second, sleeping  | maps that failed, for   | fallbacks: not     | waits, for"
    );
    println!(
        "            | to not sleeping          | each done: not sleeping | sleeping, sleeping | each done"
    );
    for (share, of) in [(4, 4), (3, 4), (2, 4), (1, 4)] {
        // Each domain has a root, and a table for each map.
        let frames = u32::try_from(THREADS + THREADS * share / of)?;
        let mut ratios = Vec::new();
        let (mut failures, mut fallbacks, mut waits) = (0, [0; 2], 0);
        for _ in 0..TURNS {
            let mut seconds = [0.0; 2];
            for (index, way) in [Way::AskAgain, Way::Sleep].into_iter().enumerate() {
                let watermarks = Watermarks { min: 0, low: 0, high: frames, max: frames };
                let builder = Builder::new(frames).watermarks(watermarks).fallback(FallbackPolicy::Always);
                let pool = builder.start(AnonymousMemory::new(frames)?)?;
                let turn = Turn::default();
                let config =
                    DomainConfig { page_sizes: PageSizes::SIZE_2M, ..DomainConfig::new(Levels::Three) };
                let domains =
                    (0..THREADS)
                        .map(|_| SecondStageDomain::new(config, &*pool))
                        .collect::<Result<Vec<_>, _>>()?;
                let start = Instant::now();
                thread::scope(|scope| {
                    for domain in &domains {
                        scope.spawn(|| (0..MAPS).for_each(|_| map_use_unmap(domain, way, &turn)));
                    }
                });
                seconds[index] = start.elapsed().as_secs_f64();
                for domain in domains {
                    // SAFETY: no device walks these tables.
                    unsafe { domain.close().complete() };
                }
                let stats = pool.stats();
                fallbacks[index] += stats.fallback_taken + stats.fallback_failed;
                if way == Way::Sleep {
                    waits += stats.waits;
                } else {
                    failures += turn.failures.into_inner();
                }
            }
            ratios.push(seconds[0] / seconds[1]);
        }
        ratios.sort_unstable_by(f64::total_cmp);
        let done = (THREADS * MAPS * TURNS as u64) as f64;
        println!(
            "{share} of {of}      | {:.2} ({:.2} to {:.2})      | {:.3}                   | {:.3}, {:.3}       | {:.3}",
            ratios[TURNS / 2],
            ratios[TURNS / 4],
            ratios[TURNS * 3 / 4],
            failures as f64 / done,
            fallbacks[0] as f64 / done,
            fallbacks[1] as f64 / done,
            waits as f64 / done,
        );
    }
    Ok(())
}

/// One map of a table's worth, some use of it, and its unmap.
fn map_use_unmap<A: PooledFrames>(domain: &SecondStageDomain<A>, way: Way, turn: &Turn) {
    let (iova, target) = (Iova::new(0), PhysAddr::new(0));
    let outcome = match way {
        Way::Sleep => {
            // SAFETY: no device walks these tables.
            unsafe { domain.map_blocking(iova, target, GIB, Permissions::all(), Duration::from_secs(60)) }
        }
        Way::AskAgain => loop {
            // SAFETY: as above.
            match unsafe { domain.map(iova, target, GIB, Permissions::all()) } {
                Err(MapError::OutOfFrames { .. }) => {
                    turn.failures.fetch_add(1, Relaxed);
                    thread::yield_now();
                }
                outcome => break outcome,
            }
        },
    };
    outcome.expect("the range is free, and frames come back");
    (0..USE).for_each(|_| std::hint::spin_loop());
    let invalidation = domain.unmap(iova, GIB).expect("it is mapped");
    // SAFETY: as above.
    unsafe { invalidation.complete() };
}
