//! Waiting for frames: tasks of an executor and a blocking thread share a pool that is too small for all of them at once; then the
//! same on a host without threads, whose idle loop maintains the pool when it is asked to.
//!
//! `cargo run --release --example waiting`

use framepool::{AnonymousMemory, Builder, Claim, FallbackPolicy, FramePool, Platform, Watermarks};
use futures_executor::{LocalPool, ThreadPool};
use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

const FRAMES: u32 = 16;
const TASKS: usize = 100;

fn main() -> Result<(), Box<dyn Error>> {
    with_a_worker()?;
    without_threads()
}

/// A pool of sixteen frames, all of which are in it from the start.
fn builder() -> Builder {
    let watermarks = Watermarks { min: 0, low: 0, high: FRAMES, max: FRAMES };
    Builder::new(FRAMES).watermarks(watermarks).fallback(FallbackPolicy::Never)
}

/// The worker thread hands frames over when the doorbell rings.
fn with_a_worker() -> Result<(), Box<dyn Error>> {
    let pool = Arc::new(builder().start(AnonymousMemory::new(FRAMES)?)?);
    let all: Vec<_> = std::iter::from_fn(|| pool.alloc().ok()).collect();
    let executor = ThreadPool::new()?;
    let (done, all_done) = mpsc::channel();
    for task in 0..TASKS {
        let (pool, done) = (Arc::clone(&pool), done.clone());
        executor.spawn_ok(async move {
            // One to seven frames, all or none.
            if let Ok(reservation) = pool.reserve_async(1 + task as u32 % 7).await {
                let frames: Vec<_> = std::iter::from_fn(|| reservation.draw()).collect();
                // Some work with them, in which others come to run.
                yield_now().await;
                drop(frames);
            }
            // The other end waits for every task.
            let _ = done.send(());
        });
    }
    drop(done);
    // Nobody has a frame but this thread, until every task stands in the queue.
    while pool.stats().waiters < TASKS as u64 {
        thread::sleep(Duration::from_millis(1));
    }
    println!("with a worker: {TASKS} tasks wait for the {FRAMES} frames that one thread has");
    drop(all);
    // A thread that may sleep stands in the same queue, behind those that are there already.
    let frame = pool.alloc_blocking(Duration::from_secs(10))?;
    drop(frame);
    assert_eq!(all_done.iter().count(), TASKS);
    println!("with a worker: {TASKS} tasks served, {} callers had to wait", pool.stats().waits);
    Ok(())
}

/// A kernel with one CPU: an interrupt notes that the pool wants to be maintained, and the idle loop does it.
#[derive(Debug, Default)]
struct Unikernel {
    pool_rang: AtomicBool,
}

impl Platform for Unikernel {
    type Ownership = Claim;
    fn ownership(&self) -> &Claim {
        &Claim
    }
    fn current_cpu(&self) -> usize {
        0
    }
    fn ring(&self) {
        // What was done before the ring is there for the pass that answers it.
        self.pool_rang.store(true, Ordering::Release);
    }
}

fn without_threads() -> Result<(), Box<dyn Error>> {
    let pool: FramePool<_, _> =
        builder().cpus(1).build(AnonymousMemory::new(FRAMES)?, Unikernel::default())?;
    let served = AtomicUsize::new(0);
    let mut tasks = LocalPool::new();
    let all: Vec<_> = std::iter::from_fn(|| pool.alloc().ok()).collect();
    let waiting = async {
        let frames = [pool.alloc_async().await, pool.alloc_async().await];
        served.store(frames.iter().flatten().count(), Ordering::Relaxed);
    };
    // The free stands for an interrupt handler: it touches neither the queue nor the executor, and only rings.
    let freeing = async { drop(all) };
    let idle_loop = async {
        while served.load(Ordering::Relaxed) == 0 {
            if pool.platform().pool_rang.swap(false, Ordering::Acquire) {
                pool.maintain();
            }
            yield_now().await;
        }
    };
    tasks.run_until(both(waiting, both(freeing, idle_loop)));
    println!("without threads: {} frames handed over by the idle loop", served.into_inner());
    Ok(())
}

/// Runs two futures side by side in one task.
async fn both(first: impl Future<Output = ()>, second: impl Future<Output = ()>) {
    let (mut first, mut second) = (Box::pin(first), Box::pin(second));
    let mut done = [false; 2];
    std::future::poll_fn(|context| {
        done[0] = done[0] || first.as_mut().poll(context).is_ready();
        done[1] = done[1] || second.as_mut().poll(context).is_ready();
        if done == [true; 2] { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// Lets the others run.
async fn yield_now() {
    let mut is_later = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut is_later, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
