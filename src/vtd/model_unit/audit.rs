//! Looking at everything at once: all that is cached, and every entry that the unit could walk to.

use super::{
    State,
    cache::Key,
    entry::{Meaning, covers, read},
    space::Space,
    translate::{agree, same_table},
    violation::Violation,
};
use crate::{
    PhysAddr,
    vtd::{Iova, TableFrames},
};
use std::{vec, vec::Vec};

impl State {
    pub(super) fn check<A: TableFrames>(&mut self, frames: &A) {
        self.check_translations(frames);
        self.check_structures(frames);
        for space in self.spaces.values().copied().collect::<Vec<_>>() {
            self.check_tables(frames, &space);
        }
    }

    /// The tables that `key` was cached from, if they are attached still.
    fn space_of(&self, key: &Key) -> Option<Space> {
        self.spaces.get(&key.domain).filter(|space| space.key(key.level, key.start) == *key).copied()
    }

    fn check_translations<A: TableFrames>(&mut self, frames: &A) {
        let cached: Vec<_> = self.cache.translations.iter().map(|(key, page)| (*key, *page)).collect();
        for (key, page) in cached {
            let space = self.space_of(&key);
            let end = key.start + covers(key.level);
            let mut iova = key.start;
            while iova < end {
                let expected = space.as_ref().map(|space| self.written(frames, space, iova));
                let cached = page.map(|page| page.translation(iova, key.level));
                let translation = expected.and_then(|written| written.translation(iova));
                if !agree(cached, translation) {
                    self.cache.translations.remove(&key);
                    self.stale_translation(key, iova, cached, translation);
                    break;
                }
                // To the end of what one written entry says.
                iova = match expected {
                    Some(written) => (iova | (covers(written.level) - 1)) + 1,
                    None => end,
                };
            }
        }
    }

    fn check_structures<A: TableFrames>(&mut self, frames: &A) {
        let cached: Vec<_> = self.cache.structures.iter().map(|(key, way)| (*key, *way)).collect();
        for (key, way) in cached {
            let written = self.space_of(&key).map(|space| self.written(frames, &space, key.start));
            let agrees = match &written {
                Some(written) => same_table(way, written, key.level),
                None => way.is_none(),
            };
            if !agrees {
                self.cache.structures.remove(&key);
                self.stale_table(key, way, written.and_then(|written| written.table(key.level)));
            }
        }
    }

    /// Every entry below the root, as the unit would find it.
    fn check_tables<A: TableFrames>(&mut self, frames: &A, space: &Space) {
        let domain = space.domain;
        let mut left = vec![(space.root, space.shape.levels, 0_u64)];
        while let Some((frame, level, start)) = left.pop() {
            let Some(words) = self.memory.table(frames, frame) else {
                self.report(Violation::NoTable { frame, domain, iova: Iova::new(start), level });
                continue;
            };
            for (index, (seen, entry)) in (0..).zip(words) {
                if seen | entry == 0 {
                    continue;
                }
                let iova = start + index * covers(level);
                if seen != entry {
                    self.entry(frames, space, frame, level, iova);
                }
                match read(entry, level, &space.shape) {
                    Ok(Meaning::Table { frame, .. }) => left.push((frame, level - 1, iova)),
                    Ok(Meaning::Leaf { .. } | Meaning::Absent) => {}
                    Err(problem) => {
                        let iova = Iova::new(iova);
                        self.report(Violation::BadEntry { domain, iova, level, entry, problem });
                    }
                }
            }
        }
    }

    /// The frame goes back: does the unit know of it?
    pub(super) fn check_free(&mut self, frame: PhysAddr) {
        let root = self.spaces.values().find(|space| space.root == frame);
        let early = root.map(|space| (space.domain, 0, space.shape.levels)).or_else(|| {
            let named =
                self.cache.structures.iter().find(|(_, way)| way.is_some_and(|way| way.target == frame));
            named.map(|(key, _)| (key.domain, key.start, key.level - 1))
        });
        if let Some((domain, iova, level)) = early {
            self.report(Violation::FreedTooEarly { frame, domain, iova: Iova::new(iova), level });
        }
    }
}
