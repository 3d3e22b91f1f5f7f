//! The receive ring of a network card, fed by its interrupt handler: the handler takes full buffers out of the ring and puts fresh
//! frames in, in the middle of whatever the driver's thread does with the same pool.
//!
//! The card is a thread, its interrupt a signal to the driver's thread. `cargo run --release --example receive_ring`
//!
//! A descriptor is the card's while its length is 0, and the handler's while it is not. A handler that gets no frame lets the card use the
//! buffer again, and the packet in it is lost: what a driver does when memory is short.

use framepool::{
    AnonymousMemory, Builder, Frame, FrameSource, LinuxPlatform, PhysAddr, Watermarks, WorkedPool,
};
use nix::sys::{
    pthread::{Pthread, pthread_kill, pthread_self},
    signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};
use rtrb::{Consumer, Producer, RingBuffer};
use std::{
    cell::UnsafeCell,
    error::Error,
    hint,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

const INTERRUPT: Signal = Signal::SIGUSR1;
const PACKETS: u64 = 100_000;
const DESCRIPTORS: usize = 64;
/// Packets between two interrupts, at most.
const COALESCED: u64 = 16;
/// How often the card looks again before it gives a packet up.
const PAUSES: u32 = 1000;
/// Packets that the driver's thread keeps before it gives them back.
const BATCH: usize = 24;
/// How long a pass of the worker may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Words in a packet.
const WORDS: u64 = 128;

static POOL: OnceLock<WorkedPool<AnonymousMemory>> = OnceLock::new();
static DRIVER: OnceLock<Driver> = OnceLock::new();

/// What the card and the handler share.
struct Descriptor {
    buffer: AtomicU64,
    length: AtomicU32,
}

/// What the handler works on.
struct Driver {
    ring: [Descriptor; DESCRIPTORS],
    /// The handler's own: it never interrupts itself.
    own: UnsafeCell<Own>,
    interrupts: AtomicU64,
    out_of_frames: AtomicU64,
}

struct Own {
    next: usize,
    /// To the driver's thread. Wait-free.
    received: Producer<PhysAddr>,
}

// SAFETY: `own` is reached by the handler alone, which runs on one thread with its signal masked; the rest is atomic.
unsafe impl Sync for Driver {}

impl Driver {
    fn interrupt(&self) {
        let Some(pool) = POOL.get() else { return };
        // SAFETY: see `Sync`.
        let own = unsafe { &mut *self.own.get() };
        self.interrupts.fetch_add(1, SeqCst);
        loop {
            let descriptor = &self.ring[own.next];
            if descriptor.length.load(SeqCst) == 0 || own.received.is_full() {
                return;
            }
            // In an interrupt: no waiting, no lock, no heap. The pool is made for this.
            match pool.alloc() {
                Ok(fresh) => {
                    let full = descriptor.buffer.swap(fresh.into_raw().as_u64(), SeqCst);
                    // There is room: nobody else puts anything in.
                    let _ = own.received.push(PhysAddr::new(full));
                }
                Err(_) => _ = self.out_of_frames.fetch_add(1, SeqCst),
            }
            // The card's again.
            descriptor.length.store(0, SeqCst);
            own.next = (own.next + 1) % DESCRIPTORS;
        }
    }
}

extern "C" fn handle(_signal: i32) {
    if let Some(driver) = DRIVER.get() {
        driver.interrupt();
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let watermarks = Watermarks { min: 16, low: 128, high: 256, max: 384 };
    let pool =
        Builder::new(512).watermarks(watermarks).magazine_size(15).start(AnonymousMemory::new(512)?)?;
    let pool = POOL.get_or_init(|| pool);
    let (received, mut packets) = RingBuffer::new(256);
    let mut ring = Vec::new();
    for _ in 0..DESCRIPTORS {
        ring.push(Descriptor {
            buffer: AtomicU64::new(pool.alloc()?.into_raw().as_u64()),
            length: AtomicU32::new(0),
        });
    }
    let Ok(ring) = ring.try_into() else { return Err("a ring of another size".into()) };
    let own = UnsafeCell::new(Own { next: 0, received });
    let driver = DRIVER.get_or_init(|| Driver {
        ring,
        own,
        interrupts: AtomicU64::new(0),
        out_of_frames: AtomicU64::new(0),
    });
    let action = SigAction::new(SigHandler::Handler(handle), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler touches what is said above, and the pool, from any context.
    unsafe { sigaction(INTERRUPT, &action)? };

    let thread = pthread_self();
    let sent = AtomicBool::new(false);
    let (missed, taken) = thread::scope(|scope| {
        let card = scope.spawn(|| {
            let missed = send(driver, pool.source(), thread);
            sent.store(true, SeqCst);
            missed
        });
        let taken = take(&mut packets, pool, || {
            // A last interrupt, for what was left in the ring.
            sent.load(SeqCst) && pthread_kill(thread, INTERRUPT).is_ok()
        });
        (card.join().expect("the card does not panic"), taken)
    });

    let out_of_frames = driver.out_of_frames.load(SeqCst);
    println!(
        "{PACKETS} packets: {taken} received and found whole, {missed} missed by the card (the ring was full), {out_of_frames} lost for \
         want of a frame; {} interrupts",
        driver.interrupts.load(SeqCst)
    );
    assert_eq!(taken + missed + out_of_frames, PACKETS, "no packet is lost without being counted");
    for descriptor in &driver.ring {
        // SAFETY: the card is done, and no handler runs any more.
        drop(unsafe { Frame::from_raw(pool, PhysAddr::new(descriptor.buffer.load(SeqCst))) });
    }
    // What the worker has in its hands counts as out until its pass is over.
    let end = Instant::now() + PATIENCE;
    while pool.stats().in_use > 0 && Instant::now() < end {
        thread::yield_now();
    }
    println!("{}", pool.stats());
    assert_eq!(pool.stats().in_use, 0, "every frame is back");
    Ok(())
}

/// The card: writes packets into the ring, and interrupts now and then. Returns how many found no place.
fn send(driver: &Driver, source: &AnonymousMemory, thread: Pthread) -> u64 {
    let (mut place, mut missed) = (0, 0);
    for packet in 0..PACKETS {
        let descriptor = &driver.ring[place];
        // The link pauses for a moment when the ring is full.
        for _ in 0..PAUSES {
            if descriptor.length.load(SeqCst) == 0 {
                break;
            }
            let _ = pthread_kill(thread, INTERRUPT);
            thread::yield_now();
        }
        if descriptor.length.load(SeqCst) == 0 {
            let buffer = source.pointer(PhysAddr::new(descriptor.buffer.load(SeqCst))).cast::<u64>();
            for word in 0..WORDS {
                // SAFETY: the descriptor is the card's, and its buffer a frame.
                unsafe { buffer.add(word as usize).write_volatile(packet ^ word << 48) };
            }
            descriptor.length.store(WORDS as u32 * 8, SeqCst);
            place = (place + 1) % DESCRIPTORS;
        } else {
            missed += 1;
        }
        if packet % COALESCED == 0 {
            let _ = pthread_kill(thread, INTERRUPT);
        }
    }
    missed
}

/// The driver's thread: looks at every packet, and gives its frame back. Returns how many there were.
fn take(
    packets: &mut Consumer<PhysAddr>,
    pool: &'static WorkedPool<AnonymousMemory>,
    is_over: impl Fn() -> bool,
) -> u64 {
    let (mut taken, mut kept) = (0, Vec::<Frame<'_, AnonymousMemory, LinuxPlatform>>::with_capacity(BATCH));
    loop {
        // All that is left in the ring has room in an empty queue.
        let over = packets.is_empty() && is_over();
        while let Ok(buffer) = packets.pop() {
            // SAFETY: the handler has taken it out of the ring and laid it down here, once.
            let frame = unsafe { Frame::from_raw(pool, buffer) };
            let words = frame.as_ptr().cast::<u64>();
            // SAFETY: the frame is ours.
            let packet = unsafe { words.read() };
            // SAFETY: as above.
            let is_whole =
                (0..WORDS).all(|word| unsafe { words.add(word as usize).read() } == packet ^ word << 48);
            assert!(is_whole, "somebody else has written to a frame that was ours");
            taken += 1;
            kept.push(frame);
            if kept.len() == BATCH {
                kept.clear();
            }
        }
        if over && packets.is_empty() {
            return taken;
        }
        hint::spin_loop();
    }
}
