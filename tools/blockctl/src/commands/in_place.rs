//! Putting files where they belong when they are complete.

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};
use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// So that no two have the same name.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A file that is made beside the place where it belongs. Dropped, it is gone.
pub struct Staged {
    path: PathBuf,
    to: PathBuf,
    is_put: bool,
}

impl Staged {
    /// One that belongs there.
    pub fn new(to: &Path) -> Self {
        let name = format!(".blockctl-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        Self { path: to.with_file_name(name), to: to.to_owned(), is_put: false }
    }

    /// Where it is made.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts it where it belongs.
    ///
    /// # Errors
    /// Something is there already, and is not to be replaced, or is a directory.
    pub fn put(mut self, replaces: bool) -> io::Result<()> {
        if replaces {
            fs::rename(&self.path, &self.to)?;
        } else {
            match renameat_with(CWD, &self.path, CWD, &self.to, RenameFlags::NOREPLACE) {
                // Not every filesystem can do that.
                Err(Errno::INVAL | Errno::NOSYS) => {
                    fs::hard_link(&self.path, &self.to)?;
                    fs::remove_file(&self.path)?;
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
            // There may be none yet.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A file that was made here, whatever its name leads to later.
pub struct Identity {
    path: PathBuf,
    dev: u64,
    ino: u64,
}

impl Identity {
    /// The file that is there now, and will be found there.
    ///
    /// # Errors
    /// It is gone.
    pub fn of(now: &Path, later: &Path) -> io::Result<Self> {
        let meta = fs::symlink_metadata(now)?;
        Ok(Self { path: later.to_owned(), dev: meta.dev(), ino: meta.ino() })
    }

    fn is(&self, meta: &Metadata) -> bool {
        (meta.dev(), meta.ino()) == (self.dev, self.ino)
    }

    /// Gives it one more name. False if that cannot be, and it must be copied again: others may have put something else in its place, or
    /// the filesystem has no such names.
    ///
    /// # Errors
    /// Something is there already, and is not to be replaced.
    pub fn link(&self, to: &Path, replaces: bool) -> io::Result<bool> {
        let staged = Staged::new(to);
        if fs::hard_link(&self.path, staged.path()).is_err()
            || !self.is(&fs::symlink_metadata(staged.path())?)
        {
            return Ok(false);
        }
        if replaces && fs::symlink_metadata(to).is_ok_and(|there| self.is(&there)) {
            // Two names of one file are not renamed to each other.
            return Ok(true);
        }
        staged.put(replaces)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_there_when_they_are_complete_and_replace_others_only_if_that_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("file");
        let stage = |content: &str| {
            let staged = Staged::new(&to);
            fs::write(staged.path(), content).unwrap();
            staged
        };
        drop(stage("broke off"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        stage("one").put(false).unwrap();
        assert_eq!(stage("two").put(false).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&to).unwrap(), b"one");
        stage("two").put(true).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn more_names_are_given_to_the_file_that_was_made_and_to_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("a"), "a").unwrap();
        let made = Identity::of(&path("a"), &path("a")).unwrap();
        assert!(made.link(&path("b"), false).unwrap() && made.link(&path("b"), true).unwrap());
        assert!(made.link(&path("b"), false).is_err());
        assert_eq!(fs::metadata(path("a")).unwrap().nlink(), 2);
        fs::rename(path("a"), path("c")).unwrap();
        fs::write(path("a"), "another").unwrap();
        assert!(!made.link(&path("d"), false).unwrap() && !path("d").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}
