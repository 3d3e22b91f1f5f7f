//! Tables of any bytes, followed by a unit and under a domain.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| framepool_fuzz::actions::tables::bytes(bytes));
