//! FUSE mounts of snapshots.

use crate::harness::process::run_tool;
use std::path::PathBuf;

/// Mount point that is unmounted on drop.
pub struct FuseMount(pub PathBuf);

impl FuseMount {
    /// The mount point.
    pub fn dir(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        drop(run_tool("fusermount3", &["-u", "-z", "--", self.dir()]));
    }
}
