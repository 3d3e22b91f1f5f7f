//! Owns the memory that devices use since before the system started, and its mapping: each address to itself, since the devices
//! go on as they were told (VT-d specification, section 8.4, "Reserved Memory Region Reporting").

use super::scope::DeviceScopes;
use crate::{
    PhysAddr,
    vtd::{Domain, Format, Invalidation, Iova, MapError, Permissions, TableFrames},
};

/// A piece of memory that the devices in `scopes` must go on reaching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedMemory<'t> {
    /// The PCI segment of the devices.
    pub segment: u16,
    /// The devices.
    pub scopes: DeviceScopes<'t>,
    base: u64,
    length: u64,
}

impl<'t> ReservedMemory<'t> {
    /// The memory from `base` to `limit`, the last byte.
    pub(super) fn new(segment: u16, base: u64, limit: u64, scopes: DeviceScopes<'t>) -> Option<Self> {
        // So that the end, one byte further, is an address too.
        let length = limit.checked_add(1)?.checked_sub(base).filter(|&length| length > 0)?;
        Some(Self { segment, scopes, base, length })
    }

    /// The first byte.
    pub fn base(&self) -> PhysAddr {
        PhysAddr::new(self.base)
    }

    /// The length in bytes, never 0. The specification wants a multiple of 4 KiB, but firmware says what it likes.
    pub fn length(&self) -> u64 {
        self.length
    }
}

impl<F: Format, A: TableFrames> Domain<F, A> {
    /// Maps reserved memory to itself, readable and writable, for a device that uses it. All or nothing; a region that is
    /// mapped so already, because it was listed for two devices of the domain, stays as it is.
    ///
    /// Thread context. Bounded by the pages of the region.
    ///
    /// # Errors
    /// [`MapError`], as for [`map`](Self::map): the firmware named a piece that is misaligned or beyond an address width, a part of
    /// it is mapped in some other way, or there are too few frames. The tables are then what they were (INV-11).
    ///
    /// # Safety
    /// As for [`map`](Self::map); that the memory stays valid is what the firmware says.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, vtd::*};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// # let bytes = std::fs::read("examples/traces/DMAR.bin")?;
    /// # let domain = SecondStageDomain::new(DomainConfig::new(Levels::Four), &*pool)?;
    /// for region in Dmar::parse(&bytes)?.reserved_memory() {
    ///     // SAFETY: the domain is not in use yet.
    ///     unsafe { domain.map_reserved_memory(&region)? };
    /// }
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[allow(unsafe_code, reason = "passes the duties of map on")]
    pub unsafe fn map_reserved_memory(
        &self,
        region: &ReservedMemory<'_>,
    ) -> Result<F::Mapped<'_, A>, MapError> {
        let (iova, length, rights) = (Iova::new(region.base), region.length, Permissions::all());
        // SAFETY: the caller's.
        match unsafe { self.map(iova, region.base(), length, rights) } {
            Err(MapError::AlreadyMapped { .. }) if self.maps_to_itself(region, rights) => {
                Ok(F::mapped(|| Invalidation::none(self.tables())))
            }
            outcome => outcome,
        }
    }

    /// Whether all of `region` is mapped to itself with `rights`.
    fn maps_to_itself(&self, region: &ReservedMemory<'_>, rights: Permissions) -> bool {
        let (mut at, end) = (region.base, region.base + region.length);
        while at < end {
            match self.translate(Iova::new(at)) {
                Some(page) if page.target.as_u64() == at && page.permissions == rights => {
                    at = (at | (page.page_size - 1)) + 1;
                }
                _ => return false,
            }
        }
        true
    }
}
