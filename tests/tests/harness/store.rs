//! A directory that serves as object store, seen from outside: which objects there are, and ways to damage
//! them.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// A store in a directory.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// Version of an object's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    inode: u64,
    modified_ns: i128,
}

impl Version {
    /// The file's inode.
    pub fn inode(self) -> u64 {
        self.inode
    }
}

impl Store {
    /// Makes the directory.
    pub fn create(dir: &Path) -> Self {
        fs::create_dir_all(dir).expect("the directory of a store");
        Self { dir: dir.to_owned() }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file of an object.
    pub fn path(&self, key: &str) -> PathBuf {
        self.dir.join(key)
    }

    /// Every object under a prefix, with what tells its version.
    pub fn objects(&self, prefix: &str) -> BTreeMap<String, Version> {
        let mut found = BTreeMap::new();
        let mut dirs = vec![self.dir.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let path = entry.path();
                // A file may go while the tree is walked: then it is no object.
                let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
                if metadata.is_dir() {
                    dirs.push(path);
                    continue;
                }
                let key = path
                    .strip_prefix(&self.dir)
                    .expect("below the store")
                    .to_str()
                    .expect("UTF-8")
                    .to_owned();
                let modified_ns =
                    i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
                if key.starts_with(prefix) {
                    found.insert(key, Version { inode: metadata.ino(), modified_ns });
                }
            }
        }
        found
    }

    /// Keys of the objects under a prefix.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        self.objects(prefix).into_keys().collect()
    }

    /// Keys of the finished packs.
    pub fn packs(&self) -> Vec<String> {
        self.keys("blockd/data/").into_iter().filter(|key| name(key).starts_with("pack-")).collect()
    }

    /// Bytes of all objects.
    pub fn len_bytes(&self) -> u64 {
        self.keys("")
            .iter()
            .map(|key| fs::metadata(self.path(key)).map_or(0, |metadata| metadata.len()))
            .sum()
    }
}

/// The last part of a key.
pub fn name(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}
