//! Browsing: mounts of snapshots, and files of cloud snapshots.

use crate::{CredentialRef, List, cloudsnaps::CloudSnapshotId, text::as_text, uri::encode};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf, str::FromStr};

/// Body of `POST /v1/browse/handed`. The message with its head carries one descriptor (`SCM_RIGHTS`): that of
/// `/dev/fuse` of the caller's mount. It needs a Unix socket, and is the first request of its connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HandMount {
    /// Absolute mount point without control characters; for display only.
    pub mountpoint: PathBuf,
    /// Credentials whose cloud snapshots are shown; all if empty.
    #[serde(default)]
    pub credentials: Vec<CredentialRef>,
    /// True if the mount allows other users: the kernel then checks access lists.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_other: bool,
}

/// Body of `POST /v1/browse/unmount`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UnmountBrowse {
    /// Absolute path of the mount point.
    pub mountpoint: PathBuf,
    /// Unmount although files are open; reads of them fail.
    #[serde(default)]
    pub force: bool,
}

/// Reply to `POST /v1/browse/unmount`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Unmounted {
    /// Former mount point.
    pub mountpoint: PathBuf,
}

/// Mount of snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BrowseMount {
    /// Mount point.
    pub mountpoint: PathBuf,
    /// Credentials whose cloud snapshots are shown; all if empty.
    pub credentials: Vec<CredentialRef>,
    /// Time of the mount.
    pub mounted_at: Timestamp,
    /// User who created the mount and passed it to the daemon; absent for the daemon's own mounts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
}

/// Path inside a snapshot: any bytes. As text, invalid UTF-8, control characters and `%` are escaped as `%`
/// and two hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FilePath(Vec<u8>);

/// Text that is not a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a path inside a snapshot: `%` must be followed by two hexadecimal digits")]
pub struct BadFilePath {
    /// Given text.
    pub given: String,
}

impl FilePath {
    /// Returns the root of the snapshot's files.
    pub fn root() -> Self {
        Self(b"/".to_vec())
    }

    /// Creates a path from bytes.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Creates a path from a shell argument, relative to the root of the snapshot with or without a leading
    /// `/`.
    pub fn from_root(bytes: &[u8]) -> Self {
        let parts = bytes.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
        let mut path = Vec::new();
        for part in parts {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        if path.is_empty() { Self::root() } else { Self(path) }
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the part behind the last `/`.
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }

    /// Appends a name.
    #[must_use]
    pub fn join(&self, name: &[u8]) -> Self {
        let mut path = self.0.clone();
        if path.last() != Some(&b'/') {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Self(path)
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() || c == '%' {
                    let mut bytes = [0; 4];
                    f.write_str(&encode(c.encode_utf8(&mut bytes).as_bytes(), b""))?;
                } else {
                    write!(f, "{c}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for FilePath {
    type Err = BadFilePath;

    fn from_str(text: &str) -> Result<Self, BadFilePath> {
        let bad = || BadFilePath { given: text.to_owned() };
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            if *first != b'%' {
                bytes.push(*first);
                rest = after;
                continue;
            }
            let (digits, after) = after.split_first_chunk::<2>().ok_or_else(bad)?;
            let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
            if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(bad());
            }
            bytes.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
            rest = after;
        }
        Ok(Self(bytes))
    }
}

as_text!(FilePath);

/// Query of `GET /v1/cloudsnaps/files`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListFiles {
    /// Cloud snapshot.
    pub cloud_snapshot_id: CloudSnapshotId,
    /// File or directory.
    pub path: FilePath,
    /// Include the entries of a directory.
    #[serde(default)]
    pub entries: bool,
    /// Include the extended attributes.
    #[serde(default)]
    pub xattrs: bool,
    /// Credential; optional.
    pub credential: Option<CredentialRef>,
}

/// Query of `GET /v1/cloudsnaps/file`; the reply is at most 8 MiB of bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReadFile {
    /// Cloud snapshot.
    pub cloud_snapshot_id: CloudSnapshotId,
    /// Regular file.
    pub path: FilePath,
    /// Start offset, in bytes.
    pub offset_bytes: u64,
    /// Number of bytes.
    pub len_bytes: u64,
    /// Credential; optional.
    pub credential: Option<CredentialRef>,
}

/// Query of `GET /v1/cloudsnaps/file/ranges`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListFileRanges {
    /// Cloud snapshot.
    pub cloud_snapshot_id: CloudSnapshotId,
    /// Regular file.
    pub path: FilePath,
    /// Start offset, in bytes.
    #[serde(default)]
    pub offset_bytes: u64,
    /// Credential; optional.
    pub credential: Option<CredentialRef>,
}

/// Byte range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileRange {
    /// Start offset, in bytes.
    pub offset_bytes: u64,
    /// Length, in bytes.
    pub len_bytes: u64,
}

/// Reply to `GET /v1/cloudsnaps/file/ranges`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileRanges {
    /// Length of the file, in bytes.
    pub size_bytes: u64,
    /// Ascending ranges that may hold data; `next` is the offset, in bytes, that they extend to if that is
    /// not the end of the file. Everything outside of them is a hole and reads as zeroes.
    #[serde(flatten)]
    pub list: List<FileRange>,
}

/// Type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Block device.
    BlockDevice,
    /// Character device.
    CharDevice,
    /// FIFO.
    Fifo,
    /// Socket.
    Socket,
    /// Damaged entry that cannot be read.
    Damaged,
}

/// File of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotFile {
    /// Path.
    pub path: FilePath,
    /// Type.
    pub kind: FileKind,
    /// Length in bytes.
    pub size_bytes: u64,
    /// Mode bits (07777).
    pub mode: u16,
    /// User id of the owner.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Modification time, if known.
    pub modified_at: Option<Timestamp>,
    /// Inode number, if known; equal for all hard links.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
    /// Number of hard links, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub links: Option<u32>,
    /// Target of a symbolic link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<FilePath>,
}

/// Reply to `GET /v1/cloudsnaps/files`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileList {
    /// Requested file or directory.
    pub file: SnapshotFile,
    /// Directory entries by name, if requested.
    #[serde(flatten)]
    pub list: List<SnapshotFile>,
    /// Extended attributes, if requested.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub xattrs: Vec<SnapshotXattr>,
}

/// Extended attribute of a file. Name and value are bytes, escaped like paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotXattr {
    /// Name with its namespace, such as `user.comment`.
    pub name: FilePath,
    /// Value, as returned by the kernel.
    pub value: FilePath,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_round_trip_through_their_text() {
        for (bytes, text) in [
            (b"/a b/\xc3\xa4".as_slice(), "/a b/ä"),
            (b"/50%/\n\x1b", "/50%25/%0A%1B"),
            (b"/\xff\xfe", "/%FF%FE"),
            (b"/", "/"),
        ] {
            let path = FilePath::from_bytes(bytes.to_vec());
            assert_eq!(path.to_string(), text);
            assert_eq!(text.parse::<FilePath>().unwrap(), path);
        }
        for bad in ["%", "%1", "%zz", "%+1", "a%"] {
            assert!(bad.parse::<FilePath>().is_err(), "{bad}");
        }
    }

    #[test]
    fn shell_paths_start_at_the_root() {
        for (given, path) in [("etc/passwd", "/etc/passwd"), ("//a/./b/", "/a/b"), ("", "/"), ("/", "/")] {
            assert_eq!(FilePath::from_root(given.as_bytes()).to_string(), path);
        }
        assert_eq!(FilePath::root().join(b"a").join(b"b").as_bytes(), b"/a/b");
        assert_eq!(FilePath::root().join(b"a").name(), b"a");
    }
}
