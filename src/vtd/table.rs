//! Owns the access to the entries of tables: every read and write that hardware can see, and its order.

use super::{TableFrames, format::Format, width::PAGE};
use crate::{
    PhysAddr,
    sync::{
        atomic::{AtomicU64, Ordering},
        write_alone,
    },
};
use core::{ops::Range, ptr::NonNull};

/// One table, as the entries that hardware walks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table<'t> {
    entries: &'t [AtomicU64],
}

impl<'t> Table<'t> {
    /// The table of the format `F` in the frame `frame`.
    ///
    /// The callers have `frame` from an entry of a live table, from the root, or from an allocation of their own, and are walkers
    /// or the owner: it stays a table until whoever swaps its entry out has completed the invalidation and the last walker has
    /// left (INV-10).
    #[inline(always)]
    pub(crate) fn at<F: Format, A: TableFrames + ?Sized>(frames: &'t A, frame: PhysAddr) -> Self {
        Self::of(frames, frame, const { 1 << F::INDEX_BITS })
    }

    /// The table in the frame `frame`, whatever its entries are, word by word.
    #[inline(always)]
    pub(crate) fn words<A: TableFrames + ?Sized>(frames: &'t A, frame: PhysAddr) -> Self {
        Self::of(frames, frame, const { PAGE as usize / size_of::<u64>() })
    }

    /// The entries of `frame` that link frames in lists.
    #[inline(always)]
    pub(crate) fn links_of<A: TableFrames + ?Sized>(frames: &'t A, frame: PhysAddr) -> Self {
        Self::of(frames, frame, 1)
    }

    /// The first `entries` entries of the table in the frame `frame`, which has as many.
    pub(crate) fn start_of<A: TableFrames + ?Sized>(frames: &'t A, frame: PhysAddr, entries: usize) -> Self {
        Self::of(frames, frame, entries.min(const { PAGE as usize / size_of::<u64>() }))
    }

    #[inline(always)]
    fn of<A: TableFrames + ?Sized>(frames: &'t A, frame: PhysAddr, entries: usize) -> Self {
        let start = frames.pointer(frame).cast::<AtomicU64>();
        // SAFETY: the allocator maps 4 KiB, aligned, for every frame that it has handed out, no table has more entries than that,
        // and a table is only ever reached as these atomics.
        let entries = unsafe { core::slice::from_raw_parts(start.as_ptr(), entries) };
        Self { entries }
    }

    /// The entries from `first` on, `count` of them.
    #[inline(always)]
    pub(crate) fn run(self, first: usize, count: usize) -> Run<'t> {
        Run(self.entries.get(first..).and_then(|rest| rest.get(..count)).unwrap_or_default())
    }

    /// All entries.
    #[inline(always)]
    pub(crate) fn all(self) -> Run<'t> {
        Run(self.entries)
    }

    #[inline(always)]
    fn entry(self, index: usize) -> Option<&'t AtomicU64> {
        self.entries.get(index)
    }

    /// Reads an entry.
    #[inline(always)]
    pub(crate) fn load(self, index: usize) -> u64 {
        // Ordering: Acquire pairs with the Release of `install` by another mapper, so that the table behind the entry is
        // seen with the zeros and entries that were in it when it was linked, and with the Release of a mark.
        self.entry(index).map_or(0, |entry| entry.load(Ordering::Acquire))
    }

    /// Writes an entry that nobody else changes.
    #[inline(always)]
    pub(crate) fn store(self, index: usize, value: u64) {
        if let Some(entry) = self.entry(index) {
            // Ordering: Release, towards hardware and the Acquire of readers: what the caller wrote into the page or the
            // table behind the entry is there before the entry is.
            entry.store(value, Ordering::Release);
        }
    }

    /// Puts `value` in the place of `expected`, or says what is there instead.
    pub(crate) fn install(self, index: usize, expected: u64, value: u64) -> Result<(), u64> {
        let entry = self.entry(index).ok_or(0u64)?;
        // Ordering: Release publishes the new table, or what a mark says was done, to the Acquire of `load` and to hardware.
        // Acquire on failure: the loser walks on through the winner's table.
        entry.compare_exchange(expected, value, Ordering::Release, Ordering::Acquire).map(drop)
    }

    /// Puts the leaf `value` in the place of the table `expected`, or says what is there instead; whoever does owns the table, which hardware
    /// and readers go on using.
    pub(crate) fn replace(self, index: usize, expected: u64, value: u64) -> Result<(), u64> {
        let entry = self.entry(index).ok_or(0u64)?;
        // Ordering: Release, as for `store`; Acquire makes the table ours, and on failure lets the caller walk through what is there.
        entry.compare_exchange(expected, value, Ordering::AcqRel, Ordering::Acquire).map(drop)
    }

    /// Sets `bits` of an entry that hardware ignores. What hardware sets in it meanwhile stays.
    pub(crate) fn mark(self, index: usize, bits: u64) {
        if let Some(entry) = self.entry(index) {
            // Ordering: Relaxed; the bits are for their owner alone.
            entry.fetch_or(bits, Ordering::Relaxed);
        }
    }

    /// Clears `bits` of an entry, and returns what it was. What hardware sets in it meanwhile stays.
    pub(crate) fn clear(self, index: usize, bits: u64) -> u64 {
        // Ordering: Acquire, so that whatever the caller does because of the bits comes after; the device's writes themselves are in
        // memory when the invalidation that follows is complete. Nothing is published.
        self.entry(index).map_or(0, |entry| entry.fetch_and(!bits, Ordering::Acquire))
    }

    /// Takes the entry `expected` out, or says what is there instead; whoever takes a table out owns all below it.
    pub(crate) fn remove(self, index: usize, expected: u64) -> Result<(), u64> {
        let entry = self.entry(index).ok_or(0u64)?;
        // Ordering: Acquire makes the tables below ours, as written by whoever linked them, and on failure lets the caller walk
        // through what is there. Nothing is published: that hardware has let go is what the invalidation says.
        entry.compare_exchange(expected, 0, Ordering::Acquire, Ordering::Acquire).map(drop)
    }
}

/// Some entries in a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'t>(&'t [AtomicU64]);

impl<'t> Run<'t> {
    /// Where the entries are in memory, for comparisons.
    pub(crate) fn address(self) -> usize {
        self.0.as_ptr().addr()
    }

    /// How many entries.
    pub(crate) const fn length(self) -> usize {
        self.0.len()
    }

    /// Replaces each entry by what `change` makes of it, without losing what hardware sets in it meanwhile; the range in which all that
    /// changed lie, counted from the start of the run. Lock-free: a retry means that hardware has set a bit, or that another context has
    /// changed the entry.
    pub(crate) fn update(self, change: impl Fn(u64) -> u64) -> Option<Range<usize>> {
        let mut changed: Option<Range<usize>> = None;
        for (index, entry) in self.0.iter().enumerate() {
            let other = |old| Some(change(old)).filter(|&new| new != old);
            // Ordering: Release, as for `Table::store`. Relaxed for what is read: behind it the CPU reads nothing.
            if entry.fetch_update(Ordering::Release, Ordering::Relaxed, other).is_ok() {
                changed = Some(changed.map_or(index, |range| range.start)..index + 1);
            }
        }
        changed
    }

    /// Clears `bit` in each entry that has it, and returns what they were, one after the other. What hardware sets meanwhile stays.
    pub(crate) fn clear_each(self, bit: u64) -> impl Iterator<Item = u64> + 't {
        self.0.iter().map(move |entry| {
            // Ordering: Relaxed; saves an access where there is nothing to clear.
            match entry.load(Ordering::Relaxed) {
                found if found & bit == 0 => found,
                // Ordering: Acquire, as for `Table::clear`.
                _ => entry.fetch_and(!bit, Ordering::Acquire),
            }
        })
    }

    /// The first entry in which one of `bits` is set, counted from the start of the run.
    #[inline(always)]
    pub(crate) fn first_with(self, bits: u64) -> Option<usize> {
        // What any of them has, without a branch for each: mostly there is nothing to be found.
        let has = |stride: Self| stride.values().fold(0, |any, entry| any | entry) & bits != 0;
        self.first_where(has, |entry| entry & bits != 0)
    }

    /// The first entry in which none of `bits` is set, counted from the start of the run.
    #[inline(always)]
    pub(crate) fn first_without(self, bits: u64) -> Option<usize> {
        // What all of them have: those of one mapping have the same rights.
        let may_have = |stride: Self| stride.values().fold(u64::MAX, |all, entry| all & entry) & bits == 0;
        self.first_where(may_have, |entry| entry & bits == 0)
    }

    /// The first entry for which `holds`, looked for in those strides of the run of which `may_hold` says so.
    #[inline(always)]
    fn first_where(self, may_hold: impl Fn(Self) -> bool, holds: impl Fn(u64) -> bool) -> Option<usize> {
        const STRIDE: usize = 32;
        let find = |run: Self| if may_hold(run) { run.values().position(&holds) } else { None };
        let (strides, rest) = self.0.as_chunks::<STRIDE>();
        for (number, stride) in strides.iter().enumerate() {
            if let Some(position) = find(Run(stride)) {
                return Some(number * STRIDE + position);
            }
        }
        find(Run(rest)).map(|position| strides.len() * STRIDE + position)
    }

    /// Empties all entries.
    #[inline(always)]
    pub(crate) fn clear(self) {
        // Ordering: Relaxed; nothing is published.
        let empty = |entry: &AtomicU64| entry.store(0, Ordering::Relaxed);
        // By lines of a cache, so that a compiler writes them without a count between.
        let (lines, rest) = self.0.as_chunks::<8>();
        lines.iter().for_each(|line| line.iter().for_each(empty));
        rest.iter().for_each(empty);
    }

    /// Writes one entry after the other.
    #[inline(always)]
    pub(crate) fn fill(self, values: impl Iterator<Item = u64>) {
        for (entry, value) in self.0.iter().zip(values) {
            // Ordering: Release, as for `Table::store`.
            entry.store(value, Ordering::Release);
        }
    }

    /// Writes one entry after the other of a table that no entry names yet, and that nobody but the caller has: it is published with
    /// the entry that will.
    #[inline(always)]
    pub(crate) fn fill_unseen(self, values: impl Iterator<Item = u64>) {
        for (entry, value) in self.0.iter().zip(values) {
            // SAFETY: the caller alone has the table.
            unsafe { write_alone(entry, value) };
        }
    }

    /// The values, one after the other.
    pub(crate) fn values(&self) -> impl Iterator<Item = u64> + '_ {
        // Ordering: Relaxed; as for `position`.
        self.0.iter().map(|entry| entry.load(Ordering::Relaxed))
    }

    /// Makes the entries visible to hardware that does not snoop.
    pub(crate) fn flush<A: TableFrames + ?Sized>(self, frames: &A) {
        // SAFETY: the entries are part of a frame of this allocator, which maps them.
        unsafe { frames.flush(NonNull::from(self.0).cast(), size_of_val(self.0)) }
    }
}
