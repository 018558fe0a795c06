//! Replay of the fuzz corpus (`tests/fuzz/corpus`).
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::{fs, path::Path};

/// Runs a target on each of its inputs.
fn replay(target: &str, run: impl Fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        // The last printed input is the one that fails.
        println!("{}", path.display());
        run(&fs::read(&path).unwrap());
        count += 1;
    }
    assert!(count > 0, "no inputs in {}", dir.display());
}

#[test]
fn block_set() {
    replay("block_set", blockd_testkit::block_set);
}

#[test]
fn handshake() {
    replay("handshake", blockd_nbd::fuzzing::handshake);
}

#[test]
fn netlink() {
    replay("netlink", blockd_nbd_kernel::fuzzing::netlink);
}

#[test]
fn transmission() {
    replay("transmission", blockd_nbd::fuzzing::transmission);
}

#[test]
fn volume() {
    replay("volume", blockd_testkit::volume_files);
}
