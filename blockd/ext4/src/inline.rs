//! Small files and directories stored in their inodes (section "Inline Data").

use crate::{ExtError, Filesystem, Inode, xattr::INLINE_DATA};

impl Filesystem {
    /// Returns the inline data beyond `i_block`: the extended attribute `system.data`.
    pub(crate) fn inline_xattr_data(&self, inode: &Inode) -> Result<Vec<u8>, ExtError> {
        for entry in self.inode_xattr_entries(inode)? {
            if entry.is(INLINE_DATA) {
                return self.xattr_value(inode, &entry);
            }
        }
        Ok(Vec::new())
    }

    /// Fills `buf` with inline data from `offset_bytes` on; bytes beyond the stored data are zero.
    pub(crate) fn read_inline(
        &self,
        inode: &Inode,
        offset_bytes: u64,
        buf: &mut [u8],
    ) -> Result<(), ExtError> {
        let mut content = inode.block.to_vec();
        content.extend_from_slice(&self.inline_xattr_data(inode)?);
        let from = usize::try_from(offset_bytes).unwrap_or(usize::MAX).min(content.len());
        let stored = &content[from..content.len().min(from.saturating_add(buf.len()))];
        let (front, rest) = buf.split_at_mut(stored.len());
        front.copy_from_slice(stored);
        rest.fill(0);
        Ok(())
    }
}
