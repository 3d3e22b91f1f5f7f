//! The `Translation` of the crate [`aarch64-paging`](https://docs.rs/aarch64-paging) 0.12: tables drawn from a
//! [`Reservation`], since its call for a table cannot say that there is none.
//!
//! ```
//! use aarch64_paging::descriptor::{El1Attributes, PhysicalAddress};
//! use aarch64_paging::paging::{Constraints, El1And0, MemoryRegion, RootTable, VaRange};
//! use framepool::{AnonymousMemory, Builder, Request, adapters::aarch64_paging::ReservedTables};
//!
//! let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
//! // The root, and for one range that is no larger than 2 MiB at most two tables of each of the three levels below.
//! let tables = ReservedTables::new(pool.reserve_with(Request::ORDINARY.zeroed(), 7)?).map_err(|_| "unfit")?;
//! let mut root = RootTable::with_va_range(tables, 0, El1And0, VaRange::Lower);
//! let region = MemoryRegion::new(0x4000_0000, 0x4001_0000);
//! root.map_range(&region, PhysicalAddress(0x8000_0000), El1Attributes::VALID, Constraints::empty())
//!     .map_err(|_| "not mapped")?;
//! assert_eq!(root.translation().left(), 3, "one root, and a table for each level below");
//! drop(root); // all tables go back
//! assert_eq!(pool.stats().in_use, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::{Frame, FramePool, FrameSource, PhysAddr, Platform, Reservation};
use aarch64_paging::{
    descriptor::{PagingAttributes, PhysicalAddress},
    paging::{PageTable, Translation},
};
use core::ptr::NonNull;

/// Tables for an [`aarch64_paging`] mapping, taken beforehand.
///
/// Ask [`left`](Self::left) before a call that builds tables, and [`refill`](Self::refill) with the worst case: for a range, two for
/// each level below the root beside the tables that it fills.
#[derive(Debug)]
pub struct ReservedTables<'p, S: FrameSource, P: Platform> {
    pool: &'p FramePool<S, P>,
    reservation: Reservation<'p, S, P>,
}

impl<'p, S: FrameSource, P: Platform> ReservedTables<'p, S, P> {
    /// Tables out of `reservation`.
    ///
    /// Any context; constant time.
    ///
    /// # Errors
    /// The reservation comes back if its frames are not zeroed, not of 4 KiB, or the source does not know them by their pointers
    /// ([`FrameSource::address`]).
    pub fn new(reservation: Reservation<'p, S, P>) -> Result<Self, Reservation<'p, S, P>> {
        let pool = reservation.pool();
        let base = pool.source().base();
        let knows = pool.source().address(pool.source().pointer(base)) == Some(base);
        if reservation.is_zeroed() && pool.frame_size() == size_of::<[u64; 512]>() && knows {
            Ok(Self { pool, reservation })
        } else {
            Err(reservation)
        }
    }

    /// Tables that can still be taken.
    pub fn left(&self) -> u32 {
        self.reservation.left()
    }

    /// Goes on with the tables of `reservation`; those that are left of the old one go back to the pool.
    ///
    /// Any context; bounded by a free for each table that is left.
    ///
    /// # Errors
    /// As for [`new`](Self::new); then nothing has changed.
    pub fn refill(&mut self, reservation: Reservation<'p, S, P>) -> Result<(), Reservation<'p, S, P>> {
        Self::new(reservation).map(|tables| *self = tables)
    }
}

impl<A: PagingAttributes, S: FrameSource, P: Platform> Translation<A> for ReservedTables<'_, S, P> {
    /// # Panics
    /// When nothing is left of the reservation: the trait has no way to say so.
    #[allow(clippy::panic, reason = "the trait's call cannot fail; `left` tells beforehand")]
    fn allocate_table(&mut self) -> (NonNull<PageTable<A>>, PhysicalAddress) {
        let Some(frame) = self.reservation.draw() else { panic!("the reservation for tables is used up") };
        let pointer = frame.as_ptr().cast();
        (pointer, PhysicalAddress(frame.into_raw().as_u64() as usize))
    }

    unsafe fn deallocate_table(&mut self, table: NonNull<PageTable<A>>) {
        if let Some(address) = self.pool.source().address(table.cast()) {
            // SAFETY: the caller gives up a table that `allocate_table` laid down.
            drop(unsafe { Frame::from_raw(self.pool, address) });
        }
    }

    fn physical_to_virtual(&self, address: PhysicalAddress) -> NonNull<PageTable<A>> {
        self.pool.source().pointer(PhysAddr::new(address.0 as u64)).cast()
    }
}
