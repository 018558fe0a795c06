//! Fingerprint files.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blockd_testkit::cloud::fuzz::fingerprint_files(data));
