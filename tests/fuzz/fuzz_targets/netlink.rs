//! Fuzz target: netlink messages of the kernel.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blockd_nbd_kernel::fuzzing::netlink(data));
