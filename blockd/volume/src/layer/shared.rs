//! Registry of open data files of all volumes of this process.
//!
//! A clone shares data files with its source by hard links, and files that another volume reads must not be
//! written. The link count does not suffice: a volume that has removed its link may still read the file
//! through an open snapshot. So each open data file is registered with the directory of its volume.

use parking_lot::Mutex;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// Device and inode number of a file.
type Identity = (u64, u64);

/// Directories of the volumes that have a file open, one entry for each open.
static OPEN: Mutex<Option<HashMap<Identity, Vec<PathBuf>>>> = Mutex::new(None);

/// Registration of an open file, removed on drop.
pub(crate) struct OpenRegistration {
    identity: Identity,
    dir: PathBuf,
}

impl OpenRegistration {
    pub(crate) fn new(identity: Identity, dir: &Path) -> Self {
        OPEN.lock().get_or_insert_default().entry(identity).or_default().push(dir.to_owned());
        Self { identity, dir: dir.to_owned() }
    }

    /// Returns true if a volume in another directory has the file open.
    pub(crate) fn is_open_in_other_volume(&self) -> bool {
        let open = OPEN.lock();
        let dirs = open.as_ref().and_then(|open| open.get(&self.identity));
        dirs.is_some_and(|dirs| dirs.iter().any(|dir| *dir != self.dir))
    }
}

impl Drop for OpenRegistration {
    fn drop(&mut self) {
        let mut open = OPEN.lock();
        let Some(open) = open.as_mut() else { return };
        let Some(dirs) = open.get_mut(&self.identity) else { return };
        debug_assert!(dirs.contains(&self.dir), "an open file is registered");
        if let Some(at) = dirs.iter().position(|dir| *dir == self.dir) {
            dirs.swap_remove(at);
        }
        if dirs.is_empty() {
            open.remove(&self.identity);
        }
    }
}
