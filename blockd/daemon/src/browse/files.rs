//! The files inside cloud snapshots, for the control API: directories one by one, and files in pieces.

use super::images::CloudImage;
use crate::{core::Core, error::ServiceError};
use blockd_api::{
    CredentialRef, ErrorCode,
    browse::{FileKind, FileList, FilePath, ListFiles, ReadFile, SnapshotFile, SnapshotXattr},
};
use blockd_cloud::CloudsnapId;
use blockd_fuse::inside::{self, FileStat, FileTree, FileXattr, ImageFiles};
use jiff::Timestamp;
use std::{io, sync::Arc};
use tokio::runtime::Handle;

/// The longest piece of a file that is read at once.
const PIECE_MOST_BYTES: u64 = 8 << 20;
/// Most entries of one directory that are sent.
const ENTRIES_MOST: usize = 100_000;

/// The files of a cloud snapshot.
pub(crate) struct FileReader {
    files: Arc<ImageFiles>,
}

fn refused(error: &io::Error, path: &FilePath) -> ServiceError {
    let code = match error.kind() {
        io::ErrorKind::NotFound => ErrorCode::FileNotFound,
        io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory | io::ErrorKind::InvalidInput => {
            ErrorCode::InvalidRequest
        }
        io::ErrorKind::TimedOut => ErrorCode::StoreTimeout,
        _ => ErrorCode::CloudsnapDamaged,
    };
    ServiceError::refused(code, format!("cannot read {path} in the snapshot: {error}"))
}

fn kind(kind: inside::FileKind) -> FileKind {
    match kind {
        inside::FileKind::Regular => FileKind::File,
        inside::FileKind::Directory => FileKind::Directory,
        inside::FileKind::Symlink => FileKind::Symlink,
        inside::FileKind::BlockDevice => FileKind::BlockDevice,
        inside::FileKind::CharDevice => FileKind::CharDevice,
        inside::FileKind::Fifo => FileKind::Fifo,
        inside::FileKind::Socket => FileKind::Socket,
    }
}

fn file(path: FilePath, stat: Option<FileStat>, target: Option<Vec<u8>>) -> SnapshotFile {
    let modified = stat.and_then(|stat| stat.modified).and_then(|time| Timestamp::try_from(time).ok());
    SnapshotFile {
        path,
        kind: stat.map_or(FileKind::Damaged, |stat| kind(stat.kind)),
        size_bytes: stat.map_or(0, |stat| stat.size_bytes),
        mode: stat.map_or(0, |stat| stat.mode),
        uid: stat.map_or(0, |stat| stat.uid),
        gid: stat.map_or(0, |stat| stat.gid),
        modified,
        target: target.map(FilePath::from_bytes),
    }
}

impl Core {
    /// The files of a cloud snapshot. Blocks.
    pub(crate) fn snapshot_files(
        &self,
        snap: &blockd_api::cloudsnaps::CloudsnapId,
        cred_id: Option<&CredentialRef>,
    ) -> Result<FileReader, ServiceError> {
        let id: CloudsnapId = crate::cloudsnaps::from_api_id(snap);
        let found = |files: &[(CloudsnapId, Arc<ImageFiles>)]| {
            files.iter().find(|(other, _)| *other == id).map(|(_, files)| Arc::clone(files))
        };
        if let Some(files) = found(&self.browse.files.lock()) {
            return Ok(FileReader { files });
        }
        let (snapshot, _) = self.open_cloudsnap(&Handle::current(), &id, cred_id)?;
        let files = ImageFiles::open(Arc::new(CloudImage(snapshot)));
        let files = Arc::new(files.map_err(|error| refused(&error, &FilePath::root()))?);
        let mut open = self.browse.files.lock();
        if open.len() >= super::FILES_MOST {
            open.remove(0);
        }
        open.push((id, Arc::clone(&files)));
        Ok(FileReader { files })
    }
}

impl FileReader {
    /// A file, and what is in it if it is a directory.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    pub fn list(&self, query: &ListFiles) -> Result<FileList, ServiceError> {
        let path = &query.path;
        let bytes = path.as_bytes();
        let why = self.files.why_nothing(bytes).map_err(|error| refused(&error, path))?;
        if let Some(why) = why {
            return Err(ServiceError::refused(ErrorCode::NoFiles, why).with_image_hint());
        }
        let stat = self.files.stat(bytes).map_err(|error| refused(&error, path))?;
        let mut entries = Vec::new();
        if stat.kind == inside::FileKind::Directory && query.entries {
            let found = self.files.read_dir(bytes).map_err(|error| refused(&error, path))?;
            if found.len() > ENTRIES_MOST {
                let message =
                    format!("{path} has {} entries, at most {ENTRIES_MOST} are listed", found.len());
                return Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
            }
            entries.extend(found.into_iter().map(|entry| {
                let path = path.join(&entry.name);
                let link = entry.stat.filter(|stat| stat.kind == inside::FileKind::Symlink);
                let target = link.and_then(|_| self.files.read_link(path.as_bytes()).ok());
                file(path, entry.stat, target)
            }));
        }
        let target = match stat.kind {
            inside::FileKind::Symlink => self.files.read_link(bytes).ok(),
            _ => None,
        };
        let xattrs = if query.xattrs {
            self.files.xattrs(bytes).map_err(|error| refused(&error, path))?
        } else {
            Vec::new()
        };
        let xattr = |xattr: FileXattr| SnapshotXattr {
            name: FilePath::from_bytes(xattr.name),
            value: FilePath::from_bytes(xattr.value),
        };
        Ok(FileList {
            file: file(path.clone(), Some(stat), target),
            entries,
            xattrs: xattrs.into_iter().map(xattr).collect(),
        })
    }

    /// A piece of a file, shorter than was asked for only at its end.
    ///
    /// # Errors
    /// It is not there, is no regular file, or cannot be read.
    pub fn read(&self, query: &ReadFile) -> Result<Vec<u8>, ServiceError> {
        let len = usize::try_from(query.len_bytes.min(PIECE_MOST_BYTES)).unwrap_or(0);
        self.files
            .read(query.path.as_bytes(), query.offset_bytes, len)
            .map_err(|error| refused(&error, &query.path))
    }
}

impl ServiceError {
    fn with_image_hint(self) -> Self {
        self.with_hint(|_| {
            Some("the image as a whole can be had: `blockctl browse mount DIR` shows it as disk.img, to be mounted through a loop device")
        })
    }
}
