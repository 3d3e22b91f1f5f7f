//! What a domain counts: a plain snapshot that steers nothing.

use core::fmt;

/// A domain's table frames at one moment, approximate while calls are in progress.
///
/// ```
/// # #[cfg(feature = "std")] {
/// # use framepool::{AnonymousMemory, Builder, vtd::*};
/// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
/// # let domain = SecondStageDomain::new(DomainConfig::new(Levels::Four), &*pool)?;
/// assert_eq!(domain.stats().to_string(), "tables 1, retired 0 (at most 0), reclaimed 0");
/// # unsafe { domain.close().complete() };
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DomainStats {
    /// Frames in tables, the root included; those in an [`Invalidation`](super::Invalidation) of an unmap do not count.
    pub table_frames: u64,
    /// Frames that hardware has let go of and that wait for walks in progress: of tables, unmapped meanwhile, for addresses that such a walk
    /// looks up. While more calls are in progress than [`concurrent_calls`](super::DomainConfig::concurrent_calls), of all tables.
    pub retired: u64,
    /// The most of those that have waited at a time.
    pub retired_most: u64,
    /// Tables that [`reclaim`](super::Domain::reclaim) has taken out, in all.
    pub reclaimed: u64,
}

impl fmt::Display for DomainStats {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table_frames, retired, retired_most, reclaimed } = self;
        write!(
            formatter,
            "tables {table_frames}, retired {retired} (at most {retired_most}), reclaimed {reclaimed}"
        )
    }
}
