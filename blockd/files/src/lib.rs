//! Small durable file operations, and the reader of the mount table.

mod mountinfo;

pub use mountinfo::{Mount, mounts, mounts_of_root, parse_mounts};

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

/// Makes links, renames and removals in a directory durable.
///
/// # Errors
/// The directory cannot be opened or synced.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Creates a directory (mode 0700) and its missing parents durably; an existing one is not changed.
///
/// # Errors
/// A directory cannot be created or synced.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    if dir.is_dir() {
        // A process that died right after creating it may not have synced the parent. Failures are ignored:
        // the parent of an older directory may belong to another user, or to a filesystem without directory
        // syncs.
        if let Err(error) = sync_dir(parent.unwrap_or(Path::new("."))) {
            tracing::debug!(dir = %dir.display(), %error, "syncing the parent directory failed");
        }
        return Ok(());
    }
    if let Some(parent) = parent {
        make_dir(parent)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_dir(parent.unwrap_or(Path::new(".")))
}

/// Replaces a file atomically: after a crash it has the old or the new content, or does not exist.
///
/// # Errors
/// The file cannot be written, renamed or synced.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path
        .parent()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path has no parent directory"))?;
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_dir(dir)
}

/// Removes a directory and its contents; succeeds if it does not exist.
///
/// # Errors
/// A file cannot be removed.
pub fn remove_dir(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_replaced_atomically() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        make_dir(&inner).unwrap();
        make_dir(&inner).unwrap();
        let path = inner.join("plan");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(&inner).unwrap().count(), 1);
        remove_dir(&inner).unwrap();
        remove_dir(&inner).unwrap();
    }
}
