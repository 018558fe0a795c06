//! A filesystem that is open, and the contents of its files.

use crate::{
    ExtError, FileKind, Inode, InodeNumber, ReadAt, Run,
    disk::Disk,
    error::damaged,
    features::bit,
    inode::flag,
    journal::{self, JournalState},
    superblock::{self, Superblock},
};
use std::sync::Arc;

/// The longest target of a link (`PATH_MAX`).
const MAX_LINK_LEN: u64 = 4096;
/// A shorter target stands in `i_block`.
const FAST_LINK_LEN: u64 = 60;

/// Information about a filesystem.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Info {
    /// Length of a block in bytes.
    pub block_len_bytes: u32,
    /// Size, in bytes.
    pub size_bytes: u64,
    /// Its name.
    pub label: Vec<u8>,
    /// UUID.
    pub uuid: [u8; 16],
    /// State of its journal.
    pub journal: JournalState,
}

/// A filesystem that is open for reading. Several threads can read at once.
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
    /// Opens it without journal replay, which suffices to find [the metadata](Self::metadata).
    ///
    /// # Errors
    /// See [`open`](Self::open).
    pub fn open_as_is(source: Arc<dyn ReadAt>) -> Result<Self, ExtError> {
        let superblock = superblock::read(&*source)?;
        let disk = Disk::new(source, superblock.block_len, superblock.blocks);
        Ok(Self { disk, superblock, journal: JournalState::None })
    }

    /// Opens it. If its journal was not played back, that is read here: the part of it that is in use.
    ///
    /// # Errors
    /// There is none, it uses what is not read here, it is damaged in a place that everything hangs on, or
    /// the image cannot be read.
    pub fn open(source: Arc<dyn ReadAt>) -> Result<Self, ExtError> {
        let mut this = Self::open_as_is(source)?;
        if !this.superblock.features.has_compat(bit::COMPAT_HAS_JOURNAL) {
            return Ok(this);
        }
        this.journal = JournalState::Clean;
        if !this.superblock.features.has_incompat(bit::INCOMPAT_RECOVER) {
            // As in the kernel: what such a journal holds is stale.
            return Ok(this);
        }
        if this.superblock.journal_inode == 0 {
            let what = match this.superblock.journal_device {
                0 => return damaged(crate::Place::Journal, "it was not played back, and is nowhere"),
                _ => "a journal on another device, which was not played back",
            };
            return Err(ExtError::unsupported(what));
        }
        let number = InodeNumber(this.superblock.journal_inode);
        let (overlay, state) = journal::replay(&this, this.disk.source(), number)?;
        this.disk.set_overlay(overlay);
        this.journal = state;
        // The journal may have another superblock: that of a filesystem that has just grown, for example.
        let (block, within) = superblock::place(this.superblock.block_len);
        let mut bytes = [0; superblock::LEN];
        this.disk.read(block, within, &mut bytes)?;
        let replayed = superblock::parse(&bytes, this.disk.source().size_bytes())?;
        if replayed.block_len != this.superblock.block_len {
            return damaged(crate::Place::Journal, "it changes the length of blocks");
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
                Err(ExtError::unsupported("encryption of files (fscrypt)"))
            }
            FileKind::Regular => Ok(()),
            FileKind::Directory => Err(ExtError::IsADirectory),
            _ => Err(ExtError::NotAFile),
        }
    }

    /// Fills `buf` with the bytes of a regular file from `offset_bytes` on; says how many there are, fewer
    /// than asked for only at its end. What was never written reads as zeroes.
    ///
    /// # Errors
    /// It is no regular file, is encrypted, is damaged, or the image cannot be read.
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

    /// The run of a regular file that holds the byte at `offset_bytes`.
    ///
    /// # Errors
    /// It is no regular file, is encrypted, is damaged, or the image cannot be read.
    pub fn run_at(&self, inode: &Inode, offset_bytes: u64) -> Result<Run, ExtError> {
        Self::check_file(inode)?;
        let size = inode.size_bytes;
        if inode.has(flag::INLINE_DATA) || offset_bytes >= size {
            return Ok(Run { is_data: offset_bytes < size, end_bytes: size });
        }
        let block_len = self.disk.block_len() as u64;
        let block = offset_bytes / block_len;
        let run = self.block_run(inode, block)?;
        let end_bytes = block.saturating_add(run.len).saturating_mul(block_len).min(size);
        Ok(Run { is_data: run.stored.is_some(), end_bytes })
    }

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    /// It is no link, is encrypted, is damaged, or the image cannot be read.
    pub fn read_link(&self, inode: &Inode) -> Result<Vec<u8>, ExtError> {
        if inode.kind != FileKind::Symlink {
            return Err(ExtError::NotALink);
        }
        if inode.is_encrypted() {
            return Err(ExtError::unsupported("encryption of links (fscrypt)"));
        }
        if inode.size_bytes == 0 || inode.size_bytes > MAX_LINK_LEN {
            return inode.damaged("its target is longer than any, or empty");
        }
        let len = inode.size_bytes as usize;
        let mut target = vec![0; len];
        if inode.has(flag::INLINE_DATA) {
            self.read_inline(inode, 0, &mut target)?;
        } else if inode.size_bytes < FAST_LINK_LEN && !inode.has(flag::EXTENTS) {
            target.copy_from_slice(&inode.block[..len]);
        } else {
            self.read_blocks(inode, 0, &mut target)?;
        }
        if target.contains(&0) {
            return inode.damaged("its target has a zero byte in it");
        }
        Ok(target)
    }
}
