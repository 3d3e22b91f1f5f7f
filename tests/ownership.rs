//! Who owns a CPU's cache on Linux: restartable sequences where this process has them, claim everywhere else, and the same pool
//! for its users either way.
//!
//! All of it runs again in a process whose C library is told not to register sequences. `FRAMEPOOL_EXPECT=rseq` or `claim` demands one
//! of both, for runs under tools that hide or refuse the registration.
#![cfg(not(loom))]

use framepool::{
    AnonymousMemory, Builder, FallbackPolicy, Frame, FramePool, LinuxPlatform, PhysAddr, Request, Watermarks,
};
use nix::{
    libc,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, Pid, fork},
};
use std::{collections::HashSet, env, process::Command, sync::Barrier, thread};

type Pool = FramePool<AnonymousMemory, LinuxPlatform>;

fn pool_on(platform: LinuxPlatform, frames: u32) -> Pool {
    let marks = Watermarks { min: 0, low: 0, high: frames, max: frames };
    let builder = Builder::new(frames).watermarks(marks).magazine_size(4).fallback(FallbackPolicy::Never);
    let builder = builder.cpus(LinuxPlatform::possible_cpus() + 1);
    builder.build(AnonymousMemory::new(frames).unwrap(), platform).unwrap()
}

fn pool(frames: u32) -> Pool {
    pool_on(LinuxPlatform::new(), frames)
}

/// Keeps this thread on a CPU; false if the process may not use it.
fn move_to(cpu: usize) -> bool {
    let mut set = CpuSet::new();
    set.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &set).is_ok()
}

/// The CPUs that this process may use.
fn cpus() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
    (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap()).collect()
}

fn assert_complete(pool: &Pool, frames: u32) {
    let stats = pool.stats();
    assert_eq!(stats.in_use, 0, "INV-1\n{stats}");
    assert_eq!(stats.owned, stats.cached + stats.stock + stats.overflow, "INV-4\n{stats}");
    assert_eq!(
        stats.freed,
        stats.cache_hits + stats.depot_hits + stats.steals,
        "each operation is counted once\n{stats}"
    );
    let mut all: Vec<_> = (0..frames).map(|_| None).collect();
    pool.alloc_bulk_exact(Request::ORDINARY, &mut all).unwrap();
    let distinct: HashSet<PhysAddr> = all.iter().flatten().map(Frame::phys_addr).collect();
    assert_eq!(distinct.len(), frames as usize, "INV-1");
    pool.free_bulk(&mut all);
}

#[test]
fn every_cpu_that_this_process_may_use_can_have_a_cache_of_its_own() {
    assert!(cpus().last().is_some_and(|&last| last < LinuxPlatform::possible_cpus()));
}

/// A variable of the C library, if it has one of that name.
fn libc_variable<T: Copy>(name: &std::ffi::CStr) -> Option<T> {
    // SAFETY: the caller says what type the variable has; the C library's variables stay where they are.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()).cast::<T>().as_ref().copied() }
}

#[test]
fn sequences_are_used_where_the_c_library_has_registered_them() {
    let registered = libc_variable::<u32>(c"__rseq_size").is_some_and(|size| size >= 16);
    let used = LinuxPlatform::new().uses_restartable_sequences();
    match env::var("FRAMEPOOL_EXPECT").as_deref() {
        Ok("rseq") => assert!(used, "restartable sequences were expected"),
        Ok("claim") => assert!(!used, "claim was expected"),
        // A kernel that has sequences and no barrier for them is older than what is tested without an expectation.
        _ => assert_eq!(used, registered && cfg!(all(target_arch = "x86_64", target_pointer_width = "64"))),
    }
}

#[test]
fn a_process_that_is_told_not_to_register_sequences_claims() {
    if env::var_os("FRAMEPOOL_EXPECT").is_some() {
        return; // This is that process, or one whose registration is somebody else's business.
    }
    let again = Command::new(env::current_exe().unwrap())
        .env("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
        .env("FRAMEPOOL_EXPECT", "claim")
        .output()
        .unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stdout));
}

#[test]
fn a_platform_may_be_told_to_claim() {
    let platform = LinuxPlatform::claiming();
    assert!(!platform.uses_restartable_sequences());
    let pool = pool_on(platform, 32);
    (0..100).for_each(|_| drop(pool.alloc().unwrap()));
    assert_complete(&pool, 32);
}

#[test]
fn what_a_thread_leaves_in_the_cache_of_its_cpu_serves_the_next_one() {
    let pool = pool(16);
    let cpu = cpus()[0];
    let on_cpu = || {
        assert!(move_to(cpu));
        let frames: Vec<_> = (0..6).map(|_| pool.alloc().unwrap()).collect();
        let addresses: HashSet<_> = frames.iter().map(Frame::phys_addr).collect();
        drop(frames);
        addresses
    };
    thread::scope(|scope| {
        let first = scope.spawn(on_cpu).join().unwrap();
        let hits = pool.stats().cache_hits;
        let second = scope.spawn(on_cpu).join().unwrap();
        assert_eq!(first, second, "the last six that came back");
        assert_eq!(pool.stats().cache_hits, hits + 6);
    });
    assert_complete(&pool, 16);
}

#[test]
fn bulk_calls_take_from_both_magazines_of_a_cache_and_fill_both() {
    let cpu = cpus()[0];
    for platform in [LinuxPlatform::new(), LinuxPlatform::claiming()] {
        let pool = pool_on(platform, 32);
        thread::scope(|scope| {
            scope.spawn(|| {
                assert!(move_to(cpu));
                drop((0..8).map(|_| pool.alloc().unwrap()).collect::<Vec<_>>());
                assert_eq!((pool.stats().cached, pool.stats().stock), (8, 24));
                let singly: Vec<_> = (0..4).map(|_| pool.alloc().unwrap()).collect();
                let before = pool.stats();
                let mut frames = [const { None }; 8];
                assert_eq!(pool.alloc_bulk(Request::ORDINARY, &mut frames[..4]).unwrap(), 4);
                assert_eq!(pool.stats().cache_hits, before.cache_hits + 4, "the other magazine was full");
                for (place, frame) in frames[4..].iter_mut().zip(singly) {
                    *place = Some(frame);
                }
                pool.free_bulk(&mut frames);
                assert_eq!((pool.stats().cached, pool.stats().stock), (8, 24), "both had room for all");
            });
        });
        assert_complete(&pool, 32);
    }
}

#[test]
fn frames_in_the_caches_of_other_cpus_are_used_before_anything_fails() {
    let &[first, second, ..] = &cpus()[..] else { return };
    let pool = pool(8);
    thread::scope(|scope| {
        let fill = scope.spawn(|| {
            assert!(move_to(first));
            drop((0..8).map(|_| pool.alloc().unwrap()).collect::<Vec<_>>());
        });
        fill.join().unwrap();
        assert_eq!((pool.stats().cached, pool.stats().stock), (8, 0));
        let steal = scope.spawn(|| {
            assert!(move_to(second));
            drop((0..8).map(|_| pool.alloc().unwrap()).collect::<Vec<_>>());
        });
        steal.join().unwrap();
    });
    assert_eq!((pool.stats().steals, pool.stats().exhausted), (2, 0), "R8: whole magazines");
    assert_complete(&pool, 8);
    pool.vacate().unwrap();
    assert_eq!(pool.stats().owned, 0, "every slot was shut and emptied");
}

#[test]
fn threads_that_move_between_cpus_all_the_time_share_a_pool() {
    let pool = pool(64);
    let cpus = cpus();
    let barrier = Barrier::new(4);
    thread::scope(|scope| {
        for start in 0..4 {
            let (pool, cpus, barrier) = (&pool, &cpus, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let mut held = Vec::new();
                for round in start..start + 2_000 {
                    assert!(move_to(cpus[round % cpus.len()]));
                    held.extend(pool.alloc());
                    if round % 3 == 0 {
                        held.truncate(held.len().saturating_sub(4));
                    }
                    held.truncate(12);
                }
            });
        }
    });
    assert_complete(&pool, 64);
}

#[test]
fn more_cpus_than_slots_share_the_last_one() {
    let builder = Builder::new(32).cpus(1).magazine_size(4);
    let pool = builder.build(AnonymousMemory::new(32).unwrap(), LinuxPlatform::new()).unwrap();
    for cpu in cpus() {
        assert!(move_to(cpu));
        let hits = pool.stats().cache_hits;
        drop(pool.alloc().unwrap());
        drop(pool.alloc().unwrap());
        assert!(pool.stats().cache_hits > hits);
    }
}

#[test]
fn the_child_of_a_fork_has_a_pool_of_its_own() {
    let pool = pool(16);
    let mine: Vec<_> = (0..4).map(|_| pool.alloc().unwrap()).collect();
    drop((0..8).map(|_| pool.alloc().unwrap()).collect::<Vec<_>>());
    // SAFETY: the child uses the pool, which is made for signal handlers, and leaves without running anybody's destructors.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let taken = core::iter::from_fn(|| pool.alloc().ok().map(Frame::into_raw)).count();
            // From every CPU, and after a theft.
            let nothing_left =
                (0..CpuSet::count()).filter(|&cpu| move_to(cpu)).all(|_| pool.alloc().is_err());
            // SAFETY: leaves at once.
            unsafe { libc::_exit(if taken == 12 && nothing_left { 0 } else { 1 }) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        }
    }
    drop(mine);
    assert_complete(&pool, 16);
}

/// The registration of a thread can go away; where it is, nobody but this test asks.
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
mod unregistered {
    use super::*;
    use core::arch::asm;

    const SIGNATURE: u32 = 0x5305_3053;
    const UNREGISTER: i32 = 1;

    /// Asks the kernel to register this thread's area with `length` bytes, or the reverse; whether it did.
    fn rseq(length: u32, flags: i32) -> bool {
        let Some(offset) = libc_variable::<isize>(c"__rseq_offset") else { return false };
        let thread: usize;
        // SAFETY: the first word of the thread's control block is its own address.
        unsafe { asm!("mov {}, fs:[0]", out(reg) thread) };
        let area = thread.wrapping_add_signed(offset);
        // SAFETY: the area is this thread's, as the C library registered it.
        unsafe { libc::syscall(libc::SYS_rseq, area, length, flags, SIGNATURE) == 0 }
    }

    /// Takes the registration of this thread away; how long its area was. The kernel wants to hear the same length again.
    fn unregister() -> Option<u32> {
        (20..512).find(|&length| rseq(length, UNREGISTER))
    }

    fn work(pool: &Pool) {
        for _ in 0..20_000 {
            drop((pool.alloc(), pool.alloc()));
        }
    }

    #[test]
    fn a_thread_without_a_registration_shares_a_claimed_slot_beside_the_sequences() {
        let pool = pool(64);
        let barrier = Barrier::new(3);
        let length = thread::scope(|scope| {
            let stranger = scope.spawn(|| {
                let length = unregister();
                barrier.wait();
                work(&pool);
                if length.is_some() && pool.platform().uses_restartable_sequences() {
                    // Nobody else uses that slot.
                    let frame = pool.alloc().unwrap().into_raw();
                    // SAFETY: laid down above.
                    drop(unsafe { Frame::from_raw(&pool, frame) });
                    assert_eq!(pool.alloc().unwrap().phys_addr(), frame, "it has a cache");
                }
                assert!(length.is_none_or(|length| rseq(length, 0)), "it is as it was");
                work(&pool);
                length
            });
            for _ in 0..2 {
                scope.spawn(|| {
                    barrier.wait();
                    work(&pool);
                });
            }
            stranger.join().unwrap()
        });
        assert!(length.is_some() || !pool.platform().uses_restartable_sequences());
        assert_complete(&pool, 64);
    }
}
