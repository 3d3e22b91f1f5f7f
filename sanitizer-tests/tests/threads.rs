//! Threads that do everything a thread may do with a pool and a domain over it, for a while and at random, for sanitizers to watch.
//!
//! Whoever has a frame reads and writes it by plain accesses, so that a frame which is handed over without order is a data race, and one
//! that went back to its source a use after free. Whatever is left behind when all is closed is a leak. The caches are owned by
//! claim, and by their threads: what restartable sequences do is assembly, which no sanitizer sees (`src/raw/rseq/section.rs`).
//!
//! `SANITIZER_SECONDS` sets how long each of the two takes (default 1).

use framepool::{
    Builder, DoorbellPlatform, FallbackPolicy, Frame, FramePool, LinuxPlatform, PhysAddr, Quota, Request,
    ThreadPlatform, Watermarks, vtd::*,
};
use sanitizer_tests::{FRAME, Heap, on_threads};
use std::{
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// Those that work, beside one that maintains the pool.
const THREADS: usize = 4;
/// Fewer than the threads want at times, so that they steal, wait, and go away without.
const CAPACITY: u32 = 96;
const HELD: usize = 8;
const CACHES: usize = 3;
const MIB: u64 = 1 << 20;

type Pool<P> = FramePool<Heap, P>;
type Tables<'p, P> = SecondStageDomain<&'p Pool<P>>;

/// Everything that the threads share.
struct World<'p, P: DoorbellPlatform> {
    pool: &'p Pool<P>,
    domain: Tables<'p, P>,
    quota: Quota<'p, Heap, P>,
    stop: AtomicBool,
    at_work: AtomicUsize,
}

static TAKEN: AtomicU64 = AtomicU64::new(0);
static WAITED: AtomicU64 = AtomicU64::new(0);
static MAPPED: AtomicU64 = AtomicU64::new(0);
static RECLAIMED: AtomicU64 = AtomicU64::new(0);

/// xorshift64*
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % below
    }
}

/// Uses a frame as its owner may: some of its words by plain accesses, the first and the last among them.
fn touch(start: std::ptr::NonNull<u8>) {
    let words = start.cast::<u64>();
    for word in [0, 1, 64, 511] {
        // SAFETY: the frame is the caller's, and of this size.
        unsafe { words.add(word).write(words.add(word).read().wrapping_add(1)) };
    }
    TAKEN.fetch_add(1, Relaxed);
}

fn touched<P: DoorbellPlatform>(frame: Frame<'_, Heap, P>) -> Frame<'_, Heap, P> {
    touch(frame.as_ptr());
    frame
}

/// INV-9
fn assert_zero<P: DoorbellPlatform>(frame: &Frame<'_, Heap, P>) {
    // SAFETY: the frame is ours.
    let words = unsafe { frame.as_ptr().cast::<[u64; 512]>().read() };
    assert!(words.iter().all(|&word| word == 0), "INV-9: {frame:?}");
}

impl<'p, P: DoorbellPlatform> World<'p, P> {
    /// One step of a thread on frames, of which it holds some.
    fn use_frames(&'p self, random: &mut Random, held: &mut Vec<Frame<'p, Heap, P>>) {
        let pool = self.pool;
        match random.next(24) {
            0..6 if held.len() < HELD => held.extend(pool.alloc().ok().map(touched)),
            6..12 if !held.is_empty() => drop(held.swap_remove(random.next(held.len() as u64) as usize)),
            12 => drop(pool.alloc_with(Request::CRITICAL).map(touched)),
            13 => {
                let mut frames = [const { None }; 5];
                pool.alloc_bulk(Request::ORDINARY, &mut frames).ok();
                frames.iter().flatten().for_each(|frame| touch(frame.as_ptr()));
                pool.free_bulk(&mut frames);
            }
            14 => {
                let frame = pool.alloc_zeroed();
                frame.iter().for_each(assert_zero);
                // SAFETY: it is zero, as was just seen.
                frame.into_iter().for_each(|frame| unsafe { frame.free_zeroed() });
            }
            15 => drop(pool.alloc_zeroed().map(touched)),
            16 | 17 => {
                if let Ok(reservation) = pool.reserve(1 + random.next(5) as u32) {
                    let drawn = std::iter::from_fn(|| reservation.draw()).take(random.next(5) as usize);
                    held.extend(drawn.map(touched));
                }
            }
            18 => {
                let frames: Vec<_> = (0..3).map_while(|_| self.quota.alloc().ok()).collect();
                frames.iter().for_each(|frame| touch(frame.as_ptr()));
            }
            19 => {
                let patience = Duration::from_micros(random.next(500));
                WAITED.fetch_add(1, Relaxed);
                drop(pool.alloc_blocking(patience).map(touched));
            }
            20 => {
                let patience = Duration::from_micros(random.next(500));
                if let Ok(reservation) = pool.reserve_blocking(2, patience) {
                    drop(reservation.draw().map(touched));
                }
            }
            21 => held.clear(),
            _ => self.disturb(random),
        }
    }

    /// What an administrator of the pool does.
    fn disturb(&self, random: &mut Random) {
        match random.next(16) {
            0 => drop(self.pool.shrink_to(random.next(CAPACITY.into()) as u32)),
            1..4 => drop(self.pool.drain_cpu(random.next(CACHES as u64 + 2) as usize)),
            // The root of the domain is out.
            4 => assert!(self.pool.vacate().is_err(), "INV-12"),
            5..8 => drop(self.pool.serve_waiters()),
            _ => assert!(self.pool.stats().capacity == CAPACITY.into()),
        }
    }

    /// One step of a thread on the tables, in ranges that nobody else maps: in the same tables as those of others, and in its own.
    fn use_tables(&self, thread: usize, random: &mut Random, mapped: &mut [bool]) {
        let number = random.next(mapped.len() as u64) as usize;
        let place = (number * THREADS + thread) as u64;
        let (iova, length) = match number % 3 {
            0 => (Iova::new(place * 8 * FRAME), 8 * FRAME),
            1 => (Iova::new(1024 * MIB + place * 2 * MIB), 2 * MIB),
            _ => (Iova::new((4096 + 1024 * place) * MIB - FRAME), 2 * FRAME),
        };
        let around = Iova::new(iova.as_u64() & !(2 * MIB - 1));
        // Anybody's.
        let other = Iova::new(random.next(1024 * 16) * FRAME);
        self.domain.translate(other);
        match random.next(16) {
            0 => complete(self.domain.reclaim(around, 4 * MIB).ok()),
            1 => complete(self.domain.reclaim(Iova::new(0), 1 << 39).ok()),
            // SAFETY: no device walks these tables, and the range is ours.
            2 => complete(unsafe { self.domain.join(iova, length) }.ok()),
            3 => drop(self.domain.mappings().take(64).count()),
            4 if mapped[number] => {
                // SAFETY: as above.
                let rights = unsafe { self.domain.protect(iova, FRAME, Permissions::READ) };
                complete(rights.ok());
            }
            5 => {
                if self.domain.preallocate(around, 2 * MIB).is_ok() {
                    self.domain.release(around, 2 * MIB).expect("the range is one");
                }
            }
            _ if mapped[number] => {
                // In pieces, so that tables become empty.
                let first = if random.next(2) == 0 { length } else { FRAME };
                if let Ok(invalidation) = self.domain.unmap(iova, first) {
                    complete(Some(invalidation));
                    let rest = Iova::new(iova.as_u64() + first);
                    complete(
                        (first < length)
                            .then(|| self.domain.unmap(rest, length - first).expect("it is mapped")),
                    );
                    mapped[number] = false;
                }
            }
            _ => {
                // SAFETY: as above.
                let map = unsafe {
                    self.domain.map(iova, PhysAddr::new(iova.as_u64()), length, Permissions::all())
                };
                mapped[number] = map.is_ok();
                MAPPED.fetch_add(u64::from(map.is_ok()), Relaxed);
            }
        }
    }

    fn work(&'p self, thread: usize) {
        let mut random = Random(thread as u64 + 1);
        let (mut held, mut mapped) = (Vec::with_capacity(2 * HELD), [false; 9]);
        while !self.stop.load(Relaxed) {
            (0..32).for_each(|_| self.use_frames(&mut random, &mut held));
            (0..4).for_each(|_| self.use_tables(thread, &mut random, &mut mapped));
        }
        drop(held);
        self.at_work.fetch_sub(1, Relaxed);
    }

    /// What the worker of a pool does, on a thread that a sanitizer sees begin and end.
    fn maintain(&self) {
        while self.at_work.load(Relaxed) > 0 {
            self.pool.platform().doorbell().wait(Some(Duration::from_millis(1)));
            self.pool.maintain();
        }
    }
}

fn complete<P: DoorbellPlatform>(invalidation: Option<Invalidation<'_, &Pool<P>>>) {
    if let Some(invalidation) = invalidation {
        RECLAIMED.fetch_add(invalidation.table_frames(), Relaxed);
        // SAFETY: no device walks these tables.
        unsafe { invalidation.complete() };
    }
}

/// Builds a world, lets the threads loose on it for `time`, and takes it down: nothing may be left.
fn live<P: DoorbellPlatform>(platform: P, caches: usize, time: Duration, enter: fn(&Pool<P>, &dyn Fn())) {
    let watermarks = Watermarks { min: 4, low: 16, high: 64, max: 80 };
    let builder = Builder::new(CAPACITY).watermarks(watermarks).magazine_size(4).cpus(caches).guarantees(4);
    let builder = builder.idle_passes(2).reservations(8).fallback(FallbackPolicy::Never);
    let pool = builder.build(Heap::new(CAPACITY), platform).expect("the pool can be built");
    {
        let config = DomainConfig { page_sizes: PageSizes::SIZE_2M, ..DomainConfig::new(Levels::Three) };
        let domain = SecondStageDomain::new(config, &pool).expect("there is a root table");
        let quota = pool.quota(4, 8).expect("there is a share");
        let (stop, at_work) = (AtomicBool::new(false), AtomicUsize::new(THREADS));
        let world = World { pool: &pool, domain, quota, stop, at_work };
        on_threads(THREADS + 2, |thread| match thread {
            0 => {
                std::thread::sleep(time);
                world.stop.store(true, Relaxed);
            }
            1 => world.maintain(),
            _ => enter(&pool, &|| world.work(thread - 2)),
        });
        assert_eq!(world.domain.maintain(), 0, "nobody is in the tables any more");
        // SAFETY: no device walks these tables.
        unsafe { world.domain.close().complete() };
    }
    let stats = pool.stats();
    assert_eq!((stats.in_use, stats.table_frames_leaked), (0, 0), "INV-1: {stats}");
    let source = pool.close().expect("every frame is back");
    assert_eq!(source.out(), 0, "INV-1: every frame went back to its source");
}

fn main() {
    let seconds = std::env::var("SANITIZER_SECONDS").ok().and_then(|value| value.parse().ok()).unwrap_or(1);
    // A hang is a violation too.
    nix::unistd::alarm::set(60 + 4 * seconds as u32);
    let end = Instant::now() + Duration::from_secs(seconds);
    // Again and again: what one world leaves behind, the next one finds.
    let mut worlds = 0;
    while Instant::now() < end {
        live(LinuxPlatform::claiming(), CACHES, Duration::from_millis(250), |_, work| work());
        let platform = ThreadPlatform::new(THREADS as u32).expect("there are numbers");
        live(platform, THREADS + 1, Duration::from_millis(250), |pool, work| {
            let _pinned = pool.pin_thread().expect("there is a cache for each");
            work();
        });
        worlds += 2;
    }
    let [taken, waited, mapped, reclaimed] =
        [&TAKEN, &WAITED, &MAPPED, &RECLAIMED].map(|count| count.load(Relaxed));
    println!(
        "{worlds} pools: {taken} frames taken, {waited} waits, {mapped} maps, {reclaimed} tables given back"
    );
    assert!(taken > 1000 && waited > 10 && mapped > 100 && reclaimed > 10, "too little happened");
    println!("threads: 1 passed, 0 failed");
}
