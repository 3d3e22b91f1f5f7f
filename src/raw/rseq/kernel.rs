//! What the C library and the kernel offer for restartable sequences: each thread's area, and the barrier that ends the
//! sequences of another CPU. Found once, when the platform is made.

use core::{arch::asm, num::NonZero};
use rustix::thread::{Cpuid, MembarrierCommand, membarrier, membarrier_cpu};

/// The bytes of an area that the sequences use, up to the end of the field `rseq_cs`.
const AREA_USED: u32 = 16;

/// Where each thread's area is, as a distance from its thread pointer: the same for all threads. 0 would be the thread's control block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Area(NonZero<isize>);

impl Area {
    /// The area that the C library has registered for the threads of this process, if the kernel also lets us end the sequences
    /// of other CPUs.
    pub(crate) fn find() -> Option<Self> {
        let has_barrier = |_: &Self| membarrier(MembarrierCommand::RegisterPrivateExpeditedRseq).is_ok();
        Self::registered().filter(has_barrier)
    }

    /// The area that the C library has registered for the threads of this process, whatever else the kernel lets us do: enough to
    /// be told the number of the CPU.
    pub(crate) fn registered() -> Option<Self> {
        let (offset, size) = libc_symbols();
        usable(offset, size)
    }

    #[inline(always)]
    pub(super) const fn offset(self) -> isize {
        self.0.get()
    }

    /// Ends every sequence that is in progress on `cpu`: one that has not committed when this returns never will. Whether the
    /// kernel did so.
    ///
    /// One system call, which interrupts that CPU if it runs a thread of this process (membarrier(2),
    /// `MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ`): async-signal-safe; about a microsecond, more when many processes ask at once.
    pub(crate) fn end_sequences(self, cpu: usize) -> bool {
        let Ok(cpu) = u32::try_from(cpu) else { return false };
        // SAFETY: the kernel takes any number, and knows which of them are CPUs.
        let cpu = unsafe { Cpuid::from_raw(cpu) };
        membarrier_cpu(MembarrierCommand::PrivateExpeditedRseq, cpu).is_ok()
    }
}

/// The area, if the C library says where it is and that all we use of it is registered.
fn usable(offset: Option<&isize>, size: Option<&u32>) -> Option<Area> {
    let offset = NonZero::new(*offset?)?;
    (*size? >= AREA_USED).then_some(Area(offset))
}

/// `__rseq_offset` and `__rseq_size` of glibc 2.35 and later; nothing where the C library does not have them.
fn libc_symbols() -> (Option<&'static isize>, Option<&'static u32>) {
    let (offset, size): (*const isize, *const u32);
    // SAFETY: two loads of addresses that the linker wrote, 0 for a weak symbol that nobody defines. What they point to is
    // constant once the C library has started.
    unsafe {
        asm!(
            ".weak __rseq_offset",
            ".weak __rseq_size",
            "mov {offset}, qword ptr [rip + __rseq_offset@GOTPCREL]",
            "mov {size}, qword ptr [rip + __rseq_size@GOTPCREL]",
            offset = out(reg) offset,
            size = out(reg) size,
            options(nostack, preserves_flags, readonly, pure),
        );
        (offset.as_ref(), size.as_ref())
    }
}

#[cfg(test)]
mod tests;
