//! What property tests and fuzz targets share: actions, and the models that they are held against.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test uses its part")]

pub mod dmar;
pub mod pool;
