//! How the worker should grow a pool, measured: the real pool, its policies one after the other, under a steady and a bursty load,
//! in virtual time and therefore the same on every machine.
//!
//! `cargo run --release --example growth` prints the table that stands in the design.
//!
//! A microsecond is a step. The worker wakes up some time after it was rung, the source sleeps for each request, and the load goes on
//! meanwhile: `supply` itself lets the time pass. What an empty pool asks of the host at once is refused, and counted.

use comfy_table::{Table, presets::ASCII_MARKDOWN};
use framepool::{
    AnonymousMemory, Builder, Claim, FramePool, FrameSource, Growth, PhysAddr, Platform, SourceError,
    Watermarks,
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    error::Error,
    ptr::NonNull,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// Virtual time of a run, in microseconds.
const LENGTH: u64 = 8_000_000;
/// From the ring to the pass that answers it.
const WAKE_UP: u64 = 50;
/// What the source sleeps for a request, and for each frame of it.
const REQUEST: u64 = 20;
const FRAME: u64 = 1;
const CAPACITY: u32 = 1 << 16;
const MARKS: Watermarks = Watermarks { min: 16, low: 128, high: 1024, max: 2048 };

type Pool = FramePool<Sleepy, Host>;

/// One CPU, and a worker that looks at the bell.
#[derive(Default)]
struct Host {
    rung: AtomicBool,
}

impl Platform for Host {
    type Ownership = Claim;
    fn ownership(&self) -> &Claim {
        &Claim
    }
    fn current_cpu(&self) -> usize {
        0
    }
    fn ring(&self) {
        self.rung.store(true, Relaxed);
    }
}

/// Memory for which one has to wait, and which is never there at once.
struct Sleepy(AnonymousMemory);

// SAFETY: all frames are the memory's, which keeps the contract.
unsafe impl FrameSource for Sleepy {
    fn supply(&self, frames: &mut [PhysAddr]) -> Result<usize, SourceError> {
        pass_time(REQUEST + FRAME * frames.len() as u64);
        self.0.supply(frames)
    }
    fn try_supply(&self) -> Option<PhysAddr> {
        None
    }
    unsafe fn reclaim(&self, frames: &[PhysAddr]) {
        // SAFETY: the caller's.
        unsafe { self.0.reclaim(frames) }
    }
    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        self.0.pointer(frame)
    }
    fn base(&self) -> PhysAddr {
        self.0.base()
    }
}

thread_local! {
    static RUN: RefCell<Option<Run>> = const { RefCell::new(None) };
}

/// Lets the load of the run in progress go on, if there is one.
fn pass_time(microseconds: u64) {
    RUN.with_borrow_mut(|run| run.iter_mut().for_each(|run| run.advance(microseconds)));
}

/// When how many frames are taken, and how long each is kept.
#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    /// Microseconds from burst to burst.
    period: u64,
    /// Frames at once: from, to.
    burst: (u64, u64),
    /// Microseconds that a frame is kept: from, to.
    kept: (u64, u64),
}

const LOADS: [Load; 4] = [
    Load { name: "quiet: 1 each 5 ms", period: 5_000, burst: (1, 1), kept: (500_000, 1_500_000) },
    Load { name: "steady: 1 each 50 µs", period: 50, burst: (1, 1), kept: (500_000, 1_500_000) },
    Load {
        name: "bursts of 100 to 300 each 10 ms",
        period: 10_000,
        burst: (100, 300),
        kept: (500_000, 1_500_000),
    },
    Load {
        name: "bursts of 500 to 900 each 1 s",
        period: 1_000_000,
        burst: (500, 900),
        kept: (2_000_000, 4_000_000),
    },
];

/// A number of a range, by splitmix64.
fn random(state: &mut u64, (from, to): (u64, u64)) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut value = *state;
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    from + (value ^ (value >> 31)) % (to - from + 1)
}

struct Run {
    pool: &'static Pool,
    load: Load,
    /// States of the generators of bursts and of times, apart, so that a refusal does not change the load.
    bursts: u64,
    times: u64,
    now: u64,
    /// Frames that are out, by the time at which they come back.
    out: BTreeMap<u64, VecDeque<PhysAddr>>,
    asked: u64,
    refused: u64,
    /// Frames that the pool held for nobody, summed over samples.
    idle: u64,
    samples: u64,
}

impl Run {
    fn advance(&mut self, microseconds: u64) {
        for _ in 0..microseconds {
            self.now += 1;
            while let Some(entry) = self.out.first_entry().filter(|entry| *entry.key() <= self.now) {
                for frame in entry.remove() {
                    // SAFETY: laid down below, once.
                    drop(unsafe { framepool::Frame::from_raw(self.pool, frame) });
                }
            }
            if self.now.is_multiple_of(self.load.period) {
                for _ in 0..random(&mut self.bursts, self.load.burst) {
                    self.take();
                }
            }
            if self.now.is_multiple_of(1000) {
                let stats = self.pool.stats();
                self.idle += stats.owned - stats.in_use;
                self.samples += 1;
            }
        }
    }

    fn take(&mut self) {
        self.asked += 1;
        let until = self.now + random(&mut self.times, self.load.kept);
        match self.pool.alloc() {
            Ok(frame) => {
                self.out.entry(until).or_default().push_back(frame.into_raw());
            }
            Err(_) => self.refused += 1,
        }
    }
}

/// What came of a load under a policy.
struct Outcome {
    asked: u64,
    refused: u64,
    idle: u64,
    refills: u64,
}

fn simulate(load: Load, growth: Growth) -> Result<Outcome, Box<dyn Error>> {
    let builder = Builder::new(CAPACITY).watermarks(MARKS).initial(MARKS.low).growth(growth);
    let builder = builder.cpus(1).magazine_size(15);
    let pool: &Pool =
        Box::leak(Box::new(builder.build(Sleepy(AnonymousMemory::new(CAPACITY)?), Host::default())?));
    let run = Run {
        pool,
        load,
        bursts: 1,
        times: 2,
        now: 0,
        out: BTreeMap::new(),
        asked: 0,
        refused: 0,
        idle: 0,
        samples: 0,
    };
    RUN.set(Some(run));
    let now = || RUN.with_borrow(|run| run.as_ref().map_or(u64::MAX, |run| run.now));
    let mut last_pass = 0;
    while now() < LENGTH {
        // A worker looks once a second although nobody rings.
        if pool.platform().rung.swap(false, Relaxed) || now() - last_pass >= 1_000_000 {
            pass_time(WAKE_UP);
            last_pass = now();
            pool.maintain();
        } else {
            pass_time(1);
        }
    }
    let run = RUN.take().ok_or("no run")?;
    for frame in run.out.into_values().flatten() {
        // SAFETY: laid down by the run, once.
        drop(unsafe { framepool::Frame::from_raw(pool, frame) });
    }
    let Run { asked, refused, .. } = run;
    Ok(Outcome { asked, refused, idle: run.idle / run.samples, refills: pool.stats().refills })
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN);
    table.set_header([
        "load",
        "policy",
        "allocations",
        "reached the fallback",
        "idle frames, mean",
        "refills",
    ]);
    for load in LOADS {
        for growth in [Growth::ToLow, Growth::ByUse, Growth::ToHigh] {
            let Outcome { asked, refused, idle, refills } = simulate(load, growth)?;
            let share = format!("{:.2} %", 100.0 * refused as f64 / asked as f64);
            let cells =
                [format!("{growth:?}"), asked.to_string(), share, idle.to_string(), refills.to_string()];
            table.add_row([load.name.to_string()].into_iter().chain(cells));
        }
    }
    println!("{table}");
    Ok(())
}
