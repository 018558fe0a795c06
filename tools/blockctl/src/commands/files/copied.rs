//! Result of a copy, and the extended attributes of its files.

use super::{
    dir_handle::Original,
    source::check_count,
    unreadable::{Unreadable, files_or_directories, is_of_file},
};
use crate::failure::Failure;
use blockd_api::browse::{FilePath, SnapshotXattr};
use rustix::{
    fs::{XattrFlags, fsetxattr},
    io::Errno,
};
use schemars::JsonSchema;
use serde::Serialize;
use std::{collections::HashMap, fs::File, io};

/// Maximum number of listed refused attributes; all are counted.
const MAX_REFUSED_NAMED: usize = 20;

#[derive(Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Copied {
    pub files: u64,
    pub directories: u64,
    pub links: u64,
    /// Hard links to copied files.
    pub hard_links: u64,
    /// Existing files and links that were skipped.
    pub skipped: u64,
    pub bytes: u64,
    /// Files and directories without some attributes: the sum of the next two counters.
    pub without_xattrs: u64,
    /// Files and directories with attributes that the destination refused.
    pub xattrs_refused: u64,
    /// Files and directories whose attributes are unreadable in the snapshot.
    pub xattrs_damaged: u64,
    /// Files and directories with attributes of kinds that are never copied.
    pub xattrs_left_out: u64,
    /// First refused attributes with their errors.
    pub refused_xattrs: Vec<RefusedXattr>,
    /// Skipped devices, FIFOs and sockets.
    pub left_out: Vec<FilePath>,
    #[serde(flatten)]
    pub unreadable: Unreadable,
    /// Number of known files, including those still to be copied.
    #[serde(skip)]
    pub found: usize,
    /// Copied files with several names, by inode number.
    #[serde(skip)]
    pub named: HashMap<u64, Original>,
}

/// Extended attribute that could not be set.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RefusedXattr {
    path: FilePath,
    name: FilePath,
    reason: String,
}

impl Copied {
    /// Adds to the number of found files, up to the limit.
    pub fn count_found(&mut self, count: usize, from: &FilePath) -> Result<(), Failure> {
        self.found = self.found.saturating_add(count);
        check_count(self.found, from)
    }

    /// Counts the results for a file's extended attributes; unreadable ones have none.
    pub fn note_xattrs(&mut self, path: &FilePath, set: Option<XattrsSet>) {
        let Some(set) = set else {
            self.xattrs_damaged += 1;
            self.without_xattrs += 1;
            return;
        };
        self.xattrs_left_out += u64::from(set.left_out);
        if set.refused.is_empty() {
            return;
        }
        self.xattrs_refused += 1;
        self.without_xattrs += 1;
        let room = MAX_REFUSED_NAMED.saturating_sub(self.refused_xattrs.len());
        self.refused_xattrs.extend(set.refused.into_iter().take(room).map(|(name, error)| RefusedXattr {
            path: path.clone(),
            name: FilePath::from_bytes(name),
            reason: io::Error::from(error).to_string(),
        }));
    }

    /// Returns the messages about extended attributes.
    pub fn xattr_notes(&self) -> Vec<String> {
        let named = self.refused_xattrs.iter();
        let mut notes: Vec<String> = named
            .map(|one| format!("{}: {} cannot be set there: {}", one.path, one.name, one.reason))
            .collect();
        for (count, problem) in [
            (self.xattrs_refused, "could not be set where they went"),
            (self.xattrs_damaged, "are damaged in the snapshot"),
            (self.xattrs_left_out, "are not copied: only user.* and access lists are"),
        ] {
            if count > 0 {
                notes.push(format!("extended attributes of {} {problem}", files_or_directories(count)));
            }
        }
        notes
    }
}

/// Prefixes of copied extended attributes: user attributes and access lists. Others grant privileges or
/// belong to the source system.
const XATTRS_COPIED: [&[u8]; 2] = [b"user.", b"system.posix_acl_"];

/// Returns the extended attributes of a file; `None` if they are damaged, so that the content is still
/// copied.
pub fn readable(xattrs: Result<Vec<SnapshotXattr>, Failure>) -> Result<Option<Vec<SnapshotXattr>>, Failure> {
    match xattrs {
        Err(failure) if is_of_file(&failure) => Ok(None),
        other => other.map(Some),
    }
}

/// Result for the extended attributes of a file.
#[derive(Default)]
pub struct XattrsSet {
    /// Refused attributes with their errors.
    refused: Vec<(Vec<u8>, Errno)>,
    /// The file has attributes of kinds that are never copied.
    left_out: bool,
}

/// Sets the extended attributes of copied kinds.
pub fn set_xattrs(open: &File, xattrs: &[SnapshotXattr]) -> XattrsSet {
    let mut set = XattrsSet::default();
    for xattr in xattrs {
        let name = xattr.name.as_bytes();
        if !XATTRS_COPIED.iter().any(|prefix| name.starts_with(prefix)) {
            set.left_out = true;
        } else if let Err(error) = fsetxattr(open, name, xattr.value.as_bytes(), XattrFlags::empty()) {
            set.refused.push((name.to_vec(), error));
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattr(name: &str) -> SnapshotXattr {
        let bytes = |text: &str| FilePath::from_bytes(text.as_bytes().to_vec());
        SnapshotXattr { name: bytes(name), value: bytes("value") }
    }

    #[test]
    fn refused_damaged_and_skipped_attributes_are_counted() {
        let path = FilePath::root().join(b"file");
        let mut copied = Copied::default();
        // Device files have no user attributes, not even for root.
        let device = File::open("/dev/null").unwrap();
        copied.note_xattrs(&path, Some(set_xattrs(&device, &[])));
        assert!(copied.xattr_notes().is_empty() && copied.without_xattrs == 0, "a file without any");
        copied.note_xattrs(&path, Some(set_xattrs(&device, &[xattr("security.selinux")])));
        assert_eq!((copied.xattrs_left_out, copied.without_xattrs), (1, 0));
        copied.note_xattrs(&path, None);
        assert_eq!((copied.xattrs_damaged, copied.xattrs_refused, copied.without_xattrs), (1, 0, 1));
        for _ in 0..MAX_REFUSED_NAMED {
            copied.note_xattrs(&path, Some(set_xattrs(&device, &[xattr("user.a"), xattr("user.b")])));
        }
        assert_eq!((copied.xattrs_refused, copied.without_xattrs), (20, 21));
        let named = &copied.refused_xattrs;
        assert!(named.len() == MAX_REFUSED_NAMED && named[1].name.to_string() == "user.b");
        assert!(!named[0].reason.is_empty());
        assert_eq!(copied.xattr_notes().len(), MAX_REFUSED_NAMED + 3);
    }
}
