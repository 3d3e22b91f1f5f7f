//! Owns the entries of all magazines of a pool: fixed batches of frames that change hands whole.
//!
//! Source: J. Bonwick and J. Adams, "Magazines and Vmem", USENIX 2001.

use super::arena::Carved;
use crate::sync::cell::UnsafeCell;

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
    size: u32,
}

// SAFETY: an entry is read and written only by the one holder of its magazine (INV-2), and magazines change hands
// through operations with Acquire and Release.
unsafe impl Sync for Magazines {}
// SAFETY: as for `Sync`; a frame number belongs to no thread.
unsafe impl Send for Magazines {}

impl Magazines {
    /// Magazines of `size` entries each; `entries` is a multiple of that.
    pub(crate) fn new(entries: Carved<UnsafeCell<FrameNumber>>, size: u32) -> Self {
        Self { entries, size }
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
}
