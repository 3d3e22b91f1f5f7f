//! Owns what a domain shares with everyone who works on its tables: the allocator, the walkers, the frames on their way back, and the
//! way to hardware that does not snoop.

use super::{
    DomainConfig, DomainId, DomainStats, Hardware, TableFrames,
    format::{FLUSHED, Format, parted},
    frame_list::FrameList,
    page_block::PageBlock,
    reclaim::Reclaiming,
    retired::Retired,
    table::{Run, Table},
    walk::Place,
    walkers::{Walk, Walkers},
    width::Span,
};
use crate::{PhysAddr, raw::turn::Turn, sync::counter};

/// The tables of a domain, as domain and invalidations share them.
pub(crate) struct Tables<A: TableFrames> {
    pub(crate) frames: A,
    live: counter::Shared,
    reclaimed: counter::Shared,
    walkers: Walkers,
    retired: Retired,
    reclaiming: Turn<Reclaiming>,
    domain_id: Option<DomainId>,
    hardware: Hardware,
}

impl<A: TableFrames> Tables<A> {
    /// No tables yet.
    pub(crate) fn new(frames: A, config: &DomainConfig) -> Self {
        Self {
            frames,
            live: counter::Shared::new(),
            reclaimed: counter::Shared::new(),
            walkers: Walkers::new(config.concurrent_calls.into()),
            retired: Retired::new(),
            reclaiming: Turn::new(Reclaiming::default()),
            domain_id: config.domain_id,
            hardware: config.hardware,
        }
    }

    /// The tag of the domain in the caches of the hardware.
    pub(crate) fn domain_id(&self) -> Option<DomainId> {
        self.domain_id
    }

    /// What the units demand and offer.
    pub(crate) fn hardware(&self) -> Hardware {
        self.hardware
    }

    /// Begins a walk over `span`: while it lives, every table that the caller finds there stays a table.
    #[inline(always)]
    pub(crate) fn enter<F: Format>(&self, span: Span) -> Walk<'_> {
        self.walkers.enter(PageBlock::reaching(span.start, span.end - 1, const { F::INDEX_BITS as u8 }))
    }

    /// Who walks.
    pub(crate) fn walkers(&self) -> &Walkers {
        &self.walkers
    }

    /// The turn of the one who looks for empty tables, and what the one before has left.
    pub(crate) fn reclaiming(&self) -> &Turn<Reclaiming> {
        &self.reclaiming
    }

    pub(crate) fn linked(&self, tables: u64) {
        self.live.add(tables);
    }

    pub(crate) fn unlinked(&self, tables: u64) {
        self.live.subtract(tables);
    }

    pub(crate) fn live(&self) -> u64 {
        self.live.get()
    }

    /// How many frames wait for walkers that may be inside.
    pub(crate) fn waiting(&self) -> u64 {
        self.retired.waiting()
    }

    /// A snapshot of what is counted.
    pub(crate) fn stats(&self) -> DomainStats {
        DomainStats {
            table_frames: self.live.get(),
            retired: self.retired.waiting(),
            retired_most: self.retired.most_waiting(),
            reclaimed: self.reclaimed.get(),
        }
    }

    /// Tables were taken that had become empty.
    pub(crate) fn reclaimed(&self, tables: u64) {
        self.unlinked(tables);
        self.reclaimed.add(tables);
    }

    /// Gives frames back that no entry has ever named.
    #[allow(unsafe_code, reason = "only what was never linked goes back at once")]
    pub(crate) fn give_back(&self, mut unused: FrameList) {
        while let Some(frame) = unused.pop(&self.frames) {
            // SAFETY: the frame came from this allocator, zeroed, and was never in an entry, so nothing reaches it; what was
            // written to it has been cleared again.
            unsafe { self.frames.free_zeroed(frame) };
        }
    }

    /// Gives frames back that no entry has ever named, whatever is in them.
    #[allow(unsafe_code, reason = "only what was never linked goes back at once")]
    pub(crate) fn give_back_any(&self, mut unused: FrameList) {
        while let Some(frame) = unused.pop(&self.frames) {
            // SAFETY: the frame came from this allocator and was never in an entry, so nothing reaches it.
            unsafe { self.frames.free(frame) };
        }
    }

    /// Takes over tables for addresses of `blocks` of which hardware has let go; they go back when no walker is inside.
    pub(crate) fn retire(&self, detached: FrameList, blocks: impl Iterator<Item = PageBlock>) {
        if detached.count() > 0 {
            self.retired.add(&self.frames, &self.walkers, detached, blocks);
            self.settle();
        }
    }

    /// Returns what nobody can be inside of any more.
    pub(crate) fn settle(&self) {
        self.retired.settle(&self.frames, &self.walkers);
    }

    /// Makes the entries of `run` visible to hardware.
    #[inline(always)]
    pub(crate) fn flush(&self, run: Run<'_>) {
        if !self.hardware.coherent {
            run.flush(&self.frames);
        }
    }

    /// Makes one entry visible to hardware.
    #[inline(always)]
    pub(crate) fn flush_entry(&self, place: &Place<'_>) {
        self.flush(place.table.run(place.index, 1));
    }

    /// Links the table `below`, which nobody else has seen, in the place of `expected`, or says what is there instead.
    pub(crate) fn link<F: Format>(
        &self,
        place: &Place<'_>,
        expected: u64,
        below: PhysAddr,
    ) -> Result<(), u64> {
        // Before the entry, since hardware may follow it at once.
        self.flush(Table::at::<F, A>(&self.frames, below).all());
        place.table.install(place.index, expected, F::table(below))?;
        self.linked(1);
        self.confirm(place, F::table(below));
        Ok(())
    }

    /// Links the table again that `entry` names, if it was parted; returns what is there then. The caller has kept it, and lets
    /// [`confirm`](Self::confirm) flush. Lock-free: a retry means that another mapper was faster.
    #[inline(always)]
    pub(crate) fn restore<F: Format>(&self, place: &Place<'_>, mut entry: u64) -> u64 {
        while let Some(table) = parted(entry) {
            match place.table.install(place.index, entry, F::table(table)) {
                Ok(()) => return F::table(table),
                Err(now) => entry = now,
            }
        }
        entry
    }

    /// Sees to it that hardware finds the table that `entry` names, which somebody may have linked a moment ago.
    ///
    /// `FLUSHED` is set when the line of the entry has been flushed after the entry was written. Whoever finds it clear flushes the
    /// line itself: what it maps below must be reachable when it says so.
    #[inline(always)]
    pub(crate) fn confirm(&self, place: &Place<'_>, entry: u64) {
        if !self.hardware.coherent && entry & FLUSHED == 0 {
            self.flush_entry(place);
            // If the entry is another by now, the next one flushes once more.
            let _ = place.table.install(place.index, entry, entry | FLUSHED);
        }
    }
}

impl<A: TableFrames> Drop for Tables<A> {
    /// Tables that are still live here were never closed: hardware may walk them, so they stay allocated. Those that are retired
    /// go back: nobody walks any more.
    fn drop(&mut self) {
        self.settle();
        self.settle();
        if self.live() > 0 {
            self.frames.leaked(self.live());
        }
    }
}
