//! fio with its NBD engine.

use crate::harness::process::{both, die_with_parent, tool};
use std::{
    path::Path,
    process::{Command, Stdio},
};

/// Runs fio on a URI with further arguments; a verification failure is fatal.
pub fn fio(dir: &Path, uri: &str, args: &[&str]) {
    let mut command = Command::new(tool("fio"));
    command.current_dir(dir).args(["--name=v", "--ioengine=nbd", "--verify_fatal=1"]);
    command.arg(format!("--uri={uri}")).args(args).stdin(Stdio::null());
    let output = die_with_parent(&mut command).output().expect("fio");
    assert!(output.status.success(), "fio failed with {}:\n{}", output.status, both(&output));
}
