//! Fault injection for disks: a library preloaded into the daemon (`tests/shim/failing_disk.c`), and the file
//! that selects the failing system calls.

use crate::harness::{
    Setup,
    process::{both, die_with_parent, repository},
};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// See the module.
pub struct FailingDisk {
    library: PathBuf,
    control: PathBuf,
}

impl FailingDisk {
    /// Compiles the library into `dir`. Nothing fails yet.
    pub fn build(dir: &Path) -> Self {
        let (library, control) = (dir.join("failing_disk.so"), dir.join("faults"));
        let source = repository().join("tests/shim/failing_disk.c");
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]);
        let output = die_with_parent(command.arg(&library).arg(source).arg("-ldl"))
            .output()
            .expect("cc: install the Debian package gcc");
        assert!(output.status.success(), "the library does not compile:\n{}", both(&output));
        std::fs::write(&control, "").expect("the control file");
        Self { library, control }
    }

    /// A daemon that runs on it.
    pub fn under(&self, setup: Setup) -> Setup {
        let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        setup.env("LD_PRELOAD", &text(&self.library)).env("BLOCKD_TEST_FAULTS", &text(&self.control))
    }

    /// From now on `operation` (`pwrite`, `fdatasync` or `fsync`) fails with `errno` on files whose path
    /// contains `part`.
    pub fn fail(&self, operation: &str, errno: u32, part: &str) {
        self.set(&format!("{operation} {errno} {part}\n"));
    }

    /// From now on `operation` does nothing on files whose path contains `part`, and says that it succeeded.
    pub fn omit(&self, operation: &str, part: &str) {
        self.set(&format!("{operation} 0 {part}\n"));
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        self.set("");
    }

    /// Readers never see a partial line.
    fn set(&self, text: &str) {
        let new = self.control.with_extension("new");
        std::fs::write(&new, text).expect("the new control file");
        std::fs::rename(&new, &self.control).expect("the control file");
    }
}
