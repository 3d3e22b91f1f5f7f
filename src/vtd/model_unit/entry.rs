//! Owns the unit's own reading of entries, bit by bit, reserved bits included (VT-d specification, sections 9.7 and 9.8). It shares nothing
//! with what the builder writes by, so that a mistake there does not hide here.

use crate::{
    PhysAddr,
    vtd::{DomainConfig, PageSizes, Permissions, Stage},
};
use core::{error::Error, fmt};

/// The shape of what the unit walks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) stage: Stage,
    pub(super) levels: u32,
    pub(super) page_sizes: PageSizes,
    pub(super) address_width: u8,
    pub(super) host_address_width: u8,
    pub(super) snoop_control: bool,
}

impl Shape {
    pub(super) fn new(stage: Stage, config: &DomainConfig, snoop_control: bool) -> Self {
        Self {
            stage,
            levels: config.levels.count(),
            page_sizes: config.page_sizes,
            address_width: config.address_width,
            host_address_width: config.host_address_width,
            snoop_control,
        }
    }
}

/// What an entry means to hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Absent,
    Leaf { target: u64, permissions: Permissions },
    Table { frame: PhysAddr, permissions: Permissions },
}

/// What hardware refuses in an entry that is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryProblem {
    /// Bits that must be 0 are set.
    Reserved {
        /// These.
        bits: u64,
    },
    /// The address in the entry has more bits than the host's physical addresses.
    BeyondHostWidth {
        /// The host's address width.
        width: u8,
    },
    /// A page in the interrupt range, to which no translation may lead.
    Interrupts,
    /// A first-stage entry without US, which a device's requests need.
    Supervisor,
}

impl fmt::Display for EntryProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reserved { bits } => write!(formatter, "the reserved bits {bits:#x} are set"),
            Self::BeyondHostWidth { width } => {
                write!(formatter, "the address has more than the host's {width} bits")
            }
            Self::Interrupts => formatter.write_str("the page meets the interrupt range"),
            Self::Supervisor => formatter.write_str("US is clear: a device may not use the entry"),
        }
    }
}

impl Error for EntryProblem {}

/// The bits from `low` up to, but not including, `end`.
const fn bits(low: u32, end: u32) -> u64 {
    ((1 << end) - 1) & !((1 << low) - 1)
}

/// How many low bits of an address an entry at `level` does not translate.
pub(super) const fn untranslated(level: u32) -> u32 {
    9 * level + 3
}

/// The bytes that an entry at `level` covers.
pub(super) const fn covers(level: u32) -> u64 {
    1 << untranslated(level)
}

/// The first address that the entry at `level` for `address` covers.
pub(super) const fn first_of(address: u64, level: u32) -> u64 {
    address & !(covers(level) - 1)
}

/// The index of the entry for `address` in a table of `level`.
pub(super) const fn index_of(address: u64, level: u32) -> usize {
    (address >> untranslated(level) & 511) as usize
}

/// Reads an entry of a table of `level`.
pub(super) fn read(entry: u64, level: u32, shape: &Shape) -> Result<Meaning, EntryProblem> {
    const LARGE: u64 = 1 << 7;
    let (present, readable, writable) = match shape.stage {
        Stage::First => (entry & 1 != 0, true, entry & 2 != 0),
        Stage::Second => (entry & 3 != 0, entry & 1 != 0, entry & 2 != 0),
    };
    if !present {
        return Ok(Meaning::Absent);
    }
    if entry & bits(shape.host_address_width.into(), 52) != 0 {
        return Err(EntryProblem::BeyondHostWidth { width: shape.host_address_width });
    }
    // In a table of the last level bit 7 is a memory type or ignored.
    let large = level > 1 && entry & LARGE != 0;
    let mut reserved = match level {
        2 if shape.page_sizes.contains(PageSizes::SIZE_2M) => 0,
        3 if shape.page_sizes.contains(PageSizes::SIZE_1G) => 0,
        1 => 0,
        _ => LARGE,
    };
    let is_leaf = level == 1 || large;
    match shape.stage {
        // XD is reserved, since no PASID entry enables it; bit 12 of a large leaf is a memory type.
        Stage::First => {
            reserved |= 1 << 63;
            if large {
                reserved |= bits(13, untranslated(level).clamp(13, 30));
            }
        }
        // TM is reserved without device TLBs. SNP is in leaves only.
        Stage::Second => {
            reserved |= 1 << 62;
            if !is_leaf || !shape.snoop_control {
                reserved |= 1 << 11;
            }
            if large {
                reserved |= bits(12, untranslated(level).min(30));
            }
        }
    }
    if entry & reserved != 0 {
        return Err(EntryProblem::Reserved { bits: entry & reserved });
    }
    if shape.stage == Stage::First && entry & 1 << 2 == 0 {
        return Err(EntryProblem::Supervisor);
    }
    let mut permissions = Permissions::empty();
    permissions.set(Permissions::READ, readable);
    permissions.set(Permissions::WRITE, writable);
    if is_leaf {
        let target = entry & bits(untranslated(level), 52);
        // 0xFEEx_xxxx lies in it, or it lies there.
        if target <= 0xFEEF_FFFF && target + covers(level) > 0xFEE0_0000 {
            return Err(EntryProblem::Interrupts);
        }
        return Ok(Meaning::Leaf { target, permissions });
    }
    Ok(Meaning::Table { frame: PhysAddr::new(entry & bits(12, 52)), permissions })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vtd::Levels;

    fn shape(stage: Stage) -> Shape {
        let config = DomainConfig {
            page_sizes: PageSizes::SIZE_2M,
            host_address_width: 46,
            ..DomainConfig::new(Levels::Five)
        };
        Shape::new(stage, &config, false)
    }

    #[test]
    fn second_stage_entries_are_read_by_the_table_of_the_specification() {
        let shape = shape(Stage::Second);
        let table = |frame| Meaning::Table { frame: PhysAddr::new(frame), permissions: Permissions::all() };
        let leaf =
            |target, bits| Meaning::Leaf { target, permissions: Permissions::from_bits_truncate(bits) };
        let reserved = |bits| Err(EntryProblem::Reserved { bits });
        // Entry, level, meaning.
        let cases = [
            (0, 1, Ok(Meaning::Absent)),
            (!3, 3, Ok(Meaning::Absent)),
            (0x5003, 5, Ok(table(0x5000))),
            (0x5001, 1, Ok(leaf(0x5000, 1))),
            (0x5002, 1, Ok(leaf(0x5000, 2))),
            (0x20_0083, 2, Ok(leaf(0x20_0000, 3))),
            (1 << 63 | 0x3FF << 52 | 1 << 10 | 3 << 8 | 0x5003, 1, Ok(leaf(0x5000, 3))),
            (1 << 63 | 0x3FF << 52 | 1 << 10 | 3 << 8 | 0x5003, 2, Ok(table(0x5000))),
            // Snoop: never in a table entry, and not without snoop control in a leaf.
            (0x5803, 2, reserved(1 << 11)),
            (0x5803, 1, reserved(1 << 11)),
            // Transient mapping.
            (1 << 62 | 0x5003, 1, reserved(1 << 62)),
            // A size that the unit does not have, and levels that have no leaves.
            (0x4000_0083, 3, reserved(1 << 7)),
            (0x5083, 4, reserved(1 << 7 | 0x5000)),
            (0x83, 5, reserved(1 << 7)),
            // The address below a large page.
            (0x20_1083, 2, reserved(0x1000)),
            (0x30_0083, 2, reserved(0x10_0000)),
            // The interrupt range, and its neighbours.
            (0xFEE0_0083, 2, Err(EntryProblem::Interrupts)),
            (0xFEDF_F003, 1, Ok(leaf(0xFEDF_F000, 3))),
            (0xFEE0_0001, 1, Err(EntryProblem::Interrupts)),
            (0xFEEF_F003, 1, Err(EntryProblem::Interrupts)),
            (0xFEF0_0003, 1, Ok(leaf(0xFEF0_0000, 3))),
            (1 << 46 | 3, 1, Err(EntryProblem::BeyondHostWidth { width: 46 })),
            (1 << 51 | 3, 4, Err(EntryProblem::BeyondHostWidth { width: 46 })),
        ];
        for (entry, level, expected) in cases {
            assert_eq!(read(entry, level, &shape), expected, "{entry:#x} at level {level}");
        }
        let snooping = Shape { snoop_control: true, ..shape };
        assert_eq!(read(0x5803, 1, &snooping), Ok(leaf(0x5000, 3)));
        assert_eq!(read(0x5803, 2, &snooping), reserved(1 << 11));
    }

    #[test]
    fn first_stage_entries_are_read_as_the_processor_reads_them() {
        let shape = shape(Stage::First);
        let leaf =
            |target, bits| Meaning::Leaf { target, permissions: Permissions::from_bits_truncate(bits) };
        let table = Meaning::Table { frame: PhysAddr::new(0x5000), permissions: Permissions::all() };
        let reserved = |bits| Err(EntryProblem::Reserved { bits });
        let cases = [
            (!1, 2, Ok(Meaning::Absent)),
            (0x5027, 4, Ok(table)),
            (0x5005, 1, Ok(leaf(0x5000, 1))),
            (0x5067, 1, Ok(leaf(0x5000, 3))),
            (0x20_1087, 2, Ok(leaf(0x20_0000, 3))),
            (0x7FF << 52 | 0xF78 | 0x5007, 1, Ok(leaf(0x5000, 3))),
            (0x5003, 1, Err(EntryProblem::Supervisor)),
            (1 << 63 | 0x5007, 1, reserved(1 << 63)),
            (0x87, 4, reserved(1 << 7)),
            (0x4000_0087, 3, reserved(1 << 7)),
            (0x20_2087, 2, reserved(0x2000)),
            (1 << 46 | 7, 1, Err(EntryProblem::BeyondHostWidth { width: 46 })),
        ];
        for (entry, level, expected) in cases {
            assert_eq!(read(entry, level, &shape), expected, "{entry:#x} at level {level}");
        }
    }
}
