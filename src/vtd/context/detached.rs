//! Owns what was taken out of the tables of a unit, until the unit has let go of it: the place of an entry, and frames.

use super::{EntryChange, store::Store};
use crate::{PhysAddr, vtd::TableFrames};
use core::fmt;

/// An entry that was taken away. The unit may still be reading it, so its place stays occupied, and frames stay allocated.
///
/// Submit the [steps](EntryChange::steps) of [`change`](Self::change), wait for each, then [`complete`](Self::complete). Dropping it
/// instead leaves the place occupied until the tables are closed.
#[must_use = "the unit must be told, and the place is free again only after `complete`"]
pub struct Detached<'t, A: TableFrames> {
    store: &'t Store<A>,
    /// Frame, first word, and number of words.
    place: (PhysAddr, usize, usize),
    /// The PASID directory of a device.
    directory: Option<PhysAddr>,
    change: EntryChange,
}

impl<'t, A: TableFrames> Detached<'t, A> {
    pub(super) fn new(
        store: &'t Store<A>,
        place: (PhysAddr, usize, usize),
        directory: Option<PhysAddr>,
        change: EntryChange,
    ) -> Self {
        Self { store, place, directory, change }
    }

    /// What the unit must be told.
    pub fn change(&self) -> EntryChange {
        self.change
    }

    /// Frees the place of the entry, and gives the frames back that were reached only by it.
    ///
    /// From thread and interrupt context, not from an NMI. Constant time, or in proportion to the PASID tables of a device.
    /// At most 6,400 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Safety
    /// The unit has confirmed all steps of [`change`](Self::change).
    pub unsafe fn complete(self) {
        let (table, first, words) = self.place;
        if let Some(directory) = self.directory {
            // SAFETY: the entry was the only way to the directory and the PASID tables that it links, and the caller says that the
            // unit has forgotten it.
            unsafe { self.store.free_tree(directory, &[1]) };
        }
        self.store.vacate(table, first, words);
    }
}

impl<A: TableFrames> fmt::Debug for Detached<'_, A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Detached").field("change", &self.change).finish_non_exhaustive()
    }
}

/// The tables of a unit that were taken apart. Dropping it leaks them, reported through [`TableFrames::leaked`].
#[must_use = "the frames come back only through `complete`"]
pub struct ClosedTables<A: TableFrames> {
    store: Store<A>,
    root: PhysAddr,
    /// For each level of tables but the last, how many words its links stand apart.
    links: &'static [usize],
}

impl<A: TableFrames> ClosedTables<A> {
    pub(super) fn new(store: Store<A>, root: PhysAddr, links: &'static [usize]) -> Self {
        Self { store, root, links }
    }

    /// How many frames wait in here, the root included.
    pub fn table_frames(&self) -> u64 {
        self.store.live()
    }

    /// Gives all frames back. Contexts as for [`Detached::complete`]; bounded by the frames.
    ///
    /// # Safety
    /// The unit translates nothing any more, or by other tables, and has confirmed the global invalidation of its context and PASID
    /// caches and of its IOTLB since then.
    pub unsafe fn complete(self) {
        // SAFETY: the caller says that the unit has let go of the root, which was the only way to the tables; nobody else has any,
        // since the owner is gone.
        unsafe { self.store.free_tree(self.root, self.links) };
    }
}

impl<A: TableFrames> fmt::Debug for ClosedTables<A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ClosedTables")
            .field("table_frames", &self.table_frames())
            .finish_non_exhaustive()
    }
}
