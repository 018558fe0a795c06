//! Directories (section "Directory Entries"). Hash trees are read as the lists that they are made to look
//! like.

use crate::{
    ExtError, Filesystem, Inode, InodeNumber,
    bytes::{le16, le32},
    checksum::crc32c,
    inode::{FileKind, flag},
};
use std::ops::ControlFlow;

const HEADER_LEN: usize = 8;
/// Length of the entry with a block's checksum.
const TAIL_LEN: usize = 12;
const TAIL_KIND: u8 = 0xde;
/// Bytes of a directory that are read at most.
const MAX_BYTES: u64 = 1 << 30;
/// Bytes of directories that are read for one question at most.
pub(crate) const MAX_LOOKUP_BYTES: u64 = 256 << 20;
/// The words in front of the table of a hash tree's node: in the root, behind its two entries; in others,
/// behind the one that covers the block.
const ROOT_TABLE_AT: usize = 32;
const NODE_TABLE_AT: usize = 8;

/// A name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    /// The name: any bytes but `/` and zero, never `.` or `..`.
    pub name: Vec<u8>,
    /// Inode of the name.
    pub inode: InodeNumber,
}

/// The length of an entry: where blocks are of 64 KiB, one that fills its block does not fit into its two
/// bytes.
fn entry_len(stored: u16, block_len: usize) -> usize {
    let len = usize::from(stored);
    match block_len {
        65_536 if stored == u16::MAX || stored == 0 => 65_536,
        65_536 => len & 65_532 | (len & 3) << 16,
        _ => len,
    }
}

/// Returns true for a name that a system call could have created.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

type Visit<'a> = dyn FnMut(&[u8], InodeNumber) -> ControlFlow<()> + 'a;

impl Filesystem {
    /// Returns the names in a directory in storage order, up to a maximum. Names that no system call could
    /// have created are skipped, as no lookup could find them.
    ///
    /// # Errors
    /// It is no directory, is encrypted, has more entries, is damaged, or the image cannot be read.
    pub fn read_dir(&self, dir: &Inode, most: usize) -> Result<Vec<DirEntry>, ExtError> {
        let (mut entries, mut left) = (Vec::new(), MAX_BYTES);
        let flow = self.each_entry(dir, &mut left, &mut |name, inode| {
            if !is_name(name) {
                return ControlFlow::Continue(());
            }
            if entries.len() >= most {
                return ControlFlow::Break(());
            }
            entries.push(DirEntry { name: name.to_vec(), inode });
            ControlFlow::Continue(())
        })?;
        match flow {
            ControlFlow::Continue(()) => Ok(entries),
            ControlFlow::Break(()) => Err(ExtError::TooManyEntries { max_entries: most }),
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

    /// The same; so many bytes are left to be read for it.
    pub(crate) fn lookup_within(
        &self,
        dir: &Inode,
        name: &[u8],
        left: &mut u64,
    ) -> Result<InodeNumber, ExtError> {
        let mut found = Err(ExtError::NotFound);
        let _ = self.each_entry(dir, left, &mut |other, inode| {
            if other != name || !is_name(name) {
                return ControlFlow::Continue(());
            }
            found = Ok(inode);
            ControlFlow::Break(())
        })?;
        found
    }

    /// Visits them all, as long as there are bytes left to be read for it. The same blocks may stand in many
    /// directories, and many times in one, so what they take together is no bound.
    fn each_entry(
        &self,
        dir: &Inode,
        left: &mut u64,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>, ExtError> {
        let mut spend = |bytes: u64| match left.checked_sub(bytes) {
            Some(rest) => {
                *left = rest;
                Ok(())
            }
            None => Err(ExtError::unsupported("directories that are too long to look for a name in them")),
        };
        if dir.kind != FileKind::Directory {
            return Err(ExtError::NotADirectory);
        }
        if dir.is_encrypted() {
            return Err(ExtError::unsupported("encryption of names (fscrypt)"));
        }
        let block_len = self.disk().block_len() as u64;
        if dir.has(flag::INLINE_DATA) {
            spend(block_len)?;
            // In front of the entries in the inode stands the number of the directory above. Behind them is
            // another block.
            let flow = self.each_in_block(dir, &dir.block[4..], visit)?;
            return if flow.is_break() {
                Ok(flow)
            } else {
                self.each_in_block(dir, &self.inline_rest(dir)?, visit)
            };
        }
        if dir.size_bytes > MAX_BYTES || dir.size_bytes > self.disk().blocks().saturating_mul(block_len) {
            return dir.damaged("it is larger than a directory can be");
        }
        let (mut block, end) = (0, dir.size_bytes.div_ceil(block_len));
        while block < end {
            let run = self.block_run(dir, block)?;
            let run_end = end.min(block.saturating_add(run.len));
            if run.stored.is_none() {
                // Finding out that nothing is there takes a block or more.
                spend(block_len)?;
            }
            if let Some(first) = run.stored {
                for at in block..run_end {
                    spend(block_len)?;
                    let bytes = self.disk().block(first + (at - block))?;
                    self.check_dir_block(dir, at, &bytes)?;
                    let flow = self.each_in_block(dir, &bytes, visit)?;
                    if flow.is_break() {
                        return Ok(flow);
                    }
                }
            }
            block = run_end;
        }
        Ok(ControlFlow::Continue(()))
    }

    fn each_in_block(
        &self,
        dir: &Inode,
        block: &[u8],
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>, ExtError> {
        let mut rest = block;
        // Each turn goes at least an entry's header forward.
        while rest.len() >= HEADER_LEN {
            let len = entry_len(le16(rest, 4), self.disk().block_len());
            // Its upper half is the kind of the file, or zero where no kinds are stored.
            let name_len = usize::from(rest[6]);
            if len < HEADER_LEN + name_len || !len.is_multiple_of(4) || len > rest.len() {
                return dir.damaged("one of its entries is not as long as it can be");
            }
            let inode = le32(rest, 0);
            if inode != 0 {
                let flow = visit(&rest[HEADER_LEN..HEADER_LEN + name_len], InodeNumber(inode));
                if flow.is_break() {
                    return Ok(flow);
                }
            }
            rest = &rest[len..];
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Checks a block of a directory against its checksum: that of a list (section "Linear Directories"), or
    /// that of a node of a hash tree (section "Hash Tree Directories").
    fn check_dir_block(&self, dir: &Inode, number: u64, block: &[u8]) -> Result<(), ExtError> {
        if !self.superblock().has_checksums() {
            return Ok(());
        }
        let wrong = || dir.damaged("one of its blocks does not match its checksum");
        // Other nodes than the root begin with an entry that covers the block. What ends like a list may be
        // one that became a node: that is no sign.
        let is_node = number == 0 || entry_len(le16(block, 4), block.len()) == block.len();
        if !dir.has(flag::INDEX) || !is_node {
            let tail_at = block.len() - TAIL_LEN;
            let tail = &block[tail_at..];
            let is_tail =
                le32(tail, 0) == 0 && usize::from(le16(tail, 4)) == TAIL_LEN && tail[7] == TAIL_KIND;
            let sum = crc32c(dir.checksum_seed, &[&block[..tail_at]]);
            return if is_tail && sum == le32(tail, 8) { Ok(()) } else { wrong() };
        }
        let table_at = if number == 0 { ROOT_TABLE_AT } else { NODE_TABLE_AT };
        let (most, count) = (usize::from(le16(block, table_at)), usize::from(le16(block, table_at + 2)));
        let tail_at = table_at + most * 8;
        if count > most || tail_at + 8 > block.len() {
            return wrong();
        }
        let (used, tail) = (&block[..table_at + count * 8], &block[tail_at..tail_at + 8]);
        let sum = crc32c(dir.checksum_seed, &[used, &tail[..4], &[0; 4]]);
        if sum == le32(tail, 4) { Ok(()) } else { wrong() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_entries() {
        assert_eq!((entry_len(12, 4096), entry_len(0, 4096)), (12, 0));
        assert_eq!(
            (entry_len(65_535, 65_536), entry_len(0, 65_536), entry_len(65_533, 65_536)),
            (65_536, 65_536, 131_068)
        );
    }

    #[test]
    fn names_that_no_system_call_makes() {
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", b"/"] {
            assert!(!is_name(name));
        }
        assert!(is_name(b"...") && is_name(b"\n\xff"));
    }
}
