//! When an area is used, and whose sequences the barrier ends.

use super::*;
use crate::sync::atomic::{AtomicU32, Ordering::SeqCst};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::{thread, vec::Vec};

#[test]
fn an_area_is_used_only_if_it_is_registered_as_far_as_it_is_used() {
    let area = |offset, size| usable(offset, size).map(Area::offset);
    assert_eq!(area(Some(&2336), Some(&20)), Some(2336));
    assert_eq!(area(Some(&-64), Some(&28)), Some(-64));
    assert_eq!(area(Some(&2336), Some(&0)), None, "switched off, refused or hidden");
    assert_eq!(area(Some(&2336), Some(&15)), None);
    assert_eq!(area(Some(&0), Some(&20)), None);
    assert_eq!(area(None, None), None, "another C library");
}

/// Says that it has `begun`, and waits in a sequence until it is told to `stop`; false if something has ended the sequence before.
fn wait_in_a_sequence(area: Area, begun: &AtomicU32, stop: &AtomicU32) -> bool {
    let outcome: u64;
    // SAFETY: the sequence stores to `begun` only, and is laid out as the kernel wants it (rseq(2)); the area is this thread's.
    unsafe {
        asm!(
            "lea {outcome}, [rip + 5f]",
            "mov qword ptr fs:[{area} + 8], {outcome}",
            "2:",
            "mov dword ptr [{begun}], 1",
            "4:",
            "cmp dword ptr [{stop}], 0",
            "je 4b",
            "3:",
            "mov {outcome:e}, 1",
            "6:",
            ".pushsection .text.unlikely.framepool_rseq, \"ax\", @progbits",
            ".byte 0x0f, 0xb9, 0x3d",
            ".long 0x53053053",
            "7:",
            "xor {outcome:e}, {outcome:e}",
            "jmp 6b",
            ".popsection",
            ".pushsection __rseq_cs, \"aw\", @progbits",
            ".balign 32",
            "5:",
            ".long 0, 0",
            ".quad 2b, 3b - 2b, 7b",
            ".popsection",
            area = in(reg) area.offset(),
            begun = in(reg) begun.as_ptr(),
            stop = in(reg) stop.as_ptr(),
            outcome = out(reg) outcome,
            options(nostack),
        );
    }
    outcome != 0
}

/// The CPUs that this process may use.
fn cpus() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap();
    (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
}

#[test]
fn the_barrier_ends_the_sequence_of_the_cpu_that_it_names() {
    // Where there are none, `tests/ownership.rs` says whether that is right.
    let Some(area) = Area::find() else { return };
    for cpu in cpus() {
        for _ in 0..20 {
            let (begun, stop) = (AtomicU32::new(0), AtomicU32::new(0));
            let came_to_its_end = thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    let mut set = CpuSet::new();
                    set.set(cpu);
                    sched_setaffinity(None, &set).unwrap();
                    wait_in_a_sequence(area, &begun, &stop)
                });
                // Ordering: SeqCst, like the next; the partner is the sequence, and speed does not matter here.
                while begun.load(SeqCst) == 0 {
                    thread::yield_now();
                }
                assert!(area.end_sequences(cpu));
                // Ordering: SeqCst; whoever is in the sequence still sees this.
                stop.store(1, SeqCst);
                waiting.join().unwrap()
            });
            assert!(!came_to_its_end, "a sequence on CPU {cpu} has gone on");
        }
    }
}
