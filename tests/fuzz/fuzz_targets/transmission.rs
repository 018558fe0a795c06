//! The transmission phase, in each of its modes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blockd_nbd::fuzzing::transmission(data));
