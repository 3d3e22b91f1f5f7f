//! A bare-metal program that proves framepool in the place it was written for: interrupts at every instruction, several CPUs,
//! devices that do DMA through its tables. Which scenario to run is on the command line.
#![no_std]
#![no_main]

mod host;
mod machine;

use core::panic::PanicInfo;
use machine::{cpus, serial, start::StartInformation};

/// Where the first CPU enters Rust, with the address of what the loader left.
extern "C" fn first_cpu(_cpu: usize, start_information: u32) -> ! {
    cpus::enter(0);
    let start = StartInformation::at(start_information).expect("started by PVH");
    let mut words = start.words();
    say!("hello {:?}", words.next());
    let memory = start.free_memory().unwrap();
    say!("{:#x} {:#x} dmar {:?}", memory.start, memory.length, machine::acpi::table(start, b"DMAR").map(|t| t.len()));
    cpus::start(2);
    say!("cpus started");
    serial::exit(true)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("FAIL {info}");
    serial::exit(false)
}
