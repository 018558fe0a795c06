//! Orphan list and orphan file: inodes that recovery deletes or truncates.

use super::{limits::Stop, state::Check};
use crate::{InodeNumber, Structure, bytes::le32, checksum::crc32c};

/// Memory of an orphan, in bytes.
const ORPHAN_BYTES: u64 = 16;
/// Deletion time of an inode, which is the next orphan on the list.
const DELETED_AT: usize = 0x14;
/// Maximum length of the orphan file, which the kernel enforces, in bytes.
const MAX_FILE_BYTES: u64 = 8 << 20;
/// Length and magic number of the end of a block of the orphan file.
const TAIL_LEN: usize = 8;
const TAIL_MAGIC: u32 = 0x0b10_ca04;

impl Check<'_> {
    pub fn read_orphans(&mut self) -> Result<(), Stop> {
        let mut number = self.special.last_orphan;
        while number != 0 {
            if !self.is_orphan_number(number) || !self.add_orphan(number)? {
                self.add_damage(Structure::Superblock, "invalid inode on the orphan list");
                return Ok(());
            }
            let Some(raw) = self.raw_inode(InodeNumber(number))? else { return Ok(()) };
            number = le32(&raw, DELETED_AT);
        }
        if self.special.orphan_file == 0 {
            return Ok(());
        }
        self.read_orphan_file(InodeNumber(self.special.orphan_file))
    }

    fn is_orphan_number(&self, number: u32) -> bool {
        (self.special.first_inode..=self.fs.superblock().inodes).contains(&number)
    }

    /// Adds an orphan; returns false if it was found before.
    fn add_orphan(&mut self, number: u32) -> Result<bool, Stop> {
        self.memory.take(ORPHAN_BYTES)?;
        Ok(self.orphans.insert(number))
    }

    fn read_orphan_file(&mut self, number: InodeNumber) -> Result<(), Stop> {
        let inode = self.fs.inode(number);
        let Some(inode) = self.found(inode)? else { return Ok(()) };
        let (fs, block_len) = (self.fs, self.fs.disk().block_len());
        let invalid = "invalid block of the orphan file";
        if inode.size_bytes > MAX_FILE_BYTES {
            self.add_damage(Structure::Inode(number), "orphan file of more than 8 MiB");
            return Ok(());
        }
        for at in 0..inode.size_bytes / block_len as u64 {
            let mapping = fs.mapping(&inode, at);
            let Some(mapping) = self.found(mapping)? else { return Ok(()) };
            let Some(block) = mapping.physical else {
                self.add_damage(Structure::Inode(number), invalid);
                return Ok(());
            };
            let Some(bytes) = self.read_block(block)? else { return Ok(()) };
            let (entries, tail) = bytes.split_at(block_len - TAIL_LEN);
            let sum = || crc32c(inode.checksum_seed, &[&block.to_le_bytes(), entries]);
            if le32(tail, 0) != TAIL_MAGIC || (fs.superblock().has_checksums() && sum() != le32(tail, 4)) {
                self.add_damage(Structure::Inode(number), invalid);
                return Ok(());
            }
            for orphan in entries.chunks_exact(4).map(|entry| le32(entry, 0)).filter(|orphan| *orphan != 0) {
                if self.is_orphan_number(orphan) {
                    self.add_orphan(orphan)?;
                } else {
                    self.add_damage(Structure::Inode(number), "invalid inode in the orphan file");
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Reads an inode without a check; `None` with a finding if it is damaged.
    fn raw_inode(&mut self, number: InodeNumber) -> Result<Option<Vec<u8>>, Stop> {
        let sb = self.fs.superblock();
        let index = number.0 - 1;
        let table = self.fs.inode_table(index / sb.inodes_per_group);
        let Some(table) = self.found(table)? else { return Ok(None) };
        let at = u64::from(index % sb.inodes_per_group) * u64::from(sb.inode_len);
        let mut raw = vec![0; sb.inode_len.into()];
        self.count_read(raw.len() as u64)?;
        let read = self.fs.disk().read(
            table + at / u64::from(sb.block_len),
            (at % u64::from(sb.block_len)) as usize,
            &mut raw,
        );
        Ok(self.found(read)?.map(|()| raw))
    }
}
