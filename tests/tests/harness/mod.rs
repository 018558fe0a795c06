//! Harness of the tests: it starts real daemons in directories of their own, drives them with
//! `blockctl`, and talks NBD to them.
//!
//! It uses nothing of the other crates, so that what the tests hold the programs to is what users see. A tool
//! that is missing fails the test with the name of the package that brings it.

pub mod bed;
pub mod certs;
pub mod crash;
pub mod ctl;
pub mod daemon;
pub mod database;
pub mod fault;
pub mod fio;
pub mod model;
pub mod nbd;
pub mod package;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod replay;
pub mod rng;
pub mod seaweed;
pub mod servers;
pub mod store;
pub mod vm;

pub use bed::Bed;
pub use ctl::{Ctl, Task};
pub use daemon::{Daemon, Setup};
pub use model::{Model, assert_same};
pub use nbd::Nbd;
pub use rng::Rng;
pub use store::Store;

use std::{
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Far beyond what any step takes: what would hang fails instead.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// One kibibyte, in bytes.
pub const KIB: u64 = 1 << 10;
/// One mebibyte, in bytes.
pub const MIB: u64 = 1 << 20;
/// The unit of tracking, in bytes.
pub const BLOCK: u64 = 4096;

/// Writes a file that only its owner can read.
pub fn put_secret(path: &Path, text: &str) {
    std::fs::write(path, text).expect("write a file with a secret");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("set its mode");
}

/// Writes a shell script that only its owner can run.
pub fn put_program(path: &Path, script: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{script}\n")).expect("write a program");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).expect("set its mode");
}

/// A time of the day, in UTC, that does not come while a test runs: one of schedules whose runs are the
/// test's alone.
pub fn time_of_another_half_day() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock that is right");
    format!("{:02}:00", (now.as_secs() / 3600 + 12) % 24)
}

/// Prints why something is not tested, also where the output of tests that pass is hidden.
pub fn announce(what: &str) {
    // There is no other place to report it to.
    let _ = writeln!(std::io::stderr(), "=== {what} ===");
}

/// Polls until `probe` finds something; panics after [`TIMEOUT`].
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "gave up waiting for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
