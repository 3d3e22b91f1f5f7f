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

/// The entries of all magazines of a pool.
#[derive(Debug)]
pub(crate) struct Magazines {
    entries: Carved<UnsafeCell<FrameNumber>>,
    links: Carved<AtomicU32>,
    lengths: Carved<AtomicU32>,
    size: u32,
}

// SAFETY: an entry is read and written only by the one holder of its magazine (INV-2), and magazines change hands
// through operations with Acquire and Release.
unsafe impl Sync for Magazines {}
// SAFETY: as for `Sync`; a frame number belongs to no thread.
unsafe impl Send for Magazines {}

impl Magazines {
    /// Magazines of `size` entries each, and a link and a length for each; `entries` is a multiple of `size`.
    pub(crate) fn new(
        entries: Carved<UnsafeCell<FrameNumber>>,
        links: Carved<AtomicU32>,
        lengths: Carved<AtomicU32>,
        size: u32,
    ) -> Self {
        Self { entries, links, lengths, size }
    }

    /// How many frames one magazine takes.
    #[inline(always)]
    pub(crate) const fn size(&self) -> u32 {
        self.size
    }

    #[inline(always)]
    unsafe fn entry(&self, index: u32, position: u32) -> &UnsafeCell<FrameNumber> {
        let offset = index as usize * self.size as usize + position as usize;
        debug_assert!(position < self.size && offset < self.entries.len());
        // SAFETY: the caller says that the magazine exists and that the position is below its size.
        unsafe { self.entries.get_unchecked(offset) }
    }

    /// Reads the frame at `position` of the magazine `index`.
    ///
    /// # Safety
    /// The caller holds this magazine alone (INV-2), and `position` is filled.
    #[inline(always)]
    pub(crate) unsafe fn read(&self, index: u32, position: u32) -> FrameNumber {
        // SAFETY: a filled position is below the size; alone with the magazine, nobody writes it meanwhile.
        unsafe { self.entry(index, position).with(|entry| *entry) }
    }

    /// Writes `frame` at `position` of the magazine `index`.
    ///
    /// # Safety
    /// The caller holds this magazine alone (INV-2), and `position` is below the size.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, index: u32, position: u32, frame: FrameNumber) {
        // SAFETY: alone with the magazine, nobody reads or writes the entry meanwhile.
        unsafe { self.entry(index, position).with_mut(|entry| *entry = frame) }
    }

    /// Takes the last frame out of `magazine`.
    pub(crate) fn pop(&self, magazine: &mut Magazine) -> Option<FrameNumber> {
        let position = magazine.length.checked_sub(1)?;
        magazine.length = position;
        // SAFETY: the value proves that we hold the magazine alone (INV-2), and the position was filled.
        Some(unsafe { self.read(magazine.index, position) })
    }

    /// Puts `frame` into `magazine`, or gives it back when the magazine is full.
    pub(crate) fn push(&self, magazine: &mut Magazine, frame: FrameNumber) -> Result<(), FrameNumber> {
        if magazine.length >= self.size {
            return Err(frame);
        }
        // SAFETY: the value proves that we hold the magazine alone (INV-2), and there is room.
        unsafe { self.write(magazine.index, magazine.length, frame) };
        magazine.length += 1;
        Ok(())
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
