//! How many table frames it takes (R17): exact for a range, and the most for a length, for queues, and for all of memory.
//!
//! A table of level n covers 2⁹ times what one of its entries covers, and is needed for each such block that a range touches, unless a
//! large leaf of the level above, or of a higher one, maps the whole block. So tables are counted, level by level, by dividing the
//! ends of the range; nothing is walked. What the builder takes is what is counted here, to the frame.

use super::{
    DomainConfig, RangeError,
    width::{INTERRUPTS, Iova, PAGE, Span, size},
};
use crate::{PhysAddr, pool::Watermarks};

/// Index bits of a table in every format.
const INDEX_BITS: u32 = 9;

/// The blocks of `size` bytes that `span` touches.
const fn touched(span: Span, size: u64) -> u64 {
    span.end.div_ceil(size) - span.start / size
}

/// The blocks of `size` bytes that lie in `span` as a whole.
const fn whole(span: Span, size: u64) -> u64 {
    (span.end / size).saturating_sub(span.start.div_ceil(size))
}

impl DomainConfig {
    /// How many table frames a domain has in which this range alone is mapped, the root included: exactly. A domain in which more is
    /// mapped needs as many or fewer for the range, since tables are shared.
    ///
    /// # Errors
    /// [`RangeError`], as `map` itself.
    ///
    /// ```
    /// use framepool::{PhysAddr, vtd::*};
    /// const MIB: u64 = 1 << 20;
    /// let frames = |levels, page_sizes, target| {
    ///     DomainConfig { page_sizes, ..DomainConfig::new(levels) }.tables_for(Iova::new(0), PhysAddr::new(target), 256 * MIB)
    /// };
    /// assert_eq!(frames(Levels::Three, PageSizes::empty(), 0), Ok(130)); // a root, one of level 2, 128 of level 1
    /// assert_eq!(frames(Levels::Four, PageSizes::empty(), 0), Ok(131));
    /// assert_eq!(frames(Levels::Four, PageSizes::SIZE_2M, 0), Ok(3));
    /// assert_eq!(frames(Levels::Four, PageSizes::SIZE_2M, 4096), Ok(131)); // no large leaf can name this target
    /// ```
    pub const fn tables_for(&self, iova: Iova, target: PhysAddr, length: u64) -> Result<u64, RangeError> {
        let span = match self.limits().span(iova, length) {
            Ok(span) => span,
            Err(error) => return Err(error),
        };
        let distance = target.as_u64().wrapping_sub(iova.as_u64());
        let mut tables = 1;
        let mut level = 1;
        while level < self.levels.count() {
            tables +=
                touched(span, size(level + 1, INDEX_BITS)) - self.covered_by_leaves(level, span, distance);
            level += 1;
        }
        Ok(tables)
    }

    /// How many of the tables of `level` that `span` touches large leaves save.
    const fn covered_by_leaves(&self, level: u32, span: Span, distance: u64) -> u64 {
        // The smallest leaf that does: what a larger one covers, it covers too.
        let mut above = level + 1;
        while above <= self.levels.count() {
            let block = size(above, INDEX_BITS);
            if self.page_sizes.allow(above) && distance & (block - 1) == 0 {
                return whole(span, block) << (INDEX_BITS * (above - level - 1));
            }
            above += 1;
        }
        0
    }

    /// The most table frames that one range of `length` bytes takes, wherever it lies and wherever it goes, the root included. Some
    /// range takes as many: one that starts a page before a boundary of the highest level that it can cross, and whose target no large
    /// leaf can name.
    ///
    /// # Errors
    /// [`RangeError`] if no range of this domain has that length.
    ///
    /// ```
    /// # use framepool::vtd::*;
    /// let config = DomainConfig::new(Levels::Four);
    /// assert_eq!(config.tables_at_most(4096), Ok(4)); // one of each level
    /// assert_eq!(config.tables_at_most(8192), Ok(7)); // two of each below the root
    /// assert_eq!(config.tables_at_most(256 << 20), Ok(1 + 2 + 2 + 129));
    /// ```
    pub const fn tables_at_most(&self, length: u64) -> Result<u64, RangeError> {
        self.tables_for_ranges(1, length)
    }

    /// Enough table frames for queues of `depth` requests in all, each of up to `segments` separate ranges of up to `segment_bytes`
    /// bytes, all mapped at once, wherever they lie, the root included. Never too few; and reached, as long as there is a boundary of
    /// its own for each range to lie across.
    ///
    /// # Errors
    /// [`RangeError`] if no range of this domain has the length of a segment.
    ///
    /// ```
    /// # use framepool::vtd::*;
    /// // 128 requests of an NVMe queue, each of 32 pages that nothing holds together:
    /// let config = DomainConfig::new(Levels::Four);
    /// assert_eq!(config.tables_for_queues(128, 32, 4096), Ok(1 + 512 + 2 * 4096));
    /// ```
    pub const fn tables_for_queues(
        &self,
        depth: u32,
        segments: u32,
        segment_bytes: u64,
    ) -> Result<u64, RangeError> {
        self.tables_for_ranges(depth as u64 * segments as u64, segment_bytes)
    }

    const fn tables_for_ranges(&self, ranges: u64, length: u64) -> Result<u64, RangeError> {
        let aperture = match self.limits().span(Iova::new(0), length) {
            Ok(_) => self.limits().aperture(),
            Err(error) => return Err(error),
        };
        let mut tables = 1;
        let mut level = 1;
        while level < self.levels.count() {
            let block = size(level + 1, INDEX_BITS);
            // A page before a boundary, and the rest behind it.
            let each = 1 + (length - PAGE).div_ceil(block);
            let there_are = touched(aperture, block);
            let wanted = ranges.saturating_mul(each);
            tables += if wanted < there_are { wanted } else { there_are };
            level += 1;
        }
        Ok(tables)
    }

    /// How many table frames `devices` domains take that each map the first `memory` bytes of physical memory one to one, with the
    /// largest leaves that the hardware has, but for the [interrupt range](super::INTERRUPT_RANGE): exactly.
    ///
    /// # Errors
    /// [`RangeError`] if so much does not fit into the domain.
    ///
    /// ```
    /// # use framepool::vtd::*;
    /// const GIB: u64 = 1 << 30;
    /// let small = DomainConfig::new(Levels::Four);
    /// assert_eq!(small.tables_for_memory(16 * GIB, 4), Ok(4 * (1 + 1 + 16 + 16 * 512)));
    /// let large = DomainConfig { page_sizes: PageSizes::all(), ..small };
    /// assert_eq!(large.tables_for_memory(3 * GIB, 4), Ok(4 * 2));
    /// assert_eq!(large.tables_for_memory(16 * GIB, 4), Ok(4 * (2 + 2))); // no large leaf lies over the interrupt range
    /// ```
    pub const fn tables_for_memory(&self, memory: u64, devices: u32) -> Result<u64, RangeError> {
        let all = match self.limits().span(Iova::new(0), memory) {
            Ok(span) => span,
            Err(error) => return Err(error),
        };
        let (before, behind) = all.without(INTERRUPTS);
        let touching = if behind.start < behind.end { all } else { before };
        let mut tables = 1;
        let mut level = 1;
        while level < self.levels.count() {
            // The hole is smaller than what a table covers, so tables are saved by large leaves only.
            tables += touched(touching, size(level + 1, INDEX_BITS))
                - self.covered_by_leaves(level, before, 0)
                - self.covered_by_leaves(level, behind, 0);
            level += 1;
        }
        Ok(tables.saturating_mul(devices as u64))
    }
}

impl Watermarks {
    /// Watermarks for the table frames of queues, see [`DomainConfig::tables_for_queues`]: all of them can be taken between
    /// two passes of the worker.
    ///
    /// # Errors
    /// As `tables_for_queues`.
    ///
    /// ```
    /// use framepool::{Builder, Watermarks, vtd::*};
    /// let marks = Watermarks::for_queues(&DomainConfig::new(Levels::Three), 32, 4, 4096)?;
    /// assert_eq!((marks.low, marks.high, marks.max), (257, 514, 771));
    /// let pool = Builder::new(marks.max).watermarks(marks);
    /// # let _ = pool;
    /// # Ok::<(), RangeError>(())
    /// ```
    pub const fn for_queues(
        config: &DomainConfig,
        depth: u32,
        segments: u32,
        segment_bytes: u64,
    ) -> Result<Self, RangeError> {
        match config.tables_for_queues(depth, segments, segment_bytes) {
            Ok(tables) => Ok(Self::for_burst(saturated(tables))),
            Err(error) => Err(error),
        }
    }

    /// Watermarks for the table frames of devices that each map all memory, see [`DomainConfig::tables_for_memory`]: those of one
    /// device can be taken between two passes of the worker.
    ///
    /// # Errors
    /// As `tables_for_memory`.
    ///
    /// ```
    /// use framepool::{Watermarks, vtd::*};
    /// let config = DomainConfig { page_sizes: PageSizes::SIZE_2M, ..DomainConfig::new(Levels::Four) };
    /// assert_eq!(Watermarks::for_memory(&config, 64 << 30)?.low, 1 + 1 + 64 + 1);
    /// # Ok::<(), RangeError>(())
    /// ```
    pub const fn for_memory(config: &DomainConfig, memory: u64) -> Result<Self, RangeError> {
        match config.tables_for_memory(memory, 1) {
            Ok(tables) => Ok(Self::for_burst(saturated(tables))),
            Err(error) => Err(error),
        }
    }
}

const fn saturated(tables: u64) -> u32 {
    if tables > u32::MAX as u64 { u32::MAX } else { tables as u32 }
}
