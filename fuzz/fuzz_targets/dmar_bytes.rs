//! A DMAR table of any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| framepool_fuzz::actions::dmar::bytes(bytes));
