//! Owns one observed run of an operation: from its first instruction to its last, counted, traced, or interrupted after exactly n
//! instructions.
//!
//! With `-icount shift=0` QEMU's clocks advance by one tick an instruction, so the one-shot timer counts instructions, and so does
//! the time-stamp counter. What the counter says of an observed run, less what it says of an empty one, is the number of
//! instructions of the operation.
//!
//! | mode | how | what is recorded |
//! |---|---|---|
//! | traced | the trap flag is set: a debug exception after each instruction | every address that a normal run executes |
//! | interrupted | the timer was started with n ticks | the address that was interrupted, the instructions without the handler's |
//!
//! An operation is observed in a thread, where an interrupt comes in between, or in the handler of an interrupt ([`within`]), where an
//! NMI does. In a thread, a second timer run can raise an NMI inside the handler.
//!
//! Both modes record the address that the processor saved: the instruction that would have been next. So both sets compare.

use super::bounds::{self, Context};
use crate::machine::{
    apic::LocalApic,
    interrupts::{self, Interrupted},
};
use core::{
    arch::{global_asm, x86_64::_rdtsc},
    hint::black_box,
    mem::transmute,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
};

const INTERRUPTS_ON: u64 = 1 << 9;
const TRAP: u64 = 1 << 8;

unsafe extern "C" {
    static text_start: u8;
    static text_end: u8;
    static observation_end: u8;
    fn observation_begins(ticks: u32, timer: *mut u32, flags: u64);
    fn observation_ends(timer: *mut u32);
}

// Nothing of the operation is in these two, so what they execute is left out of both sets.
global_asm!(
    r#"
.balign 16
.globl observation_begins
observation_begins:             // edi: ticks, rsi: the timer's register, rdx: flags
    mov r8, rdx
    rdtsc
    mov [{start}], eax
    mov [{start} + 4], edx
    mov [rsi], edi
    push r8
    popfq
    ret
.globl observation_ends
observation_ends:               // rdi: the timer's register
    push 2                      // interrupts off, no trap
    popfq
    rdtsc
    mov [{stop}], eax
    mov [{stop} + 4], edx
    mov dword ptr [rdi], 0
    ret
.globl observation_end
observation_end:
"#,
    start = sym START,
    stop = sym STOP,
);

static START: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicU64 = AtomicU64::new(0);

/// A set of instruction addresses: one bit for each byte of the program's text.
pub struct Addresses([AtomicU64; TEXT_LIMIT / 64]);

const TEXT_LIMIT: usize = 1 << 20;

impl Addresses {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; TEXT_LIMIT / 64])
    }

    fn clear(&self) {
        self.0.iter().for_each(|word| word.store(0, Relaxed));
    }

    fn insert(&self, address: u64) {
        let offset = (address as usize).wrapping_sub((&raw const text_start).addr());
        if let Some(word) = self.0.get(offset / 64) {
            word.fetch_or(1 << (offset % 64), Relaxed);
        }
    }

    /// How many addresses are in the set.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.load(Relaxed).count_ones()).sum()
    }

    /// How many addresses are in this set and in `other`.
    pub fn common(&self, other: &Self) -> u32 {
        self.0.iter().zip(&other.0).map(|(a, b)| (a.load(Relaxed) & b.load(Relaxed)).count_ones()).sum()
    }

    /// The first address that is in this set and not in `other`.
    pub fn first_missing(&self, other: &Self) -> Option<usize> {
        let (index, word) = self
            .0
            .iter()
            .zip(&other.0)
            .map(|(a, b)| a.load(Relaxed) & !b.load(Relaxed))
            .enumerate()
            .find(|(_, word)| *word != 0)?;
        Some((&raw const text_start).addr() + index * 64 + word.trailing_zeros() as usize)
    }
}

/// The addresses that traced runs executed, and those that were interrupted, since [`forget`].
pub static EXECUTED: Addresses = Addresses::new();
pub static INTERRUPTED: Addresses = Addresses::new();

/// What a handler does to the pool.
pub type Action = fn();

/// The timer of the next observed run, in ticks, and the flags with which it begins.
static TICKS: AtomicU32 = AtomicU32::new(0);
static FLAGS: AtomicU64 = AtomicU64::new(INTERRUPTS_ON);
/// Whether operations are observed in the handler of an interrupt.
static IN_HANDLER: AtomicBool = AtomicBool::new(false);
/// The action of the one handler that comes next, 0 if none is expected; and that of an NMI inside it.
static ACTION: AtomicUsize = AtomicUsize::new(0);
static INNER_ACTION: AtomicUsize = AtomicUsize::new(0);
static INNER_TICKS: AtomicU32 = AtomicU32::new(0);
static HIT: AtomicBool = AtomicBool::new(false);
static INNER_HIT: AtomicBool = AtomicBool::new(false);
/// Instructions of handlers, and of the way into and out of them, since the machine started.
static AWAY: AtomicU64 = AtomicU64::new(0);
/// The way into and out of the timer's handler, and the NMI's, in instructions.
static TIMER_WAY: AtomicU64 = AtomicU64::new(0);
static NMI_WAY: AtomicU64 = AtomicU64::new(0);
/// What an observation of nothing takes, in instructions.
static EMPTY: AtomicU64 = AtomicU64::new(0);
/// The body of [`within`], 0 if there is none.
static BODY: AtomicUsize = AtomicUsize::new(0);

/// What a run was like.
#[derive(Clone, Copy)]
pub struct Run {
    /// The operation's instructions, those of handlers not counted. Wrong if an interrupt came while the observation began.
    pub instructions: u64,
    /// Whether the interrupt came inside the operation.
    pub hit: bool,
    /// Whether the NMI came inside the handler's action.
    pub inner_hit: bool,
}

/// Prepares the handlers, and finds out what observing takes.
pub fn begin() {
    assert!((&raw const text_end).addr() - (&raw const text_start).addr() <= TEXT_LIMIT);
    interrupts::handle(interrupts::TIMER, on_timer);
    interrupts::handle(interrupts::NMI, on_nmi);
    interrupts::handle(interrupts::DEBUG, on_step);
    let nothing = || observed(|| {});
    EMPTY.store(counted(nothing).instructions, Relaxed);
    // The one instruction outside the harness is the call of its end.
    let way = || {
        (1..16)
            .map(|ticks| interrupted(nothing, ticks, || {}, None))
            .find(|run| run.hit)
            .map(|run| run.instructions)
    };
    TIMER_WAY.store(way().expect("an interrupt"), Relaxed);
    within(&mut || {}, 4, &mut || NMI_WAY.store(way().expect("an NMI"), Relaxed));
}

/// Forgets all addresses.
pub fn forget() {
    EXECUTED.clear();
    INTERRUPTED.clear();
}

/// Runs `operation` under observation, in the mode that the caller has chosen.
#[inline(always)]
pub fn observed<R>(operation: impl FnOnce() -> R) -> R {
    let timer = LocalApic::this().timer_initial();
    // SAFETY: the functions change nothing but the timer, the flags and their own variables.
    unsafe { observation_begins(TICKS.load(Relaxed), timer, FLAGS.load(Relaxed)) };
    let result = black_box(operation());
    // SAFETY: as above.
    unsafe { observation_ends(timer) };
    result
}

/// Runs `body`, which observes one operation, undisturbed.
pub fn counted(body: impl FnOnce()) -> Run {
    let away = AWAY.load(Relaxed);
    body();
    let ticks = STOP.load(Relaxed) - START.load(Relaxed);
    Run {
        instructions: ticks.wrapping_sub(AWAY.load(Relaxed) - away).wrapping_sub(EMPTY.load(Relaxed)),
        hit: HIT.load(Relaxed),
        inner_hit: INNER_HIT.load(Relaxed),
    }
}

/// Runs `body`, which observes one operation, and records the address of each instruction.
pub fn traced(body: impl FnOnce()) {
    FLAGS.fetch_or(TRAP, Relaxed);
    body();
    FLAGS.fetch_and(!TRAP, Relaxed);
}

/// Runs `body`, which observes one operation, with an interrupt after `ticks` instructions whose handler does `action`, in which,
/// if `inner` says so, an NMI comes after so many instructions and does another action.
pub fn interrupted(body: impl FnOnce(), ticks: u32, action: Action, inner: Option<(u32, Action)>) -> Run {
    HIT.store(false, Relaxed);
    INNER_HIT.store(false, Relaxed);
    ACTION.store(action as usize, Relaxed);
    INNER_TICKS.store(inner.map_or(0, |(ticks, _)| ticks), Relaxed);
    INNER_ACTION.store(inner.map_or(0, |(_, action)| action as usize), Relaxed);
    TICKS.store(ticks, Relaxed);
    let run = counted(body);
    TICKS.store(0, Relaxed);
    ACTION.store(0, Relaxed);
    if !IN_HANDLER.load(Relaxed) {
        // An interrupt that was raised by the last tick of all comes now, too late for anything.
        x86_64::instructions::interrupts::enable();
        x86_64::instructions::nop();
        x86_64::instructions::interrupts::disable();
    }
    run
}

/// Runs `body`, which may observe operations, in the handler of an interrupt that comes after `ticks` instructions of `outer`.
///
/// One function for all bodies, so that as many instructions always lie between the start of the timer and those of `outer`.
#[inline(never)]
pub fn within(outer: &mut dyn FnMut(), ticks: u32, mut body: &mut dyn FnMut()) {
    BODY.store((&raw mut body).addr(), Relaxed);
    TICKS.store(ticks, Relaxed);
    observed(outer);
    TICKS.store(0, Relaxed);
    if BODY.swap(0, Relaxed) != 0 {
        crate::ledger::violation(&"the interrupt in which to observe never came");
    }
}

/// The time-stamp counter: instructions since the machine started.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: every processor of this architecture has the instruction, and nothing forbids it here.
    unsafe { _rdtsc() }
}

/// Instructions of handlers since the machine started.
pub fn away() -> u64 {
    AWAY.load(Relaxed)
}

fn is_inside(address: u64) -> bool {
    let harness = (observation_begins as *const () as u64)..(&raw const observation_end).addr() as u64;
    !harness.contains(&address)
}

/// Does what is in `action`; whether there was anything.
fn perform(action: &AtomicUsize) -> bool {
    let action = action.swap(0, Relaxed);
    if action != 0 {
        // SAFETY: `interrupted` stored a function of this type.
        unsafe { transmute::<usize, Action>(action)() }
    }
    action != 0
}

fn on_timer(interrupted: &mut Interrupted) {
    let (start, away) = (now(), AWAY.load(Relaxed));
    let mut apic = LocalApic::this();
    apic.end_of_interrupt();
    let body = BODY.swap(0, Relaxed);
    if body != 0 {
        return handle_within(&mut apic, body);
    }
    if ACTION.load(Relaxed) == 0 || !is_inside(interrupted.instruction) {
        return;
    }
    HIT.store(true, Relaxed);
    INTERRUPTED.insert(interrupted.instruction);
    let inner = INNER_TICKS.load(Relaxed);
    if inner > 0 {
        apic.timer_raises_nmi();
        apic.start_timer(inner);
    }
    perform(&ACTION);
    if inner > 0 {
        apic.start_timer(0);
        apic.timer_raises(interrupts::TIMER);
    }
    AWAY.store(away + now() - start + TIMER_WAY.load(Relaxed), Relaxed);
}

/// The timer has become the one that raises NMIs, and interrupts stay off.
fn handle_within(apic: &mut LocalApic, body: usize) {
    apic.timer_raises_nmi();
    IN_HANDLER.store(true, Relaxed);
    let flags = FLAGS.swap(0, Relaxed);
    let ticks = TICKS.swap(0, Relaxed);
    // SAFETY: `within` stored the address of this reference, and leaves it to us until we return.
    unsafe { (*(body as *mut &mut dyn FnMut()))() };
    TICKS.store(ticks, Relaxed);
    FLAGS.store(flags, Relaxed);
    IN_HANDLER.store(false, Relaxed);
    apic.timer_raises(interrupts::TIMER);
}

fn on_nmi(interrupted: &mut Interrupted) {
    let (start, away) = (now(), AWAY.load(Relaxed));
    let context = bounds::enter(Context::Nmi);
    if INNER_TICKS.swap(0, Relaxed) > 0 {
        INNER_HIT.store(perform(&INNER_ACTION), Relaxed);
    } else if is_inside(interrupted.instruction) && perform(&ACTION) {
        HIT.store(true, Relaxed);
        INTERRUPTED.insert(interrupted.instruction);
    }
    bounds::leave(context);
    AWAY.store(away + now() - start + NMI_WAY.load(Relaxed), Relaxed);
}

fn on_step(interrupted: &mut Interrupted) {
    if is_inside(interrupted.instruction) {
        EXECUTED.insert(interrupted.instruction);
    }
}
