//! What disturbs the threads of the soak: signals that others send, other CPUs, callers that wait, a steward that shrinks and drains, a source
//! that fails.

use crate::{
    common::storm::{Random, SENT, THREADS},
    work,
    world::*,
};
use framepool::{LinuxPlatform, Outcome, Request};
use nix::{
    libc,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::{Pid, gettid},
};
use std::{
    sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::SeqCst},
    thread,
    time::Duration,
};

static THREAD_IDS: [AtomicI32; THREADS] = [const { AtomicI32::new(0) }; THREADS];

pub static MOVED: AtomicU64 = AtomicU64::new(0);
pub static SENT_SIGNALS: AtomicU64 = AtomicU64::new(0);
pub static SHRUNK: AtomicU64 = AtomicU64::new(0);
pub static DRAINED: AtomicU64 = AtomicU64::new(0);
pub static VACATED: AtomicU64 = AtomicU64::new(0);
pub static FAILING: AtomicU64 = AtomicU64::new(0);
pub static SERVED: AtomicU64 = AtomicU64::new(0);
pub static TIMED_OUT: AtomicU64 = AtomicU64::new(0);

/// The calling thread is the soak's thread `number`.
pub fn enlist(number: usize) {
    THREAD_IDS[number].store(gettid().as_raw(), SeqCst);
}

/// Moves the threads between the CPUs that the process may use, and sends them signals.
pub fn move_and_signal(stop: &AtomicBool) {
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("the affinity can be read");
    let cpus: Vec<_> = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu) == Ok(true)).collect();
    let mut random = Random::new(11);
    while !stop.load(SeqCst) {
        let number = random.next();
        let id = THREAD_IDS[number as usize % THREADS].load(SeqCst);
        let mut set = CpuSet::new();
        // A thread that is gone, or not there yet, is neither moved nor signalled.
        if id != 0 && set.set(cpus[(number >> 8) as usize % cpus.len()]).is_ok() {
            MOVED.fetch_add(u64::from(sched_setaffinity(Pid::from_raw(id), &set).is_ok()), SeqCst);
            for _ in 0..number >> 16 & 3 {
                // SAFETY: a system call with three numbers. The handler is installed.
                let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), id, SENT as i32) };
                SENT_SIGNALS.fetch_add(u64::from(sent == 0), SeqCst);
            }
        }
        thread::sleep(Duration::from_micros(20 + number % 100));
    }
}

/// Shrinks, drains and vacates, and lets the source fail now and then.
pub fn steward(stop: &AtomicBool) {
    let mut random = Random::new(12);
    while !stop.load(SeqCst) {
        let number = random.next();
        match number % 8 {
            0 => {
                let shrunk = pool().shrink_to((number >> 8) as u32 % CAPACITY);
                SHRUNK.fetch_add(u64::from(matches!(shrunk.outcome, Outcome::Done)), SeqCst);
            }
            1 | 2 => {
                let cpu = (number >> 8) as usize % (LinuxPlatform::possible_cpus() + 1);
                DRAINED.fetch_add(u64::from(pool().drain_cpu(cpu).is_ok()), SeqCst);
            }
            // Tables are out, at least the root: this is refused, and changes nothing.
            3 if pool().vacate().is_ok() => drop(WRONG.fetch_add(1, SeqCst)),
            3 => drop(VACATED.fetch_add(1, SeqCst)),
            4 => {
                FAILING.fetch_add(1, SeqCst);
                pool().source().failing.store(true, SeqCst);
            }
            5 | 6 => pool().source().failing.store(false, SeqCst),
            _ => drop(pool().serve_waiters()),
        }
        thread::sleep(Duration::from_micros(200 + number % 2000));
    }
    pool().source().failing.store(false, SeqCst);
}

/// Waits for frames, in every way.
pub fn wait(number: u64, stop: &AtomicBool) {
    let mut random = Random::new(number);
    while !stop.load(SeqCst) {
        let choice = random.next();
        let patience = Duration::from_micros(choice >> 8 & 0xFFF);
        let served = match choice % 4 {
            0 | 1 => pool()
                .alloc_blocking(patience)
                .map(|frame| {
                    own(&frame);
                    thread::sleep(Duration::from_micros(50));
                    give(frame);
                })
                .is_ok(),
            2 => pool()
                .reserve_blocking(1 + (choice >> 32) as u32 % 6, patience)
                .map(|reservation| {
                    let frames: Vec<_> = std::iter::from_fn(|| reservation.draw()).collect();
                    frames.iter().for_each(own);
                    frames.into_iter().for_each(give);
                })
                .is_ok(),
            // For ever: whoever waits is served (INV-7), or the soak does not come to its end.
            _ => futures_executor::block_on(pool().alloc_async_with(Request::ORDINARY))
                .map(|frame| {
                    own(&frame);
                    give(frame);
                })
                .is_ok(),
        };
        (if served { &SERVED } else { &TIMED_OUT }).fetch_add(1, SeqCst);
        if choice >> 40 & 3 == 0 {
            work::take_zeroed().into_iter().for_each(give);
        }
    }
}
