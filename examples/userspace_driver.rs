//! Memory for a driver in user space: huge pages if there are any, locked, with physical addresses if the system tells them. What was
//! not allowed is said, and done without.
//!
//! `cargo run --example userspace_driver`; as root, and after `sysctl vm.nr_hugepages=8`, more is allowed.
//!
//! The kernel may still move a locked page. A driver that hands physical addresses to a device wants huge pages, which stay, or VFIO,
//! which pins; behind a unit it hands out addresses of a domain instead, as the second half does.

use framepool::{
    AnonymousMemory, Builder, Frame, FrameSource, HugePages, LinuxPlatform, PhysAddr, Request,
    vtd::{DomainConfig, Iova, Levels, Permissions, SecondStageDomain},
};
use nix::sys::mman::mlock;
use std::{error::Error, fs::File, io, os::unix::fs::FileExt};

/// Four huge pages' worth of frames of 4 KiB.
const FRAMES: u32 = 4 * 512;
const FRAME: usize = 4096;
/// Descriptors in the ring.
const RING: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let memory = take_memory()?;
    lock(&memory);
    let pool = Builder::new(FRAMES).start(memory)?;
    let mut buffers = [const { None }; RING];
    pool.alloc_bulk_exact(Request::ORDINARY.zeroed(), &mut buffers)?;
    let buffers: Vec<_> = buffers.into_iter().flatten().collect();

    match physical_addresses(&buffers) {
        Ok(addresses) => {
            let in_a_row = addresses.windows(2).filter(|pair| pair[1] == pair[0] + FRAME as u64).count();
            println!(
                "physical addresses: known, the first is {:#x}; {in_a_row} of {} follow the one before",
                addresses[0],
                RING - 1
            );
        }
        Err(why) => println!("physical addresses: not known ({why}); behind a unit none are needed"),
    }

    // What the device is given: one address after the other, wherever the buffers are.
    let domain = SecondStageDomain::new(DomainConfig::new(Levels::Three), &*pool)?;
    let (ring, pages) =
        (Iova::new(0x10_0000), buffers.iter().map(Frame::phys_addr).collect::<Vec<PhysAddr>>());
    // SAFETY: the buffers are ours until the unmap below is complete, and there is no device here.
    unsafe { domain.map_pages(ring, &pages, Permissions::WRITE)? };
    println!(
        "behind a unit, {RING} buffers are {} KiB from {ring} on, in {} table frames",
        (RING * FRAME) >> 10,
        domain.table_frames()
    );
    let invalidation = domain.unmap(ring, (RING * FRAME) as u64)?;
    // SAFETY: there is no unit that could remember anything.
    unsafe { (invalidation.complete(), domain.close().complete()) };

    drop(buffers);
    println!("{}", pool.stats());
    pool.close()?;
    Ok(())
}

/// The best memory that there is.
fn take_memory() -> io::Result<AnonymousMemory> {
    let window = AnonymousMemory::builder(FRAMES).populate(true);
    for (huge_pages, name) in [
        (HugePages::Explicit, "huge pages: from the system's pool"),
        (HugePages::Transparent, "huge pages: transparent ones, if the kernel finds any"),
    ] {
        match window.huge_pages(huge_pages).build() {
            Ok(memory) => {
                println!("{name}");
                return Ok(memory);
            }
            Err(why) => println!("{name}: no ({why})"),
        }
    }
    println!("huge pages: none");
    window.build()
}

/// Keeps the memory from being paged out, if that is allowed.
fn lock(memory: &AnonymousMemory) {
    let start = memory.pointer(memory.base()).cast();
    // SAFETY: locking changes nothing of the contents, and the whole window is mapped.
    match unsafe { mlock(start, FRAMES as usize * FRAME) } {
        Ok(()) => println!("locked: {} MiB", (FRAMES as usize * FRAME) >> 20),
        Err(why) => println!("locked: no ({why}): raise `ulimit -l`"),
    }
}

/// Where the frames are in physical memory, as `/proc/self/pagemap` says.
fn physical_addresses(
    frames: &[Frame<'_, AnonymousMemory, LinuxPlatform>],
) -> Result<Vec<u64>, Box<dyn Error>> {
    let map = File::open("/proc/self/pagemap")?;
    let address = |frame: &Frame<'_, _, _>| {
        let mut entry = [0; 8];
        map.read_exact_at(&mut entry, (frame.as_ptr().addr().get() / FRAME * 8) as u64)?;
        let entry = u64::from_ne_bytes(entry);
        // Bit 63: present; bits 0 to 54: the number of the page, which the kernel hides from whoever may not know it.
        match (entry >> 63, entry & ((1 << 55) - 1)) {
            (0, _) => Err("a frame is not in memory".into()),
            (_, 0) => Err("the kernel hides them: CAP_SYS_ADMIN is needed".into()),
            (_, page) => Ok(page * FRAME as u64),
        }
    };
    frames.iter().map(address).collect()
}
