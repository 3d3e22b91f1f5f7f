//! A handler that comes in the middle of a call, on the same thread: where the pool asks its host or its source for something.

use std::cell::{Cell, RefCell};

thread_local! {
    /// How often the pool asks until the handler comes; 0 if none is to come.
    static ASKS_LEFT: Cell<u8> = const { Cell::new(0) };
    static HANDLER: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
}

/// Lets `handler` come after the pool has asked `asks` times, once.
pub fn after(asks: u8, handler: impl FnOnce() + 'static) {
    HANDLER.set(Some(Box::new(handler)));
    ASKS_LEFT.set(asks.saturating_add(1));
}

/// The handler does not come any more; whether it had not come yet.
pub fn disarm() -> bool {
    ASKS_LEFT.set(0);
    HANDLER.take().is_some()
}

/// The pool asks.
pub fn may_come() {
    let left = ASKS_LEFT.get();
    ASKS_LEFT.set(left.saturating_sub(1));
    if left == 1
        && let Some(handler) = HANDLER.take()
    {
        handler();
    }
}
