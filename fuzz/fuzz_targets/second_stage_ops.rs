//! Whatever may be done with a domain in the second-stage format, against the map model and the strict unit.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| framepool_fuzz::actions::unit::second_stage(bytes));
