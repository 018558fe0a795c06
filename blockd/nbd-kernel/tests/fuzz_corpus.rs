//! Replays the corpus of the fuzz target (`tests/fuzz/corpus/netlink`).
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::{fs, path::Path};

#[test]
fn netlink() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus/netlink");
    let mut count = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        // The last printed path is the input that failed.
        println!("{}", path.display());
        blockd_nbd_kernel::fuzzing::netlink(&fs::read(&path).unwrap());
        count += 1;
    }
    assert!(count > 0, "no inputs in {}", dir.display());
}
