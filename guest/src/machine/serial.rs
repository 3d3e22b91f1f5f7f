//! Owns the way out: text on the first serial port, and the exit of the whole machine.

use core::fmt;
use x86_64::instructions::port::Port;

const DATA: u16 = 0x3F8;
const LINE_STATUS: u16 = DATA + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// QEMU's isa-debug-exit; the status of the process is twice the value plus one.
const EXIT: u16 = 0xF4;

/// The first serial port, as the firmware set it up.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the port is the serial port of every PC; writing a byte to it touches no memory.
            unsafe {
                while Port::<u8>::new(LINE_STATUS).read() & TRANSMITTER_EMPTY == 0 {}
                Port::<u8>::new(DATA).write(byte);
            }
        }
        Ok(())
    }
}

/// Writes a line. Thread context only, one CPU at a time.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => {{
        use core::fmt::Write;
        // The port never fails.
        let _ = writeln!($crate::machine::serial::Serial, $($argument)*);
    }};
}

/// Ends the machine; the runner takes anything but success for failure.
pub fn exit(success: bool) -> ! {
    // SAFETY: the port belongs to QEMU's debug exit device alone.
    unsafe { Port::<u32>::new(EXIT).write(if success { 0x10 } else { 0x11 }) }
    loop {
        x86_64::instructions::hlt();
    }
}
