//! Owns the trap flag and the breakpoints: stops a call at an instruction, runs something else there on the same stack, as an
//! interrupt does, and lets the call go on.
//!
//! # Two ways to stop
//! With the **trap flag** (TF in RFLAGS) the processor traps before every instruction of the call: this tells which instructions a
//! run executes, in which order and how many. To stop a run at each of its n instructions in turn would take n² / 2 such traps,
//! and one costs a signal and, on a virtual machine, an exit.
//!
//! A **breakpoint** (`int3`, one byte) on an instruction of a recorded run stops the same run there at once, whatever stands
//! before it. In a loop, the passes before the one that is wanted are let through by a second breakpoint on the instruction that
//! the record has next. The byte under a breakpoint is put back before anything else runs, so that what interrupts executes the
//! same code unharmed.
//!
//! A repeated string instruction would trap once for each repetition: it counts as one, and is let through in the same way.
//!
//! The kernel clears TF when it enters the handler, and the handler runs with SIGTRAP unblocked: what it runs may be stepped itself,
//! one level deeper.
//!
//! # Signal safety
//! The handler uses atomics and what it is given to run. One thread uses the machine.

use crate::interrupts::{
    crowd::CROWD,
    landing::{Action, Call, Interrupter, Landing},
    world::LEVELS,
};
use nix::{
    libc::{self, REG_EFL, REG_RIP, c_int, c_void, siginfo_t, ucontext_t},
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};
use rustix::mm::{MprotectFlags, mprotect};
use std::{
    arch::global_asm,
    collections::HashSet,
    ptr::null_mut,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering::SeqCst},
};

/// How deep calls nest: one in the handler of the other, a crowd first, then the three that are swept.
const DEPTH: usize = CROWD + LEVELS;
/// The longest call that can be recorded, in instructions.
const RECORD: usize = 1 << 19;
const TRAP_FLAG: i64 = 1 << 8;
const BREAKPOINT: u8 = 0xCC;
const PAGE: usize = 4096;
/// The most passes that are let through.
const PASSES: usize = 64;

/// What a level is doing.
const IDLE: u8 = 0;
/// The trap flag is set; every instruction is counted.
const STEPPING: u8 = 1;
/// A breakpoint stands behind a repeated string instruction; then it goes on as before.
const REPEATING: u8 = 2;
/// A breakpoint stands where the action is to run, at this pass or a later one.
const ARMED: u8 = 3;
/// A breakpoint stands behind an earlier pass; then it goes back.
const PASSING: u8 = 4;

/// One call and where it is to be stopped.
struct Level {
    mode: AtomicU8,
    /// Instructions counted, of a call that is stepped.
    steps: AtomicUsize,
    /// The last of them.
    last: AtomicUsize,
    /// The instruction, counted from the start, at which the action runs, and whether it is counted on behind that.
    stop: AtomicUsize,
    counts_on: AtomicBool,
    /// Where the action runs in a call that is not stepped.
    target: AtomicUsize,
    /// How often the call has come there, and how often it is let through.
    passed: AtomicUsize,
    passes: AtomicUsize,
    /// The breakpoint that is set, and the byte under it.
    breakpoint: AtomicUsize,
    byte: AtomicU8,
    landed: AtomicBool,
    action: AtomicPtr<c_void>,
}

static CALLS: [Level; DEPTH] = [const { Level::new() }; DEPTH];
/// The level that is running.
static LEVEL: AtomicUsize = AtomicUsize::new(0);
/// The level whose call is being recorded.
static RECORDED: AtomicUsize = AtomicUsize::new(usize::MAX);
/// The instructions of the call that was recorded.
static INSTRUCTIONS: [AtomicUsize; RECORD] = [const { AtomicUsize::new(0) }; RECORD];
/// What follows each pass over the instruction at which a call is to be stopped.
static NEXT: [AtomicUsize; PASSES] = [const { AtomicUsize::new(0) }; PASSES];

global_asm!(
    ".globl framepool_step",
    ".hidden framepool_step",
    ".globl framepool_step_end",
    ".hidden framepool_step_end",
    // (function, world, hand): the first trap comes after the call, before the first instruction of the function.
    "framepool_step:",
    "sub rsp, 8",
    "mov rax, rdi",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "pushfq",
    "or qword ptr [rsp], 0x100",
    "popfq",
    "call rax",
    // The trap here, after the return, clears the flag.
    "framepool_step_end:",
    "add rsp, 8",
    "ret",
);

unsafe extern "C" {
    fn framepool_step(function: *const (), world: *const (), hand: *const ());
    fn framepool_step_end();
}

impl Level {
    const fn new() -> Self {
        Self {
            mode: AtomicU8::new(IDLE),
            steps: AtomicUsize::new(0),
            last: AtomicUsize::new(0),
            stop: AtomicUsize::new(usize::MAX),
            counts_on: AtomicBool::new(true),
            target: AtomicUsize::new(0),
            passed: AtomicUsize::new(0),
            passes: AtomicUsize::new(0),
            breakpoint: AtomicUsize::new(0),
            byte: AtomicU8::new(0),
            landed: AtomicBool::new(false),
            action: AtomicPtr::new(null_mut()),
        }
    }

    fn start(&self, mode: u8, action: &Action<'_>) {
        self.steps.store(0, SeqCst);
        self.last.store(0, SeqCst);
        self.passed.store(0, SeqCst);
        self.landed.store(false, SeqCst);
        self.action.store((&raw const *action).cast_mut().cast(), SeqCst);
        self.mode.store(mode, SeqCst);
    }

    /// Runs the action, one level deeper.
    fn land(&self) {
        LEVEL.fetch_add(1, SeqCst);
        // SAFETY: `start` stored a reference to an action that outlives the call that was stopped here.
        unsafe { (*self.action.load(SeqCst).cast::<Action<'_>>())() };
        LEVEL.fetch_sub(1, SeqCst);
        self.landed.store(true, SeqCst);
    }

    /// Sets a breakpoint on an instruction.
    fn set_breakpoint(&self, instruction: usize) {
        let code = instruction as *mut u8;
        self.breakpoint.store(instruction, SeqCst);
        // SAFETY: the address is that of an instruction, in a page that `Machine` made writable.
        unsafe {
            self.byte.store(code.read_volatile(), SeqCst);
            code.write_volatile(BREAKPOINT);
        }
    }

    /// Takes the breakpoint away.
    fn clear_breakpoint(&self) {
        // SAFETY: as in `set_breakpoint`, which kept the byte that was there.
        unsafe { (self.breakpoint.load(SeqCst) as *mut u8).write_volatile(self.byte.load(SeqCst)) };
    }

    /// The call is about to execute `instruction`, with the trap flag set; whether it stays set.
    fn on_step(&self, instruction: usize) -> bool {
        if instruction == framepool_step_end as *const () as usize {
            self.mode.store(IDLE, SeqCst);
            return false;
        }
        if self.last.swap(instruction, SeqCst) == instruction {
            self.mode.store(REPEATING, SeqCst);
            make_writable(instruction + length_of_repeated(instruction));
            self.set_breakpoint(instruction + length_of_repeated(instruction));
            return false;
        }
        let step = self.steps.fetch_add(1, SeqCst);
        if let Some(place) = INSTRUCTIONS.get(step).filter(|_| LEVEL.load(SeqCst) == RECORDED.load(SeqCst)) {
            place.store(instruction, SeqCst);
        }
        if step != self.stop.load(SeqCst) {
            return true;
        }
        let counts_on = self.counts_on.load(SeqCst);
        self.mode.store(if counts_on { STEPPING } else { IDLE }, SeqCst);
        self.land();
        counts_on
    }

    /// The call is about to execute the instruction with the breakpoint, which is taken away; whether the trap flag is to be set.
    fn on_breakpoint(&self, mode: u8, instruction: usize) -> bool {
        match mode {
            REPEATING => {
                self.mode.store(STEPPING, SeqCst);
                return self.on_step(instruction);
            }
            PASSING => {
                self.mode.store(ARMED, SeqCst);
                self.set_breakpoint(self.target.load(SeqCst));
            }
            _ => {
                let pass = self.passed.fetch_add(1, SeqCst);
                if pass < self.passes.load(SeqCst) {
                    self.mode.store(PASSING, SeqCst);
                    self.set_breakpoint(NEXT[pass].load(SeqCst));
                } else {
                    self.mode.store(IDLE, SeqCst);
                    self.land();
                }
            }
        }
        false
    }
}

/// The length of a repeated string instruction: a prefix, perhaps one for the operand size, and the instruction.
fn length_of_repeated(instruction: usize) -> usize {
    // SAFETY: code is readable, and an instruction that repeats itself has these bytes.
    match unsafe { (instruction as *const [u8; 2]).read_volatile() } {
        [0xF2 | 0xF3, 0x48..=0x4F] => 3,
        [0xF2 | 0xF3, _] => 2,
        // SAFETY: abort(3) may be called in a handler. Nothing else traps twice at one address.
        _ => unsafe { libc::abort() },
    }
}

extern "C" fn on_trap(_signal: c_int, _information: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes the context of what was interrupted, which is ours to change until we return.
    let registers = unsafe { &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs };
    let instruction = registers[REG_RIP as usize] as usize;
    let level = &CALLS[LEVEL.load(SeqCst)];
    let flag = match level.mode.load(SeqCst) {
        // A trap that nobody set: there is no going on from here.
        // SAFETY: abort(3) may be called in a handler.
        IDLE => unsafe { libc::abort() },
        STEPPING => level.on_step(instruction),
        mode => {
            level.clear_breakpoint();
            let instruction = level.breakpoint.load(SeqCst);
            registers[REG_RIP as usize] = instruction as i64;
            level.on_breakpoint(mode, instruction)
        }
    };
    if flag {
        registers[REG_EFL as usize] |= TRAP_FLAG;
    } else {
        registers[REG_EFL as usize] &= !TRAP_FLAG;
    }
}

/// The one machine of the process.
pub(crate) struct Machine(());

impl Machine {
    pub(crate) fn new() -> Self {
        let flags = SaFlags::SA_SIGINFO | SaFlags::SA_NODEFER;
        let action = SigAction::new(SigHandler::SigAction(on_trap), flags, SigSet::empty());
        // SAFETY: the handler is made of atomics and of what it is given to run.
        unsafe { sigaction(Signal::SIGTRAP, &action) }.unwrap();
        Self(())
    }

    /// Counts the instructions of a call, before number `stop` of which `action` runs. May be called in an action.
    pub(crate) fn count(&self, call: Call<'_, '_>, stop: usize, action: Action<'_>) -> usize {
        self.step(call, stop, true, action).steps.load(SeqCst)
    }

    fn step(&self, call: Call<'_, '_>, stop: usize, counts_on: bool, action: Action<'_>) -> &Level {
        let level = &CALLS[LEVEL.load(SeqCst)];
        level.stop.store(stop, SeqCst);
        level.counts_on.store(counts_on, SeqCst);
        level.start(STEPPING, &action);
        // SAFETY: the function takes these two references.
        unsafe {
            framepool_step(
                call.function as *const (),
                (&raw const *call.world).cast(),
                (&raw const *call.hand).cast(),
            );
        }
        level
    }
}

impl Interrupter for Machine {
    /// The address of an instruction.
    type Point = usize;

    const SECOND_WITHIN: usize = 150;

    const SEVERAL_DEPOTS: bool = false;

    fn record(&self, call: Call<'_, '_>) -> Vec<usize> {
        RECORDED.store(LEVEL.load(SeqCst), SeqCst);
        let steps = self.count(call, usize::MAX, &|| ());
        RECORDED.store(usize::MAX, SeqCst);
        assert!(steps < RECORD, "a call of {steps} instructions: make the record longer");
        let record: Vec<_> =
            INSTRUCTIONS[..steps].iter().map(|instruction| instruction.load(SeqCst)).collect();
        let pages: HashSet<_> = record.iter().map(|instruction| instruction & !(PAGE - 1)).collect();
        pages.into_iter().for_each(make_writable);
        record
    }

    fn interrupt(
        &self,
        call: Call<'_, '_>,
        record: &[usize],
        landing: Landing<usize>,
        action: Action<'_>,
    ) -> bool {
        let passes =
            record[..landing.step].iter().enumerate().filter(|&(_, &instruction)| instruction == landing.at);
        assert!(landing.pass <= PASSES, "pass {}: make the list of passes longer", landing.pass);
        for ((step, _), next) in passes.zip(&NEXT) {
            next.store(record[step + 1], SeqCst);
        }
        let level = &CALLS[LEVEL.load(SeqCst)];
        level.target.store(landing.at, SeqCst);
        level.passes.store(landing.pass - 1, SeqCst);
        level.start(ARMED, &action);
        level.set_breakpoint(landing.at);
        (call.function)(call.world, call.hand);
        if level.mode.swap(IDLE, SeqCst) != IDLE {
            level.clear_breakpoint();
        }
        level.landed.load(SeqCst)
    }

    fn interrupt_step(&self, call: Call<'_, '_>, step: usize, action: Action<'_>) -> bool {
        self.step(call, step, false, action).landed.load(SeqCst)
    }
}

/// Makes the page of an instruction writable. A system call without libc: may be made in the handler.
fn make_writable(instruction: usize) {
    let all = MprotectFlags::READ | MprotectFlags::WRITE | MprotectFlags::EXEC;
    let page = instruction & !(PAGE - 1);
    // SAFETY: more rights than before take nothing from anybody; a byte that is written is put back.
    if unsafe { mprotect(page as *mut _, PAGE, all) }.is_err() {
        // SAFETY: abort(3) may be called in a handler. The host lets nobody write breakpoints into his own code.
        unsafe { libc::abort() }
    }
}
