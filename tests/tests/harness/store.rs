//! Object store in a directory, inspected from outside of the daemon.

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

/// Identity of an object's content: inode and modification time.
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
    /// Creates the directory.
    pub fn create(dir: &Path) -> Self {
        fs::create_dir_all(dir).expect("the directory of a store");
        Self { dir: dir.to_owned() }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the path of an object's file.
    pub fn path(&self, key: &str) -> PathBuf {
        self.dir.join(key)
    }

    /// Returns the objects under a prefix and their versions.
    pub fn objects(&self, prefix: &str) -> BTreeMap<String, Version> {
        let mut found = BTreeMap::new();
        let mut dirs = vec![self.dir.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let path = entry.path();
                // A file removed since the listing is no object.
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

    /// Returns the keys of the objects under a prefix.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        self.objects(prefix).into_keys().collect()
    }

    /// Returns the keys of the packs.
    pub fn packs(&self) -> Vec<String> {
        self.keys("blockd/data/").into_iter().filter(|key| name(key).starts_with("pack-")).collect()
    }

    /// Returns the total size of the objects, in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.keys("")
            .iter()
            .map(|key| fs::metadata(self.path(key)).map_or(0, |metadata| metadata.len()))
            .sum()
    }
}

/// Returns the last component of a key.
pub fn name(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}
