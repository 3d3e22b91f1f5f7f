//! What the fuzz targets do, on stable Rust: with the inputs in `fuzz/corpus`, among which are those that once found something, and with
//! random bytes.
#![cfg(not(loom))]

mod actions;
mod common;

use actions::TARGETS;
use proptest::prelude::*;
use std::{fs, path::Path};

#[test]
fn inputs_that_are_kept_find_nothing() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    for (name, target) in TARGETS {
        let inputs = fs::read_dir(fuzz.join("corpus").join(name)).unwrap();
        let inputs: Vec<_> = inputs.map(|entry| entry.unwrap().path()).collect();
        assert!(!inputs.is_empty(), "{name} has none");
        for input in inputs {
            println!("{}", input.display());
            target(&fs::read(input).unwrap());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn random_bytes_find_nothing(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for (_, target) in TARGETS {
            target(&bytes);
        }
    }
}
