//! Directories of the destination of a copy, held by descriptor.
//!
//! A copy can take hours, in which the owner of a destination directory may rename its entries. Every
//! name is therefore resolved below the descriptor of its directory, as one component and without following
//! symbolic links.

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, chownat, fstat, linkat, mkdirat,
        open, openat2, renameat, renameat_with, statat, symlinkat, unlinkat,
    },
    io::Errno,
    process::{Gid, Resource, Rlimit, Uid, getrlimit, setrlimit},
};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Number of the next staged name.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Descriptors that a copy of the deepest supported tree needs: one for each level, and some for the process.
const MAX_OPEN_FILES: u64 = 2048;

const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Raises the soft limit of open files: each level of a tree takes one.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(MAX_OPEN_FILES, |maximum| maximum.min(MAX_OPEN_FILES));
    if limit.current.is_some_and(|current| current < wanted) {
        // Without it, a tree that is too deep ends with an error that names the limit.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit });
    }
}

/// A directory held by its descriptor. Renaming or replacing the directory does not affect its user.
#[derive(Debug)]
pub struct DirHandle {
    fd: OwnedFd,
    path: PathBuf,
}

impl DirHandle {
    /// Opens the directory that the user named; symbolic links in its path are followed.
    ///
    /// # Errors
    /// It does not exist, is not a directory, or cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let named = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let fd = open(named, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Returns its path when it was opened, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of an entry, for messages.
    pub fn path_of(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }

    /// Returns the attributes of an entry; those of a symbolic link, not of its target.
    ///
    /// # Errors
    /// There is none.
    pub fn stat(&self, name: &OsStr) -> io::Result<Stat> {
        check_name(name)?;
        Ok(statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Opens a directory below it, which is created with mode 0700 if it does not exist; true if it was.
    ///
    /// # Errors
    /// There is an entry that is not a directory, symbolic links included.
    pub fn make_dir(&self, name: &OsStr) -> io::Result<(Self, bool)> {
        check_name(name)?;
        // Other users get access when the content is complete.
        let made = match mkdirat(&self.fd, name, Mode::RWXU) {
            Err(Errno::EXIST) => false,
            created => created.map(|()| true)?,
        };
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = openat2(&self.fd, name, flags, Mode::empty(), BENEATH)?;
        Ok((Self { fd, path: self.path_of(name) }, made))
    }

    /// Returns the open directory itself, to set its attributes.
    ///
    /// # Errors
    /// No more descriptors can be opened.
    pub fn to_file(&self) -> io::Result<File> {
        Ok(self.fd.try_clone()?.into())
    }
}

/// Refuses names that are not one component: a damaged or hostile snapshot may contain any bytes.
fn check_name(name: &OsStr) -> io::Result<()> {
    match name.as_bytes() {
        b"" | b"." | b".." => Err(io::ErrorKind::InvalidInput.into()),
        bytes if bytes.contains(&b'/') => Err(io::ErrorKind::InvalidInput.into()),
        _ => Ok(()),
    }
}

/// A file or symbolic link under a temporary name beside its final one. Dropped before [`put`](Self::put), it
/// is removed.
pub struct Staged {
    dir: Arc<DirHandle>,
    temporary: OsString,
    name: OsString,
    is_put: bool,
}

impl Staged {
    /// Chooses a temporary name; nothing is created yet.
    pub fn new(dir: &Arc<DirHandle>, name: &OsStr) -> Self {
        let temporary = format!(".blockctl-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed)).into();
        Self { dir: Arc::clone(dir), temporary, name: name.to_owned(), is_put: false }
    }

    /// Returns the path of the temporary name, for messages.
    pub fn path(&self) -> PathBuf {
        self.dir.path_of(&self.temporary)
    }

    /// Creates a file with mode 0600.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn create_file(&self) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat2(&self.dir.fd, &self.temporary, flags, Mode::RUSR | Mode::WUSR, BENEATH)?.into())
    }

    /// Creates a symbolic link, owned by these ids if this process may give it away.
    ///
    /// # Errors
    /// It cannot be created, or another process replaced it at once.
    pub fn create_symlink(&self, target: &OsStr, uid: u32, gid: u32) -> io::Result<OwnedFd> {
        symlinkat(target, &self.dir.fd, &self.temporary)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // With NO_SYMLINKS the link itself could not be opened; NOFOLLOW keeps its target out.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let link = openat2(&self.dir.fd, &self.temporary, flags, Mode::empty(), resolve)?;
        if FileType::from_raw_mode(fstat(&link)?.st_mode) != FileType::Symlink {
            return Err(io::Error::other("another process replaced it"));
        }
        // All ones mean "unchanged" to the kernel.
        let uid = (uid != u32::MAX).then(|| Uid::from_raw(uid));
        let gid = (gid != u32::MAX).then(|| Gid::from_raw(gid));
        // Only root can give files away.
        let _ = chownat(&link, "", uid, gid, AtFlags::EMPTY_PATH);
        Ok(link)
    }

    /// Renames it to its final name.
    ///
    /// # Errors
    /// There is an entry with that name, and it must not be replaced or is a directory.
    pub fn put(mut self, replaces: bool) -> io::Result<()> {
        check_name(&self.name)?;
        let (fd, from, to) = (&self.dir.fd, &self.temporary, &self.name);
        if replaces {
            renameat(fd, from, fd, to)?;
        } else {
            match renameat_with(fd, from, fd, to, RenameFlags::NOREPLACE) {
                // Not every filesystem supports the flag.
                Err(Errno::INVAL | Errno::NOSYS) => {
                    linkat(fd, from, fd, to, AtFlags::empty())?;
                    unlinkat(fd, from, AtFlags::empty())?;
                }
                renamed => renamed?,
            }
        }
        self.is_put = true;
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.is_put {
            // It may not have been created.
            let _ = unlinkat(&self.dir.fd, &self.temporary, AtFlags::empty());
        }
    }
}

/// A copied file that has more names in the snapshot.
#[derive(Debug)]
pub struct Original {
    /// Path below the destination's top directory.
    path: PathBuf,
    dev: u64,
    ino: u64,
}

impl Original {
    /// Notes an open file that gets this name in a directory below `top`.
    ///
    /// # Errors
    /// Its attributes cannot be read, or the directory is not below `top`.
    pub fn of(file: &File, top: &DirHandle, dir: &DirHandle, name: &OsStr) -> io::Result<Self> {
        let stat = fstat(file)?;
        let path = dir.path_of(name).strip_prefix(&top.path).map_err(io::Error::other)?.to_owned();
        Ok(Self { path, dev: stat.st_dev, ino: stat.st_ino })
    }

    fn is(&self, stat: &Stat) -> bool {
        (stat.st_dev, stat.st_ino) == (self.dev, self.ino)
    }

    fn link_to(&self, top: &DirHandle, staged: &Staged) -> io::Result<()> {
        let name = self.path.file_name().ok_or(io::ErrorKind::NotFound)?;
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = openat2(&top.fd, parent, flags, Mode::empty(), BENEATH)?;
        Ok(linkat(&parent, name, &staged.dir.fd, &staged.temporary, AtFlags::empty())?)
    }

    /// Gives the file one more name. Returns false if it has to be copied again: another process replaced it,
    /// or the filesystem has no hard links.
    ///
    /// # Errors
    /// There is an entry with the new name that must not be replaced.
    pub fn link(
        &self,
        top: &DirHandle,
        dir: &Arc<DirHandle>,
        name: &OsStr,
        replaces: bool,
    ) -> io::Result<bool> {
        let staged = Staged::new(dir, name);
        if self.link_to(top, &staged).is_err() || !self.is(&dir.stat(&staged.temporary)?) {
            return Ok(false);
        }
        if replaces && dir.stat(name).is_ok_and(|there| self.is(&there)) {
            // A rename between two names of one file does nothing and keeps both.
            return Ok(true);
        }
        staged.put(replaces)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        io::Write,
        os::unix::fs::{MetadataExt, symlink},
    };

    fn open_top() -> (tempfile::TempDir, Arc<DirHandle>) {
        let temporary = tempfile::tempdir().unwrap();
        let top = Arc::new(DirHandle::open(temporary.path()).unwrap());
        (temporary, top)
    }

    fn stage(dir: &Arc<DirHandle>, name: &str, content: &str) -> Staged {
        let staged = Staged::new(dir, OsStr::new(name));
        staged.create_file().unwrap().write_all(content.as_bytes()).unwrap();
        staged
    }

    #[test]
    fn staged_file_appears_complete_and_replaces_on_request() {
        let (at, top) = open_top();
        let read = || fs::read_to_string(at.path().join("file")).unwrap();
        drop(stage(&top, "file", "cancelled"));
        assert_eq!(fs::read_dir(at.path()).unwrap().count(), 0);
        stage(&top, "file", "one").put(false).unwrap();
        let refused = stage(&top, "file", "two").put(false).unwrap_err();
        assert_eq!((refused.kind(), read().as_str()), (io::ErrorKind::AlreadyExists, "one"));
        stage(&top, "file", "two").put(true).unwrap();
        assert_eq!(read(), "two");
        assert_eq!(fs::read_dir(at.path()).unwrap().count(), 1);
    }

    #[test]
    fn hard_link_follows_only_the_copied_file() {
        let (at, top) = open_top();
        let staged = Staged::new(&top, OsStr::new("a"));
        let file = staged.create_file().unwrap();
        let original = Original::of(&file, &top, &top, OsStr::new("a")).unwrap();
        staged.put(false).unwrap();
        let link = |name: &str, replaces| original.link(&top, &top, OsStr::new(name), replaces);
        assert!(link("b", false).unwrap() && link("b", true).unwrap());
        assert!(link("b", false).is_err());
        assert_eq!(fs::metadata(at.path().join("a")).unwrap().nlink(), 2);
        fs::rename(at.path().join("a"), at.path().join("c")).unwrap();
        fs::write(at.path().join("a"), "another").unwrap();
        assert!(!link("d", false).unwrap() && !at.path().join("d").exists());
        assert_eq!(fs::read_dir(at.path()).unwrap().count(), 3);
    }

    #[test]
    fn swapped_directory_gets_no_entries() {
        let (at, top) = open_top();
        let (outside, made) = (tempfile::tempdir().unwrap(), at.path().join("made"));
        let name = OsStr::new;
        let (dir, is_new) = top.make_dir(name("made")).unwrap();
        let dir = Arc::new(dir);
        assert!(is_new && fs::metadata(&made).unwrap().mode() & 0o777 == 0o700);
        let first = Staged::new(&dir, name("first"));
        let original = Original::of(&first.create_file().unwrap(), &top, &dir, name("first")).unwrap();
        first.put(false).unwrap();
        fs::rename(&made, at.path().join("moved")).unwrap();
        symlink(outside.path(), &made).unwrap();
        stage(&dir, "second", "x").put(false).unwrap();
        stage(&dir, "second", "y").put(true).unwrap();
        let link = Staged::new(&dir, name("link"));
        link.create_symlink(name("target"), u32::MAX, u32::MAX).unwrap();
        link.put(false).unwrap();
        dir.make_dir(name("below")).unwrap();
        assert!(!original.link(&top, &dir, name("third"), false).unwrap(), "its path has a link now");
        assert!(top.make_dir(name("made")).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        assert_eq!(fs::read_dir(at.path().join("moved")).unwrap().count(), 4);
    }

    #[test]
    fn name_with_several_components_is_refused() {
        let (_at, top) = open_top();
        for name in ["", ".", "..", "a/b", "../a", "/a"] {
            assert!(top.make_dir(OsStr::new(name)).is_err(), "{name:?}");
            assert!(stage(&top, name, "x").put(true).is_err(), "{name:?}");
            assert!(top.stat(OsStr::new(name)).is_err(), "{name:?}");
        }
    }
}
