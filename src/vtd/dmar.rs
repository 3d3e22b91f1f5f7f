//! Owns the reading of the ACPI table "DMAR", by which the firmware says where the units are, which devices are behind them, and
//! which memory devices already use (VT-d specification, chapter 8).
//!
//! ```text
//!   0 "DMAR"   4 length   8 revision   9 checksum   10 .. 35 names of the maker   36 host address width - 1   37 flags   48 structures
//!   structure:   0 type   2 length   4 ...          device scope in it:   0 type   1 length   4 enumeration id   5 bus   6 path
//! ```
//! [`Dmar::parse`] looks at every byte that counts, once: whatever it accepts can be iterated without errors. Nothing is copied,
//! nothing outside the table is read, and no bytes make it panic.

use core::{error::Error, fmt};

mod bytes;
mod reserved;
mod scope;
mod structure;

pub use reserved::ReservedMemory;
pub use scope::{DeviceScope, DeviceScopes, ScopeKind};
pub use structure::{Affinity, DeviceTlbPorts, HardwareUnit, NamespaceDevice, SocDeviceTlb, Structure};

use bytes::{Records, u8_at, u32_at};

/// Where the structures start.
const HEADER: usize = 48;

/// The DMAR table.
///
/// ```
/// # #[cfg(feature = "std")] {
/// use framepool::vtd::Dmar;
/// # let bytes = std::fs::read("examples/traces/DMAR.bin")?;
/// let table = Dmar::parse(&bytes)?;
/// assert_eq!(table.host_address_width(), 48);
/// let unit = table.hardware_units().next().unwrap();
/// assert_eq!((unit.segment, unit.registers.as_u64()), (0, 0xFED9_0000));
/// let behind: Vec<String> = unit.scopes.filter_map(|scope| scope.source_id()).map(|id| id.to_string()).collect();
/// assert_eq!(behind[..3], ["ff:00.0", "00:00.0", "00:01.0"]);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy)]
pub struct Dmar<'t> {
    /// The table, neither more nor less.
    bytes: &'t [u8],
}

impl<'t> Dmar<'t> {
    /// The table at the start of `bytes`, which may be longer than the table.
    ///
    /// Any context; bounded by the length of the table.
    ///
    /// # Errors
    /// [`DmarError`] names what is wrong, and where.
    pub fn parse(bytes: &'t [u8]) -> Result<Self, DmarError> {
        let available = bytes.len();
        if available < HEADER {
            return Err(DmarError::TooShort { available });
        }
        let signature = *bytes.first_chunk().ok_or(DmarError::TooShort { available })?;
        if &signature != b"DMAR" {
            return Err(DmarError::Signature { signature });
        }
        let length = u32_at(bytes, 4).ok_or(DmarError::TooShort { available })?;
        let bytes = usize::try_from(length)
            .ok()
            .filter(|&length| length >= HEADER)
            .and_then(|length| bytes.get(..length))
            .ok_or(DmarError::Length { length, available })?;
        let sum = bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
        if sum != 0 {
            return Err(DmarError::Checksum { sum });
        }
        let table = Self { bytes };
        let width = table.width_field();
        if !(11..64).contains(&width) {
            return Err(DmarError::HostAddressWidth { width: u16::from(width) + 1 });
        }
        for record in table.records() {
            let (offset, kind, body) = record?;
            Structure::read(offset, kind, body)?;
        }
        Ok(table)
    }

    /// How many bits a physical address has: 12 to 64.
    pub fn host_address_width(&self) -> u8 {
        self.width_field() + 1
    }

    /// The revision of the table.
    pub fn revision(&self) -> u8 {
        u8_at(self.bytes, 8).unwrap_or_default()
    }

    /// Whether the platform supports interrupt remapping.
    pub fn interrupt_remapping(&self) -> bool {
        self.flag(0)
    }

    /// Whether the firmware asks the system not to use extended xAPIC mode.
    pub fn x2apic_opt_out(&self) -> bool {
        self.flag(1)
    }

    /// Whether the firmware asks the system to keep DMA under control from the start, for devices that could be plugged in from
    /// outside.
    pub fn dma_control_opt_in(&self) -> bool {
        self.flag(2)
    }

    /// The structures of known types, in the order of the table; others are skipped, as the specification demands.
    ///
    /// Any context; a step is bounded by the length of the structures that it passes.
    pub fn structures(&self) -> impl Iterator<Item = Structure<'t>> + use<'t> {
        // `parse` has seen all of them; one that it did not accept is not in a table.
        self.records()
            .map_while(Result::ok)
            .filter_map(|(offset, kind, body)| Structure::read(offset, kind, body).ok().flatten())
    }

    /// The units (DRHD), in the order of the table: a unit that takes all devices of its segment that no other names comes last.
    ///
    /// Contexts and bound as for [`structures`](Self::structures).
    pub fn hardware_units(&self) -> impl Iterator<Item = HardwareUnit<'t>> + use<'t> {
        self.structures().filter_map(|structure| match structure {
            Structure::HardwareUnit(unit) => Some(unit),
            _ => None,
        })
    }

    /// The memory that devices already use (RMRR).
    ///
    /// Contexts and bound as for [`structures`](Self::structures).
    pub fn reserved_memory(&self) -> impl Iterator<Item = ReservedMemory<'t>> + use<'t> {
        self.structures().filter_map(|structure| match structure {
            Structure::ReservedMemory(region) => Some(region),
            _ => None,
        })
    }

    fn width_field(&self) -> u8 {
        u8_at(self.bytes, 36).unwrap_or_default()
    }

    fn flag(&self, bit: u32) -> bool {
        u8_at(self.bytes, 37).unwrap_or_default() >> bit & 1 != 0
    }

    fn records(&self) -> Records<'t> {
        Records::new(self.bytes, HEADER)
    }
}

impl fmt::Debug for Dmar<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Structures<'t>(Dmar<'t>);
        impl fmt::Debug for Structures<'_> {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.debug_list().entries(self.0.structures()).finish()
            }
        }
        formatter
            .debug_struct("Dmar")
            .field("revision", &self.revision())
            .field("host_address_width", &self.host_address_width())
            .field("structures", &Structures(*self))
            .finish_non_exhaustive()
    }
}

/// Why bytes are no DMAR table. Offsets are in bytes from the start of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DmarError {
    /// Fewer bytes than the header of the table has.
    TooShort {
        /// How many there are.
        available: usize,
    },
    /// Not "DMAR".
    Signature {
        /// What stands there.
        signature: [u8; 4],
    },
    /// The length is less than the header, or more than there is.
    Length {
        /// What the table says.
        length: u32,
        /// How many bytes there are.
        available: usize,
    },
    /// The bytes of the table do not add up to 0.
    Checksum {
        /// What they add up to.
        sum: u8,
    },
    /// The host address width is less than 12 or more than 64 bits.
    HostAddressWidth {
        /// What the table says, in bits.
        width: u16,
    },
    /// A structure ends beyond the table, or before its own header.
    StructureLength {
        /// Where it starts.
        offset: usize,
    },
    /// A structure is too short for what its type has.
    StructureTooShort {
        /// Where it starts.
        offset: usize,
        /// Its type.
        kind: u16,
    },
    /// A device scope ends beyond its structure, or has no whole path.
    ScopeLength {
        /// Where the structure starts.
        offset: usize,
    },
    /// The last byte of a reserved region is before the first, or is the last of all addresses.
    Region {
        /// Where the structure starts.
        offset: usize,
        /// The first byte of the region.
        base: u64,
        /// The last byte of the region.
        limit: u64,
    },
}

impl fmt::Display for DmarError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TooShort { available } => {
                write!(formatter, "{available} bytes are no DMAR table: its header has {HEADER}")
            }
            Self::Signature { signature } => {
                write!(formatter, "the table is \"{}\", not \"DMAR\"", signature.escape_ascii())
            }
            Self::Length { length, available } => {
                write!(formatter, "a table of {length} bytes in {available}: map all of it")
            }
            Self::Checksum { sum } => {
                write!(formatter, "the bytes add up to {sum:#04x}, not to 0: the table is damaged")
            }
            Self::HostAddressWidth { width } => {
                write!(formatter, "a host address width of {width} bits: 12 to 64 make sense")
            }
            Self::StructureLength { offset } => {
                write!(formatter, "the structure at {offset:#x} does not end within the table")
            }
            Self::StructureTooShort { offset, kind } => {
                write!(formatter, "the structure at {offset:#x} is too short for type {kind}")
            }
            Self::ScopeLength { offset } => {
                write!(formatter, "a device scope of the structure at {offset:#x} has a wrong length")
            }
            Self::Region { offset, base, limit } => {
                write!(formatter, "the reserved region at {offset:#x} is {base:#x}..={limit:#x}")
            }
        }
    }
}

impl Error for DmarError {}
