#![doc = include_str!("../README.md")]
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(unsafe_code)]
// No path that a caller, a device or an interrupt can reach may panic.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unreachable
    )
)]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(any(feature = "std", test, loom))]
extern crate std;
// Shuttle under loom's name: what both offer they call the same, and `sync.rs` has the rest.
#[cfg(framepool_shuttle)]
extern crate shuttle as loom;

#[cfg(all(feature = "std", not(target_os = "linux")))]
compile_error!(
    "the feature `std` needs Linux; use `default-features = false` and bring a `Platform` elsewhere"
);

#[cfg(any(
    feature = "aarch64-paging",
    feature = "allocator-api2-02",
    feature = "embedded-dma",
    feature = "page_table_multiarch",
    feature = "virtio-drivers",
    feature = "x86_64"
))]
pub mod adapters;
#[allow(unsafe_code, reason = "the handle is taken up from and laid down as a bare address")]
mod frame;
mod platform;
mod pool;
#[allow(unsafe_code, reason = "mechanism")]
#[allow(
    unreachable_pub,
    missing_docs,
    clippy::missing_errors_doc,
    clippy::new_without_default,
    reason = "public for the models only, through `internals`"
)]
mod raw;
#[allow(unsafe_code, reason = "the contract with the host's allocator, and memory of our own")]
mod source;
mod sync;
#[cfg(feature = "vtd")]
pub mod vtd;

/// The structures under the pool, for the models that check each alone.
#[cfg(loom)]
#[doc(hidden)]
pub mod internals {
    pub use crate::{
        raw::*,
        sync::{cell, nesting, sequence},
    };
}

/// The points at which tests interrupt.
#[cfg(framepool_injection)]
#[doc(hidden)]
pub use sync::injection;

pub use frame::{Frame, FrameSize, PhysAddr};
pub use platform::Platform;
#[cfg(all(feature = "std", not(loom)))]
pub use platform::threads::{PinError, PinnedThread, ThreadPlatform};
#[cfg(feature = "std")]
pub use platform::{DoorbellPlatform, LinuxPlatform};
#[cfg(feature = "hardened")]
pub use pool::Misuse;
#[cfg(feature = "std")]
pub use pool::WorkedPool;
pub use pool::{
    AllocError, AllocFuture, BuildError, Builder, Class, CloseError, CpuBusy, FallbackPolicy, FramePool,
    Growth, Maintenance, Outcome, Quota, QuotaError, QuotaFrame, Request, Reservation, ReserveError,
    ReserveFuture, StaticPool, Stats, Watermarks, WhenFree,
};
#[doc(hidden)]
pub use pool::{Place, Resident};
#[cfg(any(feature = "std", loom))]
pub use raw::doorbell::Doorbell;
#[cfg(all(feature = "std", target_arch = "x86_64", target_pointer_width = "64"))]
pub use raw::rseq::Rseq;
pub use raw::{
    claim::Claim,
    pinned::{Pinned, PinnedContext},
    slot::SlotOwnership,
};
#[cfg(feature = "std")]
pub use source::anonymous::{AnonymousMemory, AnonymousMemoryBuilder, HugePages};
pub use source::{
    FrameSource, SourceError,
    region::{FixedRegion, RegionTooSmall},
};
