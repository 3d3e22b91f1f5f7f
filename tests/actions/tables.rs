//! Tables whose words may say anything: followed as a unit follows them, and under a domain that has to live with them. Every word is decoded,
//! nothing outside of what was given is read, and nothing panics or goes on without end.

use super::unit::PAGE;
use arbitrary::{Arbitrary, Unstructured};
use framepool::{
    PhysAddr,
    vtd::{context::*, *},
};
use std::{
    fmt::{self, Write},
    ptr::NonNull,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
};

const PAGES: u64 = 6;

/// A few pages of words, at the lowest addresses.
pub struct Memory(Vec<u64>);

impl Memory {
    /// Pages in the likeness of a root table, a context table, a PASID directory, a PASID table and tables of both stages, whose
    /// links sometimes lead astray, with every eighth word wild or sparse.
    pub fn new(mut state: u64) -> Self {
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let legacy = next() % 2 == 0;
        let mut words = Vec::new();
        for (page, word) in (0..PAGES).flat_map(|page| (0..PAGE / 8).map(move |word| (page, word % 8))) {
            let below = match (page, word) {
                (1, _) if legacy => 4,
                (3, 2) => 5,
                (4 | 5, _) => page,
                _ => page + 1,
            };
            let table = PAGE * if next() % 4 == 0 { next() % PAGES } else { below };
            let mut one_of = |bits: &[u64]| bits[next() as usize % bits.len()];
            let likely = match (page, word) {
                // Root table, and PASID directory.
                (0, 1 | 3 | 5 | 7) if legacy => 0,
                (0 | 2, _) => table | 1,
                // Context table of either mode.
                (1, 0 | 2 | 4 | 6) if legacy => table | one_of(&[1, 3, 5, 9]),
                (1, _) if legacy => one_of(&[0x101, 0xFF02, 0x7703]),
                (1, 0 | 4) => table | 0x401,
                // PASID table.
                (3, 0) => table | one_of(&[0x49, 0x4D, 0x85, 0x89, 0x8D, 0xC9, 0x109]),
                (3, 1) => one_of(&[1, 0x180_FFFF]),
                (3, 2) => table | one_of(&[0, 4]),
                (1 | 3, _) => 0,
                // Tables of both stages.
                (4, _) => table | one_of(&[0x3, 0x83]),
                _ => table | one_of(&[0x27, 0xE7]),
            };
            words.push(match next() % 16 {
                0 => next(),
                1 => next() & next() & next(),
                _ => likely,
            });
        }
        Self(words)
    }

    /// The words at an address, unless one of them is outside.
    fn read<const N: usize>(&self, table: PhysAddr, first: u64) -> Option<[u64; N]> {
        let start = usize::try_from((table.as_u64() / 8).checked_add(first)?).ok()?;
        self.0.get(start..)?.first_chunk().copied()
    }

    /// Where the tables of a domain lead, and after how many entries.
    fn walk<F: Format>(&self, root: PhysAddr, levels: Levels, iova: u64) -> Option<u32> {
        let (mut table, mut level, mut entries) = (root, levels.count(), 0);
        loop {
            let [word] = self.read(table, iova >> (3 + 9 * level) & 511)?;
            entries += 1;
            match F::decode(word, level) {
                Entry::Empty => return None,
                Entry::Leaf { target, permissions } => {
                    assert!(target.is_aligned(PAGE) && target.as_u64() >> 52 == 0 && !permissions.is_empty());
                    return Some(entries);
                }
                Entry::Table(below) => {
                    assert!(below.is_aligned(PAGE) && below.as_u64() >> 52 == 0 && level > 1);
                    (table, level) = (below, level - 1);
                }
            }
        }
    }

    /// The way of a request without a PASID in legacy mode.
    pub fn legacy(&self, source: SourceId, iova: u64) -> Option<u32> {
        let bus = self.read(PhysAddr::new(0), u64::from(source.bus()) * 2)?;
        let table = RootEntry::decode(bus).ok()??.context_table;
        let entry = ContextEntry::decode(self.read(table, u64::from(source.devfn()) * 2)?).ok()??;
        match entry.translation {
            ContextTranslation::PassThrough { .. } => Some(0),
            ContextTranslation::SecondStage { root, levels, .. } => {
                self.walk::<SecondStage>(root, levels, iova)
            }
        }
    }

    /// The way of a request with a PASID in scalable mode.
    pub fn scalable(&self, source: SourceId, pasid: Pasid, iova: u64) -> Option<u32> {
        let half = u64::from(source.bus()) * 2 + u64::from(source.devfn() >> 7);
        let table =
            ScalableRootEntry::decode(self.read::<1>(PhysAddr::new(0), half)?[0]).ok()??.context_table;
        let device = self.read(table, u64::from(source.devfn() & 127) * 4)?;
        let device = ScalableContextEntry::decode(device).ok()??;
        let word = self.read::<1>(device.pasid_directory, u64::from(pasid.get() >> 6))?[0];
        let table = PasidDirectoryEntry::decode(word).ok()??.pasid_table;
        let entry = PasidEntry::decode(self.read(table, u64::from(pasid.get() & 63) * 8)?).ok()??;
        let first = |tables: FirstStageRoot| self.walk::<FirstStage>(tables.root, tables.levels, iova);
        let second = |tables: SecondStageRoot| self.walk::<SecondStage>(tables.root, tables.levels, iova);
        match entry.translation {
            PasidTranslation::FirstStage(tables) => first(tables),
            PasidTranslation::SecondStage(tables) => second(tables),
            PasidTranslation::Nested(one, two) => Some(first(one)? + second(two)?),
            PasidTranslation::PassThrough { .. } => Some(0),
        }
    }
}

/// What an entry says is what the entry made of it says.
pub fn check_word<F: Format>(word: u64, level: u32) {
    match F::decode(word, level) {
        Entry::Empty => {}
        Entry::Leaf { target, permissions } => {
            let again = F::leaf(target, permissions, level);
            assert_eq!(F::decode(again, level), Entry::Leaf { target, permissions });
            assert!(level <= 3 && target.is_aligned(PAGE));
        }
        Entry::Table(below) => {
            assert_eq!(F::decode(F::table(below), level), Entry::Table(below));
            assert!(level > 1 && below.is_aligned(PAGE));
        }
    }
}

/// Frames under a domain to which any address leads.
const FRAMES: usize = 8;

/// A few frames that every address leads to one of, so that no word leads astray.
struct Arena {
    words: Box<[[AtomicU64; 512]; FRAMES]>,
    handed_out: AtomicUsize,
}

impl Arena {
    fn new() -> Self {
        let words = Box::new([const { [const { AtomicU64::new(0) }; 512] }; FRAMES]);
        Self { words, handed_out: AtomicUsize::new(0) }
    }

    fn frame(&self, frame: PhysAddr) -> &[AtomicU64; 512] {
        &self.words[(frame.as_u64() / PAGE) as usize % FRAMES]
    }
}

// SAFETY: every address leads to a frame that lives as long as the arena, as atomics; a frame that a wild word names is shared, which is what the
// domain has to live with.
unsafe impl TableFrames for Arena {
    fn allocate(&self) -> Option<PhysAddr> {
        let number = self.handed_out.fetch_add(1, SeqCst);
        let frame = PhysAddr::new(number as u64 * PAGE);
        self.frame(frame).iter().for_each(|word| word.store(0, SeqCst));
        (number < 4 * FRAMES).then_some(frame)
    }
    unsafe fn free(&self, _frame: PhysAddr) {}
    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        NonNull::from(self.frame(frame)).cast()
    }
    fn leaked(&self, _frames: u64) {}
    fn can_flush(&self) -> bool {
        true
    }
    unsafe fn flush(&self, _start: NonNull<u8>, _bytes: usize) {}
}

/// What happens to a domain, or to the memory of its tables.
#[derive(Clone, Debug, Arbitrary)]
pub enum Step {
    /// Somebody writes a word into a table.
    Write {
        frame: u8,
        #[arbitrary(with = index)]
        index: u16,
        #[arbitrary(with = word)]
        word: u64,
    },
    Map(Place),
    Unmap(Place),
    Protect(Place),
    TakeDirty(Place),
    TakeAccessed(Place),
    Reclaim(Place),
    Join(Place),
    Preallocate(Place),
    Release(Place),
    Translate(Place),
    Mappings,
    Dump,
}

/// A short range, at an address at which hostile words lie often.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub struct Place {
    #[arbitrary(with = |bytes: &mut Unstructured<'_>| {
        Ok([index(bytes)?, index(bytes)?, index(bytes)?, index(bytes)?, index(bytes)?])
    })]
    indices: [u16; 5],
    #[arbitrary(with = |bytes: &mut Unstructured<'_>| bytes.int_in_range(1..=4))]
    pages: u8,
    /// The range ends at the end of a table so many levels up, rather than after the pages.
    #[arbitrary(with = |bytes: &mut Unstructured<'_>| bytes.int_in_range(0..=3))]
    levels: u8,
    permissions: u8,
}

impl Place {
    fn range(&self, config: &DomainConfig) -> (Iova, u64) {
        let address = self.indices.iter().fold(0, |address, &index| address << 9 | u64::from(index)) * PAGE;
        let size = PAGE << (9 * self.levels);
        let start = address & ((1 << config.address_width) - 1) & !(size - 1);
        (Iova::new(start), if self.levels == 0 { u64::from(self.pages) * PAGE } else { size })
    }
}

/// An index at a table's start or end, or any.
fn index(bytes: &mut Unstructured<'_>) -> arbitrary::Result<u16> {
    match bytes.int_in_range(0..=3u8)? {
        0 | 1 => bytes.int_in_range(0..=2),
        2 => Ok(511),
        _ => bytes.int_in_range(0..=511),
    }
}

/// A word that names one of the frames, with any low and high bits, or any word.
fn word(bytes: &mut Unstructured<'_>) -> arbitrary::Result<u64> {
    if bytes.ratio(1, 4)? {
        return bytes.arbitrary();
    }
    let frame = PAGE * bytes.int_in_range(0..=FRAMES as u64 - 1)?;
    let low = *bytes.choose(&[0x3, 0x7, 0x27, 0x83, 0xE7, 0x8, 0x28, 0x0])?;
    let more = if bytes.arbitrary()? { u64::from(u16::arbitrary(bytes)?) & 0xFFF } else { 0 };
    let high = if bytes.ratio(1, 4)? { u64::from(u16::arbitrary(bytes)?) << 52 } else { 0 };
    Ok(frame | low | more | high)
}

/// Takes in so much text and no more.
struct Short(usize);

impl Write for Short {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 = self.0.checked_sub(text.len()).ok_or(fmt::Error)?;
        Ok(())
    }
}

/// Does it all in a domain whose tables may be written to by anybody. How it comes out is not said, but that it does.
pub fn live_with<F: Format>(config: DomainConfig, steps: &[Step]) {
    // A walk may go through as many words at each level.
    let mut words: u8 = [24, 12, 6][config.levels.count() as usize - 3];
    let domain = Domain::<F, _>::new(config, Arena::new()).unwrap();
    for step in steps {
        act(&domain, step, &mut words);
    }
    // SAFETY: there is no hardware.
    unsafe { domain.close().complete() };
}

#[allow(unsafe_code, reason = "no hardware walks these tables")]
fn act<F: Format>(domain: &Domain<F, Arena>, step: &Step, words: &mut u8) {
    let config = domain.config();
    // SAFETY: there is no hardware, for this and all that follow.
    let complete = |told: Invalidation<'_, Arena>| unsafe { told.complete() };
    match *step {
        Step::Write { frame, index, word } => {
            if let Some(left) = words.checked_sub(1) {
                *words = left;
                let frame = domain.allocator().frame(PhysAddr::new(u64::from(frame) * PAGE));
                frame[usize::from(index)].store(word, SeqCst);
            }
        }
        Step::Map(place) => {
            let (iova, _) = place.range(&config);
            if let Some(left) = words.checked_sub(place.pages) {
                *words = left;
                let (length, permissions) =
                    (u64::from(place.pages) * PAGE, Permissions::from_bits_truncate(place.permissions));
                // SAFETY: as above.
                drop(unsafe { domain.map(iova, PhysAddr::new(iova.as_u64()), length, permissions) });
            }
        }
        Step::Unmap(place) => {
            let (iova, length) = place.range(&config);
            let _ = domain.unmap(iova, length).map(complete);
        }
        Step::Protect(place) => {
            let (iova, length) = place.range(&config);
            let permissions = Permissions::from_bits_truncate(place.permissions);
            // SAFETY: as above.
            let _ = unsafe { domain.protect(iova, length, permissions) }.map(complete);
        }
        Step::TakeDirty(place) | Step::TakeAccessed(place) => {
            let (iova, length) = place.range(&config);
            let length = length.min(512 * PAGE);
            let mut bitmap = [0; 8];
            let told = if matches!(step, Step::TakeDirty(_)) {
                domain.take_dirty(iova, length, &mut bitmap)
            } else {
                domain.take_accessed(iova, length, &mut bitmap)
            };
            let _ = told.map(complete);
        }
        Step::Reclaim(place) => {
            let (iova, length) = place.range(&config);
            let _ = domain.reclaim(iova, length).map(complete);
        }
        Step::Join(place) => {
            let (iova, length) = place.range(&config);
            // SAFETY: as above.
            let _ = unsafe { domain.join(iova, length) }.map(complete);
        }
        Step::Preallocate(place) => {
            let (iova, length) = place.range(&config);
            drop(domain.preallocate(iova, length.min(512 * PAGE)));
        }
        Step::Release(place) => {
            let (iova, length) = place.range(&config);
            let _ = domain.release(iova, length);
        }
        Step::Translate(place) => {
            let (iova, _) = place.range(&config);
            let found = domain.translate(iova);
            assert!(found.is_none_or(|at| at.target.is_aligned(PAGE) && at.target.as_u64() >> 52 == 0));
        }
        Step::Mappings => {
            for mapping in domain.mappings().take(8) {
                assert!(
                    mapping.length > 0 && mapping.iova.as_u64() + mapping.length <= 1 << config.address_width
                );
            }
        }
        Step::Dump => {
            let _ = write!(Short(512), "{}", domain.dump());
            let _ = write!(Short(512), "{:#}", domain.dump());
        }
    }
}

/// Any bytes as tables: those of a domain, or those that a request is led through.
pub fn bytes(bytes: &[u8]) {
    let mut bytes = Unstructured::new(bytes);
    let _ = read(&mut bytes);
}

fn read(bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let (kind, page_sizes, bits) =
        (u8::arbitrary(bytes)?, PageSizes::from_bits_truncate(bytes.arbitrary()?), u8::arbitrary(bytes)?);
    if kind % 8 >= 6 {
        return follow(bytes);
    }
    let levels = [Levels::Three, Levels::Four, Levels::Five][usize::from(kind % 3)];
    let first_stage = kind % 8 >= 3 && levels != Levels::Three;
    let coherent = bits & 1 != 0;
    let hardware =
        Hardware { coherent, accessed_dirty: coherent, page_selective: Some(9), ..Hardware::default() };
    let plain = if first_stage { DomainConfig::first_stage(levels) } else { DomainConfig::new(levels) };
    let config = DomainConfig { page_sizes, hardware, accessed_dirty: coherent && !first_stage, ..plain };
    let steps = super::rest(bytes, 48);
    if first_stage {
        live_with::<FirstStage>(config, &steps);
    } else {
        live_with::<SecondStage>(config, &steps);
    }
    Ok(())
}

fn follow(bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let mut memory = Memory::new(u64::arbitrary(bytes)? | 1);
    let requests: Vec<(u16, u32, u64)> = (0..8).map(|_| bytes.arbitrary()).collect::<Result<_, _>>()?;
    for (place, word) in super::rest::<(u16, u64)>(bytes, 512) {
        let place = usize::from(place) % memory.0.len();
        memory.0[place] = word;
    }
    for (bits, pasid, iova) in requests {
        let (source, pasid) = (SourceId::from_bits(bits), Pasid::new(pasid % 128).unwrap());
        assert!(memory.legacy(source, iova).is_none_or(|entries| entries <= 5));
        assert!(memory.scalable(source, pasid, iova).is_none_or(|entries| entries <= 10));
    }
    Ok(())
}
