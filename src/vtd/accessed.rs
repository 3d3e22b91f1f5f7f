//! Reading and clearing what hardware notes in leaves: which pages it has read or written (A), and which it has written (D) (V10; VT-d
//! specification, section 3.6.2 and 3.7.2, "Accessed and Dirty Flags").
//!
//! Hardware sets a bit by an atomic access, at the latest when it puts the translation into its caches (A) or writes through it for the first
//! time (D), and trusts its caches afterwards: a bit that was cleared is set again only when it has forgotten the translation. So
//! a clear leaves an invalidation to be done; what the device writes before that is complete is not noted, but is in memory by then.

use super::{
    Domain, Entry, Format, Invalidation, Iova, RangeError, TableFrames,
    table::Run,
    walk::{Place, Step, Visitor},
    width::{PAGE, Span, size},
};
use core::{convert::Infallible, error::Error, fmt, marker::PhantomData};

/// Why accessed or dirty bits could not be read. None was cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AccessedDirtyError {
    /// The range itself is wrong.
    Range(RangeError),
    /// Hardware sets no such bits in the tables of this domain.
    NotNoted,
    /// The bitmap has fewer bits than the range has pages.
    BitmapTooShort {
        /// How many words of 64 bits it takes.
        words: u64,
    },
}

impl From<RangeError> for AccessedDirtyError {
    fn from(error: RangeError) -> Self {
        Self::Range(error)
    }
}

impl fmt::Display for AccessedDirtyError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Range(error) => error.fmt(formatter),
            Self::NotNoted => write!(
                formatter,
                "hardware notes no accesses in these tables: use the first stage of a unit that snoops, or DomainConfig::accessed_dirty"
            ),
            Self::BitmapTooShort { words } => {
                write!(formatter, "the bitmap is too short: give {words} words, a bit for each page")
            }
        }
    }
}

impl Error for AccessedDirtyError {}

/// The bits of a word of a bitmap.
const WORD: u64 = u64::BITS as u64;

/// Sets `count` bits from number `first` on. The bitmap is long enough.
fn set(bitmap: &mut [u64], first: u64, count: u64) {
    let (mut bit, end) = (first, first + count);
    while bit < end {
        let (index, low) = (bit / WORD, bit % WORD);
        let bits = (end - bit).min(WORD - low);
        if let Some(word) = bitmap.get_mut(index as usize) {
            *word |= (u64::MAX >> (WORD - bits)) << low;
        }
        bit += bits;
    }
}

/// The walk that reads and clears.
struct Taking<'w, 'd, F, A: TableFrames> {
    /// The bit of a leaf.
    bit: u64,
    /// The first address of the bitmap.
    start: u64,
    bitmap: &'w mut [u64],
    invalidation: &'w mut Invalidation<'d, A>,
    format: PhantomData<F>,
}

impl<F: Format, A: TableFrames> Taking<'_, '_, F, A> {
    fn note(&mut self, part: Span) {
        set(self.bitmap, (part.start - self.start) / PAGE, part.length() / PAGE);
    }
}

impl<F: Format, A: TableFrames> Visitor for Taking<'_, '_, F, A> {
    type Stop = Infallible;

    fn entry(&mut self, place: Place<'_>) -> Result<Step, Infallible> {
        let found = place.table.load(place.index);
        match F::decode(found, place.level) {
            Entry::Table(below) => return Ok(Step::Descend(below)),
            Entry::Leaf { .. } if found & self.bit != 0 => {
                self.note(place.part);
                // A leaf that reaches beyond the range keeps the bit: it may stand for a page there.
                if place.is_whole::<F>() && place.table.clear(place.index, self.bit) & self.bit != 0 {
                    self.invalidation.change(place.part, size(place.level, F::INDEX_BITS));
                }
            }
            Entry::Leaf { .. } | Entry::Empty => {}
        }
        Ok(Step::Skip)
    }

    fn leaves(&mut self, run: Run<'_>, part: Span) -> Result<(), Infallible> {
        let mut cleared: Option<Span> = None;
        let bit = self.bit;
        for (index, found) in run.clear_each(bit).enumerate() {
            // What is not present is no leaf, whatever its bits are.
            if found & bit != 0 && F::decode(found, 1) != Entry::Empty {
                let start = part.start + index as u64 * PAGE;
                let page = Span { start, end: start + PAGE };
                set(self.bitmap, (start - self.start) / PAGE, 1);
                cleared = Some(cleared.map_or(page, |before| Span { end: page.end, ..before }));
            }
        }
        if let Some(span) = cleared {
            self.invalidation.change(span, PAGE);
        }
        Ok(())
    }
}

impl<F: Format, A: TableFrames> Domain<F, A> {
    /// Says which pages of the `length` bytes from `iova` on the device has written since this was last asked, and begins anew (D).
    ///
    /// Bit n of word w of `dirty` stands for the page of 4 KiB number 64 w + n of the range; bits are set and none is cleared, so a bitmap
    /// can gather over several calls. A large leaf has one bit for all of its pages, and sets those of all that are in the range; it is
    /// cleared only if all of the leaf is. Pages that are not mapped are not written. A page that the first stage maps writable counts as
    /// written at first, since its bit is set from the start.
    ///
    /// To copy what was written: call this, have hardware forget what the invalidation says, then copy. What the device has written before
    /// the invalidation was complete is then in memory; what it writes later is noted again.
    ///
    /// From thread and interrupt context, not from an NMI. Never sleeps, takes no frames. Bounded by the pages mapped in the range and
    /// the tables; an atomic access for each bit that was set.
    /// At most 7,400 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`AccessedDirtyError`] names what is wrong; nothing was cleared then.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// let domain = FirstStageDomain::new(DomainConfig::first_stage(Levels::Four), &*pool)?;
    /// // SAFETY: no device walks this domain.
    /// unsafe { domain.map(Iova::new(0x1000), PhysAddr::new(0), 0x2000, Permissions::all())? };
    /// let mut dirty = [0];
    /// for expected in [0b0110, 0] {
    ///     dirty = [0];
    ///     let invalidation = domain.take_dirty(Iova::new(0), 0x4000, &mut dirty)?;
    ///     // SAFETY: as above, so there is nobody to tell.
    ///     unsafe { invalidation.complete() };
    ///     assert_eq!(dirty, [expected]);
    /// }
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn take_dirty(
        &self,
        iova: Iova,
        length: u64,
        dirty: &mut [u64],
    ) -> Result<Invalidation<'_, A>, AccessedDirtyError> {
        self.take_bits(iova, length, F::DIRTY, dirty)
    }

    /// Says which pages of the range the device has read or written since this was last asked, and begins anew (A). Everything else as
    /// for [`take_dirty`](Self::take_dirty), which does not change what this says, nor the reverse.
    /// At most 7,300 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// As for [`take_dirty`](Self::take_dirty).
    pub fn take_accessed(
        &self,
        iova: Iova,
        length: u64,
        accessed: &mut [u64],
    ) -> Result<Invalidation<'_, A>, AccessedDirtyError> {
        self.take_bits(iova, length, F::ACCESSED, accessed)
    }

    fn take_bits(
        &self,
        iova: Iova,
        length: u64,
        bit: u64,
        bitmap: &mut [u64],
    ) -> Result<Invalidation<'_, A>, AccessedDirtyError> {
        let span = self.limits().span(iova, length)?;
        if !self.notes_accesses() {
            return Err(AccessedDirtyError::NotNoted);
        }
        let words = (length / PAGE).div_ceil(WORD);
        if (bitmap.len() as u64) < words {
            return Err(AccessedDirtyError::BitmapTooShort { words });
        }
        let tables = self.tables();
        let _walk = tables.enter::<F>(span);
        let mut invalidation = Invalidation::none(tables);
        let mut taking = Taking::<F, A> {
            bit,
            start: span.start,
            bitmap,
            invalidation: &mut invalidation,
            format: PhantomData,
        };
        match self.walk(span, &mut taking) {
            Ok(()) => Ok(invalidation),
            Err(never) => match never {},
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_set_across_words_and_no_others() {
        for (first, count) in [(0, 1), (63, 1), (63, 2), (0, 64), (5, 130), (64, 128), (191, 1), (7, 0)] {
            let mut bitmap = [0; 3];
            set(&mut bitmap, first, count);
            for bit in 0..192 {
                let is_set = bitmap[(bit / 64) as usize] >> (bit % 64) & 1 != 0;
                assert_eq!(is_set, (first..first + count).contains(&bit), "{first} {count} {bit}");
            }
        }
    }
}
