//! Reads what the loader left: the command line, the memory map, the firmware's root pointer (PVH start information).

use core::{ffi::CStr, slice};

const MAGIC: u32 = 0x336E_C578;
const RAM: u32 = 1;
/// The longest command line that is looked at.
const LINE_LIMIT: usize = 1024;

/// The structure of the PVH boot protocol, version 1.
#[repr(C)]
pub struct StartInformation {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    root_pointer: u64,
    memory_map: u64,
    memory_ranges: u32,
    _reserved: u32,
}

/// A range of physical addresses.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Range {
    pub start: u64,
    pub length: u64,
    kind: u32,
    _reserved: u32,
}

unsafe extern "C" {
    static image_end: u8;
}

impl StartInformation {
    /// The information at `address`, if that is where it is.
    pub fn at(address: u32) -> Option<&'static Self> {
        // SAFETY: the boot code passes on what the loader left in a register; what is there is looked at before it is believed.
        let information = unsafe { &*(address as usize as *const Self) };
        (information.magic == MAGIC && information.version >= 1).then_some(information)
    }

    /// The words after `-append`.
    pub fn words(&self) -> impl Iterator<Item = &'static str> {
        // SAFETY: the loader left a string there, in the middle of memory.
        let bytes = unsafe { slice::from_raw_parts(self.command_line as *const u8, LINE_LIMIT) };
        let line = CStr::from_bytes_until_nul(bytes).unwrap_or_default();
        line.to_str().unwrap_or_default().split_ascii_whitespace()
    }

    /// The physical address of the firmware's root pointer.
    pub fn root_pointer(&self) -> u64 {
        self.root_pointer
    }

    /// The largest range of memory that is free: behind the image, as far as the firmware says.
    pub fn free_memory(&self) -> Option<Range> {
        // SAFETY: the loader left that many entries there.
        let map =
            unsafe { slice::from_raw_parts(self.memory_map as *const Range, self.memory_ranges as usize) };
        let image = (&raw const image_end).addr() as u64;
        map.iter()
            .filter(|range| range.kind == RAM)
            .map(|range| {
                let start = range.start.max(image);
                Range { start, length: (range.start + range.length).saturating_sub(start), ..*range }
            })
            .max_by_key(|range| range.length)
    }
}
