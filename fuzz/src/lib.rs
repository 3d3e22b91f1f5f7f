//! The actions that the property tests of the crate run too (`tests/fuzz_targets.rs`), for fuzz targets.

#[path = "../../tests/actions/mod.rs"]
pub mod actions;
#[path = "../../tests/common/mod.rs"]
pub mod common;
