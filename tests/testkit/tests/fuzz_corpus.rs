//! Replay of the fuzz corpus (`tests/fuzz/corpus`).

use blockd_testkit::replay;

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
