//! Files and directories below the root of a store, resolved by the kernel.
//!
//! Who may write to the directory (the server of a network share, another user of it) could put a symbolic link in the place of
//! a directory, and blockd would write and delete elsewhere. So names are resolved by `openat2` (Linux 5.6), which refuses symbolic
//! links and leaves the root by none, and files are made, linked and removed relative to the directory that was opened.
//! The root itself is opened by its path each time: a descriptor that is held would keep a disk from being unmounted, and
//! would not notice that it was.

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Statx, StatxFlags, mkdirat, openat, openat2,
        statx,
    },
    io::Errno,
};
use std::{fs::File, io, mem::MaybeUninit, os::fd::OwnedFd, path::Path};

/// Files of a store are for its user only.
pub(super) const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
const DIR_MODE: Mode = Mode::RWXU;
const DIR_FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

fn resolve() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}

/// Opens the root of a store.
pub(super) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, DIR_FLAGS | OFlags::RDONLY, Mode::empty())?)
}

/// Opens a directory below another one; with an empty path, that one once more.
pub(super) fn open_dir(root: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { "." } else { path };
    Ok(openat2(root, path, DIR_FLAGS | OFlags::RDONLY, Mode::empty(), resolve())?)
}

/// Opens a directory and makes what is missing of it, durably.
pub(super) fn make_dir(root: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    match open_dir(root, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let mut above = open_dir(root, "")?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        match mkdirat(&above, name, DIR_MODE) {
            // One that another process is making may not be durable yet: sync in either case.
            Ok(()) | Err(Errno::EXIST) => rustix::fs::fsync(&above)?,
            Err(error) => return Err(error.into()),
        }
        above = open_dir(&above, name)?;
    }
    Ok(above)
}

/// Opens a regular file to be read. Does not wait for the other end of a FIFO.
pub(super) fn open_file(root: &OwnedFd, path: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file: File = openat2(root, path, flags, Mode::empty(), resolve())?.into();
    let found = file.metadata()?;
    match found.is_file() {
        true => Ok(file),
        false if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

/// Makes a file in a directory, to be written; fails if the name is there.
pub(super) fn create_file(dir: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(dir, name, flags, FILE_MODE)?.into())
}

/// Opens a file of this store in a directory, to be written.
pub(super) fn open_file_to_write(dir: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(openat(dir, name, flags, Mode::empty())?.into())
}

/// What is known of a name in a directory, without following it; `None` if it is gone.
pub(super) fn stat(dir: &OwnedFd, name: &str) -> io::Result<Option<Statx>> {
    match statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The type of a file.
pub(super) fn type_of(found: &Statx) -> FileType {
    FileType::from_raw_mode(found.stx_mode.into())
}

/// The names in a directory that are UTF-8, sorted, without `.` and `..`.
pub(super) fn names(dir: &OwnedFd) -> io::Result<Vec<String>> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 32 << 10];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => names.push(name.to_owned()),
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    #[test]
    fn symbolic_links_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("real")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "secret").unwrap();
        symlink(&outside, root.join("link")).unwrap();
        symlink("real", root.join("inner")).unwrap();
        symlink(outside.join("file"), root.join("real/file")).unwrap();
        let root = open_root(&root).unwrap();
        for path in ["link", "inner", "../outside", "link/new"] {
            assert!(open_dir(&root, path).is_err() && make_dir(&root, path).is_err(), "{path}");
        }
        assert!(open_file(&root, "link/file").is_err() && open_file(&root, "real/file").is_err());
        let real = open_dir(&root, "real").unwrap();
        assert!(create_file(&real, "file").is_err() && open_file_to_write(&real, "file").is_err());
        assert_eq!(fs::read_dir(outside).unwrap().count(), 1);
    }
}
