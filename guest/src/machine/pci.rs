//! Finds devices on the first PCI bus and switches them on.

use super::{acpi, start::StartInformation};
use virtio_drivers::transport::pci::bus::{
    Cam, Command, ConfigurationAccess, DeviceFunction, DeviceFunctionInfo, MmioCam, PciRoot,
};

/// Where the table MCFG says where configuration space is.
const MCFG_BASE: usize = 44;
const CAPABILITY_MESSAGES: u8 = 5;
const MESSAGES_ENABLED: u32 = 1 << 16;
const MESSAGES_WIDE: u32 = 1 << 23;

/// The first PCI bus.
pub struct Bus {
    pub root: PciRoot<MmioCam<'static>>,
    raw: MmioCam<'static>,
}

impl Bus {
    /// The bus whose configuration space the firmware's table MCFG names.
    pub fn find(start: &StartInformation) -> Option<Self> {
        let table = acpi::table(start, b"MCFG")?;
        let base = u64::from_le_bytes(table.get(MCFG_BASE..MCFG_BASE + 8)?.try_into().ok()?);
        // SAFETY: the firmware says that configuration space is there; one thread reaches devices through either, whole words at
        // a time.
        let access = || unsafe { MmioCam::new(base as *mut u8, Cam::Ecam) };
        Some(Self { root: PciRoot::new(access()), raw: access() })
    }

    /// The first device for which `wanted` holds, with memory and bus mastering switched on.
    pub fn device(&mut self, wanted: impl Fn(&DeviceFunctionInfo) -> bool) -> Option<DeviceFunction> {
        let (device, _) = self.root.enumerate_bus(0).find(|(_, information)| wanted(information))?;
        self.root.set_command(device, Command::MEMORY_SPACE | Command::BUS_MASTER);
        Some(device)
    }

    /// The address of the registers of a device, as the firmware placed them.
    pub fn registers(&mut self, device: DeviceFunction, bar: u8) -> Option<u64> {
        Some(self.root.bar_info(device, bar).ok()??.memory_address_size()?.0)
    }

    /// Lets the device interrupt the first CPU with `vector`, by a message.
    pub fn enable_messages(&mut self, device: DeviceFunction, vector: u8) -> Option<()> {
        let messages =
            self.root.capabilities(device).find(|capability| capability.id == CAPABILITY_MESSAGES)?.offset;
        let control = self.raw.read_word(device, messages);
        let data = if control & MESSAGES_WIDE != 0 { 12 } else { 8 };
        self.raw.write_word(device, messages + 4, super::apic::MESSAGE_ADDRESS);
        if data == 12 {
            self.raw.write_word(device, messages + 8, 0);
        }
        self.raw.write_word(device, messages + data, u32::from(vector));
        self.raw.write_word(device, messages, control | MESSAGES_ENABLED);
        Some(())
    }
}
