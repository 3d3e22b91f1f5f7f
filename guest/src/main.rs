//! A bare-metal program that proves framepool in the place it was written for: interrupts at every instruction, several CPUs,
//! devices that do DMA through its tables. Which scenario to run is on the command line.
#![no_std]
#![no_main]

mod dma;
mod edu;
mod hand;
mod host;
mod ledger;
mod machine;
mod storm;
mod sweep;
mod unit;
mod virtio;

use core::panic::PanicInfo;
use framepool::FrameSource;
use host::PhysicalMemory;
use machine::{cpus, interrupts, place::Place, serial, start::StartInformation};
use sweep::Part;

static MEMORY: Place<PhysicalMemory> = Place::new();

/// Where the first CPU enters Rust, with the address of what the loader left.
extern "C" fn first_cpu(_cpu: usize, start_information: u32) -> ! {
    cpus::enter(0);
    interrupts::mask_legacy();
    let start = StartInformation::at(start_information).expect("started by PVH");
    let range = start.free_memory().expect("memory behind the image");
    // SAFETY: the firmware says that this is memory, and that nobody uses it; this is the first and only use of the static.
    let memory = unsafe { MEMORY.put(PhysicalMemory::new(range.start, range.length)) };
    ledger::begin(FrameSource::base(&memory));
    let mut words = start.words();
    let good = match words.next() {
        Some("sweep") => {
            let part = if words.next() == Some("builder") { Part::Builder } else { Part::Pool };
            sweep::run(memory, part, words.next())
        }
        Some("storm") => {
            let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(4);
            storm::run(memory, number(), number())
        }
        Some("block") => virtio::block(memory, start),
        Some("network") => virtio::network(memory, start),
        Some("dma") => dma::run(memory, start),
        scenario => {
            say!("FAIL no scenario {scenario:?}");
            false
        }
    };
    serial::exit(good)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("FAIL {info}");
    serial::exit(false)
}
