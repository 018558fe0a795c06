//! Recorded object store, which survives power cuts: its objects at each request of the recorded disk.

use crate::harness::{Store, store};
use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// Name of the archived file by object key.
type Objects = BTreeMap<String, String>;

/// All states of a store.
#[derive(Clone)]
pub struct StoreHistory {
    store: Store,
    /// Hard links to all versions of all objects, named by inode, which keep the inodes in use.
    archive: PathBuf,
    /// States by the number of disk requests before them.
    states: Arc<Mutex<Vec<(usize, Objects)>>>,
}

impl StoreHistory {
    /// Creates a store in `dir`.
    pub fn new(dir: &Path) -> Self {
        let (store, archive) = (Store::create(&dir.join("store")), dir.join("archive"));
        fs::create_dir(&archive).expect("the archive of a store");
        Self { store, archive, states: Arc::default() }
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Records the current objects as the state before request `position` of the disk.
    pub fn observe(&self, position: usize) {
        let mut now = Objects::new();
        for (key, version) in self.store.objects("") {
            // Temporary files are no objects.
            if store::name(&key).starts_with('.') {
                continue;
            }
            let name = version.inode().to_string();
            match fs::hard_link(self.store.path(&key), self.archive.join(&name)) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) if error.kind() != ErrorKind::AlreadyExists => panic!("archive {key}: {error}"),
                _ => {}
            }
            now.insert(key, name);
        }
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        if states.last().is_none_or(|(_, before)| *before != now) {
            states.push((position, now));
        }
    }

    fn at(&self, cut: usize) -> Objects {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states
            .iter()
            .rev()
            .find(|(position, _)| *position <= cut)
            .map(|(_, at)| at.clone())
            .unwrap_or_default()
    }

    /// Returns true if a cloud snapshot was in the store before request `cut` of the disk.
    pub fn has(&self, snap: &str, cut: usize) -> bool {
        self.at(cut).contains_key(&format!("blockd/manifests/{snap}"))
    }

    /// Returns the number of observed changes of the store.
    pub fn changes(&self) -> usize {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Restores the objects of the state before request `cut` of the disk.
    pub fn restore_at(&self, cut: usize) {
        fs::remove_dir_all(self.store.dir()).expect("remove the store");
        fs::create_dir(self.store.dir()).expect("the store");
        for (key, name) in self.at(cut) {
            let path = self.store.path(&key);
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory of the store");
            fs::hard_link(self.archive.join(name), path).expect("an object of the store");
        }
    }
}
