//! Owns the names under which requests come: the source id, which is bus, device and function, and the PASID, which is an address
//! space of that device (VT-d specification, section 3.4.1).

use core::fmt;

/// The source id of a request: bus (8 bits), device (5 bits), function (3 bits).
///
/// ```
/// use framepool::vtd::SourceId;
/// let id = SourceId::new(0, 0x1F, 2).unwrap();
/// assert_eq!((id.bits(), id.to_string()), (0xFA, "00:1f.2".into()));
/// assert_eq!(SourceId::new(0, 0x20, 0), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct SourceId(u16);

impl SourceId {
    /// The function `function` (below 8) of the device `device` (below 32) on `bus`.
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 {
            Some(Self((bus as u16) << 8 | (device as u16) << 3 | function as u16))
        } else {
            None
        }
    }

    /// The id as it stands in a request.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The id as it stands in a request.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// The bus: the index into the root table.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The device on the bus.
    pub const fn device(self) -> u8 {
        (self.0 >> 3) as u8 & 31
    }

    /// The function of the device.
    pub const fn function(self) -> u8 {
        self.0 as u8 & 7
    }

    /// Device and function in one: the index into the context table.
    pub const fn devfn(self) -> u8 {
        self.0 as u8
    }
}

impl fmt::Debug for SourceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SourceId({self})")
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

/// A process address space id: 20 bits.
///
/// ```
/// use framepool::vtd::Pasid;
/// assert_eq!(Pasid::new(0xF_FFFF).map(Pasid::get), Some(0xF_FFFF));
/// assert_eq!(Pasid::new(0x10_0000), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Pasid(u32);

impl Pasid {
    /// PASID 0, under which requests without a PASID are usually translated.
    pub const ZERO: Self = Self(0);

    /// The PASID `number`, if it has no more than 20 bits.
    pub const fn new(number: u32) -> Option<Self> {
        if number >> 20 == 0 { Some(Self(number)) } else { None }
    }

    /// The PASID in the low bits of a word.
    pub(crate) const fn from_low_bits(word: u64) -> Self {
        Self(word as u32 & 0xF_FFFF)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_make_the_whole() {
        for bits in 0..=u16::MAX {
            let id = SourceId::from_bits(bits);
            assert_eq!(SourceId::new(id.bus(), id.device(), id.function()), Some(id));
            assert_eq!(u16::from(id.bus()) << 8 | u16::from(id.devfn()), bits);
        }
        assert_eq!(SourceId::new(0, 0, 8), None);
    }
}
