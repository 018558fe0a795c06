//! Fault injection for disks: a library preloaded into the daemon (`tests/shim/failing_disk.c`), and the file
//! that selects the failing system calls.

use crate::harness::{
    Setup,
    process::{both, die_with_parent, shim},
};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Fault injection into a daemon's system calls on files.
pub struct FailingDisk {
    library: PathBuf,
    control: PathBuf,
}

impl FailingDisk {
    /// Compiles the library into `dir`. No call fails yet.
    pub fn build(dir: &Path) -> Self {
        let (library, control) = (dir.join("failing_disk.so"), dir.join("faults"));
        let source = shim("failing_disk.c");
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]);
        let output = die_with_parent(command.arg(&library).arg(source).arg("-ldl"))
            .output()
            .expect("cc: install the Debian package gcc");
        assert!(output.status.success(), "the library does not compile:\n{}", both(&output));
        std::fs::write(&control, "").expect("the control file");
        Self { library, control }
    }

    /// Preloads the library into a daemon.
    pub fn under(&self, setup: Setup) -> Setup {
        let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        setup.env("LD_PRELOAD", &text(&self.library)).env("BLOCKD_TEST_FAULTS", &text(&self.control))
    }

    /// Makes `operation` (`pwrite`, `fdatasync` or `fsync`) fail with `errno` on files whose path contains
    /// `part`.
    pub fn fail(&self, operation: &str, errno: u32, part: &str) {
        self.set(&format!("{operation} {errno} {part}\n"));
    }

    /// Makes `operation` do nothing and report success on files whose path contains `part`.
    pub fn omit(&self, operation: &str, part: &str) {
        self.set(&format!("{operation} 0 {part}\n"));
    }

    /// Ends the injection.
    pub fn heal(&self) {
        self.set("");
    }

    /// Replaces the control file atomically: readers never see a partial line.
    fn set(&self, text: &str) {
        let new = self.control.with_extension("new");
        std::fs::write(&new, text).expect("the new control file");
        std::fs::rename(&new, &self.control).expect("the control file");
    }
}
