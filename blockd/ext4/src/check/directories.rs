//! Directories: each entry leads to an inode in use of the right file type.

use super::{
    finding::{Problem, Unchecked},
    inode_states::{DIRECTORY, Directory, UNKNOWN},
    limits::Stop,
    state::{BLOCKS_AHEAD, Check, Stage},
};
use crate::{
    Inode, InodeNumber, Structure,
    bytes::le32,
    dir::{StoredEntry, is_name},
    features::bit,
    inode::flag,
};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    ops::ControlFlow,
};

/// Maximum number of entries of a directory that are compared with each other.
const MAX_COMPARED: usize = 4 << 20;
/// Memory of the names of a directory, in bytes.
const NAMES_BYTES: u64 = MAX_COMPARED as u64 * 8;

/// Maximum number of blocks of a directory that are announced; the others are read in order.
const FIRST_BLOCKS: u64 = 32;

/// Directory during its check.
struct Current {
    index: usize,
    number: InodeNumber,
    /// Number of entries so far, with `.` and `..`.
    entries: u64,
    is_encrypted: bool,
    has_damaged_name: bool,
    /// Hashes of the names.
    names: Vec<u64>,
}

impl Check<'_> {
    pub fn check_directories(&mut self) -> Result<(), Stop> {
        let total = self.directories.len();
        if self.memory.take(NAMES_BYTES).is_err() {
            return Err(Stop::Limit(Unchecked::MemoryLimit));
        }
        let mut names = Vec::new();
        for index in 0..total {
            self.step(Stage::Directories, index as u64, total as u64)?;
            if index % BLOCKS_AHEAD == 0 {
                self.announce_directories(index);
            }
            let directory = self.directories[index];
            // A block that several directories claim would be read for each of them.
            if directory.is_broken {
                self.is_incomplete = true;
                continue;
            }
            let inode = self.fs.inode(directory.number);
            let Some(inode) = self.found(inode)? else { continue };
            names.clear();
            names = self.check_directory(index, &inode, names)?;
        }
        self.memory.give_back(NAMES_BYTES);
        Ok(())
    }

    /// Announces the inodes of the next directories, then their first blocks.
    fn announce_directories(&self, index: usize) {
        let next = self.directories.iter().skip(index).take(BLOCKS_AHEAD).filter(|one| !one.is_broken);
        let disk = self.fs.disk();
        disk.will_need(next.clone().filter_map(|one| Some((self.fs.inode_block(one.number)?, 1))));
        let first = |one: &Directory| {
            let inode = self.fs.inode(one.number).ok().filter(|inode| !inode.has(flag::INLINE_DATA))?;
            let mapping = self.fs.mapping(&inode, 0).ok()?;
            let blocks = (inode.size_bytes / disk.block_len() as u64).min(mapping.len).min(FIRST_BLOCKS);
            Some((mapping.physical?, blocks))
        };
        disk.will_need(next.filter_map(first));
    }

    fn check_directory(&mut self, index: usize, inode: &Inode, names: Vec<u64>) -> Result<Vec<u64>, Stop> {
        let is_encrypted = inode.is_encrypted();
        if is_encrypted {
            self.unchecked.insert(Unchecked::EncryptedNames);
        }
        let number = inode.number;
        let mut current = Current { index, number, entries: 0, is_encrypted, has_damaged_name: false, names };
        if inode.has(flag::INLINE_DATA) {
            let fs = self.fs;
            self.entry(&mut current, &dots(b".", number));
            self.entry(&mut current, &dots(b"..", InodeNumber(le32(&inode.block, 0))));
            self.check_entries(&mut current, inode, &inode.block[4..])?;
            let rest = fs.inline_xattr_data(inode);
            if let Some(rest) = self.found(rest)? {
                self.check_entries(&mut current, inode, &rest)?;
            }
        } else {
            self.check_blocks(&mut current, inode)?;
            if current.entries < 2 {
                self.add_damage(Structure::Inode(number), "a directory without `.` and `..`");
            }
            if inode.has(flag::INDEX) {
                self.check_hash_tree(inode)?;
            }
        }
        let mut names = current.names;
        names.sort_unstable();
        if names.len() > MAX_COMPARED {
            self.unchecked.insert(Unchecked::LargeDirectories);
        } else if names.windows(2).any(|pair| pair[0] == pair[1]) {
            self.add(Structure::Inode(number), Problem::DuplicateName);
        }
        Ok(names)
    }

    fn check_blocks(&mut self, current: &mut Current, inode: &Inode) -> Result<(), Stop> {
        let end = inode.size_bytes / self.fs.disk().block_len() as u64;
        let (mut at, mut has_hole) = (0, false);
        while at < end {
            let mapping = self.fs.mapping(inode, at);
            let Some(mapping) = self.found(mapping)? else { return Ok(()) };
            let until = end.min(at.saturating_add(mapping.len));
            match mapping.physical {
                Some(first) => {
                    for block in at..until {
                        self.check_block(current, inode, block, first + (block - at))?;
                    }
                }
                None => has_hole = true,
            }
            at = until;
        }
        if has_hole {
            self.add_damage(Structure::Inode(inode.number), "a directory with a hole");
            self.is_incomplete = true;
        }
        Ok(())
    }

    fn check_block(&mut self, now: &mut Current, inode: &Inode, at: u64, block: u64) -> Result<(), Stop> {
        let Some(bytes) = self.read_block(block)? else { return Ok(()) };
        let checked = self.fs.check_dir_block(inode, at, &bytes);
        if self.found(checked)?.is_some() {
            self.check_entries(now, inode, &bytes)?;
        }
        Ok(())
    }

    fn check_entries(&mut self, current: &mut Current, inode: &Inode, bytes: &[u8]) -> Result<(), Stop> {
        let fs = self.fs;
        let walked = fs.each_in_block(inode, bytes, &mut |entry| {
            self.entry(current, entry);
            ControlFlow::Continue(())
        });
        self.found(walked)?;
        Ok(())
    }

    fn entry(&mut self, current: &mut Current, entry: &StoredEntry<'_>) {
        let (sb, structure) = (self.fs.superblock(), Structure::Inode(current.number));
        let nth = current.entries;
        current.entries += 1;
        let is_dot = matches!(entry.name, b"." | b"..");
        let is_expected = match nth {
            0 => entry.name == b"." && entry.inode == current.number,
            1 => entry.name == b"..",
            _ => !is_dot && (current.is_encrypted || is_name(entry.name)),
        };
        if !is_expected && !std::mem::replace(&mut current.has_damaged_name, true) {
            self.add_damage(structure, "invalid name of an entry");
        }
        if nth == 1 {
            self.directories[current.index].dotdot = entry.inode;
        }
        if current.names.len() <= MAX_COMPARED {
            let mut hasher = DefaultHasher::new();
            entry.name.hash(&mut hasher);
            current.names.push(hasher.finish());
        }
        let number = entry.inode;
        let is_special = number.0 < self.special.first_inode && number != InodeNumber::ROOT;
        if self.groups.is_unknown(sb, number) {
            return;
        }
        let state = match self.groups.state(sb, number) {
            Some(state) if state.kind != 0 && !is_special => state,
            _ => return self.add(structure, Problem::EntryOfFreeInode { inode: number }),
        };
        state.references = state.references.saturating_add(1);
        let kind = state.kind;
        let has_kinds = sb.features.has_incompat(bit::INCOMPAT_FILETYPE);
        if has_kinds && kind != UNKNOWN && entry.kind != kind {
            self.add(structure, Problem::EntryOfWrongType { inode: number });
        }
        if kind == DIRECTORY && !is_dot {
            self.set_parent(number, current.number);
        }
    }

    fn set_parent(&mut self, number: InodeNumber, parent: InodeNumber) {
        let found = self.directories.binary_search_by_key(&number, |directory| directory.number);
        let Some(directory) = found.ok().and_then(|index| self.directories.get_mut(index)) else { return };
        if directory.parent.0 != 0 || number == InodeNumber::ROOT {
            self.add(Structure::Inode(parent), Problem::SecondEntry { inode: number });
        } else {
            directory.parent = parent;
        }
    }
}

/// Returns the entry `.` or `..`, which directories in inodes omit.
fn dots(name: &[u8], inode: InodeNumber) -> StoredEntry<'_> {
    StoredEntry { name, inode, kind: DIRECTORY }
}
