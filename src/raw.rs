//! Mechanism: every structure that contexts share, and all of the pool's unsafe code that is not its interface.
//!
//! Each file owns one structure and one argument why interrupting it at any instruction is harmless. Policy (what
//! to do when a structure says "empty" or "busy") is next door in `pool/` and contains no unsafe code.

pub(crate) mod arena;
pub(crate) mod claim;
pub(crate) mod contents;
#[cfg(any(feature = "std", loom))]
pub(crate) mod doorbell;
pub(crate) mod level;
pub(crate) mod magazine;
pub(crate) mod numbers;
pub(crate) mod overflow;
pub(crate) mod registry;
pub(crate) mod slot;
pub(crate) mod stack;
pub(crate) mod turn;
