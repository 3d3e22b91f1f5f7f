//! Owns the local APIC of the CPU that runs this code (xAPIC, memory-mapped): its one-shot timer, and messages to other CPUs.

use core::ptr::NonNull;
use safe_mmio::{UniqueMmioPointer, field, fields::ReadPureWrite};

const ADDRESS: usize = 0xFEE0_0000;
/// Where a device writes to interrupt the first CPU.
pub const MESSAGE_ADDRESS: u32 = ADDRESS as u32;

/// Every register is 32 bits wide and stands alone in 16 bytes.
#[repr(C, align(16))]
struct Register {
    value: ReadPureWrite<u32>,
}

#[repr(C)]
struct Registers {
    _000: [Register; 2],
    _020: Register,
    _030: [Register; 8],
    end_of_interrupt: Register,
    _0c0: [Register; 3],
    spurious: Register,
    _100: [Register; 32],
    command_low: Register,
    command_high: Register,
    timer: Register,
    _330: [Register; 5],
    timer_initial: Register,
    _390: [Register; 5],
    timer_divide: Register,
}

const SOFTWARE_ENABLE: u32 = 1 << 8;
const DIVIDE_BY_ONE: u32 = 0b1011;
const DELIVERY_NMI: u32 = 0b100 << 8;
const DELIVERY_INIT: u32 = 0b101 << 8;
const DELIVERY_STARTUP: u32 = 0b110 << 8;
const LEVEL_ASSERT: u32 = 1 << 14;
const PENDING: u32 = 1 << 12;

/// The local APIC of this CPU.
pub struct LocalApic(UniqueMmioPointer<'static, Registers>);

/// Calls a method on a register of the APIC by its name.
macro_rules! register {
    ($apic:ident.$name:ident.$method:ident($($argument:expr)?)) => {{
        let mut register = field!($apic.0, $name);
        field!(register, value).$method($($argument)?)
    }};
}

impl LocalApic {
    /// The APIC of the CPU that runs this code.
    pub fn this() -> Self {
        let registers = NonNull::new(ADDRESS as *mut Registers).unwrap();
        // SAFETY: the registers are mapped there on every CPU, each sees its own, and a handler that comes in between writes
        // whole registers only.
        Self(unsafe { UniqueMmioPointer::new(registers) })
    }

    /// Switches the APIC on, with its timer as a one-shot that counts single ticks.
    pub fn enable(&mut self) {
        register!(self.spurious.write(SOFTWARE_ENABLE | 0xFF));
        register!(self.timer_divide.write(DIVIDE_BY_ONE));
        self.timer_raises(super::interrupts::TIMER);
    }

    pub fn end_of_interrupt(&mut self) {
        register!(self.end_of_interrupt.write(0));
    }

    /// The timer raises the interrupt `vector`.
    pub fn timer_raises(&mut self, vector: u8) {
        register!(self.timer.write(u32::from(vector)));
    }

    /// The timer raises an NMI. The emulator does what the local interrupt pins of a real APIC can do, for the timer too.
    pub fn timer_raises_nmi(&mut self) {
        register!(self.timer.write(DELIVERY_NMI));
    }

    /// Starts the timer: it raises its interrupt after `ticks`; with 0 it stops.
    pub fn start_timer(&mut self, ticks: u32) {
        register!(self.timer_initial.write(ticks));
    }

    /// Where the timer is started, for code that must do so in one instruction.
    pub fn timer_initial(&mut self) -> *mut u32 {
        register!(self.timer_initial.ptr_mut()).cast()
    }

    fn send(&mut self, cpu: usize, command: u32) {
        register!(self.command_high.write((cpu as u32) << 24));
        register!(self.command_low.write(command));
        while register!(self.command_low.read()) & PENDING != 0 {
            core::hint::spin_loop();
        }
    }

    /// Raises the interrupt `vector` on another CPU.
    pub fn interrupt(&mut self, cpu: usize, vector: u8) {
        self.send(cpu, u32::from(vector) | LEVEL_ASSERT);
    }

    /// Raises an NMI on another CPU.
    pub fn interrupt_unmaskably(&mut self, cpu: usize) {
        self.send(cpu, DELIVERY_NMI | LEVEL_ASSERT);
    }

    /// Starts another CPU at the page `page` of the first mebibyte.
    pub fn start_cpu(&mut self, cpu: usize, page: u8) {
        self.send(cpu, DELIVERY_INIT | LEVEL_ASSERT);
        self.send(cpu, DELIVERY_STARTUP | LEVEL_ASSERT | u32::from(page));
    }
}
