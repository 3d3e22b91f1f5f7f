//! Owns what no call may go beyond, worked out once from the shape of a domain: a comparison each at the door.

use super::{
    DomainConfig, MapError, RangeError,
    width::{INTERRUPTS, Iova, PAGE, Span},
};
use crate::PhysAddr;

/// The ends of what a domain can map, and of where it can map it to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The first address behind the domain's.
    end: u64,
    /// The first physical address that no leaf can name.
    target_end: u64,
    /// How many bits an address has.
    width: u8,
    /// How many bits a physical address has.
    target_width: u8,
}

impl Limits {
    pub(crate) const fn of(config: &DomainConfig) -> Self {
        let (width, target_width) = (config.address_width, config.host_address_width);
        Self { end: behind(width), target_end: behind(target_width), width, target_width }
    }

    /// All addresses of the domain.
    #[inline(always)]
    pub(crate) const fn aperture(&self) -> Span {
        Span { start: 0, end: self.end }
    }

    /// The range of `length` bytes from `iova` on, if the domain can have it.
    #[inline(always)]
    pub(crate) const fn span(&self, iova: Iova, length: u64) -> Result<Span, RangeError> {
        let start = iova.as_u64();
        if length == 0 {
            return Err(RangeError::Empty);
        }
        if (start | length) & (PAGE - 1) != 0 {
            return Err(RangeError::Misaligned { iova, length });
        }
        match start.checked_add(length) {
            Some(end) if end <= self.end => Ok(Span { start, end }),
            _ => Err(RangeError::BeyondWidth { iova, length, width: self.width }),
        }
    }

    /// Refuses physical ranges that no leaf may name.
    #[inline(always)]
    pub(crate) fn check_target(&self, target: PhysAddr, length: u64) -> Result<(), MapError> {
        let (start, width) = (target.as_u64(), self.target_width);
        if !target.is_aligned(PAGE) {
            return Err(MapError::TargetMisaligned { target });
        }
        let Some(end) = start.checked_add(length).filter(|&end| end <= self.target_end) else {
            return Err(MapError::TargetBeyondWidth { target, length, width });
        };
        if (Span { start, end }).meets(INTERRUPTS) {
            return Err(MapError::InterruptTarget { target, length });
        }
        Ok(())
    }
}

/// The first address that `width` bits do not have, or the last of all.
const fn behind(width: u8) -> u64 {
    match 1_u64.checked_shl(width as u32) {
        Some(end) => end,
        None => u64::MAX,
    }
}
