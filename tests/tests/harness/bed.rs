//! A directory for one test, with the daemons and stores in it.

use crate::harness::{Setup, Store};
use std::path::{Path, PathBuf};

/// A directory that goes with the test.
pub struct Bed {
    dir: tempfile::TempDir,
}

impl Default for Bed {
    fn default() -> Self {
        Self::new()
    }
}

impl Bed {
    /// A fresh directory; its path is short, since paths of sockets must be.
    pub fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("bt").tempdir().expect("a temporary directory") }
    }

    /// As [`new`](Self::new), but in a place that is kept on a disk, where reads can be counted.
    pub fn on_disk() -> Self {
        let dir = tempfile::Builder::new().prefix("bt").tempdir_in("/var/tmp");
        Self { dir: dir.expect("a temporary directory in /var/tmp") }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A daemon of this name.
    pub fn daemon(&self, name: &str) -> Setup {
        Setup::new(&self.path(name))
    }

    /// A directory that serves as object store.
    pub fn store(&self, name: &str) -> Store {
        Store::create(&self.path(name))
    }
}
