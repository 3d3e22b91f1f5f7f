//! The machine under the host layer: boot, interrupts, processors, tables of the firmware. Nothing here knows framepool.

pub mod acpi;
pub mod apic;
pub mod boot;
pub mod cpus;
pub mod interrupts;
mod memory;
pub mod pci;
pub mod place;
pub mod serial;
pub mod start;
