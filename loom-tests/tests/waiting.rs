//! Callers that wait against frees: no wake-up is lost (INV-7), and no frame, also when a caller gives up.
//!
//! The waiting thread answers the bell itself, and sleeps until it rings: a wake-up that is lost leaves it asleep for ever.
#![cfg(loom)]
#![allow(missing_docs)]

use framepool::{Claim, Frame, SlotOwnership, internals::rseq::Rseq};
use loom::sync::Arc;
use loom_tests::{Alarm, Watched, forever, on_cpu, pool_with_bell};
use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
};

/// A thread on `cpu` that gives back a frame that was taken before.
fn free_on<O: SlotOwnership + 'static>(
    watched: &Arc<Watched<O>>,
    cpu: usize,
) -> loom::thread::JoinHandle<()> {
    let frame = watched.pool.alloc().unwrap();
    watched.touch(&frame);
    let (watched, frame) = (Arc::clone(watched), frame.into_raw());
    on_cpu(cpu, move || {
        // SAFETY: the frame was laid down as this address, once.
        drop(unsafe { Frame::from_raw(&watched.pool, frame) });
    })
}

/// One that waits on CPU 0, and one that frees its frame on the CPU `freer`.
fn woken_by_a_free<O: SlotOwnership + 'static>(ownership: O, cpus: usize, freer: usize) {
    let watched = pool_with_bell(ownership, cpus, 1, 1);
    let freer = free_on(&watched, freer);
    let frame = watched.wait_for(watched.pool.alloc_async()).unwrap();
    watched.touch(&frame);
    drop(frame);
    freer.join().unwrap();
    watched.assert_complete(1);
}

#[test]
fn a_caller_that_waits_is_woken_by_a_free_on_another_cpu() {
    loom_tests::model(3, || woken_by_a_free(Claim, 2, 1));
}

#[test]
fn a_caller_that_waits_is_woken_by_a_free_in_an_interrupt_on_its_own_cpu() {
    loom_tests::model(3, || woken_by_a_free(Claim, 1, 0));
}

#[test]
fn a_caller_that_waits_is_woken_by_a_sequence_on_another_cpu() {
    loom_tests::model(2, || woken_by_a_free(Rseq::modelled(), 3, 1));
}

#[test]
fn a_caller_that_waits_is_woken_by_a_sequence_on_its_own_cpu() {
    loom_tests::model(2, || woken_by_a_free(Rseq::modelled(), 2, 0));
}

/// The frame is in the hands of an allocation, with the rest of its magazine, when the caller looks for it.
#[test]
fn a_caller_that_waits_is_told_of_frames_that_an_allocation_had_in_its_hands() {
    loom_tests::model(2, || {
        let watched = pool_with_bell(Claim, 2, 2, 2);
        let other = {
            let watched = Arc::clone(&watched);
            on_cpu(1, move || watched.take_and_give())
        };
        let reservation = watched.wait_for(watched.pool.reserve_async(2)).unwrap();
        let frames: Vec<_> = core::iter::from_fn(|| reservation.draw()).collect();
        frames.iter().for_each(|frame| watched.touch(frame));
        assert_eq!(frames.len(), 2, "INV-8");
        drop((reservation, frames));
        other.join().unwrap();
        watched.assert_complete(2);
    });
}

/// The second free finds that the first has rung, and does not ring again.
#[test]
fn one_ring_brings_what_two_frees_have_put_down() {
    loom_tests::model(1, || {
        let watched = pool_with_bell(Claim, 1, 1, 2);
        let freers = [free_on(&watched, 0), free_on(&watched, 0)];
        let reservation = watched.wait_for(watched.pool.reserve_async(2)).unwrap();
        core::iter::from_fn(|| reservation.draw()).for_each(|frame| watched.touch(&frame));
        drop(reservation);
        freers.into_iter().for_each(|freer| freer.join().unwrap());
        watched.assert_complete(2);
    });
}

#[test]
fn a_caller_that_gives_up_while_its_frame_arrives_loses_none() {
    loom_tests::model(4, || {
        let watched = pool_with_bell(Claim, 2, 1, 1);
        let freer = free_on(&watched, 1);
        {
            let mut future = pin!(watched.pool.alloc_async());
            if let Poll::Ready(frame) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                watched.touch(&frame.unwrap());
            }
            watched.pool.serve_waiters();
        }
        freer.join().unwrap();
        watched.pool.serve_waiters();
        watched.assert_complete(1);
    });
}

#[test]
fn a_caller_that_gives_up_passes_its_wake_up_on() {
    loom_tests::model(3, || {
        let watched = pool_with_bell(Claim, 2, 1, 1);
        let freer = free_on(&watched, 1);
        // SAFETY: what is borrowed ends before the pool does.
        let shared = unsafe { forever(&watched) };
        let frame = {
            let mut first = Box::pin(shared.pool.alloc_async());
            let alarm = std::sync::Arc::new(Alarm::default());
            let waker = Waker::from(std::sync::Arc::clone(&alarm));
            let polled = first.as_mut().poll(&mut Context::from_waker(&waker));
            let mut second = Box::pin(shared.pool.alloc_async());
            if polled.is_pending() && second.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
                drop(first);
                assert!(polled.is_pending());
                shared.wait_for(second).unwrap()
            } else {
                drop((first, polled));
                shared.wait_for(shared.pool.alloc_async()).unwrap()
            }
        };
        watched.touch(&frame);
        drop(frame);
        freer.join().unwrap();
        watched.pool.serve_waiters();
        watched.assert_complete(1);
    });
}
