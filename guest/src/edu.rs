//! Drives QEMU's educational device: a buffer of 4 KiB, and DMA between it and memory.

use crate::machine::{
    apic::LocalApic,
    interrupts::{self, DEVICE, Interrupted},
    pci::Bus,
};
use core::{
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};
use framepool::vtd::SourceId;
use safe_mmio::{
    UniqueMmioPointer, field,
    fields::{ReadPureWrite, WriteOnly},
};

const VENDOR: u16 = 0x1234;
const DEVICE_ID: u16 = 0x11E8;
/// Where the device's own buffer is, as it sees it.
const BUFFER: u64 = 0x4_0000;
/// The longest transfer: the emulator's check of the end is strict.
pub const LONGEST: usize = 4095;

#[repr(C)]
struct Registers {
    _000: [u32; 24],
    _raise: u32,
    acknowledge: WriteOnly<u32>,
    _068: [u32; 6],
    source: ReadPureWrite<u64>,
    destination: ReadPureWrite<u64>,
    count: ReadPureWrite<u64>,
    command: ReadPureWrite<u64>,
}

const START: u64 = 1;
const TO_MEMORY: u64 = 2;
const INTERRUPT: u64 = 4;
/// The reason of the interrupt that the end of a transfer raises.
const TRANSFERRED: u32 = 0x100;

/// Looks at something that comes at once or not at all.
const PATIENCE: u32 = 1 << 16;

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The device reads memory.
    FromMemory,
    /// The device writes memory.
    ToMemory,
}

static REGISTERS: AtomicU64 = AtomicU64::new(0);
static OVER: AtomicBool = AtomicBool::new(false);
static LINK: AtomicUsize = AtomicUsize::new(0);

/// The device.
pub struct Edu {
    registers: UniqueMmioPointer<'static, Registers>,
    pub source: SourceId,
}

fn registers_at(address: u64) -> UniqueMmioPointer<'static, Registers> {
    // SAFETY: the firmware placed the registers there. The handler of the device's interrupts makes such a pointer too, while the
    // thread waits.
    unsafe { UniqueMmioPointer::new(NonNull::new(address as *mut Registers).expect("a placed device")) }
}

impl Edu {
    /// Finds the device and switches it on.
    pub fn find(bus: &mut Bus) -> Option<Self> {
        let device = bus.device(|found| found.vendor_id == VENDOR && found.device_id == DEVICE_ID)?;
        let address = bus.registers(device, 0)?;
        bus.enable_messages(device, DEVICE)?;
        interrupts::handle(DEVICE, on_transferred);
        REGISTERS.store(address, Ordering::Relaxed);
        let source = SourceId::new(device.bus, device.device, device.function)?;
        Some(Self { registers: registers_at(address), source })
    }

    /// Moves `length` bytes between the start of the device's buffer and `iova`, and waits for the interrupt that says it is over,
    /// whether it worked or not.
    pub fn transfer(&mut self, direction: Direction, iova: u64, length: usize) {
        OVER.store(false, Ordering::Relaxed);
        start(self.registers.reborrow(), direction, iova, length);
        wait(|| OVER.load(Ordering::Acquire));
    }

    /// As [`transfer`](Self::transfer), but at the end of each transfer the handler of its interrupt calls `link`, which says whether
    /// it has started another one with [`start_next`].
    pub fn transfer_chain(&mut self, mut link: &mut dyn FnMut() -> bool, iova: u64, length: usize) {
        LINK.store((&raw mut link).addr(), Ordering::Relaxed);
        self.transfer(Direction::ToMemory, iova, length);
        LINK.store(0, Ordering::Relaxed);
    }
}

/// Lets interrupts come until `over`.
fn wait(over: impl Fn() -> bool) {
    while !over() {
        // Between the two instructions no interrupt can be missed.
        x86_64::instructions::interrupts::enable_and_hlt();
        x86_64::instructions::interrupts::disable();
    }
}

/// Lets interrupts come for a moment, or until `over`.
pub fn wait_for(over: impl Fn() -> bool) {
    for _ in 0..PATIENCE {
        if over() {
            return;
        }
        x86_64::instructions::interrupts::enable();
        core::hint::spin_loop();
        x86_64::instructions::interrupts::disable();
    }
}

fn start(mut registers: UniqueMmioPointer<'_, Registers>, direction: Direction, iova: u64, length: usize) {
    let (source, destination, way) = match direction {
        Direction::FromMemory => (iova, BUFFER, 0),
        Direction::ToMemory => (BUFFER, iova, TO_MEMORY),
    };
    field!(registers, source).write(source);
    field!(registers, destination).write(destination);
    field!(registers, count).write(length as u64);
    field!(registers, command).write(START | way | INTERRUPT);
}

/// Starts the next transfer to memory, from the device's interrupt handler.
pub fn start_next(iova: u64, length: usize) {
    start(registers_at(REGISTERS.load(Ordering::Relaxed)), Direction::ToMemory, iova, length);
}

fn on_transferred(_: &mut Interrupted) {
    let mut registers = registers_at(REGISTERS.load(Ordering::Relaxed));
    field!(registers, acknowledge).write(TRANSFERRED);
    LocalApic::this().end_of_interrupt();
    let link = LINK.load(Ordering::Relaxed);
    // SAFETY: `transfer_chain` stored the address of this reference, and leaves it to us while it waits.
    let goes_on = link != 0 && unsafe { (*(link as *mut &mut dyn FnMut() -> bool))() };
    // Ordering: Release, to the Acquire in `transfer`: what the device did is done.
    OVER.store(!goes_on, Ordering::Release);
}
