//! Link counts, and paths from the root directory.

use super::{
    finding::{Count, Problem},
    inode_states::{DIRECTORY, State, UNKNOWN},
    state::Check,
};
use crate::{InodeNumber, Structure, features::bit};

impl Check<'_> {
    pub fn check_links(&mut self) {
        self.check_xattr_references();
        let sb = self.fs.superblock();
        for group in 0..self.fs.groups() {
            let used = self.groups.states(group).map_or(0, |states| states.len());
            for index in 0..used {
                let Some(state) = self.groups.states(group).and_then(|states| states.get(index)) else {
                    continue;
                };
                let state = *state;
                // Inode numbers have 32 bits, which the superblock ensures.
                let number = InodeNumber(group * sb.inodes_per_group + index as u32 + 1);
                if state.kind != 0 && state.kind != UNKNOWN && !self.special.has_no_entry(number) {
                    self.check_link_count(number, state);
                }
            }
        }
        self.check_parents();
    }

    fn check_link_count(&mut self, number: InodeNumber, state: State) {
        let structure = Structure::Inode(number);
        let is_directory = state.kind == DIRECTORY;
        let has_limit = self.fs.superblock().features.has_ro_compat(bit::RO_COMPAT_DIR_NLINK);
        if state.holds_xattr {
            if state.references == 0 && state.links > 0 {
                self.add(structure, Problem::Unreachable);
            }
        } else if state.references == 0 && state.links > 0 {
            self.add(structure, Problem::Unreachable);
        } else if !(is_directory && has_limit && state.links == 1) {
            self.compare(structure, Count::Links, state.links.into(), state.references.into());
        }
    }

    /// Compares `..` with the entry of each directory, and follows the parents to the root directory.
    fn check_parents(&mut self) {
        // Number of the walk that reached a directory first; 0 for none.
        let mut walks = vec![0; self.directories.len()];
        for index in 0..self.directories.len() {
            let directory = self.directories[index];
            let structure = Structure::Inode(directory.number);
            let is_root = directory.number == InodeNumber::ROOT;
            let parent = if is_root { InodeNumber::ROOT } else { directory.parent };
            if parent.0 == 0 {
                let state = self.groups.state(self.fs.superblock(), directory.number);
                // An orphan without links is deleted by recovery; others without entries are found by their
                // own `.` only.
                if state.is_some_and(|state| state.links > 0) {
                    self.add(structure, Problem::Unreachable);
                }
                continue;
            }
            if directory.dotdot != parent {
                let stored = directory.dotdot;
                self.add(structure, Problem::WrongParent { stored, found: parent });
            }
            if self.leads_to_circle(index, &mut walks) {
                self.add(structure, Problem::Unreachable);
            }
        }
    }

    /// Follows the parents of a directory up to one that was reached before. Returns true if they form a
    /// circle that was not found before.
    fn leads_to_circle(&self, index: usize, walks: &mut [u32]) -> bool {
        // A filesystem has less than 2^32 inodes.
        let (mut at, walk) = (index, index as u32 + 1);
        while walks[at] == 0 {
            walks[at] = walk;
            let directory = self.directories[at];
            if directory.number == InodeNumber::ROOT {
                return false;
            }
            let found = self.directories.binary_search_by_key(&directory.parent, |other| other.number);
            let Ok(next) = found else { return false };
            at = next;
        }
        walks[at] == walk
    }
}
