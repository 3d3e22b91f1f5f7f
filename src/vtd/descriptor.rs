//! Owns the descriptors of the invalidation queue: what software tells hardware to forget, and to say when it has (VT-d
//! specification, section 6.5.2).
//!
//! Context-cache, IOTLB, Device-TLB and wait descriptors have 128 bits, or 256 of which the upper half is 0 where the queue is set
//! to wide ones (IQA_REG.DW). PASID-cache and PASID-based descriptors exist in 256 bits only, with scalable mode.

use super::{DomainId, PageBlock, Pasid, SourceId};
use crate::PhysAddr;

mod decode;
mod encode;

pub use decode::DescriptorError;

/// Which context entries to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextSelection {
    /// All.
    All,
    /// Those that name the domain.
    Domain(DomainId),
    /// That of one device.
    Device {
        /// The domain that the entry named; nothing for an entry that was not present, which hardware in caching mode tags with
        /// id 0.
        domain: Option<DomainId>,
        /// The device.
        source: SourceId,
        /// Which other functions of the device are meant too.
        functions: FunctionMask,
    },
}

/// Which bits of the function number to ignore (FM).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FunctionMask {
    /// None: the one function.
    #[default]
    One,
    /// Bit 2.
    Two,
    /// Bits 2 and 1.
    Four,
    /// All: every function of the device.
    Eight,
}

/// Which translations to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IotlbSelection {
    /// All.
    All,
    /// Those of a domain.
    Domain(DomainId),
    /// Those of some pages of a domain; the unit must have page-selective invalidation.
    Pages(DomainId, Pages),
}

/// Some pages, and what of their translation has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// The pages.
    pub block: PageBlock,
    /// Only entries of pages have changed, none that names a table: hardware may keep the latter (IH).
    pub leaf_only: bool,
}

/// Which PASID entries to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasidSelection {
    /// All.
    All,
    /// Those that name the domain.
    Domain(DomainId),
    /// That of one PASID, naming the domain.
    Pasid(DomainId, Pasid),
}

/// What a device's own TLB is to forget, and how many such requests it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceTlb {
    /// The device.
    pub source: SourceId,
    /// The physical function that the device is a virtual function of, or the device itself.
    pub physical_function: SourceId,
    /// How many of these requests may be on the way at once, as the device's ATS capability says; 0 means 32, which is the most.
    pub queue_depth: u8,
    /// The pages.
    pub block: PageBlock,
}

/// A word that hardware writes when it has got so far: 32 bits, 4-byte aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusWrite {
    address: PhysAddr,
    value: u32,
}

impl StatusWrite {
    /// `value`, to be written to `address`; nothing if that is not a multiple of 4.
    pub const fn new(address: PhysAddr, value: u32) -> Option<Self> {
        if address.is_aligned(4) { Some(Self { address, value }) } else { None }
    }

    /// Where the value is written.
    pub const fn address(self) -> PhysAddr {
        self.address
    }

    /// What is written.
    pub const fn value(self) -> u32 {
        self.value
    }
}

/// What a wait descriptor does when all before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Wait {
    /// A word is written (SW).
    pub status: Option<StatusWrite>,
    /// An interrupt is raised (IF).
    pub interrupt: bool,
    /// Nothing after it is begun before (FN).
    pub fence: bool,
    /// The page requests before it are drained (PD).
    pub drain_page_requests: bool,
}

/// One descriptor of the invalidation queue.
///
/// ```
/// use framepool::{PhysAddr, vtd::*};
/// let domain = DomainId::new(5).unwrap();
/// let pages = Pages { block: PageBlock::new(Iova::new(0x20_0000), 9).unwrap(), leaf_only: true };
/// let forget = Descriptor::Iotlb {
///     selection: IotlbSelection::Pages(domain, pages),
///     drain_reads: true,
///     drain_writes: true,
/// };
/// assert_eq!(forget.encode_narrow(), Some([0x5_00F2, 0x20_0049]));
/// assert_eq!(Descriptor::decode(forget.encode()), Ok(forget));
/// let done = StatusWrite::new(PhysAddr::new(0x1000), 1);
/// let wait = Descriptor::Wait(Wait { status: done, ..Wait::default() });
/// assert_eq!(wait.encode_narrow(), Some([0x1_0000_0025, 0x1000]));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Descriptor {
    /// Forget context entries (section 6.5.2.1). To be completed before the IOTLB is invalidated: what is cached there was found by
    /// the entry.
    ContextCache(ContextSelection),
    /// Forget PASID entries (section 6.5.2.2). To be completed before the IOTLB is invalidated.
    PasidCache(PasidSelection),
    /// Forget translations (section 6.5.2.3).
    Iotlb {
        /// Which.
        selection: IotlbSelection,
        /// The wait descriptor behind also waits for reads in flight (DR), if the unit can.
        drain_reads: bool,
        /// The wait descriptor behind also waits for writes in flight (DW), if the unit can.
        drain_writes: bool,
    },
    /// Forget first-stage translations (section 6.5.2.4).
    PasidIotlb {
        /// The domain.
        domain: DomainId,
        /// The PASID.
        pasid: Pasid,
        /// Some pages, or all.
        pages: Option<Pages>,
    },
    /// Let a device forget translations (section 6.5.2.5). After the IOTLB, from which the device would read them again.
    DeviceTlb(DeviceTlb),
    /// Let a device forget translations of a PASID (section 6.5.2.6).
    PasidDeviceTlb {
        /// What, and of which device.
        device: DeviceTlb,
        /// The PASID.
        pasid: Pasid,
        /// Of all PASIDs, for pages that are global.
        all_pasids: bool,
    },
    /// Say that all before is done (section 6.5.2.8).
    Wait(Wait),
}
