//! Connections to the NBD server: the negotiation, and transmission in each of its modes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blockd_testkit::nbd(data));
