//! Bridges to other crates, each behind a cargo feature of that crate's name.

#[cfg(feature = "aarch64-paging")]
#[allow(unsafe_code, reason = "implements another crate's trait with unsafe functions")]
pub mod aarch64_paging;
#[cfg(feature = "allocator-api2-02")]
#[allow(unsafe_code, reason = "implements another crate's unsafe trait")]
mod allocator_api2;
#[cfg(feature = "embedded-dma")]
#[allow(unsafe_code, reason = "implements another crate's unsafe trait, over the bytes of a frame")]
pub mod embedded_dma;
#[cfg(feature = "page_table_multiarch")]
#[allow(unsafe_code, reason = "takes frames up from the bare addresses that tables hold")]
pub mod page_table_multiarch;
#[cfg(feature = "virtio-drivers")]
#[allow(unsafe_code, reason = "implements another crate's unsafe trait")]
pub mod virtio_drivers;
#[cfg(feature = "x86_64")]
#[allow(unsafe_code, reason = "implements another crate's unsafe traits")]
mod x86_64;
