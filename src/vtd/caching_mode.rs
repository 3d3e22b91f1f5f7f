//! Owns what a map leaves to be done: nothing on most hardware; telling the units where they remember what was not present (caching mode) or
//! hold writes back.

use super::{
    TableFrames,
    format::{Entry, Format, Permissions, Stage, sealed},
    invalidation::Invalidation,
};
use crate::PhysAddr;
use core::marker::PhantomData;

/// The format `F`, for units that must be told about new mappings too: those in caching mode (CAP_REG.CM), as hypervisors offer
/// them, and those whose write buffer must be flushed (CAP_REG.RWBF). A `map` returns an [`Invalidation`] then, as `unmap` does.
///
/// It serves units that need neither as well; the invalidation of a map is [empty](Invalidation::is_empty) for them. A domain of
/// the plain format is refused where a unit needs it.
///
/// ```
/// # #[cfg(feature = "std")] {
/// use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
///
/// let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
/// let hardware = Hardware { caching_mode: true, ..Hardware::default() };
/// let config = DomainConfig { hardware, domain_id: DomainId::new(3), ..DomainConfig::new(Levels::Four) };
/// assert_eq!(SecondStageDomain::new(config, &*pool).err(), Some(DomainError::MapsUntold));
/// let domain = Domain::<CachingMode<SecondStage>, _>::new(config, &*pool)?;
/// // SAFETY: no device walks this domain.
/// let told = unsafe { domain.map(Iova::new(0x1000), PhysAddr::new(0x2000), 0x1000, Permissions::READ)? };
/// assert_eq!(told.descriptors(None).count(), 1);
/// // SAFETY: as above, so there is nobody to tell.
/// unsafe { told.complete() };
/// # unsafe { domain.close().complete() };
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct CachingMode<F>(PhantomData<F>);

/// What a map leaves to be done, for code that is generic over the format.
pub trait MapOutcome<'d, A: TableFrames>: sealed::Sealed {
    /// What the units must be told; nothing where they need not.
    ///
    /// Any context; constant time.
    fn into_invalidation(self) -> Option<Invalidation<'d, A>>;
}

impl sealed::Sealed for () {}

impl<'d, A: TableFrames> MapOutcome<'d, A> for () {
    fn into_invalidation(self) -> Option<Invalidation<'d, A>> {
        None
    }
}

impl<A: TableFrames> sealed::Sealed for Invalidation<'_, A> {}

impl<'d, A: TableFrames> MapOutcome<'d, A> for Invalidation<'d, A> {
    fn into_invalidation(self) -> Option<Self> {
        Some(self)
    }
}

impl<F: Format> sealed::Sealed for CachingMode<F> {}

impl<F: Format> Format for CachingMode<F> {
    const INDEX_BITS: u32 = F::INDEX_BITS;
    const STAGE: Stage = F::STAGE;
    const PRESENT: u64 = F::PRESENT;
    const PAGE_SIZE: u64 = F::PAGE_SIZE;
    const SNOOP: u64 = F::SNOOP;
    const ACCESSED: u64 = F::ACCESSED;
    const DIRTY: u64 = F::DIRTY;
    const TELLS_MAPS: bool = true;
    type Mapped<'d, A: TableFrames + 'd> = Invalidation<'d, A>;

    fn mapped<'d, A: TableFrames + 'd>(
        invalidation: impl FnOnce() -> Invalidation<'d, A>,
    ) -> Invalidation<'d, A> {
        invalidation()
    }

    #[inline(always)]
    fn leaf(target: PhysAddr, permissions: Permissions, level: u32) -> u64 {
        F::leaf(target, permissions, level)
    }

    #[inline(always)]
    fn with_permissions(leaf: u64, permissions: Permissions) -> u64 {
        F::with_permissions(leaf, permissions)
    }

    #[inline(always)]
    fn table(table: PhysAddr) -> u64 {
        F::table(table)
    }

    #[inline(always)]
    fn part(leaf: u64, level: u32, index: u64) -> u64 {
        F::part(leaf, level, index)
    }

    #[inline(always)]
    fn decode(entry: u64, level: u32) -> Entry {
        F::decode(entry, level)
    }
}
