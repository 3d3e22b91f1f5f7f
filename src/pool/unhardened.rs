//! What `pool/hardened.rs` does, without the feature: nothing, and no code for it.

use super::FramePool;
use crate::{
    frame::PhysAddr,
    platform::Platform,
    raw::magazine::{FrameNumber, Kind},
    source::FrameSource,
};

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    #[inline(always)]
    pub(super) fn inspect(&self, _: FrameNumber) -> bool {
        true
    }

    #[inline(always)]
    pub(super) fn check_out(&self, _: FrameNumber) -> bool {
        true
    }

    #[inline(always)]
    pub(super) fn check_dismissal(&self, _: FrameNumber) -> bool {
        true
    }

    #[inline(always)]
    pub(super) fn check_in(&self, kind: Kind, _: FrameNumber) -> Option<Kind> {
        Some(kind)
    }

    #[inline(always)]
    pub(super) fn check_supply(&self, _: FrameNumber) -> Kind {
        self.kind_of_supply()
    }

    #[inline(always)]
    pub(super) fn note_cleared(&self, _: FrameNumber) {}

    #[inline(always)]
    pub(super) fn mend_link(&self, _: FrameNumber) {}

    #[inline(always)]
    pub(super) fn refuse_address(&self, _: PhysAddr) {}
}
