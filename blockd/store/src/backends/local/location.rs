//! Object in a directory store: its file, its parent directories and the publication of writes.

use super::open_at;
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

/// Prefix of the hidden names of objects being written.
pub(super) const TEMPORARY: &str = ".tmp-";
/// Prefix of the hidden names of files that collect the parts of uploads.
pub(super) const PARTS: &str = ".parts-";
/// Attempts of a put while garbage collection concurrently removes its directory.
const PUT_ATTEMPTS: u32 = 3;

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

/// Location of an object, with the context of its errors.
pub(super) struct ObjectLocation {
    pub(super) root: Arc<PathBuf>,
    pub(super) operation: &'static str,
    pub(super) key: String,
    pub(super) store: Arc<str>,
}

impl ObjectLocation {
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
            let detail =
                "a symbolic link is in the path: links below the directory of a store are not followed";
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

    /// Returns the path of the directory and the name in it.
    pub(super) fn parts(&self) -> (&str, &str) {
        self.key.rsplit_once('/').unwrap_or(("", &self.key))
    }

    /// Returns the name in the directory.
    pub(super) fn name(&self) -> &str {
        self.parts().1
    }

    pub(super) fn open_parent(&self) -> Result<OwnedFd, StoreError> {
        let root = self.open_root()?;
        open_at::open_dir(&root, self.parts().0).map_err(|error| self.io(error))
    }

    /// Opens the object's directory and creates missing directories, but never the root.
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

    /// Adds the filesystem's time to an error of a full filesystem. Setting the times of the root needs no
    /// space, and the server of a network filesystem uses its own clock.
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
        let linked = match unnamed(dir) {
            Ok(file) => {
                write_file(&file, body)?;
                file.sync_all()?;
                link_unnamed(&file, dir, name, mode)
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

/// Returns true for an error of the put itself; false if unnamed files are unsupported.
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

pub(super) fn unnamed(dir: &OwnedFd) -> io::Result<File> {
    Ok(openat(dir, ".", OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, open_at::FILE_MODE)?.into())
}

/// Links an unnamed file.
pub(super) fn link_unnamed(file: &File, dir: &OwnedFd, name: &str, mode: PutMode) -> io::Result<()> {
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

/// File with a hidden name, which is removed unless published.
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
            // The drop removes the hidden name.
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

/// Returns the name of the file that collects the parts of an upload.
pub(super) fn parts_file(location: &ObjectLocation, upload_id: &str) -> Result<String, StoreError> {
    let id: Uuid = upload_id
        .parse()
        .map_err(|_| location.error(StoreErrorKind::Other).with_detail("invalid upload id"))?;
    Ok(format!("{PARTS}{id}"))
}
