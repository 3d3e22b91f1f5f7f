//! Finds the firmware's tables: from the root pointer through the root table to a table by its signature.

use super::start::StartInformation;

const HEADER: usize = 36;
const LENGTH: usize = 4;
const ROOT_TABLE_32: usize = 16;
const ROOT_TABLE_64: usize = 24;
const REVISION: usize = 15;

/// The bytes from `address` on, as the firmware left them.
fn memory(address: u64, length: usize) -> &'static [u8] {
    // SAFETY: the firmware says that a table is there; the identity map covers it, and nobody writes to it.
    unsafe { core::slice::from_raw_parts(address as *const u8, length) }
}

fn number<const BYTES: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let mut word = [0; 8];
    word[..BYTES].copy_from_slice(bytes.get(at..at + BYTES)?);
    Some(u64::from_le_bytes(word))
}

fn table_at(address: u64) -> Option<&'static [u8]> {
    let length = number::<4>(memory(address, HEADER), LENGTH)?;
    Some(memory(address, length as usize))
}

/// The table with this signature, whole.
pub fn table(start: &StartInformation, signature: &[u8; 4]) -> Option<&'static [u8]> {
    let pointer = memory(start.root_pointer(), HEADER);
    let wide = pointer[REVISION] >= 2;
    let root = table_at(
        number::<8>(pointer, ROOT_TABLE_64)
            .filter(|_| wide)
            .or_else(|| number::<4>(pointer, ROOT_TABLE_32))?,
    )?;
    let entries = root.get(HEADER..)?;
    entries
        .chunks_exact(if wide { 8 } else { 4 })
        .filter_map(|entry| table_at(if wide { number::<8>(entry, 0)? } else { number::<4>(entry, 0)? }))
        .find(|table| table.starts_with(signature))
}
