//! Owns the errors of entries and of the tables in which they stand.

use crate::{
    PhysAddr,
    vtd::{DomainId, Levels, Pasid, SourceId, TranslationMode},
};
use core::{error::Error, fmt};

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

/// What an entry asks for and the unit does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Feature {
    /// A translation mode.
    Mode(TranslationMode),
    /// First-stage tables.
    FirstStage,
    /// Second-stage tables in scalable mode.
    SecondStage,
    /// First-stage tables nested into second-stage ones.
    Nesting,
    /// Tables of so many levels.
    Levels(Levels),
    /// Requests that are not translated.
    PassThrough,
    /// TLBs in devices.
    DeviceTlb,
    /// Requests with a PASID, or with one of so many bits.
    Pasids,
    /// Requests without a PASID that are translated by another than PASID 0.
    DefaultPasid,
    /// Page requests.
    PageRequests,
    /// Requests with the rights of a supervisor.
    SupervisorRequests,
    /// Snooping on demand.
    SnoopControl,
    /// Snooped walks in scalable mode.
    SnoopedWalks,
    /// Accessed and dirty bits in second-stage tables.
    AccessedDirty,
    /// The domain id.
    DomainId(DomainId),
}

/// Why an entry could not be written or taken away. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttachError {
    /// The entry itself is wrong.
    Entry(EntryError),
    /// The unit would refuse the entry.
    Unsupported(Feature),
    /// The address of a table is beyond the host's address width.
    TableBeyondWidth {
        /// The address.
        table: PhysAddr,
        /// The width in bits.
        width: u8,
    },
    /// There is an entry for the device, or one that was removed and not completed.
    Occupied {
        /// The device.
        source: SourceId,
    },
    /// There is no entry for the device.
    NotAttached {
        /// The device.
        source: SourceId,
    },
    /// There is an entry for the PASID, or one that was removed and not completed.
    PasidOccupied {
        /// The device.
        source: SourceId,
        /// The PASID.
        pasid: Pasid,
    },
    /// There is no entry for the PASID.
    PasidNotAttached {
        /// The device.
        source: SourceId,
        /// The PASID.
        pasid: Pasid,
    },
    /// The PASID is beyond the device's directory.
    PasidBeyondDirectory {
        /// The PASID.
        pasid: Pasid,
    },
    /// The unit does not snoop, and the allocator cannot flush.
    NoFlush,
    /// No frame for a table.
    OutOfFrames,
}

impl From<EntryError> for AttachError {
    fn from(error: EntryError) -> Self {
        Self::Entry(error)
    }
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

impl fmt::Display for Feature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Mode(mode) => write!(formatter, "{mode:?} mode"),
            Self::FirstStage => write!(formatter, "first-stage tables"),
            Self::SecondStage => write!(formatter, "second-stage tables in scalable mode"),
            Self::Nesting => write!(formatter, "nested tables"),
            Self::Levels(levels) => write!(formatter, "tables of {} levels", levels.count()),
            Self::PassThrough => write!(formatter, "requests that pass through"),
            Self::DeviceTlb => write!(formatter, "TLBs in devices"),
            Self::Pasids => write!(formatter, "such PASIDs"),
            Self::DefaultPasid => write!(formatter, "default PASIDs but 0"),
            Self::PageRequests => write!(formatter, "page requests"),
            Self::SupervisorRequests => write!(formatter, "supervisor requests"),
            Self::SnoopControl => write!(formatter, "snoop control"),
            Self::SnoopedWalks => write!(formatter, "snooped walks in scalable mode"),
            Self::AccessedDirty => write!(formatter, "accessed and dirty bits in second-stage tables"),
            Self::DomainId(id) => write!(formatter, "domain id {id}"),
        }
    }
}

impl fmt::Display for AttachError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Entry(error) => error.fmt(formatter),
            Self::Unsupported(feature) => {
                write!(formatter, "the unit does not have {feature}: ask its capabilities first")
            }
            Self::TableBeyondWidth { table, width } => {
                write!(
                    formatter,
                    "the table {table} is beyond the host's {width} bits of address: limit the allocator"
                )
            }
            Self::Occupied { source } => {
                write!(formatter, "{source} has an entry: detach it and complete that first")
            }
            Self::NotAttached { source } => write!(formatter, "{source} has no entry: attach it first"),
            Self::PasidOccupied { source, pasid } => write!(
                formatter,
                "PASID {} of {source} has an entry: detach it and complete that first",
                pasid.get()
            ),
            Self::PasidNotAttached { source, pasid } => {
                write!(formatter, "PASID {} of {source} has no entry: attach it first", pasid.get())
            }
            Self::PasidBeyondDirectory { pasid } => {
                write!(formatter, "PASID {} is beyond the directory: 15 bits fit", pasid.get())
            }
            Self::NoFlush => {
                write!(
                    formatter,
                    "the unit does not snoop: give an allocator that flushes, see FlushedFrames"
                )
            }
            Self::OutOfFrames => {
                write!(formatter, "a frame for a table is lacking: free some, or wait for the pool's worker")
            }
        }
    }
}

impl Error for EntryError {}
impl Error for AttachError {}
