//! Tables whose words may say anything, followed as a unit follows them: from a request to a page. Every word is decoded, nothing
//! outside of what was given is read, and nothing panics.
#![cfg(not(loom))]

use framepool::{
    PhysAddr,
    vtd::{context::*, *},
};
use proptest::prelude::*;

const PAGE: u64 = 4096;
const PAGES: u64 = 6;

/// A few pages of words, at the lowest addresses.
struct Memory(Vec<u64>);

impl Memory {
    /// Pages in the likeness of a root table, a context table, a PASID directory, a PASID table and tables of both stages, whose
    /// links sometimes lead astray, with every eighth word wild or sparse.
    fn new(mut state: u64) -> Self {
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
    fn legacy(&self, source: SourceId, iova: u64) -> Option<u32> {
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
    fn scalable(&self, source: SourceId, pasid: Pasid, iova: u64) -> Option<u32> {
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn hostile_tables_are_followed_within_bounds(seed in 1..u64::MAX, requests in prop::collection::vec((any::<u16>(), 0..128u32, any::<u64>()), 64)) {
        let memory = Memory::new(seed);
        for (bits, pasid, iova) in requests {
            let (source, pasid) = (SourceId::from_bits(bits), Pasid::new(pasid).unwrap());
            prop_assert!(memory.legacy(source, iova).is_none_or(|entries| entries <= 5));
            prop_assert!(memory.scalable(source, pasid, iova).is_none_or(|entries| entries <= 10));
        }
    }

    #[test]
    fn any_word_decodes_at_any_level(word in any::<u64>(), sparse in any::<u64>(), level in 1..6u32) {
        for word in [word, word & sparse, word | sparse] {
            check_word::<FirstStage>(word, level)?;
            check_word::<SecondStage>(word, level)?;
        }
    }
}

/// What an entry says is what the entry made of it says.
fn check_word<F: Format>(word: u64, level: u32) -> Result<(), TestCaseError> {
    match F::decode(word, level) {
        Entry::Empty => {}
        Entry::Leaf { target, permissions } => {
            let again = F::leaf(target, permissions, level);
            prop_assert_eq!(F::decode(again, level), Entry::Leaf { target, permissions });
            prop_assert!(level <= 3 && target.is_aligned(PAGE));
        }
        Entry::Table(below) => {
            prop_assert_eq!(F::decode(F::table(below), level), Entry::Table(below));
            prop_assert!(level > 1 && below.is_aligned(PAGE));
        }
    }
    Ok(())
}

/// The tests above would show nothing if hardly any request got far.
#[test]
fn some_requests_get_through_hostile_tables() {
    let (mut legacy, mut scalable) = ([0; 6], [0; 11]);
    for seed in 1..400 {
        let memory = Memory::new(0x9E37_79B9_7F4A_7C15u64.wrapping_mul(seed));
        for request in 0..256u16 {
            let source = SourceId::from_bits(request.wrapping_mul(0x6F4F));
            let iova = u64::from(request).wrapping_mul(0xD134_2543_DE82_EF95);
            if let Some(entries) = memory.legacy(source, iova) {
                legacy[entries as usize] += 1;
            }
            if let Some(entries) = memory.scalable(source, Pasid::new(request.into()).unwrap(), iova) {
                scalable[entries as usize] += 1;
            }
        }
    }
    assert!(legacy.iter().all(|&requests| requests > 0), "{legacy:?}");
    assert!(scalable[..9].iter().all(|&requests| requests > 0), "{scalable:?}");
}
