//! Directories (section "Directory Entries"). Hash trees are read as linear directories, which their format
//! permits.

use crate::{
    ExtError, Filesystem, Inode, InodeNumber,
    bytes::{le16, le32},
    checksum::crc32c,
    inode::{FileKind, flag},
};
use std::ops::ControlFlow;

const HEADER_LEN: usize = 8;
/// Length and file type of `struct ext4_dir_entry_tail`, which holds a block's checksum.
const TAIL_LEN: usize = 12;
const TAIL_KIND: u8 = 0xde;
/// Limit of this reader on the size of a directory, in bytes.
const MAX_BYTES: u64 = 1 << 30;
/// Maximum number of directory bytes read by one lookup or path resolution.
pub(crate) const MAX_LOOKUP_BYTES: u64 = 256 << 20;
/// Offsets of `limit` and `count` in hash tree nodes: in the root after `.` and `..` and the root info, in
/// other nodes after the fake entry that spans the block.
pub(crate) const ROOT_TABLE_AT: usize = 32;
pub(crate) const NODE_TABLE_AT: usize = 8;

/// Entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    /// Name: any bytes except `/` and zero; never empty, `.` or `..`.
    pub name: Vec<u8>,
    /// Inode number.
    pub inode: InodeNumber,
}

/// Returns the length of an entry. With blocks of 64 KiB, the 16-bit field encodes lengths up to 65536.
fn entry_len(stored: u16, block_len: usize) -> usize {
    let len = usize::from(stored);
    match block_len {
        65_536 if stored == u16::MAX || stored == 0 => 65_536,
        65_536 => len & 65_532 | (len & 3) << 16,
        _ => len,
    }
}

/// Returns true for a name that a system call could have created.
pub(crate) fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

/// Stored entry, also of `.` and `..`.
pub(crate) struct StoredEntry<'a> {
    pub name: &'a [u8],
    pub inode: InodeNumber,
    /// File type, or zero without the feature `filetype`.
    pub kind: u8,
}

pub(crate) type Visit<'a> = dyn FnMut(&StoredEntry<'_>) -> ControlFlow<()> + 'a;

/// Subtracts bytes from a budget; returns false if it is used up.
fn spend_from(left: &mut u64, bytes: u64) -> bool {
    let rest = left.checked_sub(bytes);
    *left = rest.unwrap_or(*left);
    rest.is_some()
}

impl Filesystem {
    /// Returns the entries of a directory in storage order, without `.` and `..`. Entries whose names no
    /// system call can create are skipped.
    ///
    /// # Errors
    /// The inode is no directory, is encrypted, has more than `max_entries` entries, is damaged, or the image
    /// cannot be read.
    pub fn read_dir(&self, dir: &Inode, max_entries: usize) -> Result<Vec<DirEntry>, ExtError> {
        self.read_dir_while(dir, max_entries, &mut || true)
    }

    /// Returns the entries of a directory. Calls `may_continue` before each read of a block.
    pub(crate) fn read_dir_while(
        &self,
        dir: &Inode,
        max_entries: usize,
        may_continue: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<DirEntry>, ExtError> {
        let (mut entries, mut left) = (Vec::new(), MAX_BYTES);
        let mut spend = |bytes| may_continue() && spend_from(&mut left, bytes);
        let flow = self.each_entry(dir, &mut spend, &mut |&StoredEntry { name, inode, .. }| {
            if !is_name(name) {
                return ControlFlow::Continue(());
            }
            if entries.len() >= max_entries {
                return ControlFlow::Break(());
            }
            entries.push(DirEntry { name: name.to_vec(), inode });
            ControlFlow::Continue(())
        })?;
        match flow {
            ControlFlow::Continue(()) => Ok(entries),
            ControlFlow::Break(()) => Err(ExtError::TooManyEntries { max_entries }),
        }
    }

    /// Looks up a name in a directory.
    ///
    /// # Errors
    /// [`ExtError::NotFound`], and those of [`read_dir`](Self::read_dir).
    pub fn lookup(&self, dir: &Inode, name: &[u8]) -> Result<InodeNumber, ExtError> {
        let mut left = MAX_LOOKUP_BYTES;
        self.lookup_within(dir, name, &mut left)
    }

    /// Looks up a name and subtracts the bytes read from `left`, the remaining budget.
    pub(crate) fn lookup_within(
        &self,
        dir: &Inode,
        name: &[u8],
        left: &mut u64,
    ) -> Result<InodeNumber, ExtError> {
        let mut found = Err(ExtError::NotFound);
        let _ = self.each_entry(dir, &mut |bytes| spend_from(left, bytes), &mut |entry| {
            if entry.name != name || !is_name(name) {
                return ControlFlow::Continue(());
            }
            found = Ok(entry.inode);
            ControlFlow::Break(())
        })?;
        found
    }

    /// Visits all entries. Calls `may_read` with the bytes before each read. The image's size is no bound: an
    /// image may map the same block into many directories, and many times into one.
    fn each_entry(
        &self,
        dir: &Inode,
        may_read: &mut dyn FnMut(u64) -> bool,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>, ExtError> {
        let mut spend = |bytes| match may_read(bytes) {
            true => Ok(()),
            false => Err(ExtError::unsupported("directories beyond the read limit")),
        };
        if dir.kind != FileKind::Directory {
            return Err(ExtError::NotADirectory);
        }
        if dir.is_encrypted() {
            return Err(ExtError::unsupported("encrypted directory (fscrypt)"));
        }
        let block_len = self.disk().block_len() as u64;
        if dir.has(flag::INLINE_DATA) {
            spend(block_len)?;
            // The inode number of the parent precedes the entries in `i_block`. The rest of the inline data
            // is laid out like a second block.
            let flow = self.each_in_block(dir, &dir.block[4..], visit)?;
            return if flow.is_break() {
                Ok(flow)
            } else {
                self.each_in_block(dir, &self.inline_xattr_data(dir)?, visit)
            };
        }
        if dir.size_bytes > self.disk().blocks().saturating_mul(block_len) {
            return dir.damaged("directory is larger than the filesystem");
        }
        if dir.size_bytes > MAX_BYTES {
            return Err(ExtError::unsupported("directory of more than 1 GiB"));
        }
        let (mut block, end) = (0, dir.size_bytes.div_ceil(block_len));
        while block < end {
            let mapping = self.mapping(dir, block)?;
            let mapping_end = end.min(block.saturating_add(mapping.len));
            if mapping.physical.is_none() {
                // The lookup of a hole may read a block of the mapping.
                spend(block_len)?;
            }
            if let Some(first) = mapping.physical {
                for at in block..mapping_end {
                    spend(block_len)?;
                    let bytes = self.disk().block(first + (at - block))?;
                    self.check_dir_block(dir, at, &bytes)?;
                    let flow = self.each_in_block(dir, &bytes, visit)?;
                    if flow.is_break() {
                        return Ok(flow);
                    }
                }
            }
            block = mapping_end;
        }
        Ok(ControlFlow::Continue(()))
    }

    pub(crate) fn each_in_block(
        &self,
        dir: &Inode,
        block: &[u8],
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>, ExtError> {
        let mut rest = block;
        // Each iteration advances by at least the header of an entry.
        while rest.len() >= HEADER_LEN {
            let len = entry_len(le16(rest, 4), self.disk().block_len());
            let name_len = usize::from(rest[6]);
            if len < HEADER_LEN + name_len || !len.is_multiple_of(4) || len > rest.len() {
                return dir.damaged("invalid length of a directory entry");
            }
            let inode = le32(rest, 0);
            if inode != 0 {
                let name = &rest[HEADER_LEN..HEADER_LEN + name_len];
                let flow = visit(&StoredEntry { name, inode: InodeNumber(inode), kind: rest[7] });
                if flow.is_break() {
                    return Ok(flow);
                }
            }
            rest = &rest[len..];
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Verifies the checksum of a directory block: of a leaf (section "Linear Directories") or of a hash tree
    /// node (section "Hash Tree Directories").
    pub(crate) fn check_dir_block(&self, dir: &Inode, number: u64, block: &[u8]) -> Result<(), ExtError> {
        if !self.superblock().has_checksums() {
            return Ok(());
        }
        let mismatch = || dir.damaged("checksum mismatch of a directory block");
        // Nodes other than the root begin with an entry that spans the block. A checksum tail does not prove
        // a leaf: a block that was a leaf before may still end with one.
        let is_node = number == 0 || entry_len(le16(block, 4), block.len()) == block.len();
        if !dir.has(flag::INDEX) || !is_node {
            let tail_at = block.len() - TAIL_LEN;
            let tail = &block[tail_at..];
            let is_tail =
                le32(tail, 0) == 0 && usize::from(le16(tail, 4)) == TAIL_LEN && tail[7] == TAIL_KIND;
            let sum = crc32c(dir.checksum_seed, &[&block[..tail_at]]);
            return if is_tail && sum == le32(tail, 8) { Ok(()) } else { mismatch() };
        }
        let table_at = if number == 0 { ROOT_TABLE_AT } else { NODE_TABLE_AT };
        let (limit, count) = (usize::from(le16(block, table_at)), usize::from(le16(block, table_at + 2)));
        let tail_at = table_at + limit * 8;
        if count > limit || tail_at + 8 > block.len() {
            return mismatch();
        }
        let (used, tail) = (&block[..table_at + count * 8], &block[tail_at..tail_at + 8]);
        let sum = crc32c(dir.checksum_seed, &[used, &tail[..4], &[0; 4]]);
        if sum == le32(tail, 4) { Ok(()) } else { mismatch() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_length_in_64k_blocks_is_decoded() {
        assert_eq!((entry_len(12, 4096), entry_len(0, 4096)), (12, 0));
        assert_eq!(
            (entry_len(65_535, 65_536), entry_len(0, 65_536), entry_len(65_533, 65_536)),
            (65_536, 65_536, 131_068)
        );
    }

    #[test]
    fn invalid_entry_names_are_rejected() {
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", b"/"] {
            assert!(!is_name(name));
        }
        assert!(is_name(b"...") && is_name(b"\n\xff"));
    }
}
