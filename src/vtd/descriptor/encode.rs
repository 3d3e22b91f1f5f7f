//! Owns the bits of descriptors, written.

use super::{
    ContextSelection, Descriptor, DeviceTlb, FunctionMask, IotlbSelection, Pages, PasidSelection, Wait,
};
use crate::vtd::{DomainId, PageBlock, bits::flag};

/// The types of descriptors (bits 3:0).
pub(super) const CONTEXT_CACHE: u64 = 1;
pub(super) const IOTLB: u64 = 2;
pub(super) const DEVICE_TLB: u64 = 3;
pub(super) const WAIT: u64 = 5;
pub(super) const PASID_IOTLB: u64 = 6;
pub(super) const PASID_CACHE: u64 = 7;
pub(super) const PASID_DEVICE_TLB: u64 = 8;

impl Descriptor {
    /// Whether the descriptor exists in 256 bits only.
    pub const fn is_wide(self) -> bool {
        matches!(self, Self::PasidCache(_) | Self::PasidIotlb { .. } | Self::PasidDeviceTlb { .. })
    }

    /// The words of a queue of 256-bit descriptors, the lowest first.
    pub const fn encode(self) -> [u64; 4] {
        let [low, high] = self.words();
        [low, high, 0, 0]
    }

    /// The words of a queue of 128-bit descriptors, the lowest first; nothing if it must be wide.
    pub const fn encode_narrow(self) -> Option<[u64; 2]> {
        if self.is_wide() { None } else { Some(self.words()) }
    }

    const fn words(self) -> [u64; 2] {
        match self {
            Self::ContextCache(selection) => [CONTEXT_CACHE | context_selection(selection), 0],
            Self::PasidCache(selection) => [PASID_CACHE | pasid_selection(selection), 0],
            Self::Iotlb { selection, drain_reads, drain_writes } => {
                let (selection, pages) = match selection {
                    IotlbSelection::All => (1 << 4, 0),
                    IotlbSelection::Domain(domain) => (2 << 4 | tag(domain), 0),
                    IotlbSelection::Pages(domain, some) => (3 << 4 | tag(domain), pages(some)),
                };
                [IOTLB | selection | flag(drain_writes, 6) | flag(drain_reads, 7), pages]
            }
            Self::PasidIotlb { domain, pasid, pages: some } => {
                let (granularity, pages) = match some {
                    None => (2 << 4, 0),
                    Some(some) => (3 << 4, pages(some)),
                };
                [PASID_IOTLB | granularity | tag(domain) | (pasid.get() as u64) << 32, pages]
            }
            Self::DeviceTlb(device) => {
                let low = DEVICE_TLB
                    | queue_depth(device) << 16
                    | (device.source.bits() as u64) << 32
                    | physical_function(device);
                [low, device_block(device.block, 0)]
            }
            Self::PasidDeviceTlb { device, pasid, all_pasids } => {
                let low = PASID_DEVICE_TLB
                    | queue_depth(device) << 4
                    | (device.source.bits() as u64) << 16
                    | (pasid.get() as u64) << 32
                    | physical_function(device);
                [low, device_block(device.block, 11) | flag(all_pasids, 0)]
            }
            Self::Wait(wait) => wait_words(wait),
        }
    }
}

/// The domain id, where most descriptors have it.
const fn tag(domain: DomainId) -> u64 {
    (domain.get() as u64) << 16
}

const fn context_selection(selection: ContextSelection) -> u64 {
    match selection {
        ContextSelection::All => 1 << 4,
        ContextSelection::Domain(domain) => 2 << 4 | tag(domain),
        ContextSelection::Device { domain, source, functions } => {
            let domain = match domain {
                Some(domain) => tag(domain),
                None => 0,
            };
            let functions = match functions {
                FunctionMask::One => 0,
                FunctionMask::Two => 1,
                FunctionMask::Four => 2,
                FunctionMask::Eight => 3,
            };
            3 << 4 | domain | (source.bits() as u64) << 32 | functions << 48
        }
    }
}

const fn pasid_selection(selection: PasidSelection) -> u64 {
    match selection {
        PasidSelection::All => 3 << 4,
        PasidSelection::Domain(domain) => tag(domain),
        PasidSelection::Pasid(domain, pasid) => 1 << 4 | tag(domain) | (pasid.get() as u64) << 32,
    }
}

const fn pages(pages: Pages) -> u64 {
    pages.block.start().as_u64() | flag(pages.leaf_only, 6) | pages.block.mask() as u64
}

const fn queue_depth(device: DeviceTlb) -> u64 {
    // 32 is written as 0.
    if device.queue_depth < 32 { device.queue_depth as u64 } else { 0 }
}

/// The source id of the physical function, in two parts.
const fn physical_function(device: DeviceTlb) -> u64 {
    let bits = device.physical_function.bits() as u64;
    (bits & 0xF) << 12 | bits >> 4 << 52
}

/// The address of a block as devices read it: if the bit `size` is set, the lowest address bit that is 0 says how large the block is
/// (PCI Express ATS).
const fn device_block(block: PageBlock, size: u32) -> u64 {
    match block.mask() {
        0 => block.start().as_u64(),
        mask => block.start().as_u64() | ((1 << (mask - 1)) - 1) << 12 | 1 << size,
    }
}

const fn wait_words(wait: Wait) -> [u64; 2] {
    let (status, address) = match wait.status {
        Some(status) => ((status.value() as u64) << 32 | 1 << 5, status.address().as_u64()),
        None => (0, 0),
    };
    let flags = flag(wait.interrupt, 4) | flag(wait.fence, 6) | flag(wait.drain_page_requests, 7);
    [WAIT | status | flags, address]
}
