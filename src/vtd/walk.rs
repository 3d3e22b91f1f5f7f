//! Owns the one walk over the tables of a domain; what is done at each entry is the visitor's.

use super::{
    TableFrames,
    format::{Format, IDLE},
    table::{Run, Table},
    width::{Span, shift, size},
};
use crate::PhysAddr;

/// An entry above the last level, and the part of the walked range that it covers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'t> {
    pub(crate) table: Table<'t>,
    pub(crate) index: usize,
    pub(crate) level: u32,
    pub(crate) part: Span,
}

impl Place<'_> {
    /// Whether the range covers all of the entry.
    pub(crate) fn is_whole<F: Format>(&self) -> bool {
        self.part.length() == size(self.level, F::INDEX_BITS)
    }

    /// Sees to it that the table which the entry names, if it does, stays for as long as the caller's walk does, and returns the
    /// entry (`reclaim.rs`). Lock-free: a retry means that another context has changed the entry.
    #[inline(always)]
    pub(crate) fn keep(&self) -> u64 {
        let mut entry = self.table.load(self.index);
        while entry & IDLE != 0 {
            match self.table.install(self.index, entry, entry & !IDLE) {
                Ok(()) => return entry & !IDLE,
                Err(now) => entry = now,
            }
        }
        entry
    }
}

/// Where the walk goes on.
pub(crate) enum Step {
    /// Into the table below.
    Descend(PhysAddr),
    /// To the next entry.
    Skip,
}

/// What is done on a walk.
pub(crate) trait Visitor {
    /// What ends the walk early.
    type Stop;

    /// At an entry above the last level.
    fn entry(&mut self, place: Place<'_>) -> Result<Step, Self::Stop>;

    /// At the entries of the last level that cover `part`, in a row.
    fn leaves(&mut self, run: Run<'_>, part: Span) -> Result<(), Self::Stop>;
}

/// Which entry of a table of `level` is for `address`.
#[inline(always)]
pub(crate) const fn index<F: Format>(address: u64, level: u32) -> usize {
    (address >> shift(level, F::INDEX_BITS)) as usize & ((1 << F::INDEX_BITS) - 1)
}

/// Walks over `part` in the table `frame` of `level`, in ascending order. Recurses once a level.
pub(crate) fn walk<F: Format, A: TableFrames, V: Visitor>(
    frames: &A,
    frame: PhysAddr,
    level: u32,
    part: Span,
    visitor: &mut V,
) -> Result<(), V::Stop> {
    let table = Table::at::<F, A>(frames, frame);
    let size = size(level, F::INDEX_BITS);
    if level == 1 {
        return visitor
            .leaves(table.run(index::<F>(part.start, level), (part.length() / size) as usize), part);
    }
    let mut rest = part;
    while rest.start < rest.end {
        let part = rest.first(size);
        let place = Place { table, index: index::<F>(part.start, level), level, part };
        if let Step::Descend(below) = visitor.entry(place)? {
            walk::<F, A, V>(frames, below, level - 1, part, visitor)?;
        }
        rest.start = part.end;
    }
    Ok(())
}
