//! Owns the descriptor tables and the way of an interrupt into a Rust function.
//!
//! Every gate switches to a stack of its own kind (interrupt, NMI, debug, fault): precompiled `core` keeps data below the stack
//! pointer, so nothing may be pushed onto the stack of the code that is interrupted. Interrupts stay off inside a handler; an NMI
//! may interrupt one.

use super::{boot::CPUS, place::Place};
use core::{
    arch::global_asm,
    mem::transmute,
    sync::atomic::{AtomicUsize, Ordering},
};
use x86_64::{
    VirtAddr,
    instructions::{
        port::Port,
        segmentation::{CS, DS, ES, SS, Segment},
        tables::{lidt, load_tss},
    },
    structures::{
        DescriptorTablePointer,
        gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector},
        tss::TaskStateSegment,
    },
};

pub const DEBUG: u8 = 1;
pub const NMI: u8 = 2;
/// The first vector that devices may use.
pub const TIMER: u8 = 0x40;
pub const CROSS_CALL: u8 = 0x41;
pub const DEVICE: u8 = 0x42;
pub const IOMMU_FAULT: u8 = 0x43;
const SPURIOUS: u8 = 0xFF;
const VECTORS: usize = 256;

/// What the processor and the stub saved of the code that was interrupted.
#[repr(C)]
pub struct Interrupted {
    registers: [u64; 15],
    pub vector: u64,
    pub error_code: u64,
    /// The instruction that would have been next.
    pub instruction: u64,
    code_segment: u64,
    pub flags: u64,
    pub stack: u64,
    stack_segment: u64,
}

/// What runs when an interrupt comes.
pub type Handler = fn(&mut Interrupted);

static HANDLERS: [AtomicUsize; VECTORS] = [const { AtomicUsize::new(0) }; VECTORS];

/// Makes `handler` the handler of `vector`, on every CPU.
pub fn handle(vector: u8, handler: Handler) {
    // Ordering: Release, to the Acquire of `dispatch`, although an interrupt is raised only after this anyway.
    HANDLERS[usize::from(vector)].store(handler as usize, Ordering::Release);
}

extern "C" fn dispatch(interrupted: &mut Interrupted) {
    let Some(handler) = HANDLERS.get(interrupted.vector as usize) else { return };
    // Ordering: Acquire pairs with the Release in `handle`.
    match handler.load(Ordering::Acquire) {
        0 if interrupted.vector == u64::from(SPURIOUS) => {}
        0 => {
            crate::say!(
                "FAIL vector {:#x} error {:#x} at {:#x}, stack {:#x}, address {:#x}",
                interrupted.vector,
                interrupted.error_code,
                interrupted.instruction,
                interrupted.stack,
                x86_64::registers::control::Cr2::read_raw()
            );
            super::serial::exit(false);
        }
        handler => {
            // SAFETY: `handle` stored a function of this type.
            let handler = unsafe { transmute::<usize, Handler>(handler) };
            handler(interrupted);
        }
    }
}

#[repr(C, align(16))]
struct HandlerStack([u8; 16 << 10]);

/// The kinds of handler stacks, in the order of the task state segment.
const KINDS: usize = 4;
const ON_INTERRUPT_STACK: u8 = 0;
const ON_NMI_STACK: u8 = 1;
const ON_DEBUG_STACK: u8 = 2;
const ON_FAULT_STACK: u8 = 3;

static HANDLER_STACKS: [[Place<HandlerStack>; KINDS]; CPUS] =
    [const { [const { Place::new() }; KINDS] }; CPUS];
static TASK_STATES: [Place<TaskStateSegment>; CPUS] = [const { Place::new() }; CPUS];
static SEGMENTS: [Place<GlobalDescriptorTable>; CPUS] = [const { Place::new() }; CPUS];
static GATES: Place<[u128; VECTORS]> = Place::new();

/// An interrupt gate of 64 bits: interrupts are off in the handler.
fn gate(vector: usize, code: SegmentSelector) -> u128 {
    let address = (&raw const interrupt_stubs).addr() + vector * STUB_SIZE;
    let kind = match vector as u8 {
        NMI => ON_NMI_STACK,
        DEBUG => ON_DEBUG_STACK,
        0..32 => ON_FAULT_STACK,
        _ => ON_INTERRUPT_STACK,
    };
    let address = address as u128;
    address & 0xFFFF
        | u128::from(code.0) << 16
        | u128::from(kind + 1) << 32
        | 0x8E << 40
        | (address >> 16 & 0xFFFF) << 48
        | address >> 32 << 64
}

/// Loads the descriptor tables of the CPU `cpu`, which is this one. The first CPU comes first and alone.
pub fn load(cpu: usize) {
    let mut state = TaskStateSegment::new();
    for (kind, stack) in HANDLER_STACKS[cpu].iter().enumerate() {
        state.interrupt_stack_table[kind] = VirtAddr::from_ptr(stack.after());
    }
    let mut segments = GlobalDescriptorTable::new();
    let code = segments.append(Descriptor::kernel_code_segment());
    let data = segments.append(Descriptor::kernel_data_segment());
    // SAFETY: each CPU puts its own tables in place, once, and they stay there; the gates are the same for all, and in place before
    // a second CPU runs.
    unsafe {
        let task = segments.append(Descriptor::tss_segment(TASK_STATES[cpu].put(state)));
        SEGMENTS[cpu].put(segments).load();
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(data);
        ES::set_reg(data);
        load_tss(task);
        if cpu == 0 {
            GATES.put(core::array::from_fn(|vector| gate(vector, code)));
        }
        let limit = (size_of::<u128>() * VECTORS - 1) as u16;
        lidt(&DescriptorTablePointer { limit, base: VirtAddr::from_ptr(GATES.get()) });
    }
}

/// The two interrupt controllers of the first PCs, which the firmware has left switched on.
const LEGACY_MASKS: [u16; 2] = [0x21, 0xA1];

/// Silences the interrupts that nobody here asked for.
pub fn mask_legacy() {
    for port in LEGACY_MASKS {
        // SAFETY: the port masks interrupts and touches no memory.
        unsafe { Port::<u8>::new(port).write(0xFF) }
    }
}

const STUB_SIZE: usize = 16;

unsafe extern "C" {
    static interrupt_stubs: u8;
}

global_asm!(
    r#"
.balign 16
.globl interrupt_stubs
interrupt_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    push 0                      // where the processor pushes no error code
    .endif
    push vector
    jmp interrupt_common
    .set vector, vector + 1
.endr
.balign 16
interrupt_common:
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    mov rbx, rsp
    sub rsp, 512
    and rsp, -16
    fxsave64 [rsp]
    call {dispatch}
    fxrstor64 [rsp]
    mov rsp, rbx
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
    add rsp, 16
    iretq
"#,
    dispatch = sym dispatch,
);
