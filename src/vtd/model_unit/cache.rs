//! Owns what the unit remembers: translations (the IOTLB), entries that name tables (the paging-structure caches) and, in caching mode,
//! that something was absent; and what of it each invalidation obliges a unit to forget (VT-d specification, sections 6.1, 6.2 and
//! 6.5.2). It forgets that much and no more, and nothing by itself.
//!
//! * By domain: everything tagged with the domain's id.
//! * By pages of a domain: second-stage translations of pages that lie in the block as a whole (a large page that does not is kept:
//!   section 11.4.8.2 has software choose the mask by the size of the page), and, unless the hint says that only leaves have changed, entries
//!   that name tables for any address of the block.
//! * By PASID, or by pages of a PASID: the same for first-stage entries.

use super::entry::{covers, first_of};
use crate::{
    PhysAddr,
    vtd::{Descriptor, DomainId, IotlbSelection, Iova, PageBlock, Pages, Permissions, Stage},
};
use std::{collections::BTreeMap, vec::Vec};

/// The levels of entries.
const LEVELS: core::ops::RangeInclusive<u32> = 1..=5;

/// What is remembered for one entry, by the domain, the level of the entry and the first address that it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) domain: DomainId,
    is_first_stage: bool,
    pub(super) level: u32,
    pub(super) start: u64,
}

impl Key {
    pub(super) fn new(domain: DomainId, stage: Stage, level: u32, iova: u64) -> Self {
        Self { domain, is_first_stage: stage == Stage::First, level, start: first_of(iova, level) }
    }

    fn last(&self) -> u64 {
        self.start | (covers(self.level) - 1)
    }

    fn lies_in(&self, block: PageBlock) -> bool {
        block.contains(Iova::new(self.start)) && block.contains(Iova::new(self.last()))
    }
}

/// Where an entry leads, with the rights that the way there leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) target: PhysAddr,
    pub(super) permissions: Permissions,
}

/// What the unit remembers. Nothing stands for "absent".
#[derive(Debug, Default)]
pub(super) struct Cache {
    pub(super) translations: BTreeMap<Key, Option<Way>>,
    pub(super) structures: BTreeMap<Key, Option<Way>>,
}

impl Cache {
    /// Does what `descriptor` obliges to.
    pub(super) fn forget(&mut self, descriptor: Descriptor) {
        match descriptor {
            Descriptor::Iotlb { selection: IotlbSelection::All, .. } => *self = Self::default(),
            Descriptor::Iotlb { selection: IotlbSelection::Domain(domain), .. } => {
                self.forget_all(|key| key.domain == domain);
            }
            Descriptor::Iotlb { selection: IotlbSelection::Pages(domain, pages), .. } => {
                self.forget_pages(pages, domain, false);
            }
            // Requests without a PASID have PASID 0 here.
            Descriptor::PasidIotlb { domain, pasid, pages } if pasid.get() == 0 => {
                let is_meant = |key: &Key| key.domain == domain && key.is_first_stage;
                match pages {
                    None => self.forget_all(is_meant),
                    Some(pages) => self.forget_pages(pages, domain, true),
                }
            }
            // Neither context entries nor device TLBs are modelled, and a wait forgets nothing.
            _ => {}
        }
    }

    fn forget_all(&mut self, is_meant: impl Fn(&Key) -> bool) {
        self.translations.retain(|key, _| !is_meant(key));
        self.structures.retain(|key, _| !is_meant(key));
    }

    fn forget_pages(&mut self, pages: Pages, domain: DomainId, is_first_stage: bool) {
        let block = pages.block;
        for level in LEVELS {
            // The entries that meet the block, first to last.
            let key = |start| Key { domain, is_first_stage, level, start };
            let meeting = key(first_of(block.start().as_u64(), level))..=key(block.last().as_u64());
            let whole: Vec<_> = self.translations.range(meeting.clone()).map(|(key, _)| *key).collect();
            for key in whole.iter().filter(|key| key.lies_in(block)) {
                self.translations.remove(key);
            }
            if !pages.leaf_only {
                let met: Vec<_> = self.structures.range(meeting).map(|(key, _)| *key).collect();
                for key in &met {
                    self.structures.remove(key);
                }
            }
        }
    }
}
