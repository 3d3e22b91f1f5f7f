//! Owns the short way to the last level: a range in one leaf table that is there already is reached by a load for each level above it.
//!
//! Most maps and unmaps of drivers are of a few pages in a table that other buffers keep in place. For them the walks of `walk.rs` are
//! more work than the change itself: nothing is missing, nothing is split, and no entry above the last level changes. What the short
//! way finds is what these walks would find: it is taken only if every entry on it names a table as it is, which needs neither to be
//! kept (`reclaim.rs`) nor to be linked again nor to be confirmed towards hardware (`tables.rs`). Everything else takes the long one.

use super::{
    Domain, TableFrames,
    format::{Entry, FLUSHED, Format, IDLE},
    table::{Run, Table},
    walk::index,
    width::{PAGE, Span, size},
};

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
        // Bits of an entry that must be, and those that must not be.
        let confirmed = if self.config().hardware.coherent { 0 } else { FLUSHED };
        let mut table = Table::at::<F, A>(frames, self.root());
        for level in (2..=self.levels().count()).rev() {
            let entry = table.load(index::<F>(span.start, level));
            match F::decode(entry, level) {
                Entry::Table(below) if entry & (confirmed | IDLE) == confirmed => {
                    table = Table::at::<F, A>(frames, below);
                }
                Entry::Table(_) | Entry::Leaf { .. } | Entry::Empty => return None,
            }
        }
        Some(table.run(index::<F>(span.start, 1), (span.length() / PAGE) as usize))
    }
}
