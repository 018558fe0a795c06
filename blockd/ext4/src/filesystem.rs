//! Open filesystems and the contents of their files.

use crate::{
    ExtError, FileExtent, FileKind, Inode, InodeNumber, ReadAt, Structure,
    disk::Disk,
    error::damaged,
    features::bit,
    inode::flag,
    journal::{self, JournalState},
    superblock::{self, Superblock},
};
use std::sync::Arc;

/// Maximum length of a symbolic link's target (`PATH_MAX`).
const MAX_LINK_LEN: u64 = 4096;

/// Information about a filesystem.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Info {
    /// Block size, in bytes.
    pub block_len_bytes: u32,
    /// Size, in bytes.
    pub size_bytes: u64,
    /// Volume label (`s_volume_name`); any bytes except zero.
    pub label: Vec<u8>,
    /// UUID.
    pub uuid: [u8; 16],
    /// State of the journal.
    pub journal: JournalState,
}

/// Filesystem open for reading, also by several threads concurrently.
pub struct Filesystem {
    disk: Disk,
    superblock: Superblock,
    journal: JournalState,
}

impl std::fmt::Debug for Filesystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filesystem").field("superblock", &self.superblock).finish_non_exhaustive()
    }
}

impl Filesystem {
    /// Opens a filesystem without journal replay, which suffices to locate its [metadata](Self::metadata).
    ///
    /// # Errors
    /// See [`open`](Self::open).
    pub fn open_without_replay(source: Arc<dyn ReadAt>) -> Result<Self, ExtError> {
        let superblock = superblock::read(&*source)?;
        let disk = Disk::new(source, superblock.block_len, superblock.blocks);
        Ok(Self { disk, superblock, journal: JournalState::None })
    }

    /// Opens a filesystem. If its journal needs recovery, this reads the used part of the journal and replays
    /// it in memory.
    ///
    /// # Errors
    /// The image holds no filesystem or cannot be read, a feature is unsupported, or the superblock or the
    /// journal is damaged.
    pub fn open(source: Arc<dyn ReadAt>) -> Result<Self, ExtError> {
        let mut this = Self::open_without_replay(source)?;
        if !this.superblock.features.has_compat(bit::COMPAT_HAS_JOURNAL) {
            return Ok(this);
        }
        this.journal = JournalState::Clean;
        if !this.superblock.features.has_incompat(bit::INCOMPAT_RECOVER) {
            // As in the kernel: the contents of such a journal are stale.
            return Ok(this);
        }
        if this.superblock.journal_inode == 0 {
            return match this.superblock.journal_device {
                0 => damaged(Structure::Journal, "recovery needed, but neither inode nor device recorded"),
                _ => Err(ExtError::unsupported("recovery from an external journal")),
            };
        }
        let number = InodeNumber(this.superblock.journal_inode);
        let (overlay, state) = journal::replay(&this, this.disk.source(), number)?;
        this.disk.set_overlay(overlay);
        this.journal = state;
        // The journal may contain a newer superblock, such as after a resize.
        let (block, within) = superblock::location(this.superblock.block_len);
        let mut bytes = [0; superblock::LEN];
        this.disk.read(block, within, &mut bytes)?;
        let replayed = superblock::parse(&bytes, this.disk.source().size_bytes())?;
        if replayed.block_len != this.superblock.block_len {
            return damaged(Structure::Journal, "its superblock copy has another block size");
        }
        this.disk.set_blocks(replayed.blocks);
        this.superblock = replayed;
        Ok(this)
    }

    /// Returns information about the filesystem.
    pub fn info(&self) -> Info {
        Info {
            block_len_bytes: self.superblock.block_len,
            size_bytes: self.superblock.blocks * u64::from(self.superblock.block_len),
            label: self.superblock.label.clone(),
            uuid: self.superblock.uuid,
            journal: self.journal,
        }
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(crate) fn superblock(&self) -> &Superblock {
        &self.superblock
    }

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
