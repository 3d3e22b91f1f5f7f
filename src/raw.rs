//! Mechanism: every structure that contexts share, and all of the pool's unsafe code that is not its interface.
//!
//! Each file owns one structure and one argument why interrupting it at any instruction is harmless. Policy (what
//! to do when a structure says "empty" or "busy") is next door in `pool/` and contains no unsafe code.

pub mod account;
pub mod arena;
pub mod cells;
pub mod claim;
pub mod contents;
#[cfg(any(feature = "hardened", loom))]
pub mod custody;
#[cfg(any(feature = "std", loom))]
pub mod doorbell;
pub mod holding;
pub mod level;
pub mod lock;
pub mod magazine;
pub mod numbers;
pub mod overflow;
pub mod pinned;
pub mod place;
pub mod queue;
pub mod registry;
#[cfg(any(all(feature = "std", target_arch = "x86_64", target_pointer_width = "64"), loom))]
pub mod rseq;
pub mod slot;
pub mod stack;
#[cfg(all(feature = "std", not(loom)))]
pub mod threads;
pub mod turn;
pub mod wanted;
