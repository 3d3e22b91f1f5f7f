//! Bridges to other crates, each behind a cargo feature of that crate's name.

#[cfg(feature = "virtio-drivers")]
#[allow(unsafe_code, reason = "implements another crate's unsafe trait")]
pub mod virtio_drivers;
