//! Owns the return of tables that have become empty (V9), beside everybody who walks, maps and unmaps, and without waiting for any of them.
//!
//! Three things must be known before the frame of an empty table can go back, and each takes its time: that nobody is about to write
//! into it, that hardware has forgotten the entry that names it, and that nobody reads in it. The entry says how far it is.
//!
//! # The words
//! ```text
//! entry of a table   hardware sees   what it says
//! used               the table       nothing about the table
//! idle      IDLE     the table       it was found empty; no map has gone through since
//! parted    IDLE     nothing         the same, and hardware is being told to forget it
//! wanted             nothing         parted, but a map has gone through, which may link it again
//! 0                  nothing         gone: the table is its taker's
//! ```
//!
//! ```text
//!           mark          part             take
//!     used ------> idle --------> parted --------> 0
//!      ^  <------           keep /
//!      |    keep                v
//!      +------------------- wanted
//!          restore
//! ```
//!
//! | event | by whom | order |
//! |---|---|---|
//! | Mark | a reclaim | the table was found empty; IDLE set; then a stamp (`walkers.rs`) |
//! | Part | a reclaim | the stamp has passed for the table's addresses; the table is found empty again; idle to parted; flush |
//! | Take | a completion | hardware has confirmed that it forgot the entry; parted to 0; the table and all below are retired |
//! | Keep | a map's first walk | IDLE cleared, before it goes on below |
//! | Restore | a map's second walk | wanted to used, before it goes on below; flush |
//! | Link again | a reclaim | wanted to idle, since the map may have failed; flush; hardware that remembers what is absent is told |
//!
//! Every transition is one compare-exchange of the whole entry. Reclaims have a turn, from the first mark until the invalidation that comes
//! of it is completed or dropped; so Mark, Part and Take never run beside each other. Who finds the turn taken goes away (INV-3).
//!
//! # The argument
//! **A map never writes into a table that is parted or gone.** Take a map that goes through the entry, and a Part of it. The map's walk began
//! before the stamp, or after.
//! 1. Before: Part comes after the walk, since the stamp has passed. What the map wrote is found by the second look.
//! 2. After: the walk sees the mark, and clears it before it goes on below. Part expects the mark. If Part was first, the map finds the
//!    entry parted and keeps that, and Take expects the mark. So either the table goes, and the map finds nothing and counts
//!    it as missing; or it stays. Nobody marks it again under the map: a stamp that comes then does not pass before the map is through.
//!
//! In both cases what the first walk of a map has found stays until the second is through: no frame is lacking in the middle (INV-11).
//!
//! **Hardware never walks a table that is not the one linked.** A parted table is still the only one that may be linked there until hardware
//! has forgotten it: a map finds it and links it again, rather than another, or a large leaf. Hardware that remembers it is right.
//!
//! **A table goes back once** (INV-1, INV-10): who exchanges the entry for 0 owns it, be it a completion, or an unmap of all above. An unmap
//! whose range contains the table's finds nothing mapped there, so it is one that breaks the contract, but then too one of both gets it.
//!
//! A map that is stopped in the middle holds back the tables for its own addresses, and nothing else. A reclaim whose invalidation is
//! dropped leaves parted tables parted; the next one tells hardware of them again, and of those that were linked again, which
//! no entry shows ([`Reclaiming`]). A map that fails has changed nothing but marks, which say nothing to hardware, nor what is mapped (INV-11).

use super::{
    Domain, Invalidation, Iova, RangeError, TableFrames,
    format::{Entry, Format, IDLE, KEPT, parted, parting},
    frame_list::FrameList,
    page_block::PageBlock,
    table::{Run, Table},
    tables::Tables,
    unmap::collect,
    walk::{Place, Step, Visitor, walk},
    walkers::{Stamp, Walk},
    width::{Span, size},
};
use crate::{PhysAddr, raw::turn::Held};
use core::{convert::Infallible, error::Error, fmt, marker::PhantomData};

/// What reclaims leave to the next one.
#[derive(Debug, Default)]
pub(crate) struct Reclaiming {
    /// The last moment after which tables were marked.
    stamp: Option<Stamp>,
    /// A block of all addresses whose tables were linked again, until hardware has confirmed that it was told.
    untold: Option<Span>,
}

impl Reclaiming {
    /// A table for the addresses of `part` was linked again.
    fn linked_again(&mut self, part: Span) {
        let all = self.untold.map_or(part, |untold| Span {
            start: untold.start.min(part.start),
            end: untold.end.max(part.end),
        });
        let block = PageBlock::covering(all.into());
        self.untold =
            Some(Span { start: block.start().as_u64(), end: block.last().as_u64().saturating_add(1) });
    }
}

/// Why empty tables could not be looked for. The tables are what they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReclaimError {
    /// The range itself is wrong.
    Range(RangeError),
    /// Another reclaim is in progress, or its invalidation is not complete.
    InProgress,
}

impl From<RangeError> for ReclaimError {
    fn from(error: RangeError) -> Self {
        Self::Range(error)
    }
}

impl fmt::Display for ReclaimError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Range(error) => error.fmt(formatter),
            Self::InProgress => {
                write!(formatter, "another reclaim is in progress: complete its invalidation, then try again")
            }
        }
    }
}

impl Error for ReclaimError {}

impl<F: Format, A: TableFrames> Domain<F, A> {
    /// Takes out the tables for addresses of the range in which nothing is mapped any more. They come back when the invalidation is
    /// [complete](Invalidation::complete); until then a `map` can still use them, and afterwards a large leaf can take their place.
    ///
    /// An `unmap` returns the tables whose whole range it unmaps at once; this is for those that were emptied in pieces. Tables into which a
    /// call that is in progress may look or write are left for a later reclaim.
    ///
    /// From thread and interrupt context, not from an NMI. Takes no frames. Never waits, nor makes anybody wait. Bounded by the tables for the
    /// range, each of which is read up to twice: give a small range in an interrupt.
    /// At most 45,200 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`ReclaimError`]: the range is wrong, or another reclaim's invalidation is not complete yet.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// # let domain = SecondStageDomain::new(DomainConfig::new(Levels::Three), &*pool)?;
    /// # let forgotten = |_: &Invalidation<'_, _>| ();
    /// // SAFETY: no device walks this domain.
    /// unsafe { domain.map(Iova::new(0), PhysAddr::new(0), 4096, Permissions::READ)? };
    /// // SAFETY: as above.
    /// unsafe { domain.unmap(Iova::new(0), 4096)?.complete() };
    /// assert_eq!(domain.table_frames(), 3, "the page was not all that its tables covered");
    /// let invalidation = domain.reclaim(Iova::new(0), 1 << 39)?;
    /// forgotten(&invalidation); // Submit its descriptors, and wait.
    /// // SAFETY: as above.
    /// unsafe { invalidation.complete() };
    /// assert_eq!(domain.table_frames(), 1, "the root");
    /// # unsafe { domain.close().complete() };
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reclaim(&self, iova: Iova, length: u64) -> Result<Invalidation<'_, A>, ReclaimError> {
        let span = self.limits().span(iova, length)?;
        let tables = self.tables();
        let mut turn = tables.reclaiming().hold().ok_or(ReclaimError::InProgress)?;
        let mut invalidation = Invalidation::none(tables);
        let levels = self.levels().count();
        let (count, untold) = turn.with(|state| {
            let walk = tables.enter::<F>(span);
            let mut sweep = Sweep::<F, A> {
                tables,
                walk: &walk,
                span,
                ripe: None,
                marked: false,
                parted: 0,
                state,
                invalidation: &mut invalidation,
                format: PhantomData,
            };
            sweep.run(self.root(), levels);
            (sweep.parted, sweep.state.untold)
        });
        if let Some(untold) = untold {
            invalidation.cover_table(untold);
        }
        if count > 0 || untold.is_some() {
            let take = take::<F, A>;
            invalidation.set_parted(PartedTables { root: self.root(), levels, span, count, take, turn });
        }
        Ok(invalidation)
    }
}

/// What is below an entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Content {
    /// Nothing that hardware sees.
    Nothing,
    /// Empty tables, which are linked.
    EmptyTables,
    /// Pages, tables that are to be kept, or what was not looked at.
    Pages,
}

/// Looks for empty tables, marks them, and parts those that were marked.
struct Sweep<'s, 'd, F, A: TableFrames> {
    tables: &'d Tables<A>,
    walk: &'s Walk<'d>,
    span: Span,
    /// What was marked before this may be parted when it has passed.
    ripe: Option<Stamp>,
    marked: bool,
    /// How many tables are parted.
    parted: u64,
    state: &'s mut Reclaiming,
    invalidation: &'s mut Invalidation<'d, A>,
    format: PhantomData<F>,
}

impl<F: Format, A: TableFrames> Sweep<'_, '_, F, A> {
    /// Twice: what the first look marks, the second parts, if nobody is about. What earlier ones have marked is ripe with their stamp.
    fn run(&mut self, root: PhysAddr, levels: u32) {
        for _ in 0..2 {
            (self.ripe, self.marked, self.parted) = (self.state.stamp, false, 0);
            self.table(root, levels, 0);
            if !self.marked {
                return;
            }
            self.state.stamp = Some(self.tables.walkers().stamp());
        }
    }

    /// Looks at the table `frame` of `level`, for addresses from `start` on. Recurses once a level.
    fn table(&mut self, frame: PhysAddr, level: u32, start: u64) -> Content {
        let table = Table::at::<F, A>(&self.tables.frames, frame);
        if level == 1 {
            return match table.all().first_with(u64::MAX) {
                None => Content::Nothing,
                Some(_) => Content::Pages,
            };
        }
        let size = size(level, F::INDEX_BITS);
        let mut content = Content::Nothing;
        for index in 0..1 << F::INDEX_BITS {
            let first = start + index as u64 * size;
            let place = Place { table, index, level, part: Span { start: first, end: first + size } };
            content = content.max(self.entry(&place));
        }
        content
    }

    fn entry(&mut self, place: &Place<'_>) -> Content {
        let found = place.table.load(place.index);
        if found == 0 {
            return Content::Nothing;
        }
        if place.part.end <= self.span.start || self.span.end <= place.part.start {
            return Content::Pages;
        }
        match F::decode(found, place.level) {
            Entry::Leaf { .. } => Content::Pages,
            Entry::Table(below) => self.linked(place, found, below),
            Entry::Empty => parted(found).map_or(Content::Pages, |below| self.unlinked(place, found, below)),
        }
    }

    /// At a table that hardware sees.
    fn linked(&mut self, place: &Place<'_>, found: u64, below: PhysAddr) -> Content {
        // Before the look: it must find what those have written who have left.
        let block = PageBlock::covering(place.part.into());
        let is_ripe = found & IDLE != 0
            && self.ripe.is_some_and(|stamp| self.tables.walkers().passed(stamp, block, Some(self.walk)));
        let content = self.table(below, place.level - 1, place.part.start);
        if content == Content::Pages || found & KEPT != 0 {
            return Content::Pages;
        }
        if found & IDLE == 0 {
            self.marked |= place.table.install(place.index, found, found | IDLE).is_ok();
        } else if is_ripe
            && content == Content::Nothing
            && place.table.install(place.index, found, parting(below) | IDLE).is_ok()
        {
            self.tables.flush_entry(place);
            self.invalidation.cover_table(place.part);
            self.parted += 1;
            return Content::Nothing;
        }
        Content::EmptyTables
    }

    /// At a table that hardware does not see.
    fn unlinked(&mut self, place: &Place<'_>, found: u64, below: PhysAddr) -> Content {
        self.invalidation.cover_table(place.part);
        let mut content = Content::Nothing;
        if found & IDLE != 0 {
            // Parted a moment ago, or by a reclaim whose invalidation was dropped.
            self.parted += 1;
        } else {
            // A map that wanted it is about to link it, or has failed: linked again, it goes the way of all.
            content = Content::EmptyTables;
            if place.table.install(place.index, found, F::table(below) | IDLE).is_ok() {
                self.marked = true;
                self.state.linked_again(place.part);
                self.tables.flush_entry(place);
            }
        }
        content.max(self.table(below, place.level - 1, place.part.start))
    }
}

/// The turn of a reclaim that has parted tables, or linked some again, and what it takes to take them.
pub(crate) struct PartedTables<'d, A: TableFrames> {
    root: PhysAddr,
    levels: u32,
    span: Span,
    count: u64,
    take: fn(&Tables<A>, PhysAddr, u32, Span) -> FrameList,
    turn: Held<'d, Reclaiming>,
}

impl<A: TableFrames> PartedTables<'_, A> {
    /// How many there were.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Takes those that are parted still, of which hardware has let go.
    pub(crate) fn take(mut self, tables: &Tables<A>) -> FrameList {
        let list = (self.take)(tables, self.root, self.levels, self.span);
        self.turn.with(|state| state.untold = None);
        list
    }
}

/// Takes all parted tables in `span` out.
fn take<F: Format, A: TableFrames>(tables: &Tables<A>, root: PhysAddr, levels: u32, span: Span) -> FrameList {
    let _walk = tables.enter::<F>(span);
    let mut taking = Taking::<F, A> { tables, list: FrameList::new(), format: PhantomData };
    let Ok(()) = walk::<F, A, _>(&tables.frames, root, levels, span, &mut taking);
    tables.reclaimed(taking.list.count());
    taking.list
}

/// The walk that takes parted tables out.
struct Taking<'t, F, A: TableFrames> {
    tables: &'t Tables<A>,
    list: FrameList,
    format: PhantomData<F>,
}

impl<F: Format, A: TableFrames> Visitor for Taking<'_, F, A> {
    type Stop = Infallible;

    fn entry(&mut self, place: Place<'_>) -> Result<Step, Infallible> {
        let mut found = place.table.load(place.index);
        loop {
            if let Entry::Table(below) = F::decode(found, place.level) {
                return Ok(Step::Descend(below));
            }
            let Some(below) = parted(found) else { return Ok(Step::Skip) };
            if found & IDLE == 0 {
                // What is below may be parted still.
                return Ok(Step::Descend(below));
            }
            match place.table.remove(place.index, found) {
                Ok(()) => {
                    self.list.append(
                        &self.tables.frames,
                        collect::<F, A>(&self.tables.frames, below, place.level - 1),
                    );
                    return Ok(Step::Skip);
                }
                // A map keeps it, or has linked it again.
                Err(now) => found = now,
            }
        }
    }

    fn leaves(&mut self, _run: Run<'_>, _part: Span) -> Result<(), Infallible> {
        Ok(())
    }
}
