//! Owns what a change leaves to be done: the ranges that hardware must be told to forget, and the table frames that it may still
//! be walking. Only the word that this is done gives the frames back (INV-10).

use super::{
    Descriptor, DomainId, Format, IotlbSelection, PageBlock, Pages, Pasid, Selection, TableFrames, Wait,
    frame_list::FrameList,
    join::JoinedTables,
    reclaim::PartedTables,
    tables::Tables,
    width::{Iova, Span},
};
use crate::PhysAddr;
use core::fmt;

/// How many ranges are kept apart; with more of them the whole domain is invalidated, which is cheaper by then.
const RANGES: usize = 8;
/// How many requests a range may take before it is widened to one block.
const BLOCKS: usize = 4;

/// A range of IOVA that hardware may have cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IovaRange {
    /// The first address.
    pub start: Iova,
    /// The length in bytes, a multiple of 4 KiB.
    pub length: u64,
}

impl From<Span> for IovaRange {
    fn from(span: Span) -> Self {
        Self { start: Iova::new(span.start), length: span.length() }
    }
}

/// What hardware must forget before the unmapped pages and the table frames in here may be used again.
///
/// Order of a caller (VT-d specification, section 6.5): submit the [`descriptors`](Self::descriptors) to every unit that the domain
/// is attached to, wait until each has written the status of the wait descriptor behind them, then [`complete`](Self::complete). The
/// changed lines were flushed before this value was returned.
///
/// Dropping it instead leaks the table frames on purpose and reports it through [`TableFrames::leaked`]: a frame that hardware
/// may still walk must not be used again. Those of a [reclaim](super::Domain::reclaim) are left for the next one.
#[must_use = "hardware must be told, and the table frames come back only through `complete`"]
pub struct Invalidation<'d, A: TableFrames> {
    tables: &'d Tables<A>,
    /// Mostly there is one range, and no table.
    first: Option<Span>,
    more: Option<[Option<Span>; RANGES - 1]>,
    waiting: Option<WaitingTables<'d, A>>,
    whole_domain: bool,
    leaf_only: bool,
    /// Nothing was present before, and hardware does not remember that: it only holds writes back.
    write_buffer_only: bool,
    /// The least address mask with which hardware forgets each entry that changed.
    least_mask: u8,
}

/// Tables that hardware may still be walking.
struct WaitingTables<'d, A: TableFrames> {
    detached: FrameList,
    parted: Option<PartedTables<'d, A>>,
    /// Detached too, but what they say still holds.
    joined: JoinedTables,
}

impl<A: TableFrames> WaitingTables<'_, A> {
    fn none() -> Self {
        Self { detached: FrameList::new(), parted: None, joined: JoinedTables::default() }
    }

    /// How many come back when hardware has let go, but for those that were parted.
    fn detached(&self) -> u64 {
        self.detached.count() + self.joined.count()
    }

    /// Hands all of them over. They are of addresses in the ranges, or anywhere if those are about the whole domain.
    #[inline(never)]
    fn retire(
        self,
        tables: &Tables<A>,
        whole_domain: bool,
        first: Option<Span>,
        more: Option<[Option<Span>; RANGES - 1]>,
    ) {
        let mut detached = self.detached;
        if let Some(parted) = self.parted {
            detached.append(&tables.frames, parted.take(tables));
        }
        detached.append(&tables.frames, self.joined.into_list(&tables.frames));
        let spans = first.into_iter().chain(more.into_iter().flatten().flatten());
        let blocks = spans.filter(|_| !whole_domain).map(|span| PageBlock::covering(span.into()));
        tables.retire(detached, blocks.chain(whole_domain.then_some(PageBlock::ALL)));
    }
}

impl<'d, A: TableFrames> Invalidation<'d, A> {
    /// Nothing to be done.
    #[inline(always)]
    pub(crate) fn none(tables: &'d Tables<A>) -> Self {
        Self {
            tables,
            first: None,
            more: None,
            waiting: None,
            whole_domain: false,
            leaf_only: true,
            write_buffer_only: true,
            least_mask: 0,
        }
    }

    /// What was present in `span` is not any more, or says something else.
    #[inline(always)]
    pub(crate) fn of(tables: &'d Tables<A>, span: Span) -> Self {
        let mut invalidation = Self::none(tables);
        invalidation.first = Some(span);
        invalidation.write_buffer_only = false;
        invalidation
    }

    /// What was not present in `span` is now, in leaves of up to `size` bytes.
    pub(crate) fn of_map(tables: &'d Tables<A>, span: Span, size: u64) -> Self {
        let mut invalidation = Self::none(tables);
        let hardware = tables.hardware();
        if hardware.caching_mode || hardware.write_buffer_flush {
            invalidation.cover(span);
            invalidation.changed(size);
            // Hardware may remember that a table was not there.
            invalidation.leaf_only = false;
            invalidation.write_buffer_only = !hardware.caching_mode;
        }
        invalidation
    }

    /// Adds `span`, in which leaves of up to `size` bytes say something else.
    pub(crate) fn change(&mut self, span: Span, size: u64) {
        self.write_buffer_only = false;
        self.changed(size);
        self.cover(span);
    }

    /// Adds `span`, in which entries that name tables changed, which covered it as a whole.
    pub(crate) fn cover_table(&mut self, span: Span) {
        self.leaf_only = false;
        self.write_buffer_only = false;
        self.changed(span.length());
        self.cover(span);
    }

    /// An entry changed that covered `size` bytes.
    pub(crate) fn changed(&mut self, size: u64) {
        self.least_mask = self.least_mask.max(mask_of(size));
    }

    fn cover(&mut self, span: Span) {
        let is_near = |known: &&mut Span| known.start <= span.end && span.start <= known.end;
        if let Some(known) =
            self.first.iter_mut().chain(self.more.iter_mut().flatten().flatten()).find(is_near)
        {
            *known = Span { start: known.start.min(span.start), end: known.end.max(span.end) };
            return;
        }
        let place = match self.first {
            None => Some(&mut self.first),
            Some(_) => self.more.get_or_insert([None; RANGES - 1]).iter_mut().find(|range| range.is_none()),
        };
        match place {
            Some(place) => *place = Some(span),
            None => self.whole_domain = true,
        }
    }

    /// The ranges that are known.
    fn spans(&self) -> impl Iterator<Item = Span> + '_ {
        self.first.into_iter().chain(self.more.iter().flatten().flatten().copied())
    }

    /// Where tables wait.
    fn waiting(&mut self) -> &mut WaitingTables<'d, A> {
        self.waiting.get_or_insert_with(WaitingTables::none)
    }

    /// Adds a table in whose place there is a leaf that says the same.
    pub(crate) fn join<F: Format>(&mut self, table: PhysAddr) {
        let frames = &self.tables.frames;
        self.waiting().joined.push::<F, A>(frames, table);
    }

    pub(crate) fn take_frames(&mut self, detached: FrameList) {
        let frames = &self.tables.frames;
        self.waiting().detached.append(frames, detached);
    }

    /// Tables were parted, to be taken when hardware has forgotten them.
    pub(crate) fn set_parted(&mut self, parted: PartedTables<'d, A>) {
        self.waiting().parted = Some(parted);
    }

    /// Whether there is nothing to be done.
    pub fn is_empty(&self) -> bool {
        self.first.is_none() && !self.whole_domain && self.table_frames() == 0
    }

    /// The tag of the domain in the caches of the hardware, as configured.
    pub fn domain_id(&self) -> Option<DomainId> {
        self.tables.domain_id()
    }

    /// Whether all of the domain must be invalidated, because there were too many ranges to keep apart.
    pub fn is_whole_domain(&self) -> bool {
        self.whole_domain
    }

    /// The ranges to invalidate, in no order; meaningless when the whole domain must be.
    pub fn ranges(&self) -> impl Iterator<Item = IovaRange> + '_ {
        self.spans().map(IovaRange::from)
    }

    /// Whether only entries of pages changed, none that names a table: the invalidation hint (IH) of a page-selective
    /// invalidation may then be 1.
    pub fn leaf_only(&self) -> bool {
        self.leaf_only
    }

    /// Whether it is enough to flush the unit's write buffer (GCMD_REG.WBF), which an invalidation does as well: nothing was mapped
    /// before, and the unit does not remember what is not present.
    pub fn needs_write_buffer_flush_only(&self) -> bool {
        self.write_buffer_only && !self.is_empty()
    }

    /// The least address mask of a request that makes hardware forget every entry that changed: 9 if one covered 2 MiB, 18 if one
    /// covered 1 GiB.
    pub fn least_mask(&self) -> u8 {
        self.least_mask
    }

    /// How many table frames wait in here. Of a [reclaim](super::Domain::reclaim) that is the most: tables that a `map` has used again
    /// do not come back.
    pub fn table_frames(&self) -> u64 {
        let all = |waiting: &WaitingTables<'d, A>| {
            waiting.detached() + waiting.parted.as_ref().map_or(0, PartedTables::count)
        };
        self.waiting.as_ref().map_or(0, all)
    }

    /// The pages to forget, in naturally aligned blocks that hardware can forget each at once and of which none is smaller than an
    /// entry that changed in it; or a single `None` for the whole domain, if the hardware has no such blocks or they would be too
    /// many. Nothing if nothing must be forgotten.
    ///
    /// At most 32; any context, constant time.
    pub fn requests(&self) -> impl Iterator<Item = Option<Pages>> + '_ {
        let whole_domain = self.whole_domain
            || self.ranges().any(|range| matches!(self.selection(range), Selection::Domain));
        let blocks = self
            .ranges()
            .filter(move |_| !whole_domain)
            .filter_map(|range| match self.selection(range) {
                Selection::Pages(blocks) => Some(blocks),
                Selection::Domain => None,
            })
            .flatten()
            .map(|block| Some(Pages { block, leaf_only: self.leaf_only }));
        whole_domain.then_some(None).into_iter().chain(blocks)
    }

    fn selection(&self, range: IovaRange) -> Selection {
        Selection::of(range, self.tables.hardware().page_selective, self.least_mask, BLOCKS)
    }

    /// The descriptors to submit to each unit, in order: forget the pages, or all of the domain if it has an id, or everything; then
    /// `wait`. Several invalidations of one domain can be [merged](Self::merge) before; those of several domains can share the last
    /// wait.
    ///
    /// In scalable mode, translations of the first stage are forgotten by [`pasid_descriptors`](Self::pasid_descriptors).
    ///
    /// At most 33; any context, constant time.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// # let unit = Capabilities::from_registers(0x00d2_008c_222f_0606, 0x00f0_0f4b);
    /// # let config = DomainConfig::from_capabilities::<SecondStage>(Levels::Four, TranslationMode::Legacy, 48, &[unit])?;
    /// # let config = DomainConfig { domain_id: DomainId::new(5), ..config };
    /// # let domain = SecondStageDomain::new(config, &*pool)?;
    /// # // SAFETY: no device walks this domain.
    /// # unsafe { domain.map(Iova::new(0x20_0000), PhysAddr::new(0), 0x20_1000, Permissions::READ)? };
    /// let invalidation = domain.unmap(Iova::new(0x20_0000), 0x20_1000)?;
    /// // The last thing that the unit does is to write 1 where the driver looks.
    /// let done = Wait { status: StatusWrite::new(PhysAddr::new(0x7000), 1), ..Wait::default() };
    /// let words: Vec<_> = invalidation.descriptors(Some(done)).filter_map(Descriptor::encode_narrow).collect();
    /// // A leaf of 2 MiB, which was cached as one, and a page of a table that is still there.
    /// assert_eq!(words, [[0x5_00F2, 0x20_0049], [0x5_00F2, 0x40_0040], [0x1_0000_0025, 0x7000]]);
    /// // SAFETY: no device walks this domain, so there is nobody to wait for.
    /// unsafe { invalidation.complete() };
    /// # unsafe { domain.close().complete() };
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn descriptors(&self, wait: Option<Wait>) -> impl Iterator<Item = Descriptor> + '_ {
        self.tagged(wait, move |domain, pages| {
            self.iotlb(match pages {
                Some(pages) => IotlbSelection::Pages(domain, pages),
                None => IotlbSelection::Domain(domain),
            })
        })
    }

    /// The same for translations of the first stage that were made under `pasid`, whose entry names this domain.
    ///
    /// At most 33; any context, constant time.
    pub fn pasid_descriptors(
        &self,
        pasid: Pasid,
        wait: Option<Wait>,
    ) -> impl Iterator<Item = Descriptor> + '_ {
        self.tagged(wait, move |domain, pages| Descriptor::PasidIotlb { domain, pasid, pages })
    }

    /// Each request as `descriptor` says, or one to forget everything where there is no id: nobody knows what is tagged with what.
    fn tagged<'i>(
        &'i self,
        wait: Option<Wait>,
        descriptor: impl Fn(DomainId, Option<Pages>) -> Descriptor + 'i,
    ) -> impl Iterator<Item = Descriptor> + 'i {
        let id = self.domain_id();
        let everything =
            self.requests().next().filter(|_| id.is_none()).map(|_| self.iotlb(IotlbSelection::All));
        let requests = self.requests().filter_map(move |pages| Some(descriptor(id?, pages)));
        everything.into_iter().chain(requests).chain(wait.map(Descriptor::Wait))
    }

    fn iotlb(&self, selection: IotlbSelection) -> Descriptor {
        let hardware = self.tables.hardware();
        Descriptor::Iotlb {
            selection,
            drain_reads: hardware.drain_reads,
            drain_writes: hardware.drain_writes,
        }
    }

    /// Takes over what `other` leaves to be done, for one invalidation instead of two. From the contexts of `unmap`; constant
    /// time, but for tables that were [joined](super::Domain::join).
    ///
    /// # Errors
    /// `other` comes back if it is of another domain.
    #[allow(clippy::result_large_err, reason = "the value itself comes back, and there is no heap to box it")]
    pub fn merge(&mut self, mut other: Self) -> Result<(), Self> {
        if !core::ptr::eq(self.tables, other.tables) {
            return Err(other);
        }
        for span in other.spans() {
            self.cover(span);
        }
        self.whole_domain |= other.whole_domain;
        self.leaf_only &= other.leaf_only;
        self.write_buffer_only &= other.write_buffer_only;
        self.least_mask = self.least_mask.max(other.least_mask);
        if let Some(others) = other.waiting.take() {
            let frames = &self.tables.frames;
            let own = self.waiting();
            own.detached.append(frames, others.detached);
            // There is one turn, so one of both has none.
            own.parted = own.parted.take().or(others.parted);
            own.joined.append(frames, others.joined);
        }
        Ok(())
    }

    /// Gives the table frames back: the invalidation is complete. Frames that another call may be reading at this moment come back
    /// with a later completion, or with [`maintain`](super::Domain::maintain).
    ///
    /// From thread and interrupt context, not from an NMI; the bound is a free for each table frame that waits, and for a reclaim
    /// the tables of its range.
    /// At most 8,700 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Safety
    /// Every unit that the domain is attached to has confirmed that it has forgotten the ranges (or the whole domain), non-leaf
    /// entries included unless [`leaf_only`](Self::leaf_only); nothing walks the detached tables any more.
    #[inline(always)]
    pub unsafe fn complete(mut self) {
        // What is needed goes by value, each part for itself: so nothing of all this is copied, or ever in memory, where no table waits.
        if let Some(waiting) = self.waiting.take() {
            waiting.retire(self.tables, self.whole_domain, self.first, self.more.take());
        }
    }
}

/// The least address mask that covers `size` bytes, a power of two of pages.
const fn mask_of(size: u64) -> u8 {
    (size.trailing_zeros() - super::width::PAGE.trailing_zeros()) as u8
}

impl<A: TableFrames> Drop for Invalidation<'_, A> {
    #[inline]
    fn drop(&mut self) {
        let frames = self.waiting.as_ref().map_or(0, WaitingTables::detached);
        if frames > 0 {
            self.tables.frames.leaked(frames);
        }
    }
}

impl<A: TableFrames> fmt::Debug for Invalidation<'_, A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Invalidation")
            .field("domain_id", &self.domain_id())
            .field("first", &self.first)
            .field("more", &self.more)
            .field("whole_domain", &self.whole_domain)
            .field("leaf_only", &self.leaf_only)
            .field("least_mask", &self.least_mask)
            .field("table_frames", &self.table_frames())
            .finish()
    }
}
