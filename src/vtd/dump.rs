//! Owns the texts of a domain: its mappings, a line each, and its tables as an indented tree.

use super::{
    TableFrames,
    domain::Domain,
    format::{Format, Permissions},
    mappings::{LeafRun, Mapping},
    width::size,
};
use core::fmt;

impl<F: Format, A: TableFrames> Domain<F, A> {
    /// A text of all mappings, a line each; in the alternate form (`{:#}`) of all tables in which something is mapped, as an indented
    /// tree.
    ///
    /// Contexts and bound are those of [`mappings`](Self::mappings), and of whatever the text is written to.
    /// At most 276,700 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    pub fn dump(&self) -> Dump<'_, F, A> {
        Dump { domain: self }
    }
}

/// Shows a domain's mappings, a line each, or in the alternate form its tables.
///
/// ```
/// # #[cfg(feature = "std")] {
/// # use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
/// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
/// # let config = DomainConfig { page_sizes: PageSizes::SIZE_2M, ..DomainConfig::new(Levels::Three) };
/// # let domain = SecondStageDomain::new(config, &*pool)?;
/// // SAFETY: no device walks this domain.
/// unsafe { domain.map(Iova::new(0x20_0000), PhysAddr::new(0x4000_0000), 0x20_4000, Permissions::READ)? };
/// assert_eq!(domain.dump().to_string(), "0x000000200000..0x000000404000 -> 0x000040000000  2064 KiB  r-\n");
/// assert_eq!(format!("{:#}", domain.dump()), "\
/// 0x000000000000  table of level 3, the root
///   0x000000000000  table of level 2
///     0x000000200000..0x000000400000 -> 0x000040000000  1 x 2 MiB  r-
///     0x000000400000  table of level 1
///       0x000000400000..0x000000404000 -> 0x000040200000  4 x 4 KiB  r-
/// ");
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Dump<'d, F: Format, A: TableFrames> {
    domain: &'d Domain<F, A>,
}

impl<F: Format, A: TableFrames> Dump<'_, F, A> {
    fn lines(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mapping in self.domain.mappings() {
            let (count, unit) = human(mapping.length);
            let rights = Rights(mapping.permissions);
            writeln!(formatter, "{} {count:>5} {unit}  {rights}", Way(mapping))?;
        }
        Ok(())
    }

    /// A table has a line before the first run of leaves that is in it or below it. What belongs together has the same start.
    fn tree(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = self.domain.levels().count();
        let start_of_table =
            |run: LeafRun, level| run.mapping.iova.as_u64() & !(size(level + 1, F::INDEX_BITS) - 1);
        let mut before: Option<LeafRun> = None;
        for run in self.domain.leaf_runs() {
            let leaf_level = level_of::<F>(run);
            for level in (leaf_level..=root).rev() {
                let start = start_of_table(run, level);
                let has_a_line = before.is_some_and(|before| {
                    level_of::<F>(before) <= level && start_of_table(before, level) == start
                });
                if !has_a_line {
                    let indent = 2 * (root - level) as usize;
                    let which = if level == root { ", the root" } else { "" };
                    writeln!(formatter, "{:indent$}{start:#014x}  table of level {level}{which}", "")?;
                }
            }
            let indent = 2 * (root - leaf_level + 1) as usize;
            let (leaves, (count, unit)) = (run.leaves(), human(run.page_size));
            let rights = Rights(run.mapping.permissions);
            writeln!(formatter, "{:indent$}{}  {leaves} x {count} {unit}  {rights}", "", Way(run.mapping))?;
            before = Some(run);
        }
        Ok(())
    }
}

impl<F: Format, A: TableFrames> fmt::Display for Dump<'_, F, A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if formatter.alternate() { self.tree(formatter) } else { self.lines(formatter) }
    }
}

impl<F: Format, A: TableFrames> fmt::Debug for Dump<'_, F, A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// A length in the largest unit that keeps it whole.
fn human(bytes: u64) -> (u64, &'static str) {
    match bytes {
        _ if bytes & ((1 << 30) - 1) == 0 => (bytes >> 30, "GiB"),
        _ if bytes & ((1 << 20) - 1) == 0 => (bytes >> 20, "MiB"),
        _ => (bytes >> 10, "KiB"),
    }
}

/// From where to where.
struct Way(Mapping);

impl fmt::Display for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mapping { iova, target, length, .. } = self.0;
        let (start, end, target) = (iova.as_u64(), iova.as_u64() + length, target.as_u64());
        write!(formatter, "{start:#014x}..{end:#014x} -> {target:#014x}")
    }
}

/// What the device may do.
struct Rights(Permissions);

impl fmt::Display for Rights {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read = if self.0.contains(Permissions::READ) { 'r' } else { '-' };
        let write = if self.0.contains(Permissions::WRITE) { 'w' } else { '-' };
        write!(formatter, "{read}{write}")
    }
}

/// The level of the table in which leaves are.
fn level_of<F: Format>(run: LeafRun) -> u32 {
    let is_of = |level: &u32| size(*level, F::INDEX_BITS) >= run.page_size;
    (1..).find(is_of).unwrap_or(1)
}
