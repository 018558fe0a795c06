//! Which volumes of this process have which data files open.
//!
//! A clone shares data files with its parent by hard links, and nothing may be written to a file that another
//! volume reads. The number of links tells most of it; but a volume that has removed its name may still read
//! the file, for whoever reads one of its snapshots. So every open data file is noted here, with the folder
//! of its volume.

use parking_lot::Mutex;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// Device and number of a file.
type Identity = (u64, u64);

/// The folders of those who have a file open, each as often as it has.
static OPEN: Mutex<Option<HashMap<Identity, Vec<PathBuf>>>> = Mutex::new(None);

/// An open file, noted as long as this lives.
pub(crate) struct Open {
    identity: Identity,
    dir: PathBuf,
}

impl Open {
    pub(crate) fn new(identity: Identity, dir: &Path) -> Self {
        OPEN.lock().get_or_insert_default().entry(identity).or_default().push(dir.to_owned());
        Self { identity, dir: dir.to_owned() }
    }

    /// Whether a volume in another folder has the file open, too.
    pub(crate) fn by_others(&self) -> bool {
        let open = OPEN.lock();
        let dirs = open.as_ref().and_then(|open| open.get(&self.identity));
        dirs.is_some_and(|dirs| dirs.iter().any(|dir| *dir != self.dir))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = OPEN.lock();
        let Some(open) = open.as_mut() else { return };
        let Some(dirs) = open.get_mut(&self.identity) else { return };
        if let Some(at) = dirs.iter().position(|dir| *dir == self.dir) {
            dirs.swap_remove(at);
        }
        if dirs.is_empty() {
            open.remove(&self.identity);
        }
    }
}
