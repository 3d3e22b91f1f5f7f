//! Translating: through what is cached, then through memory as the unit sees it; each step compared with what the processor has written.

use super::{
    State,
    cache::{Key, Way},
    entry::{Meaning, covers, first_of, index_of, read},
    space::Space,
    violation::{Fault, Violation},
};
use crate::{
    PhysAddr,
    vtd::{Iova, Permissions, Stage, TableFrames, Translation},
};

/// The levels that may hold leaves, the largest first: the older a large leaf, the more can be wrong with it.
const LEAF_LEVELS: [u32; 3] = [3, 2, 1];

/// Where the written tables lead, without any cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    /// The level of the entry at which the way ends.
    pub(super) level: u32,
    /// Where it leads: to a page, or nowhere.
    pub(super) page: Option<Way>,
    /// The tables on the way, by the level of the entry that names each.
    tables: [Option<Way>; 6],
}

impl Written {
    /// The table that the entry of `level` names.
    pub(super) fn table(&self, level: u32) -> Option<Way> {
        self.tables.get(level as usize).copied().flatten()
    }

    /// What becomes of `iova`.
    pub(super) fn translation(&self, iova: u64) -> Option<Translation> {
        self.page.map(|page| page.translation(iova, self.level))
    }
}

impl Way {
    /// What becomes of `iova` by this way to a page of `level`.
    pub(super) fn translation(&self, iova: u64, level: u32) -> Translation {
        let offset = iova - first_of(iova, level);
        Translation {
            target: PhysAddr::new(self.target.as_u64() + offset),
            permissions: self.permissions,
            page_size: covers(level),
        }
    }
}

/// Whether two translations say the same, whatever the sizes of their pages.
pub(super) fn agree(one: Option<Translation>, other: Option<Translation>) -> bool {
    let essence = |at: Translation| (at.target, at.permissions);
    one.map(essence) == other.map(essence)
}

impl State {
    /// Follows the written tables. A way through a bad entry or a frame that is not in use leads nowhere.
    pub(super) fn written<A: TableFrames>(&self, frames: &A, space: &Space, iova: u64) -> Written {
        let mut tables = [None; 6];
        let (mut frame, mut permissions) = (space.root, Permissions::all());
        for level in (1..=space.shape.levels).rev() {
            let entry = self.memory.written(frames, frame, index_of(iova, level)).unwrap_or(0);
            match read(entry, level, &space.shape) {
                Ok(Meaning::Table { frame: below, permissions: rights }) => {
                    (frame, permissions) = (below, permissions & rights);
                    if let Some(table) = tables.get_mut(level as usize) {
                        *table = Some(Way { target: frame, permissions });
                    }
                }
                Ok(Meaning::Leaf { target, permissions: rights }) => {
                    let page = Way { target: PhysAddr::new(target), permissions: permissions & rights };
                    return Written { level, page: Some(page), tables };
                }
                Ok(Meaning::Absent) | Err(_) => return Written { level, page: None, tables },
            }
        }
        Written { level: 1, page: None, tables }
    }

    /// Translates `iova` as the unit does, remembers what it may, and reports what is stale.
    pub(super) fn translate<A: TableFrames>(
        &mut self,
        frames: &A,
        space: &Space,
        iova: u64,
    ) -> Result<Translation, Fault> {
        let written = self.written(frames, space, iova);
        for level in LEAF_LEVELS {
            let key = space.key(level, iova);
            if let Some(&cached) = self.cache.translations.get(&key) {
                let cached = cached.map(|page| page.translation(iova, level));
                if !agree(cached, written.translation(iova)) {
                    self.cache.translations.remove(&key);
                    self.stale_translation(key, iova, cached, written.translation(iova));
                }
                return cached.ok_or(Fault::NotPresent { level });
            }
        }
        let (mut frame, mut permissions, mut level) = (space.root, Permissions::all(), space.shape.levels);
        // The lowest entry spares the unit most.
        for named_at in 2..=space.shape.levels {
            let key = space.key(named_at, iova);
            if let Some(&cached) = self.cache.structures.get(&key) {
                if !same_table(cached, &written, named_at) {
                    self.cache.structures.remove(&key);
                    self.stale_table(key, cached, written.table(named_at));
                }
                let Some(way) = cached else { return Err(Fault::NotPresent { level: named_at }) };
                (frame, permissions, level) = (way.target, way.permissions, named_at - 1);
                break;
            }
        }
        self.descend(frames, space, iova, (frame, permissions, level))
    }

    /// Walks from the table `frame` of `level` down.
    fn descend<A: TableFrames>(
        &mut self,
        frames: &A,
        space: &Space,
        iova: u64,
        (mut frame, mut permissions, mut level): (PhysAddr, Permissions, u32),
    ) -> Result<Translation, Fault> {
        let domain = space.domain;
        loop {
            let key = space.key(level, iova);
            let Some(entry) = self.entry(frames, space, frame, level, iova) else {
                self.report(Violation::NoTable { frame, domain, iova: Iova::new(iova), level });
                return Err(Fault::NoTable { level });
            };
            match read(entry, level, &space.shape) {
                Ok(Meaning::Absent) => {
                    if self.hardware.caching_mode && space.shape.stage == Stage::Second {
                        self.cache.translations.insert(space.key(1, iova), None);
                        if level > 1 {
                            self.cache.structures.insert(key, None);
                        }
                    }
                    return Err(Fault::NotPresent { level });
                }
                Ok(Meaning::Table { frame: below, permissions: rights }) => {
                    (frame, permissions) = (below, permissions & rights);
                    self.cache.structures.insert(key, Some(Way { target: frame, permissions }));
                    level -= 1;
                }
                Ok(Meaning::Leaf { target, permissions: rights }) => {
                    let page = Way { target: PhysAddr::new(target), permissions: permissions & rights };
                    self.cache.translations.insert(key, Some(page));
                    return Ok(page.translation(iova, level));
                }
                Err(problem) => {
                    self.report(Violation::BadEntry {
                        domain,
                        iova: Iova::new(key.start),
                        level,
                        entry,
                        problem,
                    });
                    return Err(Fault::BadEntry { level, problem });
                }
            }
        }
    }

    /// The entry as the unit sees it, reported if it should see another.
    pub(super) fn entry<A: TableFrames>(
        &mut self,
        frames: &A,
        space: &Space,
        frame: PhysAddr,
        level: u32,
        iova: u64,
    ) -> Option<u64> {
        let index = index_of(iova, level);
        let seen = self.memory.seen(frames, frame, index)?;
        let written = self.memory.written(frames, frame, index)?;
        // What hardware ignores may differ.
        if seen != written && read(seen, level, &space.shape) != read(written, level, &space.shape) {
            let iova = Iova::new(first_of(iova, level));
            self.report(Violation::MissingFlush { domain: space.domain, iova, level, seen, written });
        }
        Some(seen)
    }

    pub(super) fn stale_translation(
        &mut self,
        key: Key,
        iova: u64,
        cached: Option<Translation>,
        written: Option<Translation>,
    ) {
        let iova = Iova::new(iova);
        self.report(Violation::StaleTranslation { domain: key.domain, iova, cached, written });
    }

    pub(super) fn stale_table(&mut self, key: Key, cached: Option<Way>, written: Option<Way>) {
        let table = |way: Option<Way>| way.map(|way| way.target);
        self.report(Violation::StaleTable {
            domain: key.domain,
            iova: Iova::new(key.start),
            level: key.level,
            cached: table(cached),
            written: table(written),
        });
    }
}

/// Whether a cached entry of `level` says what the written one does.
pub(super) fn same_table(cached: Option<Way>, written: &Written, level: u32) -> bool {
    match cached {
        Some(way) => written.table(level) == Some(way),
        // Absent: no table, and no page of that level either.
        None => written.table(level).is_none() && (written.page.is_none() || written.level > level),
    }
}
