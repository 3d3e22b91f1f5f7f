//! Why a pool could not be built.

use super::{CPUS_LIMIT, Watermarks};
use crate::{
    frame::{FrameSize, PhysAddr},
    raw::magazine::MAGAZINE_SIZE_LIMIT,
};
use core::{error::Error, fmt};

/// Why a pool could not be built. Nothing is left behind; frames that were fetched went back to the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildError {
    /// A pool of no frames.
    CapacityZero,
    /// The bookkeeping would not fit into the address space, or the frames cannot be numbered.
    CapacityTooLarge {
        /// What was asked for, in frames.
        capacity: u32,
    },
    /// Not `min` ≤ `low` ≤ `high` ≤ `max` ≤ capacity.
    Watermarks {
        /// What was asked for.
        watermarks: Watermarks,
        /// The capacity, in frames.
        capacity: u32,
    },
    /// The initial fill is less than the reserve or more than the capacity.
    Initial {
        /// What was asked for, in frames.
        initial: u32,
        /// The reserve, in frames.
        min: u32,
        /// The capacity, in frames.
        capacity: u32,
    },
    /// More is to be guaranteed to quotas than the pool can promise.
    Guarantees {
        /// What was asked for, in frames.
        guarantees: u32,
        /// The capacity without the reserve, in frames.
        most: u32,
    },
    /// No CPU, or more than 4,096.
    Cpus {
        /// What was asked for.
        cpus: usize,
    },
    /// No depot, or more than CPUs.
    Depots {
        /// What was asked for.
        depots: usize,
        /// How many CPUs have a cache.
        cpus: usize,
    },
    /// A magazine of no frames, or of more than 4,095.
    MagazineSize {
        /// What was asked for, in frames.
        magazine_size: u32,
    },
    /// More magazines than can be numbered.
    TooManyMagazines {
        /// The size that was too small, in frames.
        magazine_size: u32,
    },
    /// The memory given for the bookkeeping is too small.
    MemoryTooSmall {
        /// What was given, in bytes.
        given: usize,
        /// What is needed, in bytes, the padding for alignment included.
        needed: usize,
    },
    /// The heap has no room for the bookkeeping.
    NoHeap {
        /// What is needed, in bytes.
        needed: usize,
    },
    /// The source's base is not a multiple of the frame size.
    BaseMisaligned,
    /// The source hands out frames of another size.
    FrameSize {
        /// What the pool was to have.
        pool: FrameSize,
        /// What the source hands out.
        source: FrameSize,
    },
    /// The source begins at or beyond the address limit, so that no frame of it could be taken in.
    BeyondLimit {
        /// Where the source begins.
        base: PhysAddr,
        /// The limit.
        limit: PhysAddr,
    },
    /// The source could not fill the reserve, so the pool could not promise anything.
    SourceExhausted {
        /// What the reserve needs, in frames.
        wanted: u32,
        /// What the source gave, in frames.
        got: u32,
    },
    /// The system refused a thread for the worker.
    NoThread,
}

impl fmt::Display for BuildError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CapacityZero => write!(formatter, "a pool of no frames: give a capacity of at least 1"),
            Self::CapacityTooLarge { capacity } => {
                write!(
                    formatter,
                    "a capacity of {capacity} frames cannot be numbered here: split it over several pools"
                )
            }
            Self::Watermarks { watermarks: Watermarks { min, low, high, max }, capacity } => write!(
                formatter,
                "watermarks min {min}, low {low}, high {high}, max {max} with a capacity of {capacity} frames: they must \
                 not descend in this order"
            ),
            Self::Initial { initial, min, capacity } => write!(
                formatter,
                "an initial fill of {initial} frames: give at least the reserve of {min} and at most the capacity of \
                 {capacity}"
            ),
            Self::Guarantees { guarantees, most } => write!(
                formatter,
                "guarantees of {guarantees} frames: at most {most} are left beside the reserve"
            ),
            Self::Cpus { cpus } => write!(formatter, "{cpus} CPUs: give 1 to {CPUS_LIMIT}"),
            Self::Depots { depots, cpus } => {
                write!(formatter, "{depots} depots for {cpus} CPUs: give 1 up to one for each CPU")
            }
            Self::MagazineSize { magazine_size } => {
                write!(formatter, "magazines of {magazine_size} frames: give 1 to {MAGAZINE_SIZE_LIMIT}")
            }
            Self::TooManyMagazines { magazine_size } => {
                write!(formatter, "too many magazines of {magazine_size} frames: give a larger magazine size")
            }
            Self::MemoryTooSmall { given, needed } => write!(
                formatter,
                "{given} bytes given for the bookkeeping, {needed} needed: ask memory_layout and mind the alignment"
            ),
            Self::NoHeap { needed } => {
                write!(formatter, "the heap has no {needed} bytes for the bookkeeping")
            }
            Self::BaseMisaligned => {
                write!(formatter, "the source's base address must be a multiple of the frame size")
            }
            Self::FrameSize { pool, source } => {
                write!(
                    formatter,
                    "a pool of frames of {pool} over a source of {source}: give both the same size"
                )
            }
            Self::BeyondLimit { base, limit } => {
                write!(formatter, "the source begins at {base}, the limit is {limit}: give a source below it")
            }
            Self::SourceExhausted { wanted, got } => write!(
                formatter,
                "the source gave {got} of the {wanted} frames of the reserve: lower min or give the source more memory"
            ),
            Self::NoThread => {
                write!(formatter, "the system refused a thread: call maintain yourself, or free threads")
            }
        }
    }
}

impl Error for BuildError {}
