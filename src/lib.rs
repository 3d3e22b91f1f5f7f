//! framepool
#![no_std]
#![deny(unsafe_code)]
#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

#[allow(unsafe_code)]
mod frame;
mod sync;
#[cfg(feature = "vtd")]
pub mod vtd;

pub use frame::PhysAddr;
