//! Owns the errors of the builder: each names the offending value and says what to do; none leaves anything changed.

use super::width::{Iova, Levels};
use crate::{AllocError, PhysAddr};
use core::{error::Error, fmt};

/// A range that no domain, or not this one, can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RangeError {
    /// A range of no bytes.
    Empty,
    /// The address or the length is not a multiple of 4 KiB.
    Misaligned {
        /// The first address.
        iova: Iova,
        /// The length in bytes.
        length: u64,
    },
    /// The range ends beyond the domain's address width, or beyond 2⁶⁴.
    BeyondWidth {
        /// The first address.
        iova: Iova,
        /// The length in bytes.
        length: u64,
        /// The domain's address width in bits.
        width: u8,
    },
}

/// Why a domain could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DomainError {
    /// The first stage has 4 or 5 levels.
    TooFewLevels {
        /// What was asked for.
        levels: Levels,
    },
    /// An address width of less than 13 bits or more than the levels translate.
    AddressWidth {
        /// What was asked for, in bits.
        width: u8,
        /// What the levels translate, in bits.
        most: u8,
    },
    /// A host address width of less than 13 or more than 52 bits.
    HostAddressWidth {
        /// What was asked for, in bits.
        width: u8,
    },
    /// Snooping is to be forced, but the hardware or the format cannot.
    NoSnoopControl,
    /// Hardware is to note accesses in the second stage, but cannot, or does not snoop its tables, as that needs.
    NoAccessedDirty,
    /// The hardware does not snoop its tables, and the allocator does not flush them.
    NoFlush,
    /// The hardware must be told of new mappings, and the format is not [`CachingMode`](super::CachingMode).
    MapsUntold,
    /// No frame for the root table.
    OutOfFrames,
    /// The allocator handed out a frame that the hardware cannot address.
    FrameBeyondWidth {
        /// The frame.
        frame: PhysAddr,
    },
}

/// Why a range could not be mapped. The tables are what they were.
///
/// ```
/// # #[cfg(feature = "std")] {
/// # use framepool::{AnonymousMemory, Builder, FallbackPolicy, PhysAddr, Watermarks, vtd::*};
/// # let marks = Watermarks { min: 0, low: 0, high: 3, max: 3 };
/// let pool = Builder::new(3).watermarks(marks).fallback(FallbackPolicy::Never).start(AnonymousMemory::new(3)?)?;
/// let domain = SecondStageDomain::new(DomainConfig::new(Levels::Four), &*pool)?; // takes one frame
/// // SAFETY: no device walks this domain.
/// let refused = unsafe { domain.map(Iova::new(0), PhysAddr::new(0), 0x1000, Permissions::READ) };
/// assert_eq!(refused, Err(MapError::OutOfFrames { missing: 1 }), "a page needs a table of each level");
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MapError {
    /// The range itself is wrong.
    Range(RangeError),
    /// The physical address is not a multiple of 4 KiB.
    TargetMisaligned {
        /// The address.
        target: PhysAddr,
    },
    /// The physical range ends beyond the host's address width.
    TargetBeyondWidth {
        /// The first address.
        target: PhysAddr,
        /// The length in bytes.
        length: u64,
        /// The host's address width in bits.
        width: u8,
    },
    /// A part of the physical range is that of interrupts ([`INTERRUPT_RANGE`](super::INTERRUPT_RANGE)), to which hardware lets no
    /// translation lead, and which makes all of a large leaf over it unusable.
    InterruptTarget {
        /// The first address.
        target: PhysAddr,
        /// The length in bytes.
        length: u64,
    },
    /// Neither read nor write: such an entry means "not present".
    NoPermissions,
    /// Write without read, which the first stage does not have.
    WriteOnly,
    /// A page of the range is mapped already.
    AlreadyMapped {
        /// The first such page.
        iova: Iova,
    },
    /// A map that may wait for frames ([`Domain::map_async`](super::Domain::map_async)) did not get them.
    NotServed {
        /// Why.
        reason: AllocError,
    },
    /// The allocator has fewer frames than the tables need.
    OutOfFrames {
        /// How many were lacking.
        missing: u64,
    },
    /// The allocator handed out a frame that the hardware cannot address.
    FrameBeyondWidth {
        /// The frame.
        frame: PhysAddr,
    },
}

/// Why a range could not be unmapped. The tables are what they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnmapError {
    /// The range itself is wrong.
    Range(RangeError),
    /// A page of the range is not mapped.
    NotMapped {
        /// The first such page.
        iova: Iova,
    },
    /// A large leaf has to be split, and the allocator has fewer frames than that needs.
    OutOfFrames {
        /// How many were lacking.
        missing: u64,
    },
    /// The allocator handed out a frame that the hardware cannot address.
    FrameBeyondWidth {
        /// The frame.
        frame: PhysAddr,
    },
}

/// Why the rights of a range could not be changed. The tables are what they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProtectError {
    /// The range itself is wrong.
    Range(RangeError),
    /// Neither read nor write: such an entry means "not present".
    NoPermissions,
    /// Write without read, which the first stage does not have.
    WriteOnly,
    /// A page of the range is not mapped.
    NotMapped {
        /// The first such page.
        iova: Iova,
    },
    /// A large leaf has to be split, and the allocator has fewer frames than that needs.
    OutOfFrames {
        /// How many were lacking.
        missing: u64,
    },
    /// The allocator handed out a frame that the hardware cannot address.
    FrameBeyondWidth {
        /// The frame.
        frame: PhysAddr,
    },
}

/// Rights that no leaf can give.
pub(crate) enum PermissionsError {
    None,
    WriteOnly,
}

impl From<PermissionsError> for MapError {
    fn from(error: PermissionsError) -> Self {
        match error {
            PermissionsError::None => Self::NoPermissions,
            PermissionsError::WriteOnly => Self::WriteOnly,
        }
    }
}

impl From<PermissionsError> for ProtectError {
    fn from(error: PermissionsError) -> Self {
        match error {
            PermissionsError::None => Self::NoPermissions,
            PermissionsError::WriteOnly => Self::WriteOnly,
        }
    }
}

/// An allocator of table frames has fewer than were wanted at once. None was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooFewFrames {
    /// How many were lacking.
    pub missing: u64,
}

/// Why frames could not be taken in advance.
pub(crate) enum AdvanceError {
    OutOfFrames { missing: u64 },
    FrameBeyondWidth { frame: PhysAddr },
}

impl From<TooFewFrames> for AdvanceError {
    fn from(TooFewFrames { missing }: TooFewFrames) -> Self {
        Self::OutOfFrames { missing }
    }
}

impl From<AdvanceError> for MapError {
    fn from(error: AdvanceError) -> Self {
        match error {
            AdvanceError::OutOfFrames { missing } => Self::OutOfFrames { missing },
            AdvanceError::FrameBeyondWidth { frame } => Self::FrameBeyondWidth { frame },
        }
    }
}

impl From<AdvanceError> for UnmapError {
    fn from(error: AdvanceError) -> Self {
        match error {
            AdvanceError::OutOfFrames { missing } => Self::OutOfFrames { missing },
            AdvanceError::FrameBeyondWidth { frame } => Self::FrameBeyondWidth { frame },
        }
    }
}

impl From<AdvanceError> for ProtectError {
    fn from(error: AdvanceError) -> Self {
        match error {
            AdvanceError::OutOfFrames { missing } => Self::OutOfFrames { missing },
            AdvanceError::FrameBeyondWidth { frame } => Self::FrameBeyondWidth { frame },
        }
    }
}

impl From<AdvanceError> for DomainError {
    fn from(error: AdvanceError) -> Self {
        match error {
            AdvanceError::OutOfFrames { .. } => Self::OutOfFrames,
            AdvanceError::FrameBeyondWidth { frame } => Self::FrameBeyondWidth { frame },
        }
    }
}

impl From<RangeError> for MapError {
    fn from(error: RangeError) -> Self {
        Self::Range(error)
    }
}

impl From<RangeError> for ProtectError {
    fn from(error: RangeError) -> Self {
        Self::Range(error)
    }
}

impl From<RangeError> for UnmapError {
    fn from(error: RangeError) -> Self {
        Self::Range(error)
    }
}

fn no_permissions(formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(formatter, "a mapping without rights is none: give read, write or both")
}

fn write_only(formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(formatter, "what is mapped in the first stage can be read: give read, or read and write")
}

fn not_mapped(formatter: &mut fmt::Formatter<'_>, iova: Iova, what: &str) -> fmt::Result {
    write!(formatter, "the page at {iova} is not mapped: {what} what was mapped")
}

fn out_of_frames(formatter: &mut fmt::Formatter<'_>, missing: u64) -> fmt::Result {
    write!(
        formatter,
        "{missing} table frames are lacking: free some, wait for the pool's worker, or raise its watermarks"
    )
}

fn frame_beyond_width(formatter: &mut fmt::Formatter<'_>, frame: PhysAddr) -> fmt::Result {
    write!(
        formatter,
        "the allocator handed out {frame}, beyond the host's address width: limit its addresses"
    )
}

impl fmt::Display for RangeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Empty => write!(formatter, "a range of no bytes: give at least 4 KiB"),
            Self::Misaligned { iova, length } => {
                write!(formatter, "{length:#x} bytes from {iova}: both must be multiples of 4 KiB")
            }
            Self::BeyondWidth { iova, length, width } => {
                write!(
                    formatter,
                    "{length:#x} bytes from {iova} end beyond the domain's {width} bits of address"
                )
            }
        }
    }
}

impl fmt::Display for DomainError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TooFewLevels { levels } => {
                write!(formatter, "the first stage has no {} levels: give 4 or 5", levels.count())
            }
            Self::AddressWidth { width, most } => {
                write!(
                    formatter,
                    "an address width of {width} bits: give 13 to {most}, what the levels translate"
                )
            }
            Self::HostAddressWidth { width } => {
                write!(
                    formatter,
                    "a host address width of {width} bits: give 13 to 52, as the DMAR table says"
                )
            }
            Self::MapsUntold => {
                write!(
                    formatter,
                    "the hardware must be told of new mappings: use the format as `CachingMode`"
                )
            }
            Self::NoFlush => {
                write!(
                    formatter,
                    "the hardware does not snoop its tables: give the frames as `FlushedFrames`"
                )
            }
            Self::NoAccessedDirty => write!(
                formatter,
                "the hardware notes no accesses in second-stage tables: leave it off, or use scalable mode of a unit that has it and snoops"
            ),
            Self::NoSnoopControl => write!(
                formatter,
                "snooping cannot be forced in the leaves: leave it off, or in scalable mode let the PASID entry demand it"
            ),
            Self::OutOfFrames => out_of_frames(formatter, 1),
            Self::FrameBeyondWidth { frame } => frame_beyond_width(formatter, frame),
        }
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Range(error) => error.fmt(formatter),
            Self::TargetMisaligned { target } => {
                write!(formatter, "the target {target} must be a multiple of 4 KiB")
            }
            Self::TargetBeyondWidth { target, length, width } => {
                write!(
                    formatter,
                    "{length:#x} bytes from the target {target} end beyond the host's {width} bits of address"
                )
            }
            Self::InterruptTarget { target, length } => write!(
                formatter,
                "{length:#x} bytes from the target {target} meet 0xfee00000..0xfef00000, the interrupt range: map what is before and behind it"
            ),
            Self::NoPermissions => no_permissions(formatter),
            Self::WriteOnly => write_only(formatter),
            Self::AlreadyMapped { iova } => write!(formatter, "the page at {iova} is mapped: unmap it first"),
            Self::NotServed { reason } => write!(formatter, "no table frames came: {reason}"),
            Self::OutOfFrames { missing } => out_of_frames(formatter, missing),
            Self::FrameBeyondWidth { frame } => frame_beyond_width(formatter, frame),
        }
    }
}

impl fmt::Display for UnmapError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Range(error) => error.fmt(formatter),
            Self::NotMapped { iova } => not_mapped(formatter, iova, "unmap"),
            Self::OutOfFrames { missing } => out_of_frames(formatter, missing),
            Self::FrameBeyondWidth { frame } => frame_beyond_width(formatter, frame),
        }
    }
}

impl fmt::Display for ProtectError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Range(error) => error.fmt(formatter),
            Self::NoPermissions => no_permissions(formatter),
            Self::WriteOnly => write_only(formatter),
            Self::NotMapped { iova } => not_mapped(formatter, iova, "protect"),
            Self::OutOfFrames { missing } => out_of_frames(formatter, missing),
            Self::FrameBeyondWidth { frame } => frame_beyond_width(formatter, frame),
        }
    }
}

impl fmt::Display for TooFewFrames {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        out_of_frames(formatter, self.missing)
    }
}

impl Error for TooFewFrames {}
impl Error for RangeError {}
impl Error for DomainError {}
impl Error for MapError {}
impl Error for UnmapError {}
impl Error for ProtectError {}
