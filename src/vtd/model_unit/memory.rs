//! Owns what the unit sees of memory: the frames that the allocator has handed out, and, for a unit that does not snoop, each line of
//! 64 bytes as it was when it was last flushed.

use crate::{
    PhysAddr,
    sync::atomic::{AtomicU64, Ordering},
    vtd::TableFrames,
};
use std::{boxed::Box, collections::BTreeMap};

/// The words of a table.
const WORDS: usize = 512;
/// The bytes of a table.
const PAGE: usize = 8 * WORDS;
/// The bytes of a line.
const LINE: usize = 64;
/// What is in memory before anything was flushed to it, and what is written to frames that are given back: present in both formats, and
/// full of reserved bits.
const POISON: u64 = u64::MAX;

/// A frame that was handed out once.
#[derive(Debug)]
struct Record {
    is_live: bool,
    /// What memory holds, if the unit does not snoop.
    flushed: Option<Box<[u64; WORDS]>>,
}

/// The frames, as the unit sees them.
#[derive(Debug)]
pub(super) struct Memory {
    is_coherent: bool,
    frames: BTreeMap<PhysAddr, Record>,
    by_pointer: BTreeMap<usize, PhysAddr>,
}

impl Memory {
    pub(super) const fn new(is_coherent: bool) -> Self {
        Self { is_coherent, frames: BTreeMap::new(), by_pointer: BTreeMap::new() }
    }

    /// The allocator hands `frame` out. Its zeros are not in memory before they are flushed.
    pub(super) fn allocated<A: TableFrames>(&mut self, frames: &A, frame: PhysAddr) {
        self.by_pointer.insert(frames.pointer(frame).addr().get(), frame);
        let is_coherent = self.is_coherent;
        self.frames
            .entry(frame)
            .or_insert_with(|| Record {
                is_live: true,
                flushed: (!is_coherent).then(|| Box::new([POISON; WORDS])),
            })
            .is_live = true;
    }

    /// The allocator takes `frame` back: whatever was in it is gone.
    pub(super) fn freed<A: TableFrames>(&mut self, frames: &A, frame: PhysAddr) {
        self.poison(frames, frame);
        if let Some(record) = self.frames.get_mut(&frame) {
            record.is_live = false;
        }
    }

    /// Writes over the whole of `frame`, if it is in use.
    pub(super) fn poison<A: TableFrames>(&self, frames: &A, frame: PhysAddr) {
        let words = if self.is_live(frame) { WORDS } else { 0 };
        for index in 0..words {
            // SAFETY: the frame is live, and the index is within.
            let word = unsafe { word(frames, frame, index) };
            // Ordering: Relaxed; nothing is published, whoever gets the frame gets it from the allocator.
            word.store(POISON, Ordering::Relaxed);
        }
    }

    pub(super) fn is_live(&self, frame: PhysAddr) -> bool {
        self.frames.get(&frame).is_some_and(|record| record.is_live)
    }

    /// What the processor has last written; nothing if the frame is not in use.
    pub(super) fn written<A: TableFrames>(&self, frames: &A, frame: PhysAddr, index: usize) -> Option<u64> {
        if index >= WORDS || !self.is_live(frame) {
            return None;
        }
        // SAFETY: the frame is live, and the index is within.
        let word = unsafe { word(frames, frame, index) };
        // Ordering: Acquire pairs with the Release with which the builder writes entries: what is behind an entry is there.
        Some(word.load(Ordering::Acquire))
    }

    /// What the unit reads; nothing if the frame is not in use.
    pub(super) fn seen<A: TableFrames>(&self, frames: &A, frame: PhysAddr, index: usize) -> Option<u64> {
        let record = self.frames.get(&frame).filter(|record| record.is_live)?;
        match &record.flushed {
            Some(words) => words.get(index).copied(),
            None => self.written(frames, frame, index),
        }
    }

    /// Each word of a table as the unit reads it and as the processor has last written it; nothing if the frame is not in use.
    pub(super) fn table<A: TableFrames>(&self, frames: &A, frame: PhysAddr) -> Option<[(u64, u64); WORDS]> {
        let record = self.frames.get(&frame).filter(|record| record.is_live)?;
        Some(core::array::from_fn(|index| {
            // SAFETY: the frame is live, and the index is within.
            let word = unsafe { word(frames, frame, index) };
            // Ordering: Acquire, as for `written`.
            let written = word.load(Ordering::Acquire);
            let flushed = record.flushed.as_ref().and_then(|words| words.get(index));
            (flushed.copied().unwrap_or(written), written)
        }))
    }

    /// The lines that contain the `bytes` bytes from `start` on go to memory.
    pub(super) fn flush<A: TableFrames>(&mut self, frames: &A, start: usize, bytes: usize) {
        let (first, end) = (start & !(LINE - 1), start.saturating_add(bytes).next_multiple_of(LINE));
        for address in (first..end).step_by(8) {
            let Some(&frame) = self.by_pointer.get(&(address & !(PAGE - 1))) else { continue };
            let index = address % PAGE / 8;
            let Some(value) = self.written(frames, frame, index) else { continue };
            let words = self.frames.get_mut(&frame).and_then(|record| record.flushed.as_mut());
            if let Some(word) = words.and_then(|words| words.get_mut(index)) {
                *word = value;
            }
        }
    }
}

/// A word of a frame, as the processor has it.
///
/// # Safety
/// `frames` has handed the frame out and not taken it back, and the index is below [`WORDS`].
unsafe fn word<A: TableFrames>(frames: &A, frame: PhysAddr, index: usize) -> &AtomicU64 {
    let words = frames.pointer(frame).cast::<AtomicU64>();
    // SAFETY: the allocator maps 4 KiB, aligned, of frames in use; tables are only reached as atomics.
    unsafe { words.add(index).as_ref() }
}
