//! Connections to the NBD server: negotiation, and transmission in each reply mode.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blockd_testkit::nbd(data));
