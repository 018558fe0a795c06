//! The inputs that the fuzz target begins with, and those that once broke it (`tests/fuzz/corpus`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod common;

use blockd_ext4::testing::{condense, expand, explore, fuzz};
use blockd_testkit::replay;
use std::fs;

#[test]
fn ext() {
    let mut seen = 0;
    replay("ext", |input| {
        fuzz(input);
        seen += explore(expand(input));
    });
    assert!(seen > 20, "the inputs show {seen} files");
}

#[test]
fn image_survives_fuzzed_changes() {
    let dir = tempfile::tempdir().unwrap();
    let image = fs::read(common::make(dir.path(), "image", "-t ext2 -b 1024", None, 256)).unwrap();
    assert!(expand(&condense(&image)) == image);
    for data in [&b""[..], b"\x01", b"\xff\xff", b"\x01\0\xff\xff\xff\xff\x01", b"\x01\0\0\0\xff\xff\x01"] {
        explore(expand(data));
    }
}
