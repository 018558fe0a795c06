//! Files of a cloud snapshot over the API, and their limits.

use crate::{
    cloudsnap_ref::SnapRef,
    failure::{EXIT_FAILED, EXIT_USAGE, Failure},
    output::Context,
};
use blockd_api::{
    ClientError, CredentialRef, ErrorCode,
    browse::{FileList, FilePath, FileRanges, ListFileRanges, ListFiles, ReadFile, SnapshotXattr},
    cloudsnaps::CloudSnapshotId,
    operations,
};
use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

/// Bytes of one read request.
pub const PIECE_BYTES: u64 = 4 << 20;
/// Maximum number of files of one command. A damaged or hostile filesystem can contain cycles.
pub const MAX_FILES: usize = 5_000_000;
/// Maximum depth of directories: longer paths exceed the system's limit.
const MAX_DEPTH: usize = 1024;

/// Cloud snapshot whose files are read.
pub struct FileSource<'a> {
    pub context: &'a Context<'a>,
    pub snap: CloudSnapshotId,
    pub cred_id: Option<CredentialRef>,
}

impl<'a> FileSource<'a> {
    /// Resolves the cloud snapshot of a command.
    pub async fn new(
        context: &'a Context<'_>,
        snap: &SnapRef,
        cred_id: Option<CredentialRef>,
    ) -> Result<Self, Failure> {
        Ok(Self { context, snap: snap.resolve(context, cred_id.as_ref()).await?, cred_id })
    }

    /// Returns a file; with `entries`, also its directory entries.
    pub async fn list(&self, path: &FilePath, entries: bool) -> Result<FileList, Failure> {
        self.ask(path, entries, false).await
    }

    /// Returns the extended attributes of a file.
    pub async fn xattrs(&self, path: &FilePath) -> Result<Vec<SnapshotXattr>, Failure> {
        Ok(self.ask(path, false, true).await?.xattrs)
    }

    async fn ask(&self, path: &FilePath, entries: bool, xattrs: bool) -> Result<FileList, Failure> {
        let (path, credential) = (path.clone(), self.cred_id.clone());
        let query = ListFiles { cloud_snapshot_id: self.snap, path, entries, xattrs, credential };
        Ok(self.context.client.call(operations::LIST_FILES, &query).await?)
    }

    /// Reads part of a file; empty at its end.
    pub async fn read(&self, path: &FilePath, offset_bytes: u64, len_bytes: u64) -> Result<Vec<u8>, Failure> {
        let (path, credential) = (path.clone(), self.cred_id.clone());
        let query = ReadFile { cloud_snapshot_id: self.snap, path, offset_bytes, len_bytes, credential };
        Ok(self.context.client.call(operations::READ_FILE, &query).await?.to_vec())
    }

    /// Returns the data ranges of a file from an offset on.
    pub async fn ranges(&self, path: &FilePath, offset_bytes: u64) -> Result<FileRanges, Failure> {
        let (path, credential) = (path.clone(), self.cred_id.clone());
        let query = ListFileRanges { cloud_snapshot_id: self.snap, path, offset_bytes, credential };
        Ok(self.context.client.call(operations::LIST_FILE_RANGES, &query).await?)
    }
}

/// Checks the depth of a path against the limit.
pub fn check_depth(path: &FilePath) -> Result<(), Failure> {
    let depth = path.as_bytes().iter().filter(|byte| **byte == b'/').count();
    if depth > MAX_DEPTH {
        let message = format!("{path} in the snapshot is nested more than {MAX_DEPTH} directories deep");
        let hint = "copy a subdirectory, or mount the image (`blockctl browse mount DIR`)";
        return Err(Failure::local("too_deep", EXIT_FAILED, message).with_hint(hint));
    }
    Ok(())
}

/// Checks the number of files against the limit.
pub fn check_count(count: usize, path: &FilePath) -> Result<(), Failure> {
    if count > MAX_FILES {
        let message = format!("there are more than {MAX_FILES} files below {path} in the snapshot");
        let failure = Failure::local("too_many_files", EXIT_USAGE, message);
        return Err(failure.with_hint("name a subdirectory"));
    }
    Ok(())
}

/// Converts a path from the command line.
pub fn typed(path: &OsStr) -> FilePath {
    FilePath::from_root(path.as_bytes())
}

/// Converts a path from the command line, which may be escaped.
pub fn typed_or_escaped(path: &OsStr, escaped: bool) -> Result<FilePath, Failure> {
    if !escaped {
        return Ok(typed(path));
    }
    let text = path.to_str().ok_or_else(|| {
        Failure::usage(format!("{} is not UTF-8, as required for escaped paths", path.display()))
    })?;
    let path: FilePath = text.parse().map_err(|error| Failure::usage(format!("{error}")))?;
    Ok(FilePath::from_root(path.as_bytes()))
}

/// Names `--escaped` for a missing path that may be one that `catalog` printed.
pub fn with_escaped_hint(error: Failure, path: &FilePath, escaped: bool) -> Failure {
    match error {
        Failure::Client(ClientError::Api(mut error))
            if error.code == ErrorCode::FileNotFound && !escaped && path.as_bytes().contains(&b'%') =>
        {
            error.hint = Some("add --escaped if `catalog` printed this path".to_owned());
            error.into()
        }
        error => error,
    }
}
