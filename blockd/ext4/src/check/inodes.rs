//! Inodes, their blocks and their extended attributes.

use super::{
    finding::{Count, Problem, Unchecked},
    inode_states::{DIRECTORY, Directory, State, UNKNOWN, XattrUse},
    limits::Stop,
    mapping::Mapped,
    state::{BLOCKS_AHEAD, Check, Stage},
};
use crate::{
    FileKind, Inode, InodeNumber, Structure,
    bytes::{le16, le32},
    extents::{ENTRY_LEN, child},
    features::bit,
    indirect::INDIRECT_AT,
    inode::flag,
    xattr,
};

/// Length of the parts in which an inode table is read, in bytes.
const PART_LEN: usize = 256 << 10;
/// Groups whose inode tables are announced together, and their maximum length in bytes.
const GROUPS_AHEAD: u32 = 16;
const TABLES_AHEAD_BYTES: u64 = 8 << 20;
/// Inodes whose blocks are announced together.
const INODES_AHEAD: usize = 64;
/// Memory of the entry of an extended attribute block, in bytes.
const XATTR_BLOCK_BYTES: u64 = 48;
/// Memory of a directory and of its mark in the search for circles, in bytes.
const DIRECTORY_BYTES: u64 = size_of::<Directory>() as u64 + 4;
/// Inodes of bad blocks and of blocks reserved for descriptors.
const BAD_BLOCKS: u32 = 1;
const RESIZE: u32 = 7;

fn kind_in_entries(kind: FileKind) -> u8 {
    match kind {
        FileKind::Regular => 1,
        FileKind::Directory => DIRECTORY,
        FileKind::CharDevice => 3,
        FileKind::BlockDevice => 4,
        FileKind::Fifo => 5,
        FileKind::Socket => 6,
        FileKind::Symlink => 7,
    }
}

/// Returns the metadata blocks to which an inode refers directly; without a check of the inode.
fn referred_blocks(raw: &[u8]) -> Vec<u64> {
    let (mode, flags, map) = (le16(raw, 0), le32(raw, 0x20), raw.get(0x28..0x64).unwrap_or_default());
    let mut blocks = vec![u64::from(le32(raw, 0x68))];
    if !matches!(mode & 0xf000, 0x4000 | 0x8000) || flags & flag::INLINE_DATA != 0 {
        return blocks;
    }
    if flags & flag::EXTENTS == 0 {
        blocks.extend(INDIRECT_AT.map(|at| u64::from(le32(map, at))));
    } else if le16(map, 6) > 0 {
        let entries = map[ENTRY_LEN..].chunks_exact(ENTRY_LEN);
        blocks.extend(entries.take(le16(map, 2).into()).map(child));
    }
    blocks
}

impl Check<'_> {
    pub fn check_inodes(&mut self) -> Result<(), Stop> {
        let (sb, groups) = (self.fs.superblock(), self.fs.groups());
        let (inode_len, block_len) = (usize::from(sb.inode_len), self.fs.disk().block_len());
        let mut part = Vec::new();
        for group in 0..groups {
            self.step(Stage::Inodes, group.into(), groups.into())?;
            if group % GROUPS_AHEAD == 0 {
                self.announce_tables(group);
            }
            let Some(used) = self.groups.states(group).map(|states| states.len()) else { continue };
            let table = self.fs.inode_table(group);
            let Some(table) = self.found(table)? else { continue };
            // Both lengths are powers of two, and a block holds at least one inode.
            let per_part = PART_LEN.max(block_len) / inode_len;
            for from in (0..used).step_by(per_part) {
                part.resize(per_part.min(used - from) * inode_len, 0);
                self.count_read(part.len() as u64)?;
                let read = self.fs.disk().read(table + (from * inode_len / block_len) as u64, 0, &mut part);
                if self.found(read)?.is_none() {
                    continue;
                }
                for (raw, index) in part.chunks_exact(inode_len).zip(from..) {
                    if index % INODES_AHEAD == 0 {
                        self.announce_trees(&part[(index - from) * inode_len..]);
                    }
                    // Inode numbers have 32 bits, which the superblock ensures.
                    let number = group * sb.inodes_per_group + index as u32 + 1;
                    let state = self.check_inode(InodeNumber(number), raw)?;
                    if let Some(known) = self.groups.states(group).and_then(|states| states.get_mut(index)) {
                        *known = state;
                    }
                    self.report.inodes += u64::from(state.kind != 0);
                }
            }
        }
        Ok(())
    }

    /// Announces the used parts of the inode tables of the next groups.
    fn announce_tables(&self, first: u32) {
        let block_len = self.fs.disk().block_len() as u64;
        let next = (first..self.fs.groups()).take(GROUPS_AHEAD as usize);
        let tables = next.filter_map(|group| self.fs.group(group).ok());
        let mut left = TABLES_AHEAD_BYTES / block_len;
        self.fs.disk().will_need(tables.map(|group| {
            let used = u64::from(group.used_inodes) * u64::from(self.fs.superblock().inode_len);
            let blocks = used.div_ceil(block_len).min(left);
            left -= blocks;
            (group.inode_table, blocks)
        }));
    }

    /// Announces the blocks to which the next inodes refer: of their block maps and extended attributes.
    fn announce_trees(&self, inodes: &[u8]) {
        let inode_len = usize::from(self.fs.superblock().inode_len);
        let mut blocks = Vec::new();
        for raw in inodes.chunks_exact(inode_len).take(INODES_AHEAD) {
            if le16(raw, 0) != 0 && le16(raw, 0x1a) != 0 {
                blocks.extend(referred_blocks(raw));
            }
        }
        blocks.sort_unstable();
        blocks.dedup();
        blocks.truncate(BLOCKS_AHEAD);
        self.fs.disk().will_need(blocks.into_iter().map(|block| (block, 1)));
    }

    fn check_inode(&mut self, number: InodeNumber, raw: &[u8]) -> Result<State, Stop> {
        let (mode, links) = (le16(raw, 0), le16(raw, 0x1a));
        let is_reserved = number.0 < self.special.first_inode;
        let unknown = State { kind: UNKNOWN, links, ..State::default() };
        if is_reserved && mode == 0 && number != InodeNumber::ROOT {
            if number.0 == BAD_BLOCKS && le32(raw, 0x1c) != 0 {
                self.unchecked.insert(Unchecked::BadBlocks);
                self.is_incomplete = true;
            }
            return Ok(unknown);
        }
        let is_orphan = self.orphans.contains(&number.0);
        if links == 0 && !is_reserved && !is_orphan {
            return Ok(State::default());
        }
        let inode = self.fs.parse_inode(number, raw);
        let Some(inode) = self.found(inode)? else { return Ok(unknown) };
        let is_resize = self.fs.superblock().features.has_compat(bit::COMPAT_RESIZE_INODE);
        let mut is_broken = false;
        if number.0 == RESIZE && is_resize {
            self.claim_resize(&inode)?;
        } else {
            let mut mapped = self.claim_blocks(&inode)?;
            self.claim_xattrs(&inode, &mut mapped)?;
            if !is_orphan && !mapped.is_broken {
                self.check_sizes(&inode, &mapped);
            }
            is_broken = mapped.is_broken || !self.has_all_blocks(&inode, &mapped);
        }
        if number == InodeNumber::ROOT && inode.kind != FileKind::Directory {
            self.add_damage(Structure::Inode(number), "the root is no directory");
        }
        // The kernel truncates a deleted directory that a process holds open.
        if inode.kind == FileKind::Directory && (links > 0 || !is_orphan) {
            self.memory.take(DIRECTORY_BYTES)?;
            let (parent, dotdot) = (InodeNumber(0), InodeNumber(0));
            self.directories.push(Directory { number, parent, dotdot, is_broken });
            self.report.directories += 1;
        }
        let holds_xattr = inode.has(flag::EA_INODE);
        Ok(State { kind: kind_in_entries(inode.kind), holds_xattr, links, references: 0 })
    }

    fn claim_blocks(&mut self, inode: &Inode) -> Result<Mapped, Stop> {
        let is_mapped = match inode.kind {
            FileKind::Regular | FileKind::Directory => true,
            FileKind::Symlink => !inode.is_fast_link(),
            _ => false,
        };
        if !is_mapped || inode.has(flag::INLINE_DATA) {
            return Ok(Mapped::default());
        }
        if inode.has(flag::EXTENTS) { self.claim_tree(inode) } else { self.claim_map(inode) }
    }

    /// Returns true unless the inode is a directory with a hole, whose size no number of blocks bounds.
    fn has_all_blocks(&self, inode: &Inode, mapped: &Mapped) -> bool {
        let blocks = inode.size_bytes / u64::from(self.fs.superblock().block_len);
        let is_inline = inode.has(flag::INLINE_DATA);
        inode.kind != FileKind::Directory
            || is_inline
            || (mapped.leaves == mapped.end && blocks <= mapped.end)
    }

    fn check_sizes(&mut self, inode: &Inode, mapped: &Mapped) {
        let block_len = u64::from(self.fs.superblock().block_len);
        let structure = Structure::Inode(inode.number);
        let is_inline = inode.has(flag::INLINE_DATA);
        if inode.kind == FileKind::Directory && !is_inline {
            let (blocks, spare) = (inode.size_bytes / block_len, self.special.prealloc_dir_blocks);
            let is_valid = (blocks..=blocks + u64::from(spare)).contains(&mapped.end);
            if !inode.size_bytes.is_multiple_of(block_len) || !is_valid {
                self.add_damage(structure, "its size does not match its blocks");
            } else if !self.has_all_blocks(inode, mapped) {
                self.add_damage(structure, "a directory with a hole");
            }
        } else if inode.kind == FileKind::Regular
            && !is_inline
            && !inode.has(flag::VERITY)
            && inode.size_bytes < mapped.written_end.saturating_sub(1) * block_len
        {
            self.add_damage(structure, "written blocks beyond its end");
        }
        // Values of extended attributes in other inodes count, too.
        let has_values = self.holders.last().is_some_and(|(_, owner)| *owner == inode.number);
        if !is_inline && !has_values && self.special.cluster_len == 1 {
            let found = mapped.blocks * block_len;
            self.compare(structure, Count::AllocatedBytes, inode.allocated_bytes, found);
        }
    }

    /// Checks the extended attributes of an inode and counts their block.
    fn claim_xattrs(&mut self, inode: &Inode, mapped: &mut Mapped) -> Result<(), Stop> {
        let entries = self.fs.inode_xattr_entries(inode);
        if let Some(entries) = self.found(entries)? {
            self.add_holders(inode, &entries)?;
        }
        let block = inode.xattr_block;
        if block == 0 {
            return Ok(());
        }
        mapped.blocks += 1;
        if let Some(known) = self.xattr_blocks.get_mut(&block) {
            known.found = known.found.saturating_add(1);
            return Ok(());
        }
        self.memory.take(XATTR_BLOCK_BYTES)?;
        if !self.fs.disk().contains(block, 1) {
            self.add_damage(
                Structure::Inode(inode.number),
                "extended attribute block outside of the filesystem",
            );
            mapped.is_broken = true;
            return Ok(());
        }
        if !self.claim(Structure::Inode(inode.number), block, 1)? {
            mapped.is_broken = true;
            return Ok(());
        }
        self.count_read(self.fs.disk().block_len() as u64)?;
        let bytes = self.fs.xattr_block(inode);
        let bytes = self.found(bytes)?.flatten();
        let stored = bytes.as_deref().map(|bytes| le32(bytes, 4));
        self.xattr_blocks.insert(block, XattrUse { stored, found: 1 });
        if let Some(bytes) = bytes {
            let entries = xattr::block_entries(inode, &bytes);
            if let Some(entries) = self.found(entries)? {
                self.add_holders(inode, &entries)?;
            }
        }
        Ok(())
    }

    fn add_holders(&mut self, inode: &Inode, entries: &[xattr::Entry<'_>]) -> Result<(), Stop> {
        for holder in entries.iter().filter_map(xattr::Entry::holder) {
            self.memory.take(2 * size_of::<(InodeNumber, InodeNumber)>() as u64)?;
            self.holders.push((holder, inode.number));
        }
        Ok(())
    }

    /// Compares the references to extended attribute blocks and inodes.
    pub fn check_xattr_references(&mut self) {
        for (block, used) in std::mem::take(&mut self.xattr_blocks) {
            if let Some(stored) = used.stored {
                let of = Count::XattrReferences;
                self.compare(Structure::Block(block), of, stored.into(), used.found.into());
            }
        }
        for (holder, owner) in std::mem::take(&mut self.holders) {
            match self.groups.state(self.fs.superblock(), holder) {
                Some(state) if state.holds_xattr => state.references = state.references.saturating_add(1),
                _ => self.add(Structure::Inode(owner), Problem::EntryOfFreeInode { inode: holder }),
            }
        }
    }
}
