//! A DMAR table of any bytes: nothing is read beyond it, and nothing panics.

use framepool::vtd::dmar::*;

/// The bytes in front of the first structure.
pub const HEADER: usize = 48;

/// Makes length and checksum right.
pub fn sealed(mut table: Vec<u8>) -> Vec<u8> {
    let length = table.len() as u32;
    table[4..8].copy_from_slice(&length.to_le_bytes());
    table[9] = 0;
    table[9] = table.iter().fold(0u8, |sum, &byte| sum.wrapping_sub(byte));
    table
}

/// All that can be said about a table, which touches every byte that its iterators reach.
fn account(bytes: &[u8]) -> Result<String, DmarError> {
    let table = Dmar::parse(bytes)?;
    for structure in table.structures() {
        if let Structure::HardwareUnit(HardwareUnit { scopes, .. }) = structure {
            scopes.for_each(|scope| assert!(scope.path().count() > 0));
        }
    }
    Ok(format!("{table:?} {}", table.interrupt_remapping()))
}

/// Checks that what is said depends on nothing beyond the bytes: whatever follows the table, and where it ends.
pub fn check_bounds(bytes: &[u8]) {
    let said = account(bytes);
    let declared = bytes.get(4..8).map(|length| u32::from_le_bytes(length.try_into().unwrap()) as usize);
    for filler in [0x00, 0x01, 0x08, 0xFF] {
        let longer = [bytes, &[filler; 300]].concat();
        if declared.is_some_and(|length| (HEADER..=bytes.len()).contains(&length)) {
            assert_eq!(&account(&longer), &said);
        } else {
            let _ = account(&longer);
        }
    }
}

/// Any bytes, as they are and with length and checksum made right.
pub fn bytes(bytes: &[u8]) {
    check_bounds(bytes);
    if bytes.len() >= HEADER {
        check_bounds(&sealed(bytes.to_vec()));
    }
}
