//! Owns the entries that lead from a request to the tables of a domain (VT-d specification, chapter 9): in legacy mode root and
//! context entries; in scalable mode root and context entries, the PASID directory and PASID table entries.
//!
//! Each kind of entry is a type whose fields are what software decides; reserved bits cannot be expressed. `encode` refuses
//! addresses that do not fit; `decode` refuses reserved bits and values, as hardware does, and returns nothing for an entry that is
//! not present.
//!
//! # The order of the stores
//! An entry has more words than one store writes. P is in word 0: all other words are written first, word 0 last, with a Release
//! store; a unit that does not snoop sees the line after it is flushed (ECAP_REG.C). To take an entry away, P is cleared first and
//! alone; the other words stay until the unit has confirmed that it has forgotten the entry, since it may be in the middle of
//! reading it.

use super::{
    bits::{ADDRESS, address, bit, flag},
    width::Levels,
};
use crate::PhysAddr;
use core::{error::Error, fmt};

mod legacy;
mod pasid;
mod scalable;

pub use legacy::{ContextEntry, ContextTranslation, RootEntry};
pub use pasid::{FirstStageRoot, PasidEntry, PasidTranslation, SecondStageRoot};
pub use scalable::{PasidDirectoryEntry, ScalableContextEntry, ScalableRootEntry};

const PRESENT: u64 = 1 << 0;
/// Faults of the device are not reported (FPD).
const FAULTS_DISABLED: u32 = 1;

/// Why a value is no entry, or words are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryError {
    /// The address of a table is not a multiple of 4 KiB.
    Misaligned {
        /// The address.
        table: PhysAddr,
    },
    /// The address of a table has more than 52 bits.
    BeyondWidth {
        /// The address.
        table: PhysAddr,
    },
    /// Bits are set that must be 0.
    Reserved {
        /// The number of the word, from 0.
        word: usize,
        /// The bits.
        bits: u64,
    },
    /// A field has a value that is reserved.
    Value {
        /// The name of the field in the specification.
        field: &'static str,
        /// The value.
        value: u64,
    },
}

impl fmt::Display for EntryError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Misaligned { table } => write!(formatter, "the table {table} must be a multiple of 4 KiB"),
            Self::BeyondWidth { table } => {
                write!(formatter, "the table {table} is beyond what an entry can hold: 52 bits")
            }
            Self::Reserved { word, bits } => {
                write!(formatter, "bits {bits:#x} of word {word} are reserved and must be 0")
            }
            Self::Value { field, value } => write!(formatter, "{field} must not be {value:#x} here"),
        }
    }
}

impl Error for EntryError {}

/// The address of a table, as it stands in an entry.
fn pointer(table: PhysAddr) -> Result<u64, EntryError> {
    match table {
        _ if table.as_u64() & !ADDRESS == 0 => Ok(table.as_u64()),
        _ if table.is_aligned(4096) => Err(EntryError::BeyondWidth { table }),
        _ => Err(EntryError::Misaligned { table }),
    }
}

/// Refuses all bits of word number `word` but `used`.
fn reserved(word: usize, value: u64, used: u64) -> Result<(), EntryError> {
    match value & !used {
        0 => Ok(()),
        bits => Err(EntryError::Reserved { word, bits }),
    }
}

/// The field AW: how many levels the second-stage tables have.
fn width_field(levels: Levels) -> u64 {
    u64::from(levels.count()) - 2
}

fn levels_of(width: u64) -> Result<Levels, EntryError> {
    match width {
        1 => Ok(Levels::Three),
        2 => Ok(Levels::Four),
        3 => Ok(Levels::Five),
        value => Err(EntryError::Value { field: "AW", value }),
    }
}
