//! Filesystems that are frozen for a snapshot (`--freeze-fs`), in a virtual machine with a real one on `/dev/nbdN` under load: the
//! snapshot needs no replay of a journal, and whatever becomes of the daemon in between, the filesystem is let go.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use blockd_tests::{
    Bed,
    vm::{Machine, Parts},
};

const MEMORY_MIB: u32 = 320;

#[test]
fn a_frozen_filesystem_needs_no_replay_and_is_always_let_go() {
    let Some(parts) = Parts::fetch() else { return };
    let bed = Bed::on_disk();
    Machine::new(parts, bed.dir(), MEMORY_MIB).boot("freeze", &[]).finish();
}
