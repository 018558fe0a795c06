//! An object in the directory of a store: its file, its parents, and how a write becomes visible.

use super::{PARTS, PUT_ATTEMPTS, TEMPORARY, open_at};
use crate::backends::direct::write_file;
use crate::{PutMode, StoreError, StoreErrorKind};
use rustix::{
    fs::{
        AtFlags, CWD, OFlags, Timespec, Timestamps, UTIME_NOW, futimens, linkat, openat, renameat, unlinkat,
    },
    io::Errno,
};
use std::{
    fs::File,
    io::{self},
    num::NonZero,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};
use uuid::Uuid;

/// Classifies an I/O error; `root` is true for an error of the directory itself.
pub(super) fn kind_of(error: &io::Error, root: bool) -> StoreErrorKind {
    use io::ErrorKind as Io;
    match error.kind() {
        Io::NotFound | Io::NotADirectory if root => StoreErrorKind::BucketMissing,
        Io::NotFound | Io::NotADirectory | Io::IsADirectory => StoreErrorKind::NotFound,
        Io::AlreadyExists => StoreErrorKind::AlreadyExists,
        Io::PermissionDenied | Io::ReadOnlyFilesystem => StoreErrorKind::Unauthorized,
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => StoreErrorKind::NoSpace,
        Io::TimedOut => StoreErrorKind::Timeout,
        Io::ArgumentListTooLong => StoreErrorKind::TooLarge,
        _ => StoreErrorKind::Other,
    }
}

/// One object's place, and what its errors are named after.
pub(super) struct Place {
    pub(super) root: Arc<PathBuf>,
    pub(super) operation: &'static str,
    pub(super) key: String,
    pub(super) store: Arc<str>,
}

impl Place {
    pub(super) fn error(&self, kind: StoreErrorKind) -> StoreError {
        StoreError::new(kind, self.operation, &self.key, &self.store)
    }

    pub(super) fn io(&self, error: io::Error) -> StoreError {
        let mut kind = kind_of(&error, false);
        if kind == StoreErrorKind::NotFound && !self.root.is_dir() {
            kind = StoreErrorKind::BucketMissing;
        }
        let is_link = error.raw_os_error() == Some(Errno::LOOP.raw_os_error());
        let mut out = if is_link {
            let detail = "a symbolic link is in its place: below the directory of a store, none is followed";
            self.error(StoreErrorKind::Misconfigured).with_detail(detail)
        } else {
            self.error(kind).with_detail(error.to_string())
        };
        out.source = Some(Arc::new(error));
        out
    }

    pub(super) fn open_root(&self) -> Result<OwnedFd, StoreError> {
        open_at::open_root(&self.root).map_err(|error| {
            let kind = kind_of(&error, true);
            self.error(kind).with_detail(error.to_string())
        })
    }

    /// The path of the directory, and the name in it.
    pub(super) fn parts(&self) -> (&str, &str) {
        self.key.rsplit_once('/').unwrap_or(("", &self.key))
    }

    /// The name in the directory.
    pub(super) fn name(&self) -> &str {
        self.parts().1
    }

    pub(super) fn open_parent(&self) -> Result<OwnedFd, StoreError> {
        let root = self.open_root()?;
        open_at::open_dir(&root, self.parts().0).map_err(|error| self.io(error))
    }

    /// Opens the object's directory and makes what is missing of it; never the root.
    pub(super) fn make_parent(&self) -> Result<OwnedFd, StoreError> {
        let root = self.open_root()?;
        open_at::make_dir(&root, self.parts().0).map_err(|error| self.io(error))
    }

    pub(super) fn open_object(&self) -> Result<File, StoreError> {
        let root = self.open_root()?;
        open_at::open_file(&root, &self.key).map_err(|error| self.io(error))
    }

    pub(super) fn put(&self, body: &[u8], mode: PutMode) -> Result<(), StoreError> {
        self.try_put(body, mode).map_err(|error| self.with_time_if_full(error))
    }

    /// Adds the filesystem's time to the error of a full one. To set the times of the root takes no room, and
    /// the server of a network filesystem sets them by its own clock.
    pub(super) fn with_time_if_full(&self, error: StoreError) -> StoreError {
        if error.kind != StoreErrorKind::NoSpace {
            return error;
        }
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        let touched = self.open_root().ok().and_then(|root| {
            futimens(&root, &times).ok()?;
            Some(open_at::stat(&root, ".").ok()??.stx_ctime.tv_sec)
        });
        StoreError { store_time_unix_s: touched.and_then(NonZero::new), ..error }
    }

    pub(super) fn try_put(&self, body: &[u8], mode: PutMode) -> Result<(), StoreError> {
        let mut attempt = 1;
        loop {
            let dir = self.make_parent()?;
            match self.put_in(&dir, body, mode) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < PUT_ATTEMPTS => {
                    attempt += 1;
                }
                done => return done.map_err(|error| self.io(error)),
            }
        }
    }

    pub(super) fn put_in(&self, dir: &OwnedFd, body: &[u8], mode: PutMode) -> io::Result<()> {
        let name = self.name();
        if mode == PutMode::CreateIfAbsent && open_at::stat(dir, name)?.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let linked = match nameless(dir) {
            Ok(file) => {
                write_file(&file, body)?;
                file.sync_all()?;
                link_nameless(&file, dir, name, mode)
            }
            Err(error) => Err(error),
        };
        match linked {
            Err(error) if !is_final(&error) => {
                let temporary = Temporary::create(dir)?;
                write_file(&temporary.file, body)?;
                temporary.file.sync_all()?;
                temporary.publish(name, mode)?;
            }
            other => other?,
        }
        sync_dir(dir)
    }
}

/// Returns true for an error of the put itself, not of missing unnamed files.
pub(super) fn is_final(error: &io::Error) -> bool {
    use io::ErrorKind as Io;
    matches!(
        error.kind(),
        Io::AlreadyExists
            | Io::StorageFull
            | Io::QuotaExceeded
            | Io::FileTooLarge
            | Io::PermissionDenied
            | Io::ReadOnlyFilesystem
    )
}

pub(super) fn sync_dir(dir: &OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::fsync(dir)?)
}

pub(super) fn nameless(dir: &OwnedFd) -> io::Result<File> {
    Ok(openat(dir, ".", OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, open_at::FILE_MODE)?.into())
}

/// Gives a nameless file its name.
pub(super) fn link_nameless(file: &File, dir: &OwnedFd, name: &str, mode: PutMode) -> io::Result<()> {
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    let link = |to: &str| linkat(CWD, source.as_str(), dir, to, AtFlags::SYMLINK_FOLLOW);
    match (link(name), mode) {
        (Ok(()), _) => Ok(()),
        (Err(Errno::EXIST), PutMode::Overwrite) => {
            let between = hidden_name();
            link(&between)?;
            Ok(renameat(dir, &between, dir, name).inspect_err(|_| {
                let _ = unlinkat(dir, &between, AtFlags::empty());
            })?)
        }
        (Err(errno), _) => Err(errno.into()),
    }
}

pub(super) fn hidden_name() -> String {
    format!("{TEMPORARY}{}", Uuid::new_v4())
}

/// A file under a hidden name, which goes when it is not published.
pub(super) struct Temporary<'a> {
    pub(super) file: File,
    pub(super) dir: &'a OwnedFd,
    pub(super) name: String,
}

impl<'a> Temporary<'a> {
    pub(super) fn create(dir: &'a OwnedFd) -> io::Result<Self> {
        let name = hidden_name();
        Ok(Self { file: open_at::create_file(dir, &name)?, dir, name })
    }

    pub(super) fn publish(self, to: &str, mode: PutMode) -> io::Result<()> {
        let published = match mode {
            // Drop then takes the hidden name away.
            PutMode::CreateIfAbsent => linkat(self.dir, &self.name, self.dir, to, AtFlags::empty()),
            PutMode::Overwrite => renameat(self.dir, &self.name, self.dir, to),
        };
        published.map_err(Into::into)
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        let _ = unlinkat(self.dir, &self.name, AtFlags::empty());
    }
}

/// The name of the file in which the parts of an upload gather.
pub(super) fn parts_file(place: &Place, upload_id: &str) -> Result<String, StoreError> {
    let id: Uuid = upload_id
        .parse()
        .map_err(|_| place.error(StoreErrorKind::Other).with_detail("the upload id is not one of ours"))?;
    Ok(format!("{PARTS}{id}"))
}
