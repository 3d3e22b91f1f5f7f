//! What property tests and fuzz targets share: actions, and the models that they are held against.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test uses its part")]

pub mod config;
pub mod dmar;
pub mod leaves;
pub mod maps;
pub mod pool;
pub mod tables;
#[path = "../../examples/replay/trace.rs"]
pub mod trace;
pub mod unit;

use arbitrary::{Arbitrary, Unstructured};

/// What a fuzz target does with any bytes.
pub type Target = fn(&[u8]);

/// The fuzz targets by their names.
pub const TARGETS: [(&str, Target); 7] = [
    ("builder_config", config::bytes),
    ("dmar_bytes", dmar::bytes),
    ("first_stage_ops", unit::first_stage),
    ("pool_ops", pool::bytes),
    ("second_stage_ops", unit::second_stage),
    ("table_bytes", tables::bytes),
    ("trace_bytes", trace_bytes),
];

/// As many actions as the bytes make, up to `most`.
fn rest<'a, T: Arbitrary<'a>>(bytes: &mut Unstructured<'a>, most: usize) -> Vec<T> {
    let mut actions = Vec::new();
    while !bytes.is_empty() && actions.len() < most {
        actions.extend(bytes.arbitrary());
    }
    actions
}

/// A trace of any bytes: its lines are read, or the first that is wrong is named by its number.
pub fn trace_bytes(bytes: &[u8]) {
    match trace::parse(bytes) {
        Ok(events) => assert!(events.iter().all(|event| event.length == 0 || !event.pages().is_empty())),
        Err(error) => assert!(error.line > 0 && !error.to_string().is_empty()),
    }
}
