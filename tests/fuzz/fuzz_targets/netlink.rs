//! What the kernel says over netlink.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blockd_nbd::fuzzing::netlink(data));
