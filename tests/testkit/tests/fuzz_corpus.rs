//! Replay of the fuzz corpus (`tests/fuzz/corpus`).

use blockd_testkit::{cloud::fuzz, replay};
use std::cell::Cell;

#[test]
fn block_set() {
    replay("block_set", blockd_testkit::block_set);
}

#[test]
fn cloud() {
    replay("cloud", fuzz::objects);
}

#[test]
fn ext4() {
    let seen = Cell::new(0);
    replay("ext4", |data| seen.set(seen.get() + blockd_testkit::ext4::fuzz(data)));
    assert!(seen.get() > 20, "the inputs reach {} files", seen.get());
    for data in [&b""[..], b"\x01", b"\xff\xff", b"\x01\0\xff\xff\xff\xff\x01", b"\x01\0\0\0\xff\xff\x01"] {
        blockd_testkit::ext4::fuzz(data);
    }
}

#[test]
fn fingerprint_file() {
    replay("fingerprint_file", fuzz::fingerprint_files);
}

#[test]
fn frame_table() {
    replay("frame_table", fuzz::frame_tables);
}

#[test]
fn key_slot() {
    replay("key_slot", fuzz::key_slots);
}

#[test]
fn lease() {
    replay("lease", fuzz::leases);
}

#[test]
fn manifest() {
    replay("manifest", fuzz::manifests);
}

#[test]
fn nbd() {
    replay("nbd", blockd_testkit::nbd);
}

#[test]
fn proof() {
    replay("proof", fuzz::proofs);
}

#[test]
fn volume() {
    replay("volume", blockd_testkit::volume_files);
}
