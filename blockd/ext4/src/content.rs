//! Contents of files and symbolic links.

use crate::{ExtError, FileExtent, FileKind, Filesystem, Inode, inode::flag};

/// Maximum length of a symbolic link's target (`PATH_MAX`).
const MAX_LINK_LEN: u64 = 4096;

impl Filesystem {
    fn check_file(inode: &Inode) -> Result<(), ExtError> {
        match inode.kind {
            FileKind::Regular if inode.is_encrypted() => {
                Err(ExtError::unsupported("encrypted file (fscrypt)"))
            }
            FileKind::Regular => Ok(()),
            FileKind::Directory => Err(ExtError::IsADirectory),
            _ => Err(ExtError::NotAFile),
        }
    }

    /// Fills `buf` with the bytes of a regular file from `offset_bytes` on. Returns the number of bytes read,
    /// which is less than the length of `buf` only at the end of the file. Holes and unwritten extents read
    /// as zeroes.
    ///
    /// # Errors
    /// The inode is no regular file, is encrypted, is damaged, or the image cannot be read.
    pub fn read(&self, inode: &Inode, offset_bytes: u64, buf: &mut [u8]) -> Result<usize, ExtError> {
        Self::check_file(inode)?;
        let left = inode.size_bytes.saturating_sub(offset_bytes);
        let len = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let buf = &mut buf[..len];
        if inode.has(flag::INLINE_DATA) {
            self.read_inline(inode, offset_bytes, buf)?;
        } else {
            self.read_blocks(inode, offset_bytes, buf)?;
        }
        Ok(len)
    }

    /// Returns the extent or hole of a regular file at `offset_bytes`. At or beyond the end of the file, the
    /// result is no data and ends at the end of the file.
    ///
    /// # Errors
    /// The inode is no regular file, is encrypted, is damaged, or the image cannot be read.
    pub fn extent_at(&self, inode: &Inode, offset_bytes: u64) -> Result<FileExtent, ExtError> {
        Self::check_file(inode)?;
        let size = inode.size_bytes;
        if inode.has(flag::INLINE_DATA) || offset_bytes >= size {
            return Ok(FileExtent { is_data: offset_bytes < size, end_bytes: size });
        }
        let block_len = self.disk.block_len() as u64;
        let block = offset_bytes / block_len;
        let mapping = self.mapping(inode, block)?;
        let end_bytes = block.saturating_add(mapping.len).saturating_mul(block_len).min(size);
        Ok(FileExtent { is_data: mapping.physical.is_some(), end_bytes })
    }

    /// Returns the target of a symbolic link: any bytes except zero, at most 4096.
    ///
    /// # Errors
    /// The inode is no symbolic link, is encrypted, is damaged, or the image cannot be read.
    pub fn read_link(&self, inode: &Inode) -> Result<Vec<u8>, ExtError> {
        if inode.kind != FileKind::Symlink {
            return Err(ExtError::NotALink);
        }
        if inode.is_encrypted() {
            return Err(ExtError::unsupported("encrypted symbolic link (fscrypt)"));
        }
        if inode.size_bytes == 0 || inode.size_bytes > MAX_LINK_LEN {
            return inode.damaged("invalid length of a symbolic link's target");
        }
        let len = inode.size_bytes as usize;
        let mut target = vec![0; len];
        if inode.has(flag::INLINE_DATA) {
            self.read_inline(inode, 0, &mut target)?;
        } else if inode.is_fast_link() {
            target.copy_from_slice(&inode.block[..len]);
        } else {
            self.read_blocks(inode, 0, &mut target)?;
        }
        if target.contains(&0) {
            return inode.damaged("zero byte in a symbolic link's target");
        }
        Ok(target)
    }
}
