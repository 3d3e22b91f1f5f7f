//! Several callers that wait, several that free, one that does not wait, one that gives up, and a worker that sleeps until somebody rings. Whoever is forgotten waits for
//! ever, which shuttle reports.

use crate::{
    choose,
    harness::{Watched, on_cpu, pool_with_bell},
    model,
};
use framepool::{Claim, Frame, Platform, SlotOwnership, internals::rseq::Rseq};
use shuttle::{
    future::block_on,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{JoinHandle, yield_now},
};
use std::{
    future::Future,
    pin::pin,
    task::{Context, Waker},
};

const FRAMES: u32 = 3;

/// Some of the frames are out, and come back from two threads.
fn free_some<O: SlotOwnership + 'static>(watched: &Arc<Watched<O>>) -> Vec<JoinHandle<()>> {
    let frames: Vec<_> = (0..1 + choose(FRAMES)).map(|_| watched.pool.alloc().unwrap().into_raw()).collect();
    (0..)
        .zip(frames.chunks(2))
        .map(|(cpu, frames)| {
            let (watched, frames) = (Arc::clone(watched), frames.to_vec());
            on_cpu(cpu, move || {
                for frame in frames {
                    watched.touch_at(frame);
                    // SAFETY: each frame was laid down as this address, once.
                    drop(unsafe { Frame::from_raw(&watched.pool, frame) });
                }
            })
        })
        .collect()
}

/// Who waits takes a frame, or reserves some, uses what it got and gives it back.
fn wait<O: SlotOwnership>(watched: &Watched<O>, frames: u32) {
    if frames == 1 {
        watched.touch(&block_on(watched.pool.alloc_async()).unwrap());
    } else {
        let reservation = block_on(watched.pool.reserve_async(frames)).unwrap();
        let drawn: Vec<_> = std::iter::from_fn(|| reservation.draw()).collect();
        drawn.iter().for_each(|frame| watched.touch(frame));
        assert_eq!(drawn.len(), frames as usize, "INV-8");
    }
}

fn everybody_is_served<O: SlotOwnership + 'static>(ownership: O, cpus: usize) {
    let watched = pool_with_bell(ownership, cpus, 1 + choose(2), FRAMES);
    let stop = Arc::new(AtomicBool::new(false));
    let worker = {
        let (watched, stop) = (Arc::clone(&watched), Arc::clone(&stop));
        on_cpu(1, move || {
            while !stop.load(SeqCst) {
                watched.answer_bell();
            }
        })
    };
    let mut threads = free_some(&watched);
    for (cpu, frames) in [(0, 1 + choose(2)), (1, 1), (0, 1 + choose(2))] {
        let watched = Arc::clone(&watched);
        threads.push(on_cpu(cpu, move || wait(&watched, frames)));
    }
    threads.push({
        let watched = Arc::clone(&watched);
        // Has frames in its hands for a moment, and does not wait.
        on_cpu(0, move || {
            watched.take_and_give();
            watched.take_and_give();
        })
    });
    threads.push({
        let watched = Arc::clone(&watched);
        on_cpu(1, move || {
            // Gives up after a look.
            let mut future = pin!(watched.pool.alloc_async());
            let _ = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        })
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    stop.store(true, SeqCst);
    watched.pool.platform().ring();
    worker.join().unwrap();
    // What was promised to whoever gave up.
    while watched.pool.serve_waiters() {
        yield_now();
    }
    watched.assert_complete(FRAMES as usize);
}

#[test]
fn everybody_who_waits_is_served_by_claimed_caches() {
    model("waiting, claim", || everybody_is_served(Claim, 2));
}

#[test]
fn everybody_who_waits_is_served_by_restartable_sequences() {
    model("waiting, sequences", || everybody_is_served(Rseq::modelled(), 3));
}
