//! `volume.meta`, layer sets and the log of the head.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blockd_testkit::volume_files(data));
