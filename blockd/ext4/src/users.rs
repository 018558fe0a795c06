//! Files that use given parts of an image.

use crate::{ExtError, FileKind, Filesystem, Inode, InodeNumber, inode::flag};
use std::{collections::HashSet, ops::Range};

/// Maximum number of entries of a directory.
const MAX_ENTRIES: usize = 1_000_000;
/// Maximum length of a path in bytes (`PATH_MAX`).
const MAX_PATH_LEN: usize = 4096;
/// Maximum length of the paths of directories that are still to be read, in bytes.
const MAX_PENDING_BYTES: usize = 64 << 20;

/// Files that use parts of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users {
    /// Index of a range, and the path of a file or directory with data there, from the root. A file with
    /// several links has each of its paths.
    pub found: Vec<(usize, Vec<u8>)>,
    /// True if the search has not visited all files, or could not read some.
    pub is_incomplete: bool,
}

impl Filesystem {
    /// Searches the files and directories with data in byte ranges of the image, up to `max_found`. Calls
    /// `may_continue` before each step, of at most one read of the map of a file or of a directory block.
    /// Damaged files and directories, which the ranges may be part of, are skipped, and paths of more than
    /// 4096 bytes.
    pub fn users_of(
        &self,
        ranges: &[Range<u64>],
        max_found: usize,
        may_continue: &mut dyn FnMut() -> bool,
    ) -> Users {
        let mut users = Users::default();
        let mut pending = vec![(InodeNumber::ROOT, Vec::new())];
        let mut seen = HashSet::from([InodeNumber::ROOT]);
        let mut pending_bytes = 0;
        while let Some((number, path)) = pending.pop() {
            pending_bytes -= path.len();
            if !may_continue() {
                users.is_incomplete = true;
                break;
            }
            let read = self
                .inode(number)
                .and_then(|dir| Ok((self.read_dir_while(&dir, MAX_ENTRIES, may_continue)?, dir)));
            let Ok((entries, dir)) = read else {
                users.is_incomplete = true;
                continue;
            };
            self.match_ranges(&dir, &path, ranges, &mut users, may_continue);
            for entry in entries {
                if !may_continue() || users.found.len() >= max_found {
                    users.is_incomplete = true;
                    users.found.truncate(max_found);
                    return users;
                }
                if path.len() + 1 + entry.name.len() > MAX_PATH_LEN {
                    users.is_incomplete = true;
                    continue;
                }
                let path = [path.as_slice(), b"/", &entry.name].concat();
                match self.inode(entry.inode) {
                    Ok(inode) if inode.kind == FileKind::Directory => {
                        let is_new = seen.insert(entry.inode);
                        if is_new && pending_bytes + path.len() <= MAX_PENDING_BYTES {
                            pending_bytes += path.len();
                            pending.push((entry.inode, path));
                        } else {
                            users.is_incomplete = true;
                        }
                    }
                    Ok(inode) => self.match_ranges(&inode, &path, ranges, &mut users, may_continue),
                    Err(_) => users.is_incomplete = true,
                }
            }
        }
        users.found.truncate(max_found);
        users
    }

    /// Adds a file to the result if it has data in the ranges.
    fn match_ranges(
        &self,
        inode: &Inode,
        path: &[u8],
        ranges: &[Range<u64>],
        users: &mut Users,
        may_continue: &mut dyn FnMut() -> bool,
    ) {
        let has_blocks = matches!(inode.kind, FileKind::Regular | FileKind::Directory)
            || inode.kind == FileKind::Symlink && !inode.is_fast_link();
        if !has_blocks || inode.has(flag::INLINE_DATA) {
            return;
        }
        let mut matched = HashSet::new();
        if self.match_extents(inode, ranges, &mut matched, may_continue).is_err() {
            users.is_incomplete = true;
        }
        let path = if path.is_empty() { b"/" } else { path };
        let mut matched: Vec<_> = matched.into_iter().collect();
        matched.sort_unstable();
        users.found.extend(matched.into_iter().map(|index| (index, path.to_vec())));
    }

    fn match_extents(
        &self,
        inode: &Inode,
        ranges: &[Range<u64>],
        matched: &mut HashSet<usize>,
        may_continue: &mut dyn FnMut() -> bool,
    ) -> Result<(), ExtError> {
        let block_len = self.disk().block_len() as u64;
        let end = inode.size_bytes.div_ceil(block_len);
        let mut at = 0;
        while at < end {
            if !may_continue() {
                return Err(ExtError::unsupported("search of files beyond its limit"));
            }
            let mapping = self.mapping(inode, at)?;
            // A damaged map must not cause a loop: each step advances.
            let len = mapping.len.clamp(1, end - at);
            if let Some(first) = mapping.physical {
                let data =
                    first.saturating_mul(block_len)..(first.saturating_add(len)).saturating_mul(block_len);
                let is_inside = |range: &Range<u64>| range.start < data.end && data.start < range.end;
                matched.extend((0..ranges.len()).filter(|index| is_inside(&ranges[*index])));
            }
            at += len;
        }
        Ok(())
    }
}
