//! What the tests share that interrupt the operations of pools, quotas and domains at every point: the table of operations, the states of a small pool in
//! which each is tried, and what must hold afterwards.
//!
//! The sweep (`src/main.rs`) interrupts at every instruction of the crate as it is built for users; the injection
//! (`injection/`) before every access to shared memory, on any architecture. Both stop an operation in the middle, run another one to
//! its end on the same stack, as an interrupt does, and go on.
//!
//! # To add an operation
//! One entry in `operations.rs` (or `quota.rs`, `waiting.rs` and `fixed.rs`; `tables.rs`, `changes.rs`, `pieces.rs`, `notes.rs` and `looks.rs` for the page-table builder, `units.rs`
//! for what leads to its tables): a function that makes the call, what it needs, and
//! where it may run. It is then interrupted everywhere by every other, and interrupts every other. A state that it needs
//! and that no row of `situations.rs` has is one more row there.
//!
//! Everything here that runs in an interrupt is made of atomics: no heap, no locks, no lazy thread-locals, no panics.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test uses its part")]
#![allow(unsafe_code, reason = "frames are laid down as addresses and taken up again")]

pub mod audit;
#[cfg(feature = "vtd")]
pub mod changes;
pub mod crowd;
pub mod fixed;
pub mod host;
pub mod landing;
#[cfg(feature = "vtd")]
pub mod looks;
#[cfg(feature = "vtd")]
pub mod notes;
pub mod operations;
#[cfg(feature = "vtd")]
pub mod pieces;
pub mod quota;
pub mod situations;
pub mod sweep;
#[cfg(feature = "vtd")]
pub mod tables;
pub mod tier;
#[cfg(feature = "vtd")]
pub mod units;
pub mod waiting;
pub mod world;
