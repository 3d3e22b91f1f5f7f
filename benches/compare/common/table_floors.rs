//! What no page table can beat: the same bytes, the same entries, and the least that a table does which others walk at the same time.

use super::tables::{LARGE, LargeTables, PAGE, TARGET, Tables};
use std::{
    hint::black_box,
    sync::atomic::{AtomicU64, Ordering},
};

/// The entries without tables: as atomic stores in a row.
pub struct FloorStores(Vec<AtomicU64>);

/// Room for the entries of 1 GiB.
const ENTRIES: usize = 1 << 18;

impl FloorStores {
    #[inline(always)]
    fn write(&self, iova: u64, pages: u64, size: u64, value: impl Fn(u64) -> u64) {
        let first = (iova / size) as usize % ENTRIES;
        let entries = &self.0[first..first + pages as usize];
        for (entry, page) in entries.iter().zip(0..) {
            // Ordering: Release, as whoever builds tables under a device must.
            entry.store(value(page), Ordering::Release);
        }
    }
}

impl Tables for FloorStores {
    const NAME: &'static str = "floor-stores";

    fn new(_: bool) -> Self {
        Self((0..ENTRIES).map(|_| AtomicU64::new(0)).collect())
    }
    #[inline]
    fn map(&mut self, iova: u64, pages: u64) {
        self.write(iova, pages, PAGE, |page| (TARGET + iova + page * PAGE) | 3);
    }
    #[inline]
    fn unmap(&mut self, iova: u64, pages: u64) {
        self.write(iova, pages, PAGE, |_| 0);
    }
}

impl LargeTables for FloorStores {
    #[inline]
    fn map_large(&mut self, iova: u64, pages: u64) {
        self.write(iova, pages, LARGE, |page| (TARGET + iova + page * LARGE) | 0x83);
    }
    #[inline]
    fn unmap_large(&mut self, iova: u64, pages: u64) {
        self.write(iova, pages, LARGE, |_| 0);
    }
}

/// The bytes of the entries.
pub struct FloorMemset(Vec<u64>);

impl FloorMemset {
    #[inline(always)]
    fn fill(&mut self, iova: u64, pages: u64, size: u64, value: u64) {
        let first = (iova / size) as usize % ENTRIES;
        let entries = &mut self.0[first..first + pages as usize];
        entries.fill(black_box(value));
        black_box(entries);
    }
}

impl Tables for FloorMemset {
    const NAME: &'static str = "floor-memset";

    fn new(_: bool) -> Self {
        Self(vec![0; ENTRIES])
    }
    #[inline]
    fn map(&mut self, iova: u64, pages: u64) {
        self.fill(iova, pages, PAGE, u64::MAX);
    }
    #[inline]
    fn unmap(&mut self, iova: u64, pages: u64) {
        self.fill(iova, pages, PAGE, 0);
    }
}

impl LargeTables for FloorMemset {
    #[inline]
    fn map_large(&mut self, iova: u64, pages: u64) {
        self.fill(iova, pages, LARGE, u64::MAX);
    }
    #[inline]
    fn unmap_large(&mut self, iova: u64, pages: u64) {
        self.fill(iova, pages, LARGE, 0);
    }
}

/// Entries of a table.
const TABLE: usize = 512;
const PRESENT: u64 = 3;
type Table = [AtomicU64; TABLE];

/// Four levels of tables that may be taken away from under a walk, all there before: a walk says that it is there by one exchange, reads an
/// entry of each level, looks at the leaves, writes them, and says that it is gone.
pub struct FloorGuardedWalk {
    walking: AtomicU64,
    /// The root first.
    tables: Vec<Table>,
}

fn index(iova: u64, level: u64) -> usize {
    (iova >> (3 + 9 * level)) as usize % TABLE
}

fn empty() -> Table {
    std::array::from_fn(|_| AtomicU64::new(0))
}

impl FloorGuardedWalk {
    /// No tables but the root.
    pub fn bare() -> Self {
        Self { walking: AtomicU64::new(0), tables: vec![empty()] }
    }

    /// Makes the tables for a range.
    pub fn prepare(&mut self, iova: u64, pages: u64) {
        for part in (iova..iova + pages * PAGE).step_by(PAGE as usize) {
            let mut table = 0;
            for level in [4, 3, 2] {
                let below = self.tables.len() as u64;
                let entry = self.tables[table][index(part, level)].get_mut();
                if *entry == 0 {
                    *entry = below << 12 | PRESENT;
                    table = below as usize;
                    self.tables.push(empty());
                } else {
                    table = (*entry >> 12) as usize;
                }
            }
        }
    }

    /// Makes every leaf empty; the tables stay.
    pub fn unmap_all(&mut self) {
        let mut parts: Vec<(usize, u64)> = vec![(0, 4)];
        while let Some((table, level)) = parts.pop() {
            for entry in &mut self.tables[table] {
                match level {
                    1 => *entry.get_mut() = 0,
                    _ if *entry.get_mut() != 0 => parts.push(((*entry.get_mut() >> 12) as usize, level - 1)),
                    _ => {}
                }
            }
        }
    }

    #[inline(always)]
    fn change(&self, iova: u64, pages: u64, was_present: bool, value: impl Fn(u64) -> u64) {
        // Ordering: SeqCst; a full barrier before the tables are read.
        let entered = self.walking.compare_exchange(0, 1, Ordering::SeqCst, Ordering::Relaxed);
        assert!(entered.is_ok(), "one walk at a time");
        let mut page = 0;
        while page < pages {
            let start = iova + page * PAGE;
            let mut table = &self.tables[0];
            for level in [4, 3, 2] {
                // Ordering: Acquire, so that the table behind the entry is seen.
                let entry = table[index(start, level)].load(Ordering::Acquire);
                assert!(entry & PRESENT != 0);
                table = &self.tables[(entry >> 12) as usize];
            }
            let rest = &table[index(start, 1)..];
            let leaves = &rest[..rest.len().min((pages - page) as usize)];
            // Ordering: Relaxed; nothing is read behind them.
            let found = leaves.iter().map(|leaf| leaf.load(Ordering::Relaxed));
            let is_as_expected = match was_present {
                true => found.fold(u64::MAX, |all, leaf| all & leaf) & PRESENT != 0,
                false => found.fold(0, |any, leaf| any | leaf) & PRESENT == 0,
            };
            assert!(is_as_expected);
            for (leaf, page) in leaves.iter().zip(page..) {
                // Ordering: Release, towards hardware.
                leaf.store(value(page), Ordering::Release);
            }
            page += leaves.len() as u64;
        }
        // Ordering: Release; what was done in the tables is over.
        self.walking.store(0, Ordering::Release);
    }

    /// Maps `pages` from `iova` on to `target`.
    #[inline]
    pub fn map_to(&self, iova: u64, target: u64, pages: u64) {
        self.change(iova, pages, false, |page| (target + page * PAGE) | PRESENT);
    }

    /// Unmaps them.
    #[inline]
    pub fn clear(&self, iova: u64, pages: u64) {
        self.change(iova, pages, true, |_| 0);
    }
}

/// Where the benchmarks map, and how much.
const PREPARED: (u64, u64) = (0x40_0000_0000, 64 * 512);

impl Tables for FloorGuardedWalk {
    const NAME: &'static str = "floor-guarded-walk";

    fn new(_: bool) -> Self {
        let mut tables = Self::bare();
        tables.prepare(PREPARED.0, PREPARED.1);
        tables
    }
    #[inline]
    fn map(&mut self, iova: u64, pages: u64) {
        self.map_to(iova, TARGET + iova, pages);
    }
    #[inline]
    fn unmap(&mut self, iova: u64, pages: u64) {
        self.clear(iova, pages);
    }
}
