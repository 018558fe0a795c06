//! Index of a delta: root and page with frame tables.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blockd_testkit::cloud::fuzz::frame_tables(data));
