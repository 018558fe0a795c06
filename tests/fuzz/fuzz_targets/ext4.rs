//! Images of ext2, ext3 and ext4.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    blockd_testkit::ext4::fuzz(data);
});
