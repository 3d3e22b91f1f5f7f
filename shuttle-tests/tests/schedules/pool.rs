//! Threads that take, give, refill, shrink, drain and vacate one pool at once.

use crate::{
    choose,
    harness::{ThisCpu, Watched, on_cpu, pool, watched_on},
    model,
};
use framepool::{
    Builder, Claim, FallbackPolicy, Frame, Pinned, Request, SlotOwnership, Watermarks, internals::rseq::Rseq,
};
use shuttle::sync::Arc;

const FRAMES: u32 = 7;
const STEPS: usize = 3;

/// What a caller does with frames, once.
fn use_frames<O: SlotOwnership>(watched: &Watched<O>) {
    let pool = &watched.pool;
    match choose(8) {
        0 | 1 => {
            watched.take_and_give();
        }
        2 => {
            let frames = [pool.alloc(), pool.alloc_with(Request::CRITICAL)];
            frames.iter().flatten().for_each(|frame| watched.touch(frame));
        }
        3 => {
            let mut frames = [const { None }; 3];
            if pool.alloc_bulk_exact(Request::ORDINARY, &mut frames).is_ok() {
                frames.iter().flatten().for_each(|frame| watched.touch(frame));
                pool.free_bulk(&mut frames);
            }
        }
        4 => drop(watched.take_zeroed_and_soil()),
        5 => {
            if let Ok(frame) = pool.alloc_zeroed() {
                watched.assert_zero(&frame);
                watched.touch(&frame);
                // SAFETY: it is zero, as was just seen; to touch it is to note that it is used.
                unsafe { frame.free_zeroed() };
            }
        }
        6 => {
            if let Ok(reservation) = pool.reserve(2) {
                let frames: Vec<_> =
                    std::iter::from_fn(|| reservation.draw()).take(choose(3) as usize).collect();
                frames.iter().for_each(|frame| watched.touch(frame));
            }
        }
        _ => {
            // As an address, for a while.
            let frame = pool.alloc().map(|frame| {
                watched.touch(&frame);
                frame.into_raw()
            });
            watched.take_and_give();
            if let Ok(frame) = frame {
                watched.touch_at(frame);
                // SAFETY: the frame was laid down as this address, once.
                drop(unsafe { Frame::from_raw(pool, frame) });
            }
        }
    }
}

/// What a worker does, once.
fn maintain<O: SlotOwnership>(watched: &Watched<O>) {
    match choose(4) {
        0 | 1 => drop(watched.pool.maintain()),
        2 => drop(watched.pool.shrink_to(choose(FRAMES))),
        _ => drop(watched.pool.serve_waiters()),
    }
}

/// What an administrator does, once.
fn administer<O: SlotOwnership>(watched: &Watched<O>) {
    match choose(4) {
        0 => drop(watched.pool.drain_cpu(choose(2) as usize)),
        1 => drop(watched.pool.vacate()),
        _ => maintain(watched),
    }
}

/// At rest every frame is somewhere, once, and can go back.
fn assert_sound<O: SlotOwnership>(watched: &Watched<O>) {
    let pool = &watched.pool;
    pool.maintain();
    let stats = pool.stats();
    assert_eq!(stats.owned, stats.in_use + stats.cached + stats.stock + stats.overflow, "INV-4: {stats}");
    assert_eq!((stats.in_use, stats.promised, stats.waiters), (0, 0, 0), "INV-1: {stats}");
    assert_eq!(stats.owned as usize, pool.source().out(), "INV-1: the source agrees");
    pool.vacate().expect("INV-1: no frame is out");
    assert_eq!((pool.stats().owned, pool.source().out()), (0, 0), "INV-1: every frame went back");
}

/// Two callers on CPU 0, one on CPU 1 and an administrator there.
fn everything_at_once<O: SlotOwnership + 'static>(ownership: O, cpus: usize) {
    let watermarks = Watermarks { min: 1, low: 3, high: 5, max: 6 };
    let builder = Builder::new(FRAMES).watermarks(watermarks).cpus(cpus).magazine_size(1 + choose(2));
    let builder = builder.reservations(4).idle_passes(1).fallback(FallbackPolicy::Always);
    let watched = watched_on(ownership, builder, FRAMES);
    let threads: Vec<_> = [0, 0, 1, 1]
        .into_iter()
        .enumerate()
        .map(|(number, cpu)| {
            let watched = Arc::clone(&watched);
            on_cpu(cpu, move || {
                for _ in 0..STEPS {
                    if number == 3 { administer(&watched) } else { use_frames(&watched) }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_sound(&watched);
}

#[test]
fn everything_at_once_on_claimed_caches() {
    model("pool, claim", || everything_at_once(Claim, 2));
}

#[test]
fn everything_at_once_on_restartable_sequences() {
    // One CPU has no sequences.
    model("pool, sequences", || everything_at_once(Rseq::modelled(), 2));
}

/// Magazines of one frame, and more frames in hand than a cache has: nearly every operation takes a magazine from the depot, or puts one there.
#[test]
fn four_callers_meet_at_the_depot() {
    model("depot", || {
        let watched = pool(2, 1, 6, 0);
        let threads = [0, 0, 1, 1].map(|cpu| {
            let watched = Arc::clone(&watched);
            on_cpu(cpu, move || {
                for _ in 0..STEPS {
                    let frames = [watched.pool.alloc(), watched.pool.alloc(), watched.pool.alloc()];
                    frames.iter().flatten().for_each(|frame| watched.touch(frame));
                }
            })
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        watched.assert_complete(6);
    });
}

/// Each thread keeps a cache, and asks for those of the others. Nobody waits for one: two who wait for each other's do so to the end of
/// their patience, which is long for a model.
#[test]
fn everything_at_once_on_caches_that_their_threads_keep() {
    model("pool, pinned", || {
        let watermarks = Watermarks { min: 1, low: 3, high: 5, max: 6 };
        let builder = Builder::new(FRAMES).watermarks(watermarks).cpus(4).magazine_size(1);
        let builder = builder.reservations(4).idle_passes(1).fallback(FallbackPolicy::Always);
        let watched = watched_on(Pinned::lending(ThisCpu, choose(3)), builder, FRAMES);
        let threads = [0, 1, 2].map(|cpu| {
            let watched = Arc::clone(&watched);
            on_cpu(cpu, move || {
                (0..STEPS)
                    .for_each(|_| if choose(4) == 0 { maintain(&watched) } else { use_frames(&watched) });
                // What it keeps it gives back.
                while watched.pool.drain_cpu(cpu).is_err() {
                    shuttle::thread::yield_now();
                }
            })
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_sound(&watched);
    });
}
