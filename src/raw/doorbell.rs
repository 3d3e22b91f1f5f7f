//! Owns the one thing that any context may do to a sleeper: the doorbell, a word and a futex.
//!
//! # The word
//! | value | meaning | who puts it there |
//! |---|---|---|
//! | `QUIET` | nobody has rung, nobody sleeps | the sleeper, when it answers |
//! | `RUNG` | somebody has rung | any context |
//! | `ASLEEP` | nobody has rung, the sleeper sleeps or is about to | the sleeper |
//!
//! | event | before | after | does |
//! |---|---|---|---|
//! | Ring | QUIET or RUNG | RUNG | nothing more |
//! | Ring | ASLEEP | RUNG | one wake of the futex |
//! | LieDown | QUIET | ASLEEP | sleeps while the word is ASLEEP |
//! | LieDown | RUNG | QUIET | does not sleep |
//! | GetUp | ASLEEP or RUNG | QUIET | says whether it was RUNG |
//!
//! # Why no ring is lost
//! All events are read-modify-writes of one word and have one order. A Ring before LieDown makes it fail. A Ring after
//! LieDown finds ASLEEP and wakes; if the sleeper has not reached the kernel yet, the kernel compares the word with
//! ASLEEP before it lets it sleep, finds RUNG, and returns at once. A Ring between two GetUps is seen by the second.
//!
//! # Why any context may ring
//! A ring is one exchange and at most one `futex(FUTEX_WAKE)`, a plain system call made without libc: no lock, no memory,
//! no `errno`. A sleeper that was rung twice before it got up gets up once.

use crate::sync::{
    atomic::{AtomicU32, Ordering},
    futex,
};
use core::time::Duration;

const QUIET: u32 = 0;
const RUNG: u32 = 1;
const ASLEEP: u32 = 2;

/// A bell that any context may ring, for one sleeper.
///
/// ```
/// # #[cfg(feature = "std")] {
/// use core::time::Duration;
/// use framepool::Doorbell;
/// let bell = Doorbell::new();
/// bell.ring();
/// assert!(bell.wait(Some(Duration::from_secs(1))), "rung before we lay down");
/// assert!(!bell.wait(Some(Duration::from_millis(1))), "nobody rang again");
/// # }
/// ```
#[derive(Debug)]
pub struct Doorbell {
    word: AtomicU32,
}

impl Default for Doorbell {
    fn default() -> Self {
        Self::new()
    }
}

impl Doorbell {
    /// A bell that nobody has rung.
    pub fn new() -> Self {
        Self { word: AtomicU32::new(QUIET) }
    }

    /// Wakes the sleeper, now or when it next wants to sleep.
    ///
    /// From any context: thread, signal handler, interrupt. Wait-free: one exchange and at most one system call.
    pub fn ring(&self) {
        // Ordering: Release publishes what the caller did before it rang to the Acquire of `wait`, which reads this
        // value or a later one of the same release sequence. Relaxed would let the sleeper look too early.
        if self.word.swap(RUNG, Ordering::Release) == ASLEEP {
            futex::wake(&self.word);
        }
    }

    /// Sleeps until somebody rings, or for `timeout`; whether somebody rang. Returns at once if somebody has already, and
    /// early, with `false`, when a signal handler ran in the sleeping thread.
    ///
    /// Thread context only, and one thread at a time: the sleeper.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        // Ordering: Acquire on failure: the word is RUNG and what its ringer did before is to be seen; on success
        // nothing was published, and nothing is.
        let lain_down =
            self.word.compare_exchange(QUIET, ASLEEP, Ordering::Relaxed, Ordering::Acquire).is_ok();
        if lain_down {
            futex::wait(&self.word, ASLEEP, timeout);
        }
        // Ordering: Acquire pairs with the Release of the ring that we answer.
        self.word.swap(QUIET, Ordering::Acquire) == RUNG
    }
}
