//! Breakpoints in this program's own text, and a handler that does something in the middle of what they interrupt.

use nix::{
    libc::{REG_RIP, c_int, c_void, siginfo_t, ucontext_t},
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst};

const BREAKPOINT: u8 = 0xCC;

/// Where a run is interrupted, at most twice, each place once: first without anything happening, then with the action.
static PLACES: [Place; 2] = [const { Place::new() }; 2];
/// What the handler does at the last place.
static ACTION: AtomicUsize = AtomicUsize::new(0);
/// Whether there is a trap after every instruction.
static STEPPING: AtomicBool = AtomicBool::new(false);
/// Instructions that were stepped through.
static STEPS: AtomicU64 = AtomicU64::new(0);

struct Place {
    address: AtomicU64,
    /// Where the kernel goes on instead, if the place is in a sequence.
    abort: AtomicU64,
    original: AtomicU8,
    armed: AtomicBool,
    hit: AtomicBool,
    redirected: AtomicBool,
}

/// What came of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) hit: bool,
    /// Whether the kernel had moved the thread to the abort label before the handler saw it.
    pub(crate) redirected: bool,
}

impl Place {
    const fn new() -> Self {
        Self {
            address: AtomicU64::new(0),
            abort: AtomicU64::new(0),
            original: AtomicU8::new(0),
            armed: AtomicBool::new(false),
            hit: AtomicBool::new(false),
            redirected: AtomicBool::new(false),
        }
    }

    fn arm(&self, address: u64, abort: u64) {
        self.address.store(address, SeqCst);
        self.abort.store(abort, SeqCst);
        self.hit.store(false, SeqCst);
        self.redirected.store(false, SeqCst);
        // SAFETY: text of this program, writable since `install`, in the only thread that runs.
        self.original.store(unsafe { (address as *const u8).read_volatile() }, SeqCst);
        self.write(BREAKPOINT);
        self.armed.store(true, SeqCst);
    }

    fn write(&self, byte: u8) {
        // SAFETY: as in `arm`; the processor sees its own stores into code.
        unsafe { (self.address.load(SeqCst) as *mut u8).write_volatile(byte) }
    }

    fn disarm(&self) {
        if self.armed.swap(false, SeqCst) {
            self.write(self.original.load(SeqCst));
        }
    }
}

/// Makes this program's text writable from `first` to `last`, and installs the handler.
pub(crate) fn install(first: u64, last: u64) {
    let page = 4096;
    let (start, end) = (first / page * page, last.div_ceil(page) * page);
    // SAFETY: pages of this program's text, which stay as they are but for the breakpoints.
    let changed = unsafe {
        nix::libc::mprotect(
            start as *mut c_void,
            (end - start) as usize,
            nix::libc::PROT_READ | nix::libc::PROT_WRITE | nix::libc::PROT_EXEC,
        )
    };
    assert_eq!(changed, 0, "the system does not let a program write into its text");
    let action = SigAction::new(SigHandler::SigAction(handle), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler is signal-safe: atomics, and what `run` is given.
    unsafe { sigaction(Signal::SIGTRAP, &action) }.unwrap();
}

/// Runs `operation` with breakpoints at `places`, each an address and the abort label of its sequence, and `action` in the
/// handler of the last.
pub(crate) fn run(places: &[(u64, u64)], action: fn(), operation: impl FnOnce()) -> Vec<Hit> {
    ACTION.store(action as usize, SeqCst);
    for (place, &(address, abort)) in PLACES.iter().zip(places) {
        place.arm(address, abort);
    }
    operation();
    let result = |place: &Place| {
        place.disarm();
        Hit { hit: place.hit.load(SeqCst), redirected: place.redirected.load(SeqCst) }
    };
    PLACES.iter().take(places.len()).map(result).collect()
}

/// Runs `operation` with a trap after every instruction; how many there were.
pub(crate) fn step(operation: impl FnOnce()) -> u64 {
    STEPPING.store(true, SeqCst);
    STEPS.store(0, SeqCst);
    // SAFETY: sets the trap flag; the handler counts the traps and goes on.
    unsafe { core::arch::asm!("pushfq", "or qword ptr [rsp], 256", "popfq") };
    operation();
    // SAFETY: clears the trap flag.
    unsafe { core::arch::asm!("pushfq", "and qword ptr [rsp], ~256", "popfq") };
    STEPPING.store(false, SeqCst);
    STEPS.load(SeqCst)
}

extern "C" fn handle(_signal: c_int, _info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a handler with this signature the context that it interrupted.
    let registers = unsafe { &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs };
    let next = registers[REG_RIP as usize] as u64;
    let armed = |place: &&Place| place.armed.load(SeqCst);
    let reached = |place: &Place| next == place.address.load(SeqCst) + 1;
    let hit = PLACES.iter().filter(armed).find(|place| reached(place));
    let aborted = |place: &&Place| next == place.abort.load(SeqCst);
    let Some(place) = hit.or_else(|| PLACES.iter().filter(armed).find(aborted)) else {
        if !STEPPING.load(SeqCst) {
            // Nobody set this breakpoint.
            std::process::abort();
        }
        STEPS.fetch_add(1, SeqCst);
        return;
    };
    place.disarm();
    place.hit.store(true, SeqCst);
    if reached(place) {
        registers[REG_RIP as usize] = (next - 1) as i64;
    } else {
        place.redirected.store(true, SeqCst);
    }
    if !PLACES.iter().any(|place| place.armed.load(SeqCst)) {
        // SAFETY: `run` stored a function of this type.
        let action: fn() = unsafe { std::mem::transmute(ACTION.load(SeqCst)) };
        action();
    }
}
