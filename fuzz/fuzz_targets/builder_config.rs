//! A pool and a domain of any numbers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| framepool_fuzz::actions::config::bytes(bytes));
