//! Owns the entries of all magazines of a pool: fixed batches of frames that change hands whole. Beside them stand two words for
//! each magazine, a link and a length, for the one place in which it lies.
//!
//! Source: J. Bonwick and J. Adams, "Magazines and Vmem", USENIX 2001.

use super::arena::Carved;
use crate::sync::{
    atomic::{AtomicU32, Ordering},
    cell::UnsafeCell,
};

/// A frame by its number: its distance from the source's base, in frames.
pub type FrameNumber = u32;

/// What is known about the contents of the frames on one side of the pool. Frames may cross from clean to dirty at any
/// time, which only forgets something; from dirty to clean they are cleared on the way (INV-9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Whatever their last owner left.
    Dirty,
    /// Zero in every byte.
    Clean,
}

/// One magazine in the hands of one operation. Linear: it came out of a slot or a stack and must go into one.
///
/// INV-2: a magazine is in exactly one place. Whoever has this value is alone with the magazine's entries.
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Magazine {
    index: u32,
    length: u32,
}

impl Magazine {
    /// Takes up the magazine `index` of which `length` entries are filled.
    ///
    /// # Safety
    /// The caller took the index out of the one place in which it was (INV-2), and that many entries are filled.
    pub(crate) const unsafe fn from_parts(index: u32, length: u32) -> Self {
        Self { index, length }
    }

    /// Lays the magazine down: the caller puts the index and the length into one place.
    pub(crate) const fn into_parts(self) -> (u32, u32) {
        (self.index, self.length)
    }

    /// How many frames are in it.
    pub(crate) const fn length(&self) -> u32 {
        self.length
    }
}

/// The most frames that a magazine may hold.
pub(crate) const MAGAZINE_SIZE_LIMIT: u32 = (1 << 12) - 1;
/// The most magazines that a pool may have. Index and length fit into 32 bits together, and never with every bit set.
pub(crate) const MAGAZINE_LIMIT: u32 = (1 << 20) - 1;

/// The number of an entry: where in which magazine a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry(pub(crate) u32);

/// How the entries of a pool are numbered: those of a magazine start at a multiple of a power of two that is larger than its
/// size, so that index and length of a magazine, written one behind the other, are the number of its first free entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    size: u32,
    length_bits: u32,
    position_mask: u32,
}

impl Shape {
    /// For magazines of `size` frames; one less than a power of two leaves one entry in each unused, the least there is.
    pub(crate) const fn new(size: u32) -> Self {
        let length_bits = u32::BITS - size.leading_zeros();
        Self { size, length_bits, position_mask: (1 << length_bits) - 1 }
    }

    /// How many frames a magazine takes.
    #[inline(always)]
    pub(crate) const fn size(self) -> u32 {
        self.size
    }

    /// How many entries lie between the first ones of two magazines.
    pub(crate) const fn stride(self) -> usize {
        1 << self.length_bits
    }

    /// The bits of an entry's number that say where in its magazine it is.
    #[inline(always)]
    pub(crate) const fn position_mask(self) -> u32 {
        self.position_mask
    }

    /// The entry at `position` of the magazine `index`.
    #[inline(always)]
    pub(crate) const fn entry(self, index: u32, position: u32) -> Entry {
        Entry(index << self.length_bits | position)
    }

    /// The magazine and the position of an entry.
    #[inline(always)]
    pub(crate) const fn place(self, entry: Entry) -> (u32, u32) {
        (entry.0 >> self.length_bits, entry.0 & self.position_mask)
    }
}

/// The entries of all magazines of a pool.
#[derive(Debug)]
pub(crate) struct Magazines {
    entries: Carved<UnsafeCell<FrameNumber>>,
    links: Carved<AtomicU32>,
    lengths: Carved<AtomicU32>,
    shape: Shape,
}

// SAFETY: an entry is read and written only by the one holder of its magazine (INV-2), and magazines change hands
// through operations with Acquire and Release.
unsafe impl Sync for Magazines {}
// SAFETY: as for `Sync`; a frame number belongs to no thread.
unsafe impl Send for Magazines {}

impl Magazines {
    /// Where in this value the address of the first entry is, in bytes: for assembly.
    #[allow(dead_code, reason = "for restartable sequences, where there are any")]
    pub(crate) const ENTRY_BASE: usize =
        core::mem::offset_of!(Self, entries) + Carved::<UnsafeCell<FrameNumber>>::START;

    /// Magazines of `size` frames each, and a link and a length for each; `entries` is a multiple of their stride.
    pub(crate) fn new(
        entries: Carved<UnsafeCell<FrameNumber>>,
        links: Carved<AtomicU32>,
        lengths: Carved<AtomicU32>,
        size: u32,
    ) -> Self {
        Self { entries, links, lengths, shape: Shape::new(size) }
    }

    /// A second handle on the same magazines.
    pub(crate) fn share(&self) -> Self {
        let (links, lengths) = (self.links.share(), self.lengths.share());
        Self { entries: self.entries.share(), links, lengths, shape: self.shape }
    }

    /// How many frames one magazine takes, and how the entries are numbered.
    #[inline(always)]
    pub(crate) const fn shape(&self) -> Shape {
        self.shape
    }

    #[inline(always)]
    unsafe fn cell(&self, entry: Entry) -> &UnsafeCell<FrameNumber> {
        debug_assert!(self.shape.place(entry).1 < self.shape.size && (entry.0 as usize) < self.entries.len());
        // SAFETY: the caller says that the entry exists.
        unsafe { self.entries.get_unchecked(entry.0 as usize) }
    }

    /// Reads the frame in `entry`.
    ///
    /// # Safety
    /// The caller holds the entry's magazine alone (INV-2), and the entry is filled.
    #[inline(always)]
    pub(crate) unsafe fn read(&self, entry: Entry) -> FrameNumber {
        // SAFETY: a filled entry exists; alone with the magazine, nobody writes it meanwhile.
        unsafe { self.cell(entry).with(|cell| *cell) }
    }

    /// Writes `frame` into `entry`.
    ///
    /// # Safety
    /// The caller holds the entry's magazine alone (INV-2), and the entry's position is below the size.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, entry: Entry, frame: FrameNumber) {
        // SAFETY: alone with the magazine, nobody reads or writes the entry meanwhile.
        unsafe { self.cell(entry).with_mut(|cell| *cell = frame) }
    }

    /// Takes the last frame out of `magazine`.
    pub(crate) fn pop(&self, magazine: &mut Magazine) -> Option<FrameNumber> {
        let position = magazine.length.checked_sub(1)?;
        magazine.length = position;
        // SAFETY: the value proves that we hold the magazine alone (INV-2), and the position was filled.
        Some(unsafe { self.read(self.shape.entry(magazine.index, position)) })
    }

    /// Puts `frame` into `magazine`, or gives it back when the magazine is full.
    pub(crate) fn push(&self, magazine: &mut Magazine, frame: FrameNumber) -> Result<(), FrameNumber> {
        if magazine.length >= self.shape.size {
            return Err(frame);
        }
        // SAFETY: the value proves that we hold the magazine alone (INV-2), and there is room.
        unsafe { self.write(self.shape.entry(magazine.index, magazine.length), frame) };
        magazine.length += 1;
        Ok(())
    }

    /// The frames in `magazine`.
    pub(crate) fn frames<'m>(&'m self, magazine: &'m Magazine) -> impl Iterator<Item = FrameNumber> + 'm {
        let entries = (0..magazine.length).map(|position| self.shape.entry(magazine.index, position));
        // SAFETY: the borrow proves that the magazine is in one pair of hands, which leaves it as it is (INV-2), and the entries
        // are filled.
        entries.map(|entry| unsafe { self.read(entry) })
    }

    /// Notes that the magazine `index`, in the caller's hands, has `length` entries and that `next` is behind it.
    pub(crate) fn lay_down(&self, index: u32, next: u32, length: u32) {
        if let (Some(link), Some(word)) = (self.links.get(index as usize), self.lengths.get(index as usize)) {
            // Ordering: Relaxed; published with the place into which the caller puts the magazine.
            link.store(next, Ordering::Relaxed);
            // Ordering: Relaxed; as the link.
            word.store(length, Ordering::Relaxed);
        }
    }

    /// The magazine behind `index`, and its length. Meaningless, but harmless, when `index` has left its place meanwhile.
    pub(crate) fn behind(&self, index: u32) -> Option<(u32, u32)> {
        // Ordering: Relaxed; both words were published with the place from which the caller has `index`. If it has left that
        // place since, the caller's exchange fails.
        let next = self.links.get(index as usize)?.load(Ordering::Relaxed);
        // Ordering: Relaxed; as the link.
        Some((next, self.lengths.get(next as usize)?.load(Ordering::Relaxed)))
    }

    /// Counts one entry of a magazine as read; whether it was the last of those that it was laid down with.
    pub(crate) fn count_read(&self, index: u32) -> bool {
        // Ordering: AcqRel; Release says that the entry is read, and Acquire makes the last one, who gives the magazine on,
        // come after all other readings.
        self.lengths.get(index as usize).is_some_and(|unread| unread.fetch_sub(1, Ordering::AcqRel) == 1)
    }
}
