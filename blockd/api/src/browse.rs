//! Browsing: mounts of snapshots, and the files inside cloud snapshots.

use crate::{CredentialRef, cloudsnaps::CloudsnapId, paths::encode};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf, str::FromStr};

/// Body of `POST /v1/browse/mounts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MountBrowse {
    /// The directory, absolute; it is made if it is not there, and must be empty.
    pub mountpoint: PathBuf,
    /// Cloud snapshots of these credentials; of all if there is none.
    #[serde(default)]
    pub cred_ids: Vec<CredentialRef>,
}

/// Body of `POST /v1/browse/handed`. In one message with its head, over a unix socket, comes one descriptor
/// (`SCM_RIGHTS`): that of `/dev/fuse` with which the caller made the mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HandMount {
    /// Where it is, absolute, without control characters; shown, and not looked at.
    pub mountpoint: PathBuf,
    /// Cloud snapshots of these credentials; of all if there is none.
    #[serde(default)]
    pub cred_ids: Vec<CredentialRef>,
    /// Whether the caller made it for other users to look in as well: the kernel is then told of access
    /// lists.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_other: bool,
}

/// Body of `POST /v1/browse/unmount`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UnmountBrowse {
    /// The directory, absolute.
    pub mountpoint: PathBuf,
    /// Also if somebody has files open there, which then give errors.
    #[serde(default)]
    pub force: bool,
}

/// Reply to `POST /v1/browse/unmount`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Unmounted {
    /// Where the mount was.
    pub mountpoint: PathBuf,
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BrowseMount {
    /// Where it is.
    pub mountpoint: PathBuf,
    /// Whose cloud snapshots it shows; all if there is none.
    pub cred_ids: Vec<CredentialRef>,
    /// Since when.
    pub since: Timestamp,
    /// The user who made it and handed it over, in whose namespace it is; not there for the daemon's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
}

/// Reply to `GET /v1/browse/mounts`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BrowseMountList {
    /// The mounts.
    pub mounts: Vec<BrowseMount>,
}

/// A path inside a snapshot: any bytes. As text, what is no UTF-8, a control character or `%` is `%` and two
/// hexadecimal digits; text that has none of these is the path as it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FilePath(Vec<u8>);

/// A text that is no path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a path inside a snapshot: `%` must be followed by two hexadecimal digits")]
pub struct BadFilePath {
    /// The text.
    pub given: String,
}

impl FilePath {
    /// The root of the snapshot's files.
    pub fn root() -> Self {
        Self(b"/".to_vec())
    }

    /// The path with these bytes.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// A path of this host's shell, which begins at the root of the snapshot whether or not it begins with
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

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// What follows the last `/`.
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }

    /// A name below it.
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

impl TryFrom<String> for FilePath {
    type Error = BadFilePath;
    fn try_from(text: String) -> Result<Self, BadFilePath> {
        text.parse()
    }
}

impl From<FilePath> for String {
    fn from(path: FilePath) -> Self {
        path.to_string()
    }
}

/// Query of `GET /v1/cloudsnaps/files`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListFiles {
    /// The cloud snapshot.
    pub snap: CloudsnapId,
    /// The file or directory.
    pub path: FilePath,
    /// Whether the entries of a directory are wanted.
    #[serde(default)]
    pub entries: bool,
    /// Whether the extended attributes of the file or directory are wanted.
    #[serde(default)]
    pub xattrs: bool,
    /// Where it is kept; may be left out.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
}

/// Query of `GET /v1/cloudsnaps/file`; the reply is the bytes, at most 8 MiB of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReadFile {
    /// The cloud snapshot.
    pub snap: CloudsnapId,
    /// The file, which must be a regular one.
    pub path: FilePath,
    /// From where on, in bytes.
    pub offset_bytes: u64,
    /// How many bytes.
    pub len_bytes: u64,
    /// Where it is kept; may be left out.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
}

/// Query of `GET /v1/cloudsnaps/file/runs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListFileRuns {
    /// The cloud snapshot.
    pub snap: CloudsnapId,
    /// The file, which must be a regular one.
    pub path: FilePath,
    /// From where on, in bytes.
    #[serde(default)]
    pub offset_bytes: u64,
    /// Where it is kept; may be left out.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
}

/// A run of bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileRun {
    /// Where it begins, in bytes.
    pub offset_bytes: u64,
    /// How long it is, in bytes.
    pub len_bytes: u64,
}

/// Reply to `GET /v1/cloudsnaps/file/runs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileRuns {
    /// The length of the file, in bytes.
    pub size_bytes: u64,
    /// Where there may be data, ascending. What lies between, before and behind these runs is holes, which
    /// read as zeroes.
    pub data: Vec<FileRun>,
    /// Up to where that is said, in bytes: the end of the file, or before it if there is more than is told at
    /// once.
    pub until_bytes: u64,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device with blocks.
    BlockDevice,
    /// A device with characters.
    CharDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// It is there, and cannot be read.
    Damaged,
}

/// A file inside a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotFile {
    /// Its path.
    pub path: FilePath,
    /// What it is.
    pub kind: FileKind,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// The permission bits, with those above them (07777).
    pub mode: u16,
    /// Who owns it.
    pub uid: u32,
    /// The group that owns it.
    pub gid: u32,
    /// When its content was changed, if that is known.
    pub modified: Option<Timestamp>,
    /// Its number, if that is known: all its names in the snapshot have it in common.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
    /// How many names it has, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub links: Option<u32>,
    /// Where it leads, if it is a symbolic link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<FilePath>,
}

/// Reply to `GET /v1/cloudsnaps/files`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileList {
    /// The file or directory that was asked for.
    pub file: SnapshotFile,
    /// What is in it, by name, if that was asked for.
    pub entries: Vec<SnapshotFile>,
    /// Its extended attributes, if they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub xattrs: Vec<SnapshotXattr>,
}

/// An extended attribute of a file inside a snapshot. Both its parts are bytes, written as those of a path
/// are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotXattr {
    /// Its name with what it begins with, such as `user.comment`.
    pub name: FilePath,
    /// Its value, as the kernel would give it.
    pub value: FilePath,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_one_text_and_come_back() {
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
    fn paths_of_a_shell_begin_at_the_root() {
        for (given, path) in [("etc/passwd", "/etc/passwd"), ("//a/./b/", "/a/b"), ("", "/"), ("/", "/")] {
            assert_eq!(FilePath::from_root(given.as_bytes()).to_string(), path);
        }
        assert_eq!(FilePath::root().join(b"a").join(b"b").as_bytes(), b"/a/b");
        assert_eq!(FilePath::root().join(b"a").name(), b"a");
    }
}
