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

mod change;
#[allow(unsafe_code, reason = "complete states duties that only the caller can keep")]
mod detached;
mod error;
mod legacy;
mod legacy_tables;
mod pasid;
mod scalable;
mod scalable_tables;
mod store;

pub use change::EntryChange;
pub use detached::{ClosedTables, Detached};
pub use error::{AttachError, EntryError, Feature};
pub use legacy::{ContextEntry, ContextTranslation, RootEntry};
pub use legacy_tables::LegacyTables;
pub use pasid::{FirstStageRoot, PasidEntry, PasidTranslation, SecondStageRoot};
pub use scalable::{PasidDirectoryEntry, ScalableContextEntry, ScalableRootEntry};
pub use scalable_tables::{DeviceConfig, ScalableTables};

const PRESENT: u64 = 1 << 0;
/// Faults of the device are not reported (FPD).
const FAULTS_DISABLED: u32 = 1;

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
