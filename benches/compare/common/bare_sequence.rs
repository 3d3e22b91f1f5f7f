//! The floor of restartable sequences: a stack of one process in which a sequence does nothing but what the kernel's interface asks for
//! and a stack cannot do without. Neither tiers below nor other CPUs that steal, no counts, no frames that are wanted elsewhere.

use super::{FRAMES, implementations::Implementation};
use std::arch::asm;

/// Wide enough for the numbers of the CPUs on which the benchmarks run.
const CPUS: u32 = 64;

#[repr(C, align(64))]
struct Stack {
    length: u64,
    frames: [u32; FRAMES as usize],
}

/// A stack that restartable sequences work on. All CPUs have the same one, so only one thread may use it.
pub struct FloorSequence {
    stack: Box<std::cell::UnsafeCell<Stack>>,
    /// Where in a thread the area is that the kernel looks at.
    area: isize,
}

// SAFETY: the benchmarks of one thread alone use it.
unsafe impl Sync for FloorSequence {}

unsafe extern "C" {
    // The C library's (glibc 2.35).
    safe static __rseq_offset: isize;
    safe static __rseq_size: u32;
}

/// The number of the CPU that runs this code; all ones where no area is registered.
#[inline(always)]
pub fn this_cpu() -> usize {
    let cpu: u32;
    // SAFETY: the area is this thread's.
    unsafe {
        asm!(
            "mov {cpu:e}, dword ptr fs:[{area} + 4]",
            area = in(reg) __rseq_offset,
            cpu = out(reg) cpu,
            options(nostack, preserves_flags, readonly),
        );
    }
    cpu as usize
}

macro_rules! sequence {
    ($($body:literal),+; $($operands:tt)+) => {
        asm!(
            "lea {scratch}, [rip + 5f]",
            "mov qword ptr fs:[{area} + 8], {scratch}",
            "2:",
            "mov {cpu:e}, dword ptr fs:[{area} + 4]",
            "cmp {cpu:e}, {cpus}",
            "jae 3f",
            $($body,)+
            "3:",
            ".pushsection .text.unlikely.bare_sequence, \"ax\", @progbits",
            ".byte 0x0f, 0xb9, 0x3d",
            ".long 0x53053053",
            "7:",
            "jmp 2b",
            ".popsection",
            ".pushsection __rseq_cs, \"aw\", @progbits",
            ".balign 32",
            "5:",
            ".long 0, 0",
            ".quad 2b, 3b - 2b, 7b",
            ".popsection",
            scratch = out(reg) _,
            cpu = out(reg) _,
            cpus = const CPUS,
            $($operands)+
            options(nostack),
        )
    };
}

impl Implementation for FloorSequence {
    const NAME: &'static str = "floor-rseq";
    type Token<'p> = u64;
    type Thread<'p> = ();

    fn new() -> Option<Self> {
        let frames = std::array::from_fn(|number| number as u32);
        let stack = Box::new(std::cell::UnsafeCell::new(Stack { length: FRAMES.into(), frames }));
        (__rseq_size > 0).then_some(Self { stack, area: __rseq_offset })
    }
    fn enter(&self) {}
    #[inline(always)]
    fn take(&self, (): &mut ()) -> u64 {
        let mut frame = u32::MAX;
        // SAFETY: one thread uses the stack, and the area is its own.
        unsafe {
            sequence!(
                "mov {length:e}, dword ptr [{stack}]",
                "test {length:e}, {length:e}",
                "jz 3f",
                "mov {frame:e}, dword ptr [{stack} + {length} * 4 + 4]",
                "dec {length:e}",
                "mov dword ptr [{stack}], {length:e}";
                area = in(reg) self.area,
                stack = in(reg) self.stack.get(),
                length = out(reg) _,
                frame = inout(reg) frame,
            );
        }
        assert!(frame != u32::MAX, "a frame");
        u64::from(frame) << 12
    }
    #[inline(always)]
    fn give(&self, (): &mut (), token: u64) {
        // SAFETY: as above.
        unsafe {
            sequence!(
                "mov {length:e}, dword ptr [{stack}]",
                "cmp {length:e}, {room}",
                "jae 3f",
                "mov dword ptr [{stack} + {length} * 4 + 8], {frame:e}",
                "inc {length:e}",
                "mov dword ptr [{stack}], {length:e}";
                area = in(reg) self.area,
                stack = in(reg) self.stack.get(),
                room = const FRAMES,
                length = out(reg) _,
                frame = in(reg) (token >> 12) as u32,
            );
        }
    }
}
