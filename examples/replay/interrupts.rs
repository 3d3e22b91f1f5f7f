//! Owns what stands for interrupts: a timer signal on the thread of each CPU, whose handler calls into that CPU's lane.

use nix::{
    sys::{
        signal::{SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction},
        time::TimeSpec,
        timer::{Expiration, Timer, TimerSetTimeFlags},
    },
    time::ClockId,
    unistd::gettid,
};
use std::{cell::Cell, ptr, time::Duration};

/// Two signals that do not mask each other, so that handlers nest.
const SIGNALS: [Signal; 2] = [Signal::SIGUSR1, Signal::SIGUSR2];

/// What an interrupt finds on its CPU.
pub trait Interruptible: Sync {
    /// Runs in a signal handler, at any instruction of the thread that installed the timers.
    fn interrupt(&self);
}

thread_local! {
    /// Constant at first and without a destructor, hence safe to read in a handler.
    static TARGET: Cell<Option<Target>> = const { Cell::new(None) };
}

/// What the handler calls, without its type.
#[derive(Clone, Copy)]
struct Target {
    data: *const (),
    call: unsafe fn(*const ()),
}

/// Interrupts `target` on this thread every `interval`, until the result is dropped, while `work` runs.
pub fn interrupted<T: Interruptible, R>(
    target: &T,
    interval: Option<Duration>,
    work: impl FnOnce() -> R,
) -> nix::Result<R> {
    unsafe fn call<T: Interruptible>(data: *const ()) {
        // SAFETY: `data` is the `target` below, which outlives the timers.
        unsafe { &*data.cast::<T>() }.interrupt();
    }
    let Some(interval) = interval else { return Ok(work()) };
    TARGET.set(Some(Target { data: ptr::from_ref(target).cast(), call: call::<T> }));
    for signal in SIGNALS {
        let action = SigAction::new(SigHandler::Handler(handle), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler is signal-safe: a thread-local without initialisation, and what `interrupt` promises.
        unsafe { sigaction(signal, &action) }?;
    }
    let timers: Vec<Timer> = SIGNALS
        .into_iter()
        .zip([1.0, 1.7])
        .map(|(signal, stretch)| timer(signal, interval.mul_f64(stretch)))
        .collect::<nix::Result<_>>()?;
    let outcome = work();
    drop(timers);
    // A signal that is on its way finds nobody.
    TARGET.set(None);
    Ok(outcome)
}

fn timer(signal: Signal, interval: Duration) -> nix::Result<Timer> {
    let notify = SigevNotify::SigevThreadId { signal, thread_id: gettid().as_raw(), si_value: 0 };
    let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify))?;
    timer.set(Expiration::Interval(TimeSpec::from_duration(interval)), TimerSetTimeFlags::empty())?;
    Ok(timer)
}

extern "C" fn handle(_signal: i32) {
    if let Some(target) = TARGET.get() {
        // SAFETY: `interrupted` stored both together.
        unsafe { (target.call)(target.data) }
    }
}
