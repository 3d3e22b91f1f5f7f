//! Owns the frames in which the entries of one unit stand, and every store to them: what is written in which order, and when its
//! line is flushed.
//!
//! # The states of an entry
//! ```text
//!   word 0              the other words
//!   0                   0                  free
//!   entry without P     being written      taken, by whoever exchanged the 0
//!   entry with P        entry              present
//!   entry without P     entry              removed: the unit may still be reading the words, until it says otherwise
//! ```
//! Every transition that two contexts could race for is one exchange of word 0, so one of them wins and the other is told that the
//! entry is occupied, or that there is none. Nobody waits for anybody. Hardware looks at nothing but P while that is clear.
//!
//! An entry lies in one line of 64 bytes, and stores to a line reach memory in their order, so an entry is flushed once, after
//! its last word. A new table is flushed before the word that links it, and that word by everyone who goes through it: who has
//! linked it may not have come to flushing it yet.

use super::{ADDRESS, AttachError, PRESENT, address};
use crate::{
    PhysAddr,
    sync::{
        atomic::{Ordering, fence},
        counter,
    },
    vtd::{TableFrames, table::Table},
};

/// How many bits of address an entry holds.
const ADDRESS_WIDTH: u8 = 52;
/// The words of a frame.
const WORDS: usize = 512;

/// The frames of the tables of one unit.
pub(super) struct Store<A: TableFrames> {
    frames: A,
    /// The unit does not snoop.
    flushes: bool,
    host_address_width: u8,
    live: counter::Shared,
}

impl<A: TableFrames> Store<A> {
    pub(super) fn new(frames: A, snoops: bool, host_address_width: u8) -> Result<Self, AttachError> {
        if !snoops && !frames.can_flush() {
            return Err(AttachError::NoFlush);
        }
        let host_address_width = host_address_width.min(ADDRESS_WIDTH);
        Ok(Self { frames, flushes: !snoops, host_address_width, live: counter::Shared::new() })
    }

    pub(super) fn frames(&self) -> &A {
        &self.frames
    }

    /// How many frames are in use.
    pub(super) fn live(&self) -> u64 {
        self.live.get()
    }

    /// Refuses a table that the unit cannot address.
    pub(super) fn check(&self, table: PhysAddr) -> Result<(), AttachError> {
        match table.as_u64() >> self.host_address_width {
            0 => Ok(()),
            _ => Err(AttachError::TableBeyondWidth { table, width: self.host_address_width }),
        }
    }

    fn table(&self, frame: PhysAddr) -> Table<'_> {
        Table::words(&self.frames, frame)
    }

    fn flush(&self, frame: PhysAddr, first: usize, words: usize) {
        if self.flushes {
            self.table(frame).run(first, words).flush(&self.frames);
        }
    }

    /// A new table, in which nothing is present.
    pub(super) fn make(&self) -> Result<PhysAddr, AttachError> {
        let frame = self.frames.allocate().ok_or(AttachError::OutOfFrames)?;
        self.live.add(1);
        self.check(frame).inspect_err(|_| self.unmake(frame))?;
        self.flush(frame, 0, WORDS);
        Ok(frame)
    }

    /// Gives back a table that was never linked.
    #[allow(unsafe_code, reason = "only what was never linked goes back at once")]
    pub(super) fn unmake(&self, frame: PhysAddr) {
        self.live.subtract(1);
        // SAFETY: the frame came from this allocator, and no entry has named it.
        unsafe { self.frames.free(frame) }
    }

    /// The table that the word `index` of `frame` links, if it links one.
    pub(super) fn below(&self, frame: PhysAddr, index: usize) -> Option<PhysAddr> {
        let word = self.table(frame).load(index);
        (word & PRESENT != 0).then_some(address(word))
    }

    /// The same, to write below it: the link is there for hardware too.
    pub(super) fn follow(&self, frame: PhysAddr, index: usize) -> Option<PhysAddr> {
        self.below(frame, index).inspect(|_| self.flush(frame, index, 1))
    }

    /// Links the table `fresh` in word `index` of `frame`, unless one is linked there; the one that is linked now.
    pub(super) fn link(&self, frame: PhysAddr, index: usize, fresh: PhysAddr) -> PhysAddr {
        let linked = match self.table(frame).install(index, 0, fresh.as_u64() | PRESENT) {
            Ok(()) => fresh,
            Err(winner) => {
                self.unmake(fresh);
                address(winner)
            }
        };
        self.flush(frame, index, 1);
        linked
    }

    /// The words of an entry, all of one moment. A retry means that another context has changed the entry.
    pub(super) fn read<const N: usize>(&self, frame: PhysAddr, first: usize) -> [u64; N] {
        let table = self.table(frame);
        let collect = || core::array::from_fn(|word| table.load(first + word));
        let mut words = collect();
        loop {
            // What was the same twice was there in between.
            let again = collect();
            if again == words {
                return words;
            }
            words = again;
        }
    }

    /// Whether nothing stands in an entry.
    pub(super) fn is_free(&self, frame: PhysAddr, first: usize) -> bool {
        self.table(frame).load(first) == 0
    }

    /// Writes an entry where nothing stands; whether nothing stood there. `words` have P.
    pub(super) fn enter<const N: usize>(&self, frame: PhysAddr, first: usize, words: [u64; N]) -> bool {
        let [low, rest @ ..] = words.as_slice() else { return false };
        let table = self.table(frame);
        if table.install(first, 0, low & !PRESENT).is_err() {
            return false;
        }
        // Ordering: Acquire, with the exchange above, from the Release stores of the `vacate` that left the 0: our words come after
        // its zeros.
        fence(Ordering::Acquire);
        for (index, &word) in (first + 1..).zip(rest) {
            table.store(index, word);
        }
        // Ordering: a Release store, to hardware and the Acquire loads of readers: the other words are there before P is.
        table.store(first, *low);
        self.flush(frame, first, N);
        true
    }

    /// Takes P off an entry; the words that it had, or nothing if it was not present. The entry stays occupied until `vacate`.
    pub(super) fn remove<const N: usize>(&self, frame: PhysAddr, first: usize) -> Option<[u64; N]> {
        let table = self.table(frame);
        let present = table.load(first);
        if present & PRESENT == 0 || table.install(first, present, present & !PRESENT).is_err() {
            return None;
        }
        self.flush(frame, first, N);
        // Ours from here on.
        let mut words = self.read(frame, first);
        words.first_mut().into_iter().for_each(|low| *low = present);
        Some(words)
    }

    /// Frees an entry of `words` words that was removed and that the unit has forgotten.
    pub(super) fn vacate(&self, frame: PhysAddr, first: usize, words: usize) {
        let table = self.table(frame);
        (first + 1..first + words).for_each(|index| table.store(index, 0));
        // Ordering: a Release store, to the Acquire fence of the next who enters something, so that its words come after these zeros.
        table.store(first, 0);
        self.flush(frame, first, words);
    }

    /// Gives back the table `frame` and all tables below it: `steps` says for each level of links how many words they stand apart.
    /// Recurses once a level.
    ///
    /// # Safety
    /// Nothing reaches the tables any more, hardware included.
    #[allow(unsafe_code, reason = "gives frames back on the caller's word")]
    pub(super) unsafe fn free_tree(&self, frame: PhysAddr, steps: &[usize]) {
        if let [step, below @ ..] = steps {
            for index in (0..WORDS).step_by(*step) {
                let word = self.table(frame).load(index);
                // An entry that was removed, and never vacated, still names its table.
                if word & ADDRESS != 0 {
                    // SAFETY: the caller's.
                    unsafe { self.free_tree(address(word), below) };
                }
            }
        }
        self.live.subtract(1);
        // SAFETY: the frame came from this allocator, as a table that was linked once; the caller says that nothing reaches it.
        unsafe { self.frames.free(frame) };
    }
}

impl<A: TableFrames> Drop for Store<A> {
    /// Tables that are still live here were never closed: hardware may read them, so they stay allocated.
    fn drop(&mut self) {
        if self.live() > 0 {
            self.frames.leaked(self.live());
        }
    }
}
