//! Whatever may be done with a pool of any shape, against a set.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| framepool_fuzz::actions::pool::bytes(bytes));
