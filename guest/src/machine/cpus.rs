//! Starts the other CPUs and gives each something to do.

use super::{
    apic::LocalApic,
    boot::{CPUS, TRAMPOLINE, trampoline},
    interrupts,
};
use core::{
    mem::transmute,
    sync::atomic::{AtomicUsize, Ordering},
};

/// What a CPU does when it has been started; gets the CPU's number.
pub type Work = fn(usize);

/// The function that each CPU runs next, 0 while it is idle.
static WORK: [AtomicUsize; CPUS] = [const { AtomicUsize::new(0) }; CPUS];
/// How many CPUs are there.
static PRESENT: AtomicUsize = AtomicUsize::new(1);

/// What every CPU does first.
pub fn enter(cpu: usize) {
    interrupts::load(cpu);
    crate::host::CpuLocal::install(cpu);
    LocalApic::this().enable();
}

/// Where the other CPUs enter Rust.
pub extern "C" fn other_cpu(cpu: usize) -> ! {
    enter(cpu);
    // Ordering: Release, to the Acquire in `start`: the CPU's tables are loaded before it counts as present.
    PRESENT.fetch_add(1, Ordering::Release);
    loop {
        // Ordering: Acquire pairs with the Release in `assign`, so that what the work needs is seen.
        let work = WORK[cpu].load(Ordering::Acquire);
        if work != 0 {
            // SAFETY: `assign` stored a function of this type.
            unsafe { transmute::<usize, Work>(work)(cpu) };
            // Ordering: Release, to the Acquire in `wait`: what the work did is seen.
            WORK[cpu].store(0, Ordering::Release);
        }
        core::hint::spin_loop();
    }
}

/// Starts the CPUs from 1 up to `count`, one after the other.
pub fn start(count: usize) {
    // SAFETY: the page of the trampoline is below 1 MiB, where the image is not and which the firmware has left.
    unsafe {
        core::ptr::copy_nonoverlapping(trampoline().as_ptr(), TRAMPOLINE as *mut u8, trampoline().len())
    };
    for cpu in 1..count {
        LocalApic::this().start_cpu(cpu, (TRAMPOLINE >> 12) as u8);
        // Ordering: Acquire pairs with the Release in `other_cpu`.
        while PRESENT.load(Ordering::Acquire) <= cpu {
            core::hint::spin_loop();
        }
    }
}

/// Lets the CPU `cpu`, which is idle, do `work`, to whose end [`wait`] waits.
pub fn assign(cpu: usize, work: Work) {
    // Ordering: Release publishes what the caller prepared to the Acquire in `other_cpu`.
    WORK[cpu].store(work as usize, Ordering::Release);
}

/// Waits until the CPU `cpu` is idle.
pub fn wait(cpu: usize) {
    // Ordering: Acquire pairs with the Release in `other_cpu`.
    while WORK[cpu].load(Ordering::Acquire) != 0 {
        core::hint::spin_loop();
    }
}
