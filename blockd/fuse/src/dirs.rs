//! Open directories: replies to `READDIR` and `READDIRPLUS`. The cost of a reply does not grow with the
//! directory, and a `READDIRPLUS` reply requests the list of snapshots once.

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

/// Inode number of entries that the kernel has not looked up (`FUSE_UNKNOWN_INO`).
const UNKNOWN_INO: u64 = 0xffff_ffff;
/// Maximum total number of entries in open directories of a mount, which bounds the memory that any user with
/// access can claim.
const MAX_OPEN_ENTRIES: usize = 2_000_000;
/// Entries before the children.
const DOTS: [&[u8]; 2] = [b".", b".."];

/// Entries of an open directory, counted until it is closed.
pub(crate) struct OpenDir {
    children: Vec<Child>,
    counter: Arc<AtomicUsize>,
}

/// Entry of a `READDIRPLUS` reply.
pub(crate) struct EntryPlus<'a> {
    pub ino: u64,
    /// Offset of the next entry.
    pub next: u64,
    pub name: &'a [u8],
    /// Time to live of the attributes.
    pub ttl: Duration,
    pub attr: FileAttr,
}

impl OpenDir {
    /// Counts the entries.
    ///
    /// # Errors
    /// `ENFILE` if open directories have too many entries.
    pub fn new(children: Vec<Child>, counter: &Arc<AtomicUsize>) -> io::Result<Self> {
        let count = children.len();
        if counter.fetch_add(count, Relaxed).saturating_add(count) > MAX_OPEN_ENTRIES {
            counter.fetch_sub(count, Relaxed);
            return Err(SystemError::NFILE.into());
        }
        Ok(Self { children, counter: Arc::clone(counter) })
    }

    /// Returns the children from an offset on, each with the offset of the next entry.
    fn rest(&self, offset: u64) -> impl Iterator<Item = (u64, &Child)> {
        let before = offset.max(DOTS.len() as u64);
        let skip = usize::try_from(before).unwrap_or(usize::MAX) - DOTS.len();
        let rest = self.children.get(skip..).unwrap_or_default();
        // No overflow: with children left, `before` is less than their number.
        (1..).zip(rest).map(move |(number, child)| (before + number, child))
    }

    fn dots(offset: u64) -> impl Iterator<Item = (u64, &'static [u8])> {
        (1..).zip(DOTS).filter(move |(next, _)| *next > offset)
    }

    /// Fills a `READDIR` reply: `add` takes inode number, next offset, type and name of an entry, and returns
    /// true if the reply is full.
    pub fn fill(
        &self,
        nodes: &Nodes,
        own_ino: u64,
        offset: u64,
        mut add: impl FnMut(u64, u64, FileType, &[u8]) -> bool,
    ) {
        for (next, name) in Self::dots(offset) {
            if add(own_ino, next, FileType::Directory, name) {
                return;
            }
        }
        for (next, child) in self.rest(offset) {
            let ino = nodes.number_of(&child.node).unwrap_or(UNKNOWN_INO);
            if add(ino, next, child.kind, &child.name) {
                return;
            }
        }
    }

    /// Fills a `READDIRPLUS` reply, in which each entry counts as a lookup: `add` returns true if the reply
    /// is full. May block.
    ///
    /// # Errors
    /// `ENOMEM` for the first entry if the kernel knows too many nodes.
    pub fn fill_plus(
        &self,
        tree: &Tree,
        nodes: &Nodes,
        own_ino: u64,
        offset: u64,
        mut add: impl FnMut(EntryPlus<'_>) -> bool,
    ) -> io::Result<()> {
        let listing = tree.listing();
        for (next, name) in Self::dots(offset) {
            // The kernel ignores the attributes of these two.
            let (attr, _) = tree.attr_in(&listing, &Node::Root, own_ino)?;
            if add(EntryPlus { ino: own_ino, next, name, ttl: Duration::ZERO, attr }) {
                return Ok(());
            }
        }
        for (next, child) in self.rest(offset) {
            let ino = match nodes.remember(&child.node) {
                Ok(ino) => ino,
                // The earlier entries of this reply are valid.
                Err(_) if next > offset + 1 => return Ok(()),
                Err(error) => return Err(error),
            };
            // The entry may have vanished since the directory was opened.
            let Ok((attr, ttl)) = tree.child_attr(&listing, child, ino) else {
                nodes.forget(ino, 1);
                continue;
            };
            if add(EntryPlus { ino, next, name: &child.name, ttl, attr }) {
                nodes.forget(ino, 1);
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Drop for OpenDir {
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
    /// Approximate number of entries in a reply.
    const REPLY_ENTRIES: usize = 40;

    /// Catalog of one volume that counts requests for its list.
    struct Counting {
        entries: Arc<Vec<SnapshotEntry>>,
        requests: AtomicUsize,
    }

    impl Catalog for Counting {
        fn snapshots(&self) -> Arc<Vec<SnapshotEntry>> {
            self.requests.fetch_add(1, Relaxed);
            Arc::clone(&self.entries)
        }

        fn open(&self, _: &SnapshotKey) -> io::Result<Arc<dyn BlockSource>> {
            unreachable!("a listing opened an image")
        }

        fn manifest_json(&self, _: &SnapshotKey) -> io::Result<Vec<u8>> {
            unreachable!("a listing read a manifest")
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
        Arc::new(Counting { entries, requests: AtomicUsize::new(0) })
    }

    fn names(found: &[(u64, Vec<u8>)]) -> Vec<String> {
        found.iter().map(|(_, name)| String::from_utf8(name.clone()).unwrap()).collect()
    }

    #[test]
    fn large_directory_is_listed_in_linear_time() {
        let catalog = catalog();
        let (tree, nodes) = (Tree::new(catalog.clone()), Nodes::new());
        let volume = tree.lookup(&Node::Root, b"vol").unwrap();
        let opened = tree.children(&volume).unwrap();
        let entries = opened.len() + DOTS.len();
        assert_eq!(entries as u64, SNAPSHOTS + 1 + 2, "with the link to the newest");
        let counter = Arc::default();
        let dir = OpenDir::new(opened, &counter).unwrap();

        let replies = entries.div_ceil(REPLY_ENTRIES);
        let before = (catalog.requests.load(Relaxed), nodes.lookups());
        let mut full: Vec<(u64, Vec<u8>)> = Vec::new();
        loop {
            let offset = full.last().map_or(0, |(next, _)| *next);
            let begin = full.len();
            let add = |entry: EntryPlus<'_>| {
                let has_room = full.len() - begin < REPLY_ENTRIES;
                if has_room {
                    full.push((entry.next, entry.name.to_vec()));
                }
                !has_room
            };
            dir.fill_plus(&tree, &nodes, 7, offset, add).unwrap();
            if full.len() == begin {
                break;
            }
        }
        let requests = catalog.requests.load(Relaxed) - before.0;
        assert_eq!(requests, replies + 1, "one per reply, and one for the empty reply at the end");
        let lookups = nodes.lookups() - before.1;
        assert!(lookups <= (entries + 2 * replies) as u64, "{lookups} for {entries} entries");

        let before = nodes.lookups();
        let mut brief: Vec<(u64, Vec<u8>)> = Vec::new();
        loop {
            let offset = brief.last().map_or(0, |(next, _)| *next);
            let begin = brief.len();
            dir.fill(&nodes, 7, offset, |ino, next, _, name| {
                let has_room = brief.len() - begin < REPLY_ENTRIES;
                assert_ne!(ino, UNKNOWN_INO, "READDIRPLUS looked up all entries");
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
        assert!(lookups <= (entries + replies) as u64, "{lookups} for {entries} entries");

        assert!(full == brief && full.len() == entries);
        let all = names(&full);
        assert_eq!(all[..2], [".", ".."]);
        assert!(all[2..].is_sorted() && all.last().unwrap() == "latest", "each entry once, in order");
        // An offset beyond the end.
        dir.fill(&nodes, 7, u64::MAX, |_, _, _, _| panic!("an entry beyond the end"));
        drop(dir);
        assert_eq!(counter.load(Relaxed), 0);
    }

    #[test]
    fn vanished_entries_are_skipped_and_forgotten() {
        let (tree, nodes) = (Tree::new(catalog()), Nodes::new());
        let gone = Child::new(b"gone", Node::Snapshot(SnapshotKey("gone".into())), FileType::Directory);
        let present =
            Child::new(b"present", Node::Snapshot(SnapshotKey("key 5".into())), FileType::Directory);
        let dir = OpenDir::new(vec![gone, present], &Arc::default()).unwrap();
        let mut found = Vec::new();
        let add = |entry: EntryPlus<'_>| {
            found.push((entry.next, entry.name.to_vec()));
            false
        };
        dir.fill_plus(&tree, &nodes, 7, 0, add).unwrap();
        assert_eq!(names(&found), [".", "..", "present"]);
        assert_eq!(found[2].0, 4, "offsets do not change");
        assert_eq!(nodes.number_of(&Node::Snapshot(SnapshotKey("gone".into()))), None);
    }
}
