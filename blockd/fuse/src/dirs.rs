//! Directories that are open, told piece by piece as the kernel asks: what a piece costs does not grow with
//! the directory, and the list of snapshots is asked for once a piece.

use crate::{
    nodes::{Node, Nodes},
    tree::{Child, Tree},
};
use fuser::{FileAttr, FileType};
use rustix::io::Errno as SystemError;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

/// Inode number of listings for entries without a number.
const UNKNOWN_INO: u64 = 0xffff_ffff;
/// Entries of all directories that are open at once: others may open them too, and each takes memory until it
/// is closed.
const MAX_LISTED: usize = 2_000_000;
/// Entries before the children.
const DOTS: [&[u8]; 2] = [b".", b".."];

/// The entries of an open directory; they count until it is closed.
pub(crate) struct Listed {
    children: Vec<Child>,
    counter: Arc<AtomicUsize>,
}

/// An entry with what is known of it.
pub(crate) struct FullEntry<'a> {
    pub ino: u64,
    /// Offset of the next entry.
    pub next: u64,
    pub name: &'a [u8],
    /// Time to live.
    pub ttl: Duration,
    pub attr: FileAttr,
}

impl Listed {
    /// Counts them in; refuses if too many directories are open already.
    pub fn new(children: Vec<Child>, counter: &Arc<AtomicUsize>) -> io::Result<Self> {
        let count = children.len();
        if counter.fetch_add(count, Relaxed).saturating_add(count) > MAX_LISTED {
            counter.fetch_sub(count, Relaxed);
            return Err(SystemError::NFILE.into());
        }
        Ok(Self { children, counter: Arc::clone(counter) })
    }

    /// The children from a place in the listing on, each with the place behind it.
    fn rest(&self, offset: u64) -> impl Iterator<Item = (u64, &Child)> {
        let before = offset.max(DOTS.len() as u64);
        let skip = usize::try_from(before).unwrap_or(usize::MAX) - DOTS.len();
        let rest = self.children.get(skip..).unwrap_or_default();
        // Where there are children left, this is one of their numbers.
        (1..).zip(rest).map(move |(number, child)| (before + number, child))
    }

    fn dots(offset: u64) -> impl Iterator<Item = (u64, &'static [u8])> {
        (1..).zip(DOTS).filter(move |(next, _)| *next > offset)
    }

    /// Tells the number, the place behind it, the kind and the name of each entry, until there is no room for
    /// one.
    pub fn tell(
        &self,
        nodes: &Nodes,
        own_ino: u64,
        offset: u64,
        mut has_no_room: impl FnMut(u64, u64, FileType, &[u8]) -> bool,
    ) {
        for (next, name) in Self::dots(offset) {
            if has_no_room(own_ino, next, FileType::Directory, name) {
                return;
            }
        }
        for (next, child) in self.rest(offset) {
            let ino = nodes.number_of(&child.node).unwrap_or(UNKNOWN_INO);
            if has_no_room(ino, next, child.kind, &child.name) {
                return;
            }
        }
    }

    /// Tells each entry with what is known of it, which the kernel then knows, until there is no room for
    /// one. May block.
    ///
    /// # Errors
    /// There is no root, or the kernel knows too many nodes.
    pub fn tell_all(
        &self,
        tree: &Tree,
        nodes: &Nodes,
        own_ino: u64,
        offset: u64,
        mut has_no_room: impl FnMut(FullEntry<'_>) -> bool,
    ) -> io::Result<()> {
        let listing = tree.listing();
        for (next, name) in Self::dots(offset) {
            // The kernel takes nothing but the name of these two.
            let (attr, _) = tree.attr_in(&listing, &Node::Root, own_ino)?;
            if has_no_room(FullEntry { ino: own_ino, next, name, ttl: Duration::ZERO, attr }) {
                return Ok(());
            }
        }
        for (next, child) in self.rest(offset) {
            let ino = match nodes.remember(&child.node) {
                Ok(ino) => ino,
                // Those that were told stand.
                Err(_) if next > offset + 1 => return Ok(()),
                Err(error) => return Err(error),
            };
            // It may be gone since the directory was opened.
            let Ok((attr, ttl)) = tree.child_attr(&listing, child, ino) else {
                nodes.forget(ino, 1);
                continue;
            };
            if has_no_room(FullEntry { ino, next, name: &child.name, ttl, attr }) {
                nodes.forget(ino, 1);
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.counter.fetch_sub(self.children.len(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Catalog, SnapshotEntry, SnapshotKey};
    use blockd_extent::BlockSource;
    use std::time::UNIX_EPOCH;

    const SNAPSHOTS: u64 = 5_000;
    /// As many entries as a request of the kernel's has room for, about.
    const ROOM: usize = 40;

    /// Snapshots of one volume; counts how often it is asked for them.
    struct Counting {
        entries: Arc<Vec<SnapshotEntry>>,
        asked: AtomicUsize,
    }

    impl Catalog for Counting {
        fn snapshots(&self) -> Arc<Vec<SnapshotEntry>> {
            self.asked.fetch_add(1, Relaxed);
            Arc::clone(&self.entries)
        }

        fn open(&self, _: &SnapshotKey) -> io::Result<Arc<dyn BlockSource>> {
            unreachable!("nothing is opened to list it")
        }

        fn manifest_json(&self, _: &SnapshotKey) -> io::Result<Vec<u8>> {
            unreachable!("no manifest is needed to list it")
        }
    }

    fn catalog() -> Arc<Counting> {
        let entry = |number: u64| SnapshotEntry {
            key: SnapshotKey(format!("key {number}").into()),
            volume: "vol".into(),
            id: number.to_string(),
            created: UNIX_EPOCH + Duration::from_secs(number * 60),
            size_bytes: 1 << 30,
            data_bytes: 1 << 20,
        };
        let entries = Arc::new((0..SNAPSHOTS).map(entry).collect());
        Arc::new(Counting { entries, asked: AtomicUsize::new(0) })
    }

    fn names(found: &[(u64, Vec<u8>)]) -> Vec<String> {
        found.iter().map(|(_, name)| String::from_utf8(name.clone()).unwrap()).collect()
    }

    #[test]
    fn large_listing_is_linear_work() {
        let catalog = catalog();
        let (tree, nodes) = (Tree::new(catalog.clone()), Nodes::new());
        let volume = tree.lookup(&Node::Root, b"vol").unwrap();
        let opened = tree.children(&volume).unwrap();
        let entries = opened.len() + DOTS.len();
        assert_eq!(entries as u64, SNAPSHOTS + 1 + 2, "the newest is linked to");
        let open = Arc::default();
        let listed = Listed::new(opened, &open).unwrap();

        let pieces = entries.div_ceil(ROOM);
        let before = (catalog.asked.load(Relaxed), nodes.lookups());
        let mut full: Vec<(u64, Vec<u8>)> = Vec::new();
        loop {
            let offset = full.last().map_or(0, |(next, _)| *next);
            let begin = full.len();
            let add = |entry: FullEntry<'_>| {
                let has_room = full.len() - begin < ROOM;
                if has_room {
                    full.push((entry.next, entry.name.to_vec()));
                }
                !has_room
            };
            listed.tell_all(&tree, &nodes, 7, offset, add).unwrap();
            if full.len() == begin {
                break;
            }
        }
        let asked = catalog.asked.load(Relaxed) - before.0;
        assert_eq!(asked, pieces + 1, "once a piece, and once to see that it is over");
        let lookups = nodes.lookups() - before.1;
        assert!(lookups <= (entries + 2 * pieces) as u64, "{lookups} for {entries} entries");

        let before = nodes.lookups();
        let mut brief: Vec<(u64, Vec<u8>)> = Vec::new();
        loop {
            let offset = brief.last().map_or(0, |(next, _)| *next);
            let begin = brief.len();
            listed.tell(&nodes, 7, offset, |ino, next, _, name| {
                let has_room = brief.len() - begin < ROOM;
                assert_ne!(ino, UNKNOWN_INO, "the kernel knows them by now");
                if has_room {
                    brief.push((next, name.to_vec()));
                }
                !has_room
            });
            if brief.len() == begin {
                break;
            }
        }
        let lookups = nodes.lookups() - before;
        assert!(lookups <= (entries + pieces) as u64, "{lookups} for {entries} entries");

        assert!(full == brief && full.len() == entries);
        let all = names(&full);
        assert_eq!(all[..2], [".", ".."]);
        assert!(all[2..].is_sorted() && all.last().unwrap() == "latest", "each comes once, in order");
        // From the middle of nowhere.
        listed.tell(&nodes, 7, u64::MAX, |_, _, _, _| panic!("there is nothing"));
        drop(listed);
        assert_eq!(open.load(Relaxed), 0);
    }

    #[test]
    fn vanished_entries_are_skipped_and_forgotten() {
        let (tree, nodes) = (Tree::new(catalog()), Nodes::new());
        let gone = Child::new(b"gone", Node::Snapshot(SnapshotKey("gone".into())), FileType::Directory);
        let there = Child::new(b"there", Node::Snapshot(SnapshotKey("key 5".into())), FileType::Directory);
        let listed = Listed::new(vec![gone, there], &Arc::default()).unwrap();
        let mut found = Vec::new();
        let add = |entry: FullEntry<'_>| {
            found.push((entry.next, entry.name.to_vec()));
            false
        };
        listed.tell_all(&tree, &nodes, 7, 0, add).unwrap();
        assert_eq!(names(&found), [".", "..", "there"]);
        assert_eq!(found[2].0, 4, "its place is what it was");
        assert_eq!(nodes.number_of(&Node::Snapshot(SnapshotKey("gone".into()))), None);
    }
}
