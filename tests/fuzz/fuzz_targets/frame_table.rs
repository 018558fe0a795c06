//! The index of a delta: its root, and a page, which is the table of frames.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blockd_testkit::cloud::fuzz::frame_tables(data));
