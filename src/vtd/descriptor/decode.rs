//! Owns the bits of descriptors, read: for tests, for units made of software, and for looking at a queue that has stopped.

use super::{
    ContextSelection, Descriptor, DeviceTlb, FunctionMask, IotlbSelection, Pages, PasidSelection,
    StatusWrite, Wait,
    encode::{CONTEXT_CACHE, DEVICE_TLB, IOTLB, PASID_CACHE, PASID_DEVICE_TLB, PASID_IOTLB, WAIT},
};
use crate::{
    PhysAddr,
    vtd::{
        DomainId, Iova, PageBlock, Pasid, SourceId,
        bits::{bit, field},
    },
};
use core::{error::Error, fmt};

/// Why words are no descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DescriptorError {
    /// A type that does not exist, or that this crate does not write.
    Kind {
        /// Bits 11:9 and 3:0 of the lowest word.
        kind: u8,
    },
    /// Bits are set that must be 0.
    Reserved {
        /// The number of the word, from 0.
        word: usize,
        /// The bits.
        bits: u64,
    },
    /// A field has a value that is reserved, or that does not go with the others.
    Value {
        /// The name of the field in the specification.
        field: &'static str,
        /// The value.
        value: u64,
    },
}

impl fmt::Display for DescriptorError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Kind { kind } => write!(formatter, "a descriptor of type {kind} is not known"),
            Self::Reserved { word, bits } => {
                write!(formatter, "bits {bits:#x} of word {word} are reserved and must be 0")
            }
            Self::Value { field, value } => write!(formatter, "{field} must not be {value:#x} here"),
        }
    }
}

impl Error for DescriptorError {}

/// The bits of the domain id.
const DOMAIN: u64 = 0xFFFF << 16;
/// The bits of the PASID.
const PASID: u64 = 0xF_FFFF << 32;
/// The bits of the physical function's source id.
const PHYSICAL_FUNCTION: u64 = 0xF << 12 | 0xFFF << 52;
const ADDRESS: u64 = !0xFFF;

impl Descriptor {
    /// The descriptor that these words are, the lowest first; two words of 0 behind one of 128 bits.
    ///
    /// # Errors
    /// [`DescriptorError`] names what hardware would refuse.
    pub fn decode(words: [u64; 4]) -> Result<Self, DescriptorError> {
        let [low, high, rest @ ..] = words;
        for (word, bits) in (2..).zip(rest) {
            reserved(word, bits, 0)?;
        }
        let kind = field(low, 9, 3) << 4 | field(low, 0, 4);
        match kind {
            CONTEXT_CACHE => context_cache(low, high),
            PASID_CACHE => pasid_cache(low, high),
            IOTLB => iotlb(low, high),
            PASID_IOTLB => pasid_iotlb(low, high),
            DEVICE_TLB => {
                reserved(0, low, 0xE0F | 0x1F << 16 | 0xFFFF << 32 | PHYSICAL_FUNCTION)?;
                reserved(1, high, ADDRESS | 1)?;
                Ok(Self::DeviceTlb(device_tlb(low, high, 16, 32, 0)?))
            }
            PASID_DEVICE_TLB => {
                reserved(0, low, 0xE0F | 0x1F << 4 | 0xFFFF << 16 | PASID | PHYSICAL_FUNCTION)?;
                reserved(1, high, ADDRESS | 1 << 11 | 1)?;
                let device = device_tlb(low, high, 4, 16, 11)?;
                Ok(Self::PasidDeviceTlb { device, pasid: pasid(low), all_pasids: bit(high, 0) })
            }
            WAIT => wait(low, high),
            _ => Err(DescriptorError::Kind { kind: kind as u8 }),
        }
    }
}

/// Refuses all bits of a word but `used`.
fn reserved(word: usize, bits: u64, used: u64) -> Result<(), DescriptorError> {
    match bits & !used {
        0 => Ok(()),
        bits => Err(DescriptorError::Reserved { word, bits }),
    }
}

fn granularity(low: u64) -> u64 {
    field(low, 4, 2)
}

fn wrong_granularity<T>(low: u64) -> Result<T, DescriptorError> {
    Err(DescriptorError::Value { field: "G", value: granularity(low) })
}

fn domain(low: u64) -> Result<DomainId, DescriptorError> {
    DomainId::new(field(low, 16, 16) as u16).ok_or(DescriptorError::Value { field: "DID", value: 0 })
}

fn pasid(low: u64) -> Pasid {
    Pasid::from_low_bits(low >> 32)
}

fn source(bits: u64) -> SourceId {
    SourceId::from_bits(bits as u16)
}

fn context_cache(low: u64, high: u64) -> Result<Descriptor, DescriptorError> {
    const USED: u64 = 0xE3F;
    reserved(1, high, 0)?;
    Ok(Descriptor::ContextCache(match granularity(low) {
        1 => {
            reserved(0, low, USED)?;
            ContextSelection::All
        }
        2 => {
            reserved(0, low, USED | DOMAIN)?;
            ContextSelection::Domain(domain(low)?)
        }
        3 => {
            reserved(0, low, USED | DOMAIN | 0xFFFF << 32 | 3 << 48)?;
            ContextSelection::Device {
                domain: DomainId::new(field(low, 16, 16) as u16),
                source: source(field(low, 32, 16)),
                functions: match field(low, 48, 2) {
                    0 => FunctionMask::One,
                    1 => FunctionMask::Two,
                    2 => FunctionMask::Four,
                    _ => FunctionMask::Eight,
                },
            }
        }
        _ => return wrong_granularity(low),
    }))
}

fn pasid_cache(low: u64, high: u64) -> Result<Descriptor, DescriptorError> {
    const USED: u64 = 0xE3F;
    reserved(1, high, 0)?;
    Ok(Descriptor::PasidCache(match granularity(low) {
        0 => {
            reserved(0, low, USED | DOMAIN)?;
            PasidSelection::Domain(domain(low)?)
        }
        1 => {
            reserved(0, low, USED | DOMAIN | PASID)?;
            PasidSelection::Pasid(domain(low)?, pasid(low))
        }
        3 => {
            reserved(0, low, USED)?;
            PasidSelection::All
        }
        _ => return wrong_granularity(low),
    }))
}

fn iotlb(low: u64, high: u64) -> Result<Descriptor, DescriptorError> {
    const USED: u64 = 0xEFF;
    let selection = match granularity(low) {
        1 => {
            reserved(0, low, USED)?;
            reserved(1, high, 0)?;
            IotlbSelection::All
        }
        2 => {
            reserved(0, low, USED | DOMAIN)?;
            reserved(1, high, 0)?;
            IotlbSelection::Domain(domain(low)?)
        }
        3 => {
            reserved(0, low, USED | DOMAIN)?;
            IotlbSelection::Pages(domain(low)?, pages(high)?)
        }
        _ => return wrong_granularity(low),
    };
    Ok(Descriptor::Iotlb { selection, drain_reads: bit(low, 7), drain_writes: bit(low, 6) })
}

fn pasid_iotlb(low: u64, high: u64) -> Result<Descriptor, DescriptorError> {
    reserved(0, low, 0xE3F | DOMAIN | PASID)?;
    let pages = match granularity(low) {
        2 => {
            reserved(1, high, 0)?;
            None
        }
        3 => Some(pages(high)?),
        _ => return wrong_granularity(low),
    };
    Ok(Descriptor::PasidIotlb { domain: domain(low)?, pasid: pasid(low), pages })
}

fn pages(high: u64) -> Result<Pages, DescriptorError> {
    reserved(1, high, ADDRESS | 1 << 6 | 0x3F)?;
    let mask = field(high, 0, 6);
    let block = PageBlock::new(Iova::new(high & ADDRESS), mask as u8);
    let block = block.ok_or(DescriptorError::Value { field: "AM", value: mask })?;
    Ok(Pages { block, leaf_only: bit(high, 6) })
}

fn device_tlb(
    low: u64,
    high: u64,
    depth_at: u32,
    source_at: u32,
    size_at: u32,
) -> Result<DeviceTlb, DescriptorError> {
    // Of a block of more than one page, the lowest address bit that is 0 says how large it is.
    let address = high & ADDRESS;
    let mask = if bit(high, size_at) { (address >> 12).trailing_ones() + 1 } else { 0 };
    let start = if mask == 0 { address } else { address & address.wrapping_add(1 << 12) };
    let block = PageBlock::new(Iova::new(start), mask as u8);
    Ok(DeviceTlb {
        source: source(field(low, source_at, 16)),
        physical_function: source(field(low, 12, 4) | field(low, 52, 12) << 4),
        queue_depth: field(low, depth_at, 5) as u8,
        block: block.ok_or(DescriptorError::Value { field: "ADDR", value: address })?,
    })
}

fn wait(low: u64, high: u64) -> Result<Descriptor, DescriptorError> {
    let status = if bit(low, 5) {
        reserved(0, low, 0xEFF | 0xFFFF_FFFF << 32)?;
        reserved(1, high, !3)?;
        StatusWrite::new(PhysAddr::new(high), field(low, 32, 32) as u32)
    } else {
        reserved(0, low, 0xEFF)?;
        reserved(1, high, 0)?;
        None
    };
    let (interrupt, fence, drain_page_requests) = (bit(low, 4), bit(low, 6), bit(low, 7));
    Ok(Descriptor::Wait(Wait { status, interrupt, fence, drain_page_requests }))
}
