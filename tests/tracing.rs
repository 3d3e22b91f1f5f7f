//! The worker tells a subscriber of `tracing` what it does; a caller of the pool never does.
#![cfg(feature = "tracing")]

use framepool::{AnonymousMemory, Builder, FrameSource, PhysAddr, SourceError, Watermarks};
use std::{
    fmt::Write,
    ptr::NonNull,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// Every event, with the name of the thread that had it.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<(String, String)>>>);

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, "{field}={value:?} ").unwrap();
    }
}

impl Subscriber for Events {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "framepool"
    }
    fn new_span(&self, _span: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}
    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        let thread = thread::current().name().unwrap_or_default().to_string();
        self.0.lock().unwrap().push((thread, text.0));
    }
    fn enter(&self, _span: &span::Id) {}
    fn exit(&self, _span: &span::Id) {}
}

/// Gives what it is asked for at first, and nothing later.
struct Empties {
    memory: AnonymousMemory,
    left: Mutex<usize>,
}

// SAFETY: all frames are the memory's, which keeps the contract.
unsafe impl FrameSource for Empties {
    fn supply(&self, frames: &mut [PhysAddr]) -> Result<usize, SourceError> {
        let mut left = self.left.lock().unwrap();
        let count = frames.len().min(*left);
        if count == 0 {
            return Err(SourceError::new("used up"));
        }
        *left -= count;
        self.memory.supply(&mut frames[..count])
    }
    fn try_supply(&self) -> Option<PhysAddr> {
        None
    }
    unsafe fn reclaim(&self, frames: &[PhysAddr]) {
        // SAFETY: the caller's.
        unsafe { self.memory.reclaim(frames) }
    }
    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        self.memory.pointer(frame)
    }
    fn base(&self) -> PhysAddr {
        self.memory.base()
    }
}

#[test]
fn the_worker_tells_what_it_fetched_and_that_the_source_failed() {
    let events = Events::default();
    tracing::subscriber::set_global_default(events.clone()).unwrap();
    let marks = Watermarks { min: 2, low: 8, high: 16, max: 32 };
    let source = Empties { memory: AnonymousMemory::new(64).unwrap(), left: Mutex::new(40) };
    let pool = Builder::new(64).watermarks(marks).start(source).unwrap();
    let heard = |what: &str| events.0.lock().unwrap().iter().any(|(_, text)| text.contains(what));
    let until = Instant::now() + Duration::from_secs(20);
    let mut frames = Vec::new();
    while !(heard("message=maintained") && heard("message=the source is left alone")) {
        assert!(Instant::now() < until, "heard only {:?}", events.0.lock().unwrap());
        frames.extend(pool.alloc());
        thread::sleep(Duration::from_millis(1));
    }
    drop(frames);
    let events = events.0.lock().unwrap();
    assert!(events.iter().all(|(thread, _)| thread == "framepool"), "{events:?}");
}
