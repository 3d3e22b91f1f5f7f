//! Owns the short way to the last level: a range in one leaf table that is there already is reached by a load for each level above it.
//!
//! Most maps and unmaps of drivers are of a few pages in a table that other buffers keep in place. For them the walks of `walk.rs` are
//! more work than the change itself: nothing is missing, nothing is split, and no entry above the last level changes. What the short
//! way finds is what these walks would find: it is taken only if every entry on it names a table as it is, which needs neither to be
//! kept (`reclaim.rs`) nor to be linked again nor to be confirmed towards hardware (`tables.rs`). Everything else takes the long one.

use super::{
    Domain, DomainConfig, TableFrames,
    bits::ADDRESS,
    format::{FLUSHED, Format, IDLE},
    table::{Run, Table},
    walk::index,
    width::{PAGE, Span, shift, size},
};
use crate::PhysAddr;

/// What the short way looks for, worked out once from the shape of a domain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShortWay {
    /// The bits that the entry of a table has when nothing is to be done about it.
    confirmed: u64,
    /// All that are looked at for that.
    looked_at: u64,
    /// Where the index into the root begins in an address.
    shift: u32,
}

impl ShortWay {
    pub(crate) fn of<F: Format>(config: &DomainConfig) -> Self {
        let confirmed = F::PRESENT | if config.hardware.coherent { 0 } else { FLUSHED };
        let looked_at = confirmed | F::PAGE_SIZE | IDLE;
        Self { confirmed, looked_at, shift: shift(config.levels.count(), F::INDEX_BITS) }
    }
}

impl<F: Format, A: TableFrames> Domain<F, A> {
    /// The entries of the last level for `span`, if it is a part of one leaf table, and the way there is as it should be. The caller
    /// has entered.
    #[inline(always)]
    pub(crate) fn leaf_run(&self, span: Span) -> Option<Run<'_>> {
        let covered = size(2, F::INDEX_BITS);
        let is_part = (span.start ^ (span.end - 1)) < covered && span.length() < covered;
        if !is_part {
            return None;
        }
        let frames = &self.tables().frames;
        let ShortWay { confirmed, looked_at, mut shift } = *self.short_way();
        let mut table = Table::at::<F, A>(frames, self.root());
        while shift > PAGE.trailing_zeros() {
            let entry = table.load((span.start >> shift) as usize & const { (1 << F::INDEX_BITS) - 1 });
            if entry & looked_at != confirmed {
                return None;
            }
            table = Table::at::<F, A>(frames, PhysAddr::new(entry & ADDRESS));
            shift -= F::INDEX_BITS;
        }
        Some(table.run(index::<F>(span.start, 1), (span.length() / PAGE) as usize))
    }
}
