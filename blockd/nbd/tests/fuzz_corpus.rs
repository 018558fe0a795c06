//! The inputs that the fuzz targets begin with, and those that once broke them (`tests/fuzz/corpus`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use std::{fs, path::Path};

/// Runs a target on each of its inputs.
fn replay(target: &str, run: impl Fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        // What the test prints before it fails is the input that did it.
        println!("{}", path.display());
        run(&fs::read(&path).unwrap());
        count += 1;
    }
    assert!(count > 0, "no inputs in {}", dir.display());
}

#[test]
fn handshake() {
    replay("handshake", blockd_nbd::fuzzing::handshake);
}

#[test]
fn transmission() {
    replay("transmission", blockd_nbd::fuzzing::transmission);
}
