//! The `PagingHandler` of the crate [`page_table_multiarch`](https://docs.rs/page_table_multiarch) 0.6 over a pool in a static.
//!
//! ```
//! use framepool::{AnonymousMemory, Builder, FramePool, LinuxPlatform};
//! use framepool::adapters::page_table_multiarch::{PoolHandler, NamedPool};
//! use page_table_multiarch::{PagingHandler, PageSize, MappingFlags, x86_64::X64PageTable};
//! use std::sync::LazyLock;
//!
//! struct Tables;
//! static POOL: LazyLock<FramePool<AnonymousMemory, LinuxPlatform>> = LazyLock::new(|| {
//!     Builder::new(64).build(AnonymousMemory::new(64).unwrap(), LinuxPlatform::new()).unwrap()
//! });
//! impl NamedPool for Tables {
//!     type Source = AnonymousMemory;
//!     type Platform = LinuxPlatform;
//!     fn pool() -> &'static FramePool<AnonymousMemory, LinuxPlatform> {
//!         &POOL
//!     }
//! }
//!
//! let frame = PoolHandler::<Tables>::alloc_frame().ok_or("no frame")?;
//! assert_eq!(POOL.stats().in_use, 1);
//! PoolHandler::<Tables>::dealloc_frame(frame);
//! assert!(PoolHandler::<Tables>::alloc_frames(2, 4096).is_none(), "one at a time");
//! assert_eq!(POOL.stats().in_use, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::{Frame, FramePool, FrameSource, PhysAddr, Platform};
use core::marker::PhantomData;
use page_table_multiarch::PagingHandler;

/// A pool that a type names, for interfaces whose functions have no `self`.
pub trait NamedPool: 'static {
    /// The source behind the pool.
    type Source: FrameSource + 'static;
    /// The host under the pool.
    type Platform: Platform + 'static;

    /// The pool. From any context in which tables are built.
    ///
    /// It may not sleep, lock or panic; a static that was initialised before will do.
    fn pool() -> &'static FramePool<Self::Source, Self::Platform>;
}

/// The `PagingHandler` of the pool that `H` names.
///
/// One frame at a time: several in a row are refused. Contexts and bounds are those of [`FramePool::alloc`] and of a free.
#[derive(Debug)]
pub struct PoolHandler<H>(PhantomData<H>);

impl<H: NamedPool> PagingHandler for PoolHandler<H> {
    fn alloc_frames(count: usize, align: usize) -> Option<memory_addr::PhysAddr> {
        let pool = H::pool();
        if count != 1 || align > pool.frame_size() {
            return None;
        }
        let frame = pool.alloc().ok()?;
        Some(memory_addr::PhysAddr::from_usize(frame.into_raw().as_u64() as usize))
    }

    fn dealloc_frames(address: memory_addr::PhysAddr, count: usize) {
        if count == 1 {
            // SAFETY: the tables give up a frame that `alloc_frames` laid down.
            drop(unsafe { Frame::from_raw(H::pool(), PhysAddr::new(address.as_usize() as u64)) });
        }
    }

    fn phys_to_virt(address: memory_addr::PhysAddr) -> memory_addr::VirtAddr {
        let pointer = H::pool().source().pointer(PhysAddr::new(address.as_usize() as u64));
        memory_addr::VirtAddr::from_usize(pointer.as_ptr() as usize)
    }
}
