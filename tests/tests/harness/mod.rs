//! Test harness: starts real daemons in directories of their own, drives them with `blockctl`, and talks NBD
//! to them.
//!
//! The harness uses no other crate of the workspace, so that the tests check what users see. A missing tool
//! fails the test with the name of the Debian package.

pub mod bed;
pub mod certs;
pub mod crash;
pub mod ctl;
pub mod daemon;
pub mod database;
pub mod fault;
pub mod fio;
pub mod fuse;
pub mod model;
pub mod nbd;
pub mod package;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod replay;
#[path = "../../../tools/blockctl/tests/support/schemas.rs"]
mod schemas;
pub mod seaweed;
pub mod servers;
pub mod store;
pub mod vm;

pub use bed::Bed;
pub use blockd_testkit::Rng;
pub use ctl::{Ctl, Task, items};
pub use daemon::{Daemon, Setup};
pub use model::{Model, assert_same};
pub use nbd::Nbd;
pub use store::Store;

use std::{
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Timeout of each step, far longer than any step takes: a hang fails the test.
pub const TIMEOUT: Duration = Duration::from_secs(600);

/// One kibibyte, in bytes.
pub const KIB: u64 = 1 << 10;
/// One mebibyte, in bytes.
pub const MIB: u64 = 1 << 20;
/// The unit of tracking, in bytes.
pub const BLOCK: u64 = 4096;

/// Writes a file that only its owner can read and write.
pub fn put_secret(path: &Path, text: &str) {
    std::fs::write(path, text).expect("write a file with a secret");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("set its mode");
}

/// Writes a shell script that only its owner can run.
pub fn put_program(path: &Path, script: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{script}\n")).expect("write a program");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).expect("set its mode");
}

/// Returns a time of the day (UTC) half a day away: a schedule at that time runs only when the test runs it.
pub fn time_of_another_half_day() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock that is right");
    format!("{:02}:00", (now.as_secs() / 3600 + 12) % 24)
}

/// Prints a notice that the test runner does not capture.
pub fn announce(notice: &str) {
    // A closed standard error leaves no other channel.
    let _ = writeln!(std::io::stderr(), "=== {notice} ===");
}

/// Prints the requirement that a skipped test lacks.
pub fn skip(test: &str, requirement: &str) {
    announce(&format!("SKIPPED: {test} requires {requirement}"));
}

/// Returns the files below a directory. Entries that a daemon removes during the walk are left out.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).expect("read a directory") {
            let path = entry.expect("read an entry of a directory").path();
            if path.is_dir() { dirs.push(path) } else { files.push(path) }
        }
    }
    files
}

/// Checks that no file below a directory contains one of these secrets.
pub fn assert_no_secret_in_files(dir: &Path, secrets: &[&str]) {
    for path in files_below(dir) {
        // Sockets and removed files cannot be read.
        let Ok(bytes) = std::fs::read(&path) else { continue };
        for secret in secrets {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{} contains the secret {secret}", path.display());
        }
    }
}

/// Polls until `probe` returns a value; panics after [`TIMEOUT`].
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "timeout while waiting for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Polls until a condition holds; panics after [`TIMEOUT`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}
