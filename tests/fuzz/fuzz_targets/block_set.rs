//! Encoded block sets.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blockd_testkit::block_set(data));
