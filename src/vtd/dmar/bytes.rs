//! Owns the reading of numbers and records from bytes that may say anything: checked slices, little-endian.

use super::DmarError;

pub(super) fn u8_at(bytes: &[u8], offset: usize) -> Option<u8> {
    bytes.get(offset).copied()
}

fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    array_at(bytes, offset).map(u16::from_le_bytes)
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    array_at(bytes, offset).map(u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    array_at(bytes, offset).map(u64::from_le_bytes)
}

/// The structures of a table: where each starts, its type, and its bytes, the header included. Ends at the first one whose
/// length is wrong, after reporting it.
#[derive(Clone, Debug)]
pub(super) struct Records<'t> {
    bytes: &'t [u8],
    offset: usize,
}

impl<'t> Records<'t> {
    pub(super) fn new(bytes: &'t [u8], offset: usize) -> Self {
        Self { bytes, offset }
    }
}

impl<'t> Iterator for Records<'t> {
    type Item = Result<(usize, u16, &'t [u8]), DmarError>;

    fn next(&mut self) -> Option<Self::Item> {
        let offset = self.offset;
        let rest = self.bytes.get(offset..).filter(|rest| !rest.is_empty())?;
        let record = u16_at(rest, 0)
            .zip(u16_at(rest, 2))
            .filter(|&(_, length)| length >= 4)
            .and_then(|(kind, length)| rest.get(..usize::from(length)).map(|body| (offset, kind, body)));
        self.offset = record.map_or(self.bytes.len(), |(_, _, body)| offset + body.len());
        Some(record.ok_or(DmarError::StructureLength { offset }))
    }
}
