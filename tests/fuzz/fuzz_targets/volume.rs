//! `volume.meta`, layer sets and logs of heads.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blockd_testkit::volume_files(data));
