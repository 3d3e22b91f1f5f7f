//! Mapping a list of pages that lie anywhere to addresses in a row, in one call.

use super::{
    Domain, Format, Iova, MapError, Permissions, TableFrames, map::Wish, targets::Scattered, width::PAGE,
};
use crate::PhysAddr;

impl<F: Format, A: TableFrames> Domain<F, A> {
    /// Maps pages of 4 KiB that lie anywhere in physical memory, in the order given, to addresses in a row from `iova` on: what a
    /// scatter list needs. One walk for all, all or nothing, one thing to tell the units. Where the pages of a whole large leaf lie in a row,
    /// aligned, they get one.
    ///
    /// Contexts as for [`map`](Self::map). Bounded by the pages and the tables touched.
    /// At most 11,700 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// As for [`map`](Self::map); the target that is named is the first page that is wrong.
    ///
    /// # Safety
    /// As for [`map`](Self::map), for each page.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// # let domain = SecondStageDomain::new(DomainConfig::new(Levels::Four), &*pool)?;
    /// let pages = [0x7000, 0x3000, 0x4000].map(PhysAddr::new);
    /// // SAFETY: no device walks this domain.
    /// unsafe { domain.map_pages(Iova::new(0x10_0000), &pages, Permissions::READ)? };
    /// let targets: Vec<_> = domain.mappings().map(|mapping| (mapping.target.as_u64(), mapping.length)).collect();
    /// assert_eq!(targets, [(0x7000, 0x1000), (0x3000, 0x2000)]);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[allow(unsafe_code, reason = "states duties that only the caller can keep")]
    pub unsafe fn map_pages(
        &self,
        iova: Iova,
        pages: &[PhysAddr],
        permissions: Permissions,
    ) -> Result<F::Mapped<'_, A>, MapError> {
        let length = (pages.len() as u64).saturating_mul(PAGE);
        let span = self.span_to_map(iova, length, permissions)?;
        pages.iter().try_for_each(|&page| self.limits().check_target(page, PAGE))?;
        let targets = Scattered { start: span.start, pages };
        self.carry_out(span, Wish::new::<F>(targets, permissions, &self.config()), |missing| {
            self.advance_all(missing)
        })
    }
}
