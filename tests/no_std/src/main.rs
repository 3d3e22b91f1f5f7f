//! A pool in a program without std, heap or C library: 0 is its exit status if everything held.
#![no_std]
#![no_main]

use core::{
    arch::{asm, global_asm},
    cell::UnsafeCell,
    mem::MaybeUninit,
    panic::PanicInfo,
    ptr::addr_of_mut,
};
use framepool::{AllocError, Builder, Claim, FallbackPolicy, FixedRegion, Outcome, Platform, Request, Watermarks};

/// A machine with one CPU that maintains its pool itself.
struct OneCpu;

impl Platform for OneCpu {
    type Ownership = Claim;
    fn ownership(&self) -> &Claim {
        &Claim
    }
    fn current_cpu(&self) -> usize {
        0
    }
    fn ring(&self) {}
}

const FRAMES: usize = 64;

#[repr(C, align(4096))]
struct Memory(UnsafeCell<[MaybeUninit<u8>; (FRAMES + 1) * 4096]>);

// SAFETY: the program has one thread, which takes the memory once.
unsafe impl Sync for Memory {}

static mut REGION: Memory = Memory(UnsafeCell::new([MaybeUninit::uninit(); (FRAMES + 1) * 4096]));
static mut BOOKKEEPING: [MaybeUninit<u8>; 1 << 16] = [MaybeUninit::uninit(); 1 << 16];

fn check() -> Result<(), u8> {
    // SAFETY: both statics are borrowed here, once, for ever.
    let (region, bookkeeping) = unsafe { (&mut (*addr_of_mut!(REGION)).0, &mut *addr_of_mut!(BOOKKEEPING)) };
    let source = FixedRegion::new(region.get_mut()).map_err(|_| 1)?;
    let marks = Watermarks { min: 2, low: 8, high: 16, max: 32 };
    let builder = Builder::new(FRAMES as u32).cpus(1).watermarks(marks).fallback(FallbackPolicy::Always);
    let pool = builder.build_in(bookkeeping, source, OneCpu).map_err(|_| 2)?;
    let mut frames = [const { None }; FRAMES];
    pool.alloc_bulk_exact(Request::CRITICAL, &mut frames).map_err(|_| 3)?;
    if pool.alloc().err() != Some(AllocError::FallbackFailed) {
        return Err(4);
    }
    drop(frames);
    if pool.maintain().outcome != Outcome::Done || pool.stats().in_use != 0 {
        return Err(5);
    }
    pool.close().map(drop).map_err(|_| 6)
}

global_asm!(".globl _start", "_start:", "and rsp, -16", "call {start}", "ud2", start = sym start);

extern "C" fn start() -> ! {
    exit(check().err().unwrap_or(0))
}

fn exit(status: u8) -> ! {
    // SAFETY: exit_group(2) takes a status and does not come back.
    unsafe { asm!("syscall", in("rax") 231, in("rdi") u64::from(status), options(noreturn)) }
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    exit(101)
}

/// Named by the unwinding tables of `core`; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// # Safety
/// As for C's memset.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(start: *mut u8, byte: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's.
    unsafe { asm!("rep stosb", inout("rcx") count => _, inout("rdi") start => _, in("al") byte as u8) };
    start
}

/// # Safety
/// As for C's memcpy.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's.
    unsafe { asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _) };
    to
}
