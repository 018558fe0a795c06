//! Secure opening of files and directories below the root of a store.
//!
//! A server or another user of a network share could replace a directory with a symbolic link, and blockd
//! would write and delete outside of the root. So each path component is opened separately, relative to its
//! parent and without following links, and files are created, linked and removed relative to the last
//! directory. (`openat2` would do this in one call, but systemd blocks it for services with
//! `RestrictSUIDSGID=`.) The root is opened by its path each time: an open descriptor would prevent an
//! unmount and hide a remount.

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RawDir, Statx, StatxFlags, mkdirat, openat, statx},
    io::Errno,
};
use std::{fs::File, io, mem::MaybeUninit, os::fd::OwnedFd, path::Path};

/// Mode of files: for the daemon's user only.
pub(super) const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Maximum memory for the names of a directory: a delta of 64 TiB has some two million packs with names of 13
/// bytes.
pub(super) const MAX_NAMES_BYTES: usize = 256 << 20;
const DIR_MODE: Mode = Mode::RWXU;
const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens the root of a store.
pub(super) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, DIR_FLAGS, Mode::empty())?)
}

/// Opens a directory in another one; [`Errno::LOOP`] if the name is a symbolic link.
fn open_name(dir: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    match openat(dir, name, DIR_FLAGS | OFlags::NOFOLLOW, Mode::empty()) {
        // The kernel reports the same error for a link and for a file.
        Err(Errno::NOTDIR) if is_link(dir, name) => Err(Errno::LOOP.into()),
        opened => Ok(opened?),
    }
}

fn is_link(dir: &OwnedFd, name: &str) -> bool {
    stat(dir, name).is_ok_and(|found| found.is_some_and(|found| type_of(&found) == FileType::Symlink))
}

fn names_of(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !name.is_empty())
}

/// Opens a directory below another one; an empty path opens that one again.
pub(super) fn open_dir(root: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    let mut at = open_name(root, ".")?;
    for name in names_of(path) {
        at = open_name(&at, name)?;
    }
    Ok(at)
}

/// Opens a directory; creates missing directories durably.
pub(super) fn make_dir(root: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    match open_dir(root, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let mut above = open_name(root, ".")?;
    for name in names_of(path) {
        match mkdirat(&above, name, DIR_MODE) {
            // Syncs in both cases: a directory that another process is creating may not be durable yet.
            Ok(()) | Err(Errno::EXIST) => rustix::fs::fsync(&above)?,
            Err(error) => return Err(error.into()),
        }
        above = open_name(&above, name)?;
    }
    Ok(above)
}

/// Opens a regular file for reading. Does not block on a FIFO.
pub(super) fn open_file(root: &OwnedFd, path: &str) -> io::Result<File> {
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file: File = openat(open_dir(root, above)?, name, flags, Mode::empty())?.into();
    let found = file.metadata()?;
    match found.is_file() {
        true => Ok(file),
        false if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

/// Creates a file for writing; fails if the name exists.
pub(super) fn create_file(dir: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(dir, name, flags, FILE_MODE)?.into())
}

/// Opens an existing file for writing.
pub(super) fn open_file_to_write(dir: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(openat(dir, name, flags, Mode::empty())?.into())
}

/// Returns the attributes of a name without following links; `None` if it does not exist.
pub(super) fn stat(dir: &OwnedFd, name: &str) -> io::Result<Option<Statx>> {
    match statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns the type of a file.
pub(super) fn type_of(found: &Statx) -> FileType {
    FileType::from_raw_mode(found.stx_mode.into())
}

/// Returns the UTF-8 names in a directory, sorted, without `.` and `..`.
///
/// # Errors
/// [`io::ErrorKind::ArgumentListTooLong`] if they take more than `max_bytes` of memory: the server of a
/// network share may return endless names.
pub(super) fn names(dir: &OwnedFd, max_bytes: usize) -> io::Result<Vec<String>> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 32 << 10];
    let mut entries = RawDir::new(dir, &mut buffer);
    let (mut names, mut len_bytes) = (Vec::new(), 0);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => {
                len_bytes += size_of::<String>() + name.len();
                names.push(name.to_owned());
            }
        }
        if len_bytes > max_bytes {
            let what = format!("the names in a directory take more than {max_bytes} bytes");
            return Err(io::Error::new(io::ErrorKind::ArgumentListTooLong, what));
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
    fn names_beyond_the_memory_limit_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b", "a"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let root = open_root(dir.path()).unwrap();
        let both_bytes = 2 * (size_of::<String>() + 1);
        assert_eq!(names(&root, both_bytes).unwrap(), ["a", "b"]);
        let root = open_root(dir.path()).unwrap();
        let error = names(&root, both_bytes - 1).unwrap_err();
        assert_eq!(super::super::kind_of(&error, false), crate::StoreErrorKind::TooLarge);
    }

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
        for path in ["link", "inner", "link/new", "inner/new"] {
            assert!(open_dir(&root, path).is_err() && make_dir(&root, path).is_err(), "{path}");
        }
        assert!(open_file(&root, "link/file").is_err() && open_file(&root, "real/file").is_err());
        let real = open_dir(&root, "real").unwrap();
        assert!(create_file(&real, "file").is_err() && open_file_to_write(&real, "file").is_err());
        assert_eq!(fs::read_dir(outside).unwrap().count(), 1);
    }
}
