//! Replay of the fuzz corpus (`tests/fuzz/corpus`).

use blockd_testkit::replay;

#[test]
fn block_set() {
    replay("block_set", blockd_testkit::block_set);
}

#[test]
fn nbd() {
    replay("nbd", blockd_testkit::nbd);
}

#[test]
fn volume() {
    replay("volume", blockd_testkit::volume_files);
}
