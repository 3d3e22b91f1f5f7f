//! The rivals that build C, as blocks of a page each.
#![deny(missing_docs, unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

use std::{
    alloc::{GlobalAlloc, Layout},
    ptr::NonNull,
};

const PAGE: Layout = match Layout::from_size_align(4096, 4096) {
    Ok(layout) => layout,
    Err(_) => panic!("a page is a layout"),
};

/// A block of a page's size, which may go back on any thread.
#[derive(Debug)]
pub struct Block(NonNull<u8>);

// SAFETY: all three allocators take a block back on any thread.
unsafe impl Send for Block {}

impl Block {
    /// The number of its page, which no other block has.
    pub fn number(&self) -> usize {
        self.0.addr().get() / PAGE.size()
    }
}

/// An allocator of C, called by its own entry points, not as the program's.
#[derive(Clone, Copy, Debug)]
pub struct Malloc<A>(A);

/// mimalloc.
pub const MIMALLOC: Malloc<mimalloc::MiMalloc> = Malloc(mimalloc::MiMalloc);
/// jemalloc.
pub const JEMALLOC: Malloc<tikv_jemallocator::Jemalloc> = Malloc(tikv_jemallocator::Jemalloc);

impl<A: GlobalAlloc> Malloc<A> {
    /// A page.
    ///
    /// # Panics
    /// If there is no memory.
    #[inline]
    pub fn take(&self) -> Block {
        // SAFETY: the layout is not empty.
        Block(NonNull::new(unsafe { self.0.alloc(PAGE) }).expect("memory"))
    }

    /// Gives a page of this allocator back.
    #[inline]
    pub fn give(&self, block: Block) {
        // SAFETY: there is a block for each page taken with this layout, and it is used up.
        unsafe { self.0.dealloc(block.0.as_ptr(), PAGE) }
    }
}

/// A class of slitter, of blocks of a page's size.
#[derive(Clone, Copy, Debug)]
pub struct Slitter(slitter::Class);

impl Slitter {
    /// A class of its own.
    ///
    /// # Panics
    /// If slitter refuses.
    pub fn new() -> Self {
        let config = slitter::ClassConfig {
            name: None,
            layout: Layout::from_size_align(PAGE.size(), 8).expect("a layout"),
            zero_init: false,
            mapper_name: None,
        };
        Self(slitter::Class::new(config).expect("a class"))
    }

    /// A block.
    ///
    /// # Panics
    /// If there is no memory.
    #[inline]
    pub fn take(&self) -> Block {
        Block(self.0.allocate().expect("memory").cast())
    }

    /// Gives a block of this class back.
    #[inline]
    pub fn give(&self, block: Block) {
        self.0.release(block.0.cast());
    }
}

impl Default for Slitter {
    fn default() -> Self {
        Self::new()
    }
}
