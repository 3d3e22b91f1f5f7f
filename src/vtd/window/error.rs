//! Owns what is said when a window cannot be made, or a buffer not be shared.

use super::WindowConfig;
use crate::vtd::MapError;
use core::{error::Error, fmt};

/// Why a window could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WindowError {
    /// The window is empty, starts at 0 or not at a page, does not lie in the domain, or meets the
    /// [interrupt range](crate::vtd::INTERRUPT_RANGE).
    Range {
        /// What was asked for.
        config: WindowConfig,
    },
    /// The memory given for the bookkeeping is too small.
    MemoryTooSmall {
        /// What was given, in bytes.
        given: usize,
    },
}

impl fmt::Display for WindowError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range { config: WindowConfig { base, slots, slot_pages } } => write!(
                formatter,
                "{slots} slots of {slot_pages} pages from {base} on: give at least one page, from a page other than the first, \
                 within the domain, outside 0xfee00000..0xfef00000"
            ),
            Self::MemoryTooSmall { given } => {
                write!(
                    formatter,
                    "{given} bytes given for the bookkeeping: ask memory_layout and mind the alignment"
                )
            }
        }
    }
}

impl Error for WindowError {}

/// Why a buffer could not be shared. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShareError {
    /// The buffer is empty.
    Empty,
    /// The buffer touches more pages than a slot has.
    TooLong {
        /// What it touches, in pages.
        pages: u64,
        /// What a slot has, in pages.
        most: u32,
    },
    /// Every slot has a buffer.
    NoSlot,
    /// There is no frame for a part of the buffer that shares its page with other data.
    NoFrame,
    /// The domain refused the mapping.
    Map(MapError),
}

impl fmt::Display for ShareError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(formatter, "the buffer is empty: give at least one byte"),
            Self::TooLong { pages, most } => {
                write!(formatter, "the buffer touches {pages} pages, a slot has {most}: share it in parts")
            }
            Self::NoSlot => {
                write!(formatter, "every slot has a buffer: withdraw one, or give the window more")
            }
            Self::NoFrame => {
                write!(formatter, "no frame for a part of a page: free one, or align the buffer")
            }
            Self::Map(error) => write!(formatter, "{error}"),
        }
    }
}

impl Error for ShareError {}
