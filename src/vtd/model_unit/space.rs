//! Owns the tables attached under a domain's id: where they begin, and their shape.

use super::{cache::Key, entry::Shape};
use crate::{PhysAddr, vtd::DomainId};

/// Tables that requests go through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    pub(super) domain: DomainId,
    pub(super) root: PhysAddr,
    pub(super) shape: Shape,
}

impl Space {
    /// The name of the cached entry of `level` for `iova`.
    pub(super) fn key(&self, level: u32, iova: u64) -> Key {
        Key::new(self.domain, self.shape.stage, level, iova)
    }
}
