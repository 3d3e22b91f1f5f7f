//! The operations of the page-table builder: each context maps and unmaps at addresses of its own, under tables that all share.

use super::{
    host::{Pool, number_of},
    operations::{Of, Operation, Role},
    pieces::map_pieces,
    situations::{Mapped, State},
    world::{Domain, Hand, Kept, LEVELS, Violation, World},
};
use framepool::{FrameSource, PhysAddr, vtd::*};
use std::{
    hint::black_box,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};

pub const PAGE: u64 = 4096;
const LARGE: u64 = 2 << 20;
/// The ranges of all contexts lie in the first entries of each table above the last level.
const ENTRIES: usize = 64;
/// What they cover.
pub const COVERED: u64 = ENTRIES as u64 * LARGE;

/// What a context may have mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// One page, in a table in which every context has one.
    Page,
    /// Two pages on both sides of the border between two tables.
    Span,
    /// All pages of one table.
    Table,
    /// One large leaf.
    Large,
    /// A large leaf without its first page: what a split leaves.
    Split,
    /// Pages that lie anywhere, in two tables.
    Scattered,
    /// A table that was mapped piece by piece.
    Pieces,
}

pub const RANGES: [Range; 7] =
    [Range::Page, Range::Span, Range::Table, Range::Large, Range::Split, Range::Scattered, Range::Pieces];

impl Range {
    pub fn iova(self, level: usize) -> u64 {
        let level = level as u64;
        match self {
            Self::Page => level * PAGE,
            Self::Span => (2 + 2 * level) * LARGE - PAGE,
            Self::Table => (16 + level) * LARGE,
            Self::Large => (32 + level) * LARGE,
            Self::Split => (32 + level) * LARGE + PAGE,
            Self::Scattered => (48 + 2 * level) * LARGE - PAGE,
            Self::Pieces => (56 + level) * LARGE,
        }
    }

    pub fn length(self) -> u64 {
        match self {
            Self::Page => PAGE,
            Self::Span => 2 * PAGE,
            Self::Table | Self::Large | Self::Pieces => LARGE,
            Self::Split => LARGE - PAGE,
            Self::Scattered => 3 * PAGE,
        }
    }

    /// Where an address is mapped to: so that a table is filled with small leaves, it is no multiple of a large one there; and
    /// scattered pages lie the other way round.
    pub fn target(self, iova: u64) -> u64 {
        match self {
            Self::Table => (1 << 33) + PAGE + iova,
            Self::Scattered => (1 << 33) - iova,
            _ => (1 << 33) + iova,
        }
    }
}

/// A domain, what is mapped in it, and what waits for its invalidation.
pub struct Space<'w> {
    pub domain: &'w Domain<'w>,
    mapped: [[AtomicBool; RANGES.len()]; LEVELS],
    waiting: [Kept<Invalidation<'w, &'w Pool<'w>>>; LEVELS],
}

pub fn domain<'p>(pool: &'p Pool<'p>) -> Domain<'p> {
    let mut config = DomainConfig { page_sizes: PageSizes::SIZE_2M, ..DomainConfig::new(Levels::Three) };
    (config.accessed_dirty, config.hardware.accessed_dirty) = (true, true);
    Domain::new(config, pool).unwrap()
}

impl<'w> Space<'w> {
    pub fn new(domain: &'w Domain<'w>) -> Self {
        let waiting = [const { Kept::nothing() }; LEVELS];
        Self { domain, mapped: [const { [const { AtomicBool::new(false) }; RANGES.len()] }; LEVELS], waiting }
    }

    pub fn table_frames(&self) -> u64 {
        self.domain.table_frames()
    }

    pub fn is_mapped(&self, level: usize, range: Range) -> bool {
        self.mapped[level][range as usize].load(SeqCst)
    }

    pub fn set_mapped(&self, level: usize, range: Range, mapped: bool) {
        self.mapped[level][range as usize].store(mapped, SeqCst);
    }

    /// Lays down what hardware is to be told; nothing else may wait.
    pub fn wait(&self, level: usize, invalidation: Invalidation<'w, &'w Pool<'w>>) {
        self.waiting[level].put(invalidation);
    }

    fn table_frames_waiting(&self, level: usize) -> u64 {
        self.waiting[level].get().map_or(0, Invalidation::table_frames)
    }
}

const fn mapping<const RANGE: usize>(name: &'static str) -> Operation {
    Operation::new(name, Role::Any, map::<RANGE>)
        .needs(can_map::<RANGE>)
        .settled_by(note_map::<RANGE>)
        .of(Of::Tables)
}

const fn unmapping<const RANGE: usize>(name: &'static str) -> Operation {
    Operation::new(name, Role::Any, unmap::<RANGE>)
        .needs(can_unmap::<RANGE>)
        .settled_by(note_unmap::<RANGE>)
        .of(Of::Tables)
}

// Those that bring a domain into a state.
const MAP_PAGE: Operation = mapping::<0>("map a page");
const MAP_SPAN: Operation = mapping::<1>("map over two tables");
const MAP_TABLE: Operation = mapping::<2>("map a table");
const MAP_LARGE: Operation = mapping::<3>("map a large leaf");
const UNMAP_TABLE: Operation = unmapping::<2>("unmap a table");

/// The operations of the builder.
pub static TABLES: &[Operation] = &[
    MAP_PAGE,
    MAP_SPAN,
    MAP_TABLE,
    MAP_LARGE,
    unmapping::<0>("unmap a page"),
    unmapping::<1>("unmap over two tables"),
    UNMAP_TABLE,
    unmapping::<3>("unmap a large leaf"),
    Operation::new("unmap part of a large leaf", Role::Any, split)
        .needs(can_unmap::<3>)
        .settled_by(note_split)
        .of(Of::Tables),
    Operation::new("complete", Role::Any, complete).needs(can_complete).of(Of::Tables),
    Operation::new("maintain a domain", Role::Any, maintain).needs(has_space).of(Of::Tables),
    Operation::new("translate", Role::Thread, translate).needs(has_space).of(Of::Tables),
];

// What a call came to, as [`Hand::outcome`] has it.
pub const DONE: u32 = 1;
pub const NO_FRAMES: u32 = 2;
pub const WRONG: u32 = 3;

pub fn can_map<const RANGE: usize>(world: &World<'_>, hand: &Hand) -> bool {
    let free = |space: &Space<'_>| {
        let split = RANGES[RANGE] == Range::Large && space.is_mapped(hand.level, Range::Split);
        !split && !space.is_mapped(hand.level, RANGES[RANGE])
    };
    world.space.as_ref().is_some_and(free)
}

pub fn can_unmap<const RANGE: usize>(world: &World<'_>, hand: &Hand) -> bool {
    let ready = |space: &Space<'_>| {
        space.is_mapped(hand.level, RANGES[RANGE]) && space.table_frames_waiting(hand.level) == 0
    };
    world.space.as_ref().is_some_and(ready)
}

/// What an operation needs that changes a table of its own and leaves it where it is.
pub fn can_take(world: &World<'_>, hand: &Hand) -> bool {
    world.space.as_ref().is_some_and(|space| space.is_mapped(hand.level, Range::Table))
}

/// What an operation of the builder needs: that there is one.
pub fn has_space(world: &World<'_>, _hand: &Hand) -> bool {
    world.space.is_some()
}

pub fn check(world: &World<'_>, hand: &Hand) {
    note(world, hand, |_| ());
}

fn can_complete(world: &World<'_>, hand: &Hand) -> bool {
    world.space.as_ref().is_some_and(|space| space.table_frames_waiting(hand.level) > 0)
}

extern "C" fn map<const RANGE: usize>(world: &World<'_>, hand: &Hand) {
    let Some(space) = &world.space else { return };
    let (iova, range) = (RANGES[RANGE].iova(hand.level), RANGES[RANGE]);
    let target = PhysAddr::new(range.target(iova));
    // SAFETY: no device walks these tables, and each context has addresses of its own.
    let outcome = unsafe { space.domain.map(Iova::new(iova), target, range.length(), Permissions::all()) };
    let outcome = match outcome {
        Ok(()) => DONE,
        Err(MapError::OutOfFrames { .. }) => NO_FRAMES,
        Err(_) => WRONG,
    };
    hand.outcome.store(outcome, SeqCst);
}

pub fn note_map<const RANGE: usize>(world: &World<'_>, hand: &Hand) {
    note(world, hand, |space| space.set_mapped(hand.level, RANGES[RANGE], true));
}

pub fn note(world: &World<'_>, hand: &Hand, done: impl FnOnce(&Space<'_>)) {
    match (hand.outcome.load(SeqCst), &world.space) {
        (DONE, Some(space)) => done(space),
        (NO_FRAMES, _) => {}
        _ => world.report(Violation::Outcome),
    }
}

#[inline(always)]
pub fn unmap_part(world: &World<'_>, hand: &Hand, range: Range, length: u64) {
    let Some(space) = &world.space else { return };
    let outcome = match space.domain.unmap(Iova::new(range.iova(hand.level)), length) {
        Ok(invalidation) => {
            space.wait(hand.level, invalidation);
            DONE
        }
        Err(UnmapError::OutOfFrames { .. }) => NO_FRAMES,
        Err(_) => WRONG,
    };
    hand.outcome.store(outcome, SeqCst);
}

extern "C" fn unmap<const RANGE: usize>(world: &World<'_>, hand: &Hand) {
    unmap_part(world, hand, RANGES[RANGE], RANGES[RANGE].length());
}

fn note_unmap<const RANGE: usize>(world: &World<'_>, hand: &Hand) {
    note(world, hand, |space| space.set_mapped(hand.level, RANGES[RANGE], false));
}

extern "C" fn split(world: &World<'_>, hand: &Hand) {
    unmap_part(world, hand, Range::Large, PAGE);
}

fn note_split(world: &World<'_>, hand: &Hand) {
    note(world, hand, |space| {
        space.set_mapped(hand.level, Range::Large, false);
        space.set_mapped(hand.level, Range::Split, true);
    });
}

pub extern "C" fn complete(world: &World<'_>, hand: &Hand) {
    let waiting = world.space.as_ref().and_then(|space| space.waiting[hand.level].take());
    if let Some(invalidation) = waiting {
        // SAFETY: no hardware walks these tables.
        unsafe { invalidation.complete() };
    }
}

extern "C" fn maintain(world: &World<'_>, _hand: &Hand) {
    black_box(world.space.as_ref().map(|space| space.domain.maintain()));
}

extern "C" fn translate(world: &World<'_>, hand: &Hand) {
    let Some(space) = &world.space else { return };
    let translation = space.domain.translate(Iova::new(Range::Page.iova(hand.level)));
    let expected = space.is_mapped(hand.level, Range::Page);
    if translation.is_some() != expected {
        world.report(Violation::Outcome);
    }
}

impl World<'_> {
    /// Maps what the situation says is mapped.
    pub fn map_in_advance(&self, mapped: Mapped) {
        for level in 0..LEVELS {
            let state = if level == 0 { mapped.mine } else { mapped.theirs };
            if state == State::Nothing {
                continue;
            }
            [&MAP_PAGE, &MAP_SPAN, &MAP_TABLE, &MAP_LARGE]
                .iter()
                .for_each(|map| self.must_perform(map, level));
            map_pieces(self, level);
            if state == State::Waiting {
                self.must_perform(&UNMAP_TABLE, level);
            }
        }
    }

    /// Shows `place` every table that is linked, and returns how many frames wait for an invalidation.
    pub fn for_each_table(&self, place: &mut impl FnMut(PhysAddr)) -> u64 {
        let Some(space) = &self.space else { return 0 };
        self.for_each_below(space.domain.root(), space.domain.levels().count(), place);
        (0..LEVELS).map(|level| space.table_frames_waiting(level)).sum()
    }

    fn for_each_below(&self, table: PhysAddr, level: u32, place: &mut impl FnMut(PhysAddr)) {
        place(table);
        if level == 1 || number_of(table).is_none() {
            return;
        }
        let words = self.supply().pointer(table).cast::<AtomicU64>();
        for index in 0..ENTRIES {
            // SAFETY: a frame has more words than that, and it is mapped.
            let entry = unsafe { words.add(index).as_ref() }.load(SeqCst);
            if entry & 3 != 0 && entry & 0x80 == 0 {
                self.for_each_below(PhysAddr::new(entry & 0x000F_FFFF_FFFF_F000), level - 1, place);
            }
        }
    }

    /// INV-10: nobody walks any more, so what waits for walkers comes back.
    pub fn audit_retired(&self) -> Result<(), String> {
        match self.space.as_ref().map_or(0, |space| space.domain.maintain()) {
            0 => Ok(()),
            waiting => Err(format!("INV-10: {waiting} table frames wait for walkers that have left")),
        }
    }

    /// Every range is mapped to where it should be, or not at all (INV-11).
    pub fn audit_translations(&self) -> Result<(), String> {
        let Some(space) = &self.space else { return Ok(()) };
        for level in 0..LEVELS {
            for range in RANGES {
                let last = range.iova(level) + range.length() - PAGE;
                let mapped = space.is_mapped(level, range)
                    || range == Range::Split && space.is_mapped(level, Range::Large);
                for iova in [range.iova(level), last] {
                    // The leaf of a large range is also that of what a split leaves.
                    let covered = mapped
                        || range == Range::Large && iova == last && space.is_mapped(level, Range::Split);
                    let expected = covered.then_some(PhysAddr::new(range.target(iova)));
                    let found = space.domain.translate(Iova::new(iova)).map(|translation| translation.target);
                    if found != expected {
                        return Err(format!(
                            "INV-11: {range:?} of {level} at {iova:#x}: {found:?}, not {expected:?}"
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// Completes what waits, unmaps what is mapped, and completes that.
    pub fn empty_space(&self) {
        let Some(space) = &self.space else { return };
        let complete = |level: usize| {
            let waiting: Option<Invalidation<'_, _>> = space.waiting[level].take();
            if let Some(invalidation) = waiting {
                // SAFETY: no hardware walks these tables.
                unsafe { invalidation.complete() };
            }
        };
        for level in 0..LEVELS {
            complete(level);
            for range in RANGES.into_iter().filter(|&range| space.is_mapped(level, range)) {
                let invalidation = space.domain.unmap(Iova::new(range.iova(level)), range.length()).unwrap();
                space.waiting[level].put(invalidation);
                complete(level);
            }
        }
    }
}
