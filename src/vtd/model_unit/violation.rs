//! Owns what the unit says: faults of a device, and violations by its driver.

use super::entry::EntryProblem;
use crate::{
    PhysAddr,
    vtd::{Descriptor, DomainId, Iova, Translation},
};
use core::{error::Error, fmt};

/// Why a device got no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// No tables are attached under the domain's id.
    NoDomain,
    /// The address has more bits than the domain.
    BeyondWidth,
    /// An entry of this level is not present.
    NotPresent {
        /// The level.
        level: u32,
    },
    /// The page may be read only, or written only.
    Denied,
    /// An entry of this level is not one that hardware takes; a violation says so too.
    BadEntry {
        /// The level.
        level: u32,
        /// What is wrong with it.
        problem: EntryProblem,
    },
    /// What an entry names as a table of this level is not a frame in use; a violation says so too.
    NoTable {
        /// The level.
        level: u32,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDomain => formatter.write_str("no tables are attached for the domain"),
            Self::BeyondWidth => formatter.write_str("the address has more bits than the domain"),
            Self::NotPresent { level } => write!(formatter, "the entry of level {level} is not present"),
            Self::Denied => formatter.write_str("the page does not allow the access"),
            Self::BadEntry { level, problem } => write!(formatter, "the entry of level {level}: {problem}"),
            Self::NoTable { level } => write!(formatter, "the table of level {level} is not in use"),
        }
    }
}

impl Error for Fault {}

/// What the driver, or the builder, did wrong, found when the unit used it or in a [`check`](super::ModelUnit::check).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// A cached translation is not what the tables say: an invalidation is missing, or too small.
    StaleTranslation {
        /// The domain.
        domain: DomainId,
        /// An address that goes where it no longer should.
        iova: Iova,
        /// What the unit has cached; nothing is "absent", which caching mode keeps.
        cached: Option<Translation>,
        /// What the tables say.
        written: Option<Translation>,
    },
    /// A cached entry that names a table, or the absence of one in caching mode, is not what the tables say: an invalidation is missing
    /// or too small, or says wrongly that only leaves have changed.
    StaleTable {
        /// The domain.
        domain: DomainId,
        /// The first address below the entry.
        iova: Iova,
        /// The entry's level.
        level: u32,
        /// The table that the unit has cached.
        cached: Option<PhysAddr>,
        /// The table that is there, if there is one.
        written: Option<PhysAddr>,
    },
    /// An entry was changed and its line not flushed, for a unit that does not snoop.
    MissingFlush {
        /// The domain.
        domain: DomainId,
        /// The first address that the entry covers.
        iova: Iova,
        /// The entry's level.
        level: u32,
        /// What is in memory.
        seen: u64,
        /// What the processor has written.
        written: u64,
    },
    /// A table frame went back to the allocator while the unit could still walk it.
    FreedTooEarly {
        /// The frame.
        frame: PhysAddr,
        /// The domain.
        domain: DomainId,
        /// The first address below it.
        iova: Iova,
        /// The level of the table.
        level: u32,
    },
    /// An entry, or the cached copy of one, names a table that is not a frame in use.
    NoTable {
        /// The frame.
        frame: PhysAddr,
        /// The domain.
        domain: DomainId,
        /// An address below it.
        iova: Iova,
        /// The level of the table.
        level: u32,
    },
    /// An entry that hardware refuses.
    BadEntry {
        /// The domain.
        domain: DomainId,
        /// The first address that the entry covers.
        iova: Iova,
        /// The entry's level.
        level: u32,
        /// The entry.
        entry: u64,
        /// What is wrong with it.
        problem: EntryProblem,
    },
    /// A request to invalidate pages by a mask that the unit does not have. It forgets nothing.
    RefusedInvalidation {
        /// The request.
        descriptor: Descriptor,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StaleTranslation { domain, iova, cached, written } => write!(
                formatter,
                "domain {domain}: {iova} is cached as {cached:?} but written as {written:?}: invalidate it, by a mask no smaller than its page"
            ),
            Self::StaleTable { domain, iova, level, cached, written } => write!(
                formatter,
                "domain {domain}: the entry of level {level} for {iova} is cached as {cached:?} but written as {written:?}: invalidate it, without the leaf-only hint"
            ),
            Self::MissingFlush { domain, iova, level, seen, written } => write!(
                formatter,
                "domain {domain}: the entry of level {level} for {iova} is {written:#x}, and {seen:#x} in memory: flush its line"
            ),
            Self::FreedTooEarly { frame, domain, iova, level } => write!(
                formatter,
                "domain {domain}: {frame}, the table of level {level} for {iova}, was given back while the unit could walk it: complete the invalidation first"
            ),
            Self::NoTable { frame, domain, iova, level } => write!(
                formatter,
                "domain {domain}: {frame}, named as the table of level {level} for {iova}, is not in use"
            ),
            Self::BadEntry { domain, iova, level, entry, problem } => {
                write!(
                    formatter,
                    "domain {domain}: the entry {entry:#x} of level {level} for {iova}: {problem}"
                )
            }
            Self::RefusedInvalidation { descriptor } => write!(
                formatter,
                "{descriptor:?} has a mask that the unit does not take: invalidate the domain, or in smaller blocks"
            ),
        }
    }
}

impl Error for Violation {}
