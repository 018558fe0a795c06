//! The encoding of block sets.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blockd_extent::fuzzing::block_set(data));
