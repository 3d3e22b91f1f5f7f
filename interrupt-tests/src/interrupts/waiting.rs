//! The operations of those who wait: the worker's look at who does, and a caller that asks once and gives up. They hold the lock of
//! tasks, so no thread runs in the middle of them that would wait for it.

use super::{
    operations::{Operation, Role},
    world::{Hand, World},
};
use std::{
    future::Future,
    hint::black_box,
    pin::pin,
    sync::atomic::Ordering::SeqCst,
    task::{Context, Poll, Waker},
};

/// These operations.
pub static WAITING: &[Operation] = &[
    Operation::new("serve_waiters", Role::Interrupted, serve).locks(),
    Operation::new("alloc_async, given up", Role::Interrupted, ask).locks().settled_by(answer),
];

extern "C" fn serve(world: &World<'_>, _hand: &Hand) {
    black_box(world.pool.serve_waiters());
}

/// Polls once, and takes what there is.
extern "C" fn ask(world: &World<'_>, hand: &Hand) {
    let future = pin!(world.pool.alloc_async());
    if let Poll::Ready(Ok(frame)) = future.poll(&mut Context::from_waker(Waker::noop())) {
        hand.open[0].store(frame.into_raw().as_u64(), SeqCst);
    }
}

/// INV-7: a frame that was on its way to the caller when it gave up has rung, and the worker, who comes then, gives it back.
fn answer(world: &World<'_>, _hand: &Hand) {
    world.waits.fetch_add(1, SeqCst);
    if world.host().rung.load(SeqCst) {
        world.pool.serve_waiters();
    }
}
