//! Owns the structures of the table, type by type (VT-d specification, sections 8.2 to 8.8).

use super::{
    DmarError,
    bytes::{u8_at, u16_at, u32_at, u64_at},
    reserved::ReservedMemory,
    scope::DeviceScopes,
};
use crate::PhysAddr;

/// A structure of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Structure<'t> {
    /// A unit (DRHD).
    HardwareUnit(HardwareUnit<'t>),
    /// Memory that devices already use (RMRR).
    ReservedMemory(ReservedMemory<'t>),
    /// Root ports behind which devices may have TLBs (ATSR).
    DeviceTlbPorts(DeviceTlbPorts<'t>),
    /// Where a unit is in the memory topology (RHSA).
    Affinity(Affinity),
    /// A device that has a name in the ACPI namespace (ANDD).
    NamespaceDevice(NamespaceDevice<'t>),
    /// Integrated devices with TLBs (SATC).
    SocDeviceTlb(SocDeviceTlb<'t>),
}

/// A unit: "DMA Remapping Hardware Unit Definition", section 8.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardwareUnit<'t> {
    /// The unit takes all devices of its segment that no other unit names.
    pub includes_all: bool,
    /// The PCI segment of its devices.
    pub segment: u16,
    /// Where its registers are.
    pub registers: PhysAddr,
    /// How many bytes the registers take, a power of two times 4 KiB.
    pub registers_size: u64,
    /// Its devices.
    pub scopes: DeviceScopes<'t>,
}

/// Root ports behind which devices may have TLBs: "Root Port ATS Capability Reporting", section 8.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceTlbPorts<'t> {
    /// All root ports of the segment are meant.
    pub all_ports: bool,
    /// The PCI segment.
    pub segment: u16,
    /// The root ports.
    pub scopes: DeviceScopes<'t>,
}

/// The memory that is near a unit: "Remapping Hardware Static Affinity", section 8.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// Where the registers of the unit are.
    pub registers: PhysAddr,
    /// The proximity domain, as the SRAT table numbers them.
    pub proximity_domain: u32,
}

/// A device that has a name in the ACPI namespace: "ACPI Name-space Device Declaration", section 8.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceDevice<'t> {
    /// The number that device scopes have as their enumeration id.
    pub number: u8,
    /// The name of the object, without the zero at its end.
    pub object_name: &'t [u8],
}

/// Integrated devices with TLBs: "SoC Integrated Address Translation Cache", section 8.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocDeviceTlb<'t> {
    /// The devices work only with their TLBs on.
    pub required: bool,
    /// The PCI segment.
    pub segment: u16,
    /// The devices.
    pub scopes: DeviceScopes<'t>,
}

impl<'t> Structure<'t> {
    /// The structure of type `kind` in `body`, header included, which starts at `offset` in the table; nothing if the type is not
    /// known.
    pub(super) fn read(offset: usize, kind: u16, body: &'t [u8]) -> Result<Option<Self>, DmarError> {
        let short = DmarError::StructureTooShort { offset, kind };
        let flag = |at| u8_at(body, at).map(|flags| flags & 1 != 0).ok_or(short);
        let segment = |at| u16_at(body, at).ok_or(short);
        let address = |at| u64_at(body, at).ok_or(short);
        let scopes = |at| {
            let bytes = body.get(at..).ok_or(short)?;
            DeviceScopes::checked(bytes).ok_or(DmarError::ScopeLength { offset })
        };
        Ok(Some(match kind {
            0 => Self::HardwareUnit(HardwareUnit {
                includes_all: flag(4)?,
                segment: segment(6)?,
                registers: PhysAddr::new(address(8)?),
                registers_size: 4096 << (u8_at(body, 5).ok_or(short)? & 0xF),
                scopes: scopes(16)?,
            }),
            1 => {
                let (base, limit) = (address(8)?, address(16)?);
                Self::ReservedMemory(
                    ReservedMemory::new(segment(6)?, base, limit, scopes(24)?).ok_or(DmarError::Region {
                        offset,
                        base,
                        limit,
                    })?,
                )
            }
            2 => Self::DeviceTlbPorts(DeviceTlbPorts {
                all_ports: flag(4)?,
                segment: segment(6)?,
                scopes: scopes(8)?,
            }),
            3 => Self::Affinity(Affinity {
                registers: PhysAddr::new(address(8)?),
                proximity_domain: u32_at(body, 16).ok_or(short)?,
            }),
            4 => {
                let number = u8_at(body, 7).ok_or(short)?;
                let name = body.get(8..).ok_or(short)?;
                let object_name = name.split(|&byte| byte == 0).next().unwrap_or_default();
                Self::NamespaceDevice(NamespaceDevice { number, object_name })
            }
            5 => Self::SocDeviceTlb(SocDeviceTlb {
                required: flag(4)?,
                segment: segment(6)?,
                scopes: scopes(8)?,
            }),
            _ => return Ok(None),
        }))
    }
}
