//! State of the inodes that a check has read.

use crate::{InodeNumber, superblock::Superblock};

/// File type of a directory in entries.
pub(super) const DIRECTORY: u8 = 2;
/// Reserved or damaged inode, whose file type is unknown.
pub(super) const UNKNOWN: u8 = u8::MAX;

/// Inode in use, or free by default.
#[derive(Clone, Copy, Default)]
pub(super) struct State {
    /// File type as in entries; 0 if the inode is free.
    pub kind: u8,
    pub holds_xattr: bool,
    pub links: u16,
    /// Number of entries, or of extended attributes that refer to it.
    pub references: u16,
}

/// Directory.
#[derive(Clone, Copy)]
pub(super) struct Directory {
    pub number: InodeNumber,
    /// Directory with its entry; 0 if none was found.
    pub parent: InodeNumber,
    /// Inode of `..`.
    pub dotdot: InodeNumber,
    pub is_broken: bool,
}

/// Use of an extended attribute block.
pub(super) struct XattrUse {
    /// Stored number of references; `None` if the block is damaged.
    pub stored: Option<u32>,
    pub found: u32,
}

/// Inodes of the groups.
#[derive(Default)]
pub(super) struct Groups(pub Vec<Option<Box<[State]>>>);

impl Groups {
    /// Returns the inodes of a group's initialized inode table; `None` if it could not be located.
    pub fn states(&mut self, group: u32) -> Option<&mut Box<[State]>> {
        self.0.get_mut(group as usize)?.as_mut()
    }

    /// Returns an inode of an initialized inode table.
    pub fn state(&mut self, sb: &Superblock, number: InodeNumber) -> Option<&mut State> {
        let index = number.0.checked_sub(1)?;
        let states = self.states(index / sb.inodes_per_group)?;
        states.get_mut((index % sb.inodes_per_group) as usize)
    }

    /// Returns true if an inode is in a group whose inode table could not be located.
    pub fn is_unknown(&self, sb: &Superblock, number: InodeNumber) -> bool {
        let group = number.0.saturating_sub(1) / sb.inodes_per_group;
        matches!(self.0.get(group as usize), Some(None))
    }
}
