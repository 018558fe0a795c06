//! The negotiation, and what comes after it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blockd_nbd::fuzzing::handshake(data));
