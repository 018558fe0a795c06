//! Inode numbers of the tree's nodes, valid until the kernel forgets them.

use crate::{SnapshotKey, inside::FileId};
use parking_lot::Mutex;
use rustix::io::Errno as SystemError;
use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// Maximum number of nodes known to the kernel in all mounts of this process: about 48 MiB. A process with a
/// copy of the descriptor can hide `FORGET` requests from this one.
const MAX_NODES: usize = 1 << 18;
/// Number of nodes known to the kernel.
static REMEMBERED: AtomicUsize = AtomicUsize::new(0);
/// Shift of inode numbers of files inside images, which need no state: the low bits are the file's number in
/// its filesystem, the high bits the filesystem.
const INSIDE_SHIFT: u32 = 32;

/// Node of the tree.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Node {
    /// Root of the mount.
    Root,
    /// Text about stores that could not be listed.
    Unlisted,
    /// Directory of a volume, by its name.
    Volume(Arc<str>),
    /// Symbolic link to the newest snapshot of a volume.
    Latest(Arc<str>),
    /// Directory of a snapshot.
    Snapshot(SnapshotKey),
    /// Image of a snapshot.
    Image(SnapshotKey),
    /// Manifest of a snapshot.
    Manifest(SnapshotKey),
    /// Root of the files inside an image.
    Files(SnapshotKey),
    /// File inside an image.
    ImageFile(SnapshotKey, FileId),
}

struct Known {
    node: Node,
    /// Lookup count of the kernel, less its forgets.
    lookups: u64,
}

/// Key of a filesystem's numbers.
type TreeKey = (SnapshotKey, u32);

struct Table {
    by_ino: HashMap<u64, Known>,
    by_node: HashMap<Node, u64>,
    next: u64,
    /// Filesystems in images known to the kernel, by snapshot and partition; few, so they stay.
    trees: HashMap<TreeKey, u32>,
    by_tree: HashMap<u32, TreeKey>,
    /// Number of lookups.
    #[cfg(test)]
    lookups: u64,
}

impl Table {
    fn len(&self) -> usize {
        self.by_ino.len() + self.trees.len()
    }
}

/// Nodes known to the kernel.
pub(crate) struct Nodes {
    table: Mutex<Table>,
    /// Maximum and current number in all mounts.
    max: usize,
    remembered: &'static AtomicUsize,
}

/// Inode number of the root, by the protocol (`FUSE_ROOT_ID`).
pub(crate) const ROOT_INO: u64 = 1;

fn inside(tree: u32, number: u32) -> u64 {
    u64::from(tree) << INSIDE_SHIFT | u64::from(number)
}

/// Splits the inode number of a file inside an image into the number of its filesystem and the number there.
fn split(ino: u64) -> Option<(u32, u32)> {
    let tree = (ino >> INSIDE_SHIFT) as u32;
    (tree > 0).then_some((tree, ino as u32))
}

impl Nodes {
    pub fn new() -> Self {
        Self::within(MAX_NODES, &REMEMBERED)
    }

    fn within(max: usize, remembered: &'static AtomicUsize) -> Self {
        let root = Known { node: Node::Root, lookups: 1 };
        remembered.fetch_add(1, Relaxed);
        Self {
            table: Mutex::new(Table {
                by_ino: HashMap::from([(ROOT_INO, root)]),
                by_node: HashMap::from([(Node::Root, ROOT_INO)]),
                next: ROOT_INO + 1,
                trees: HashMap::new(),
                by_tree: HashMap::new(),
                #[cfg(test)]
                lookups: 0,
            }),
            max,
            remembered,
        }
    }

    /// Counts one more node.
    ///
    /// # Errors
    /// `ENOMEM` at the maximum.
    fn reserve(&self) -> io::Result<()> {
        if self.remembered.fetch_add(1, Relaxed) >= self.max {
            self.remembered.fetch_sub(1, Relaxed);
            return Err(SystemError::NOMEM.into());
        }
        Ok(())
    }

    /// Returns the node of an inode number.
    pub fn get(&self, ino: u64) -> Option<Node> {
        let table = self.table.lock();
        match split(ino) {
            Some((tree, number)) => {
                let (key, part) = table.by_tree.get(&tree)?;
                Some(Node::ImageFile(key.clone(), FileId { part: *part, number }))
            }
            None => table.by_ino.get(&ino).map(|known| known.node.clone()),
        }
    }

    /// Returns the number of a node and increments its lookup count.
    ///
    /// # Errors
    /// The kernel knows too many nodes.
    pub fn remember(&self, node: &Node) -> io::Result<u64> {
        let mut table = self.table.lock();
        #[cfg(test)]
        {
            table.lookups += 1;
        }
        if let Node::ImageFile(key, file) = node {
            let tree_key = (key.clone(), file.part);
            if let Some(tree) = table.trees.get(&tree_key) {
                return Ok(inside(*tree, file.number));
            }
            self.reserve()?;
            // At most `max` trees, so the number fits.
            let tree = u32::try_from(table.trees.len() + 1).map_err(|_| SystemError::NOMEM)?;
            table.by_tree.insert(tree, tree_key.clone());
            table.trees.insert(tree_key, tree);
            return Ok(inside(tree, file.number));
        }
        if let Some(ino) = table.by_node.get(node).copied() {
            if let Some(known) = table.by_ino.get_mut(&ino) {
                known.lookups += 1;
            }
            return Ok(ino);
        }
        // Higher numbers belong to files inside images.
        if split(table.next).is_some() {
            return Err(SystemError::NOMEM.into());
        }
        self.reserve()?;
        let ino = table.next;
        table.next += 1;
        table.by_ino.insert(ino, Known { node: node.clone(), lookups: 1 });
        table.by_node.insert(node.clone(), ino);
        Ok(ino)
    }

    /// Returns the number of a node known to the kernel.
    pub fn number_of(&self, node: &Node) -> Option<u64> {
        #[cfg(test)]
        {
            self.table.lock().lookups += 1;
        }
        let table = self.table.lock();
        match node {
            Node::ImageFile(key, file) => {
                let tree = table.trees.get(&(key.clone(), file.part))?;
                Some(inside(*tree, file.number))
            }
            _ => table.by_node.get(node).copied(),
        }
    }

    /// Returns the number of lookups so far.
    #[cfg(test)]
    pub fn lookups(&self) -> u64 {
        self.table.lock().lookups
    }

    /// Subtracts forgets of the kernel from the lookup count of a number.
    pub fn forget(&self, ino: u64, lookups: u64) {
        if ino == ROOT_INO || split(ino).is_some() {
            return;
        }
        let mut table = self.table.lock();
        let Some(known) = table.by_ino.get_mut(&ino) else { return };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups == 0
            && let Some(known) = table.by_ino.remove(&ino)
        {
            table.by_node.remove(&known.node);
            self.remembered.fetch_sub(1, Relaxed);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.table.lock().len()
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.remembered.fetch_sub(self.table.lock().len(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inode_numbers_are_valid_until_forgotten() {
        let nodes = Nodes::new();
        let volume = Node::Volume("a".into());
        let ino = nodes.remember(&volume).unwrap();
        assert_eq!(nodes.remember(&volume).unwrap(), ino);
        nodes.forget(ino, 1);
        assert_eq!(nodes.get(ino), Some(volume.clone()));
        nodes.forget(ino, 5);
        assert_eq!(nodes.get(ino), None);
        let again = nodes.remember(&volume).unwrap();
        assert!(again > ino, "numbers are not reused");
        nodes.forget(ROOT_INO, 100);
        assert_eq!((nodes.get(ROOT_INO), nodes.len()), (Some(Node::Root), 2));
    }

    #[test]
    fn node_limit_is_shared_by_all_mounts() {
        let all: &'static AtomicUsize = Box::leak(Box::default());
        let (nodes, others) = (Nodes::within(4, all), Nodes::within(4, all));
        let first = nodes.remember(&Node::Volume("a".into())).unwrap();
        others.remember(&Node::Volume("a".into())).unwrap();
        assert!(nodes.remember(&Node::Volume("b".into())).is_err());
        assert_eq!(
            nodes.remember(&Node::Volume("a".into())).unwrap(),
            first,
            "known nodes need no further capacity"
        );
        nodes.forget(first, 2);
        nodes.remember(&Node::Volume("b".into())).unwrap();
        drop((nodes, others));
        assert_eq!(all.load(Relaxed), 0);
    }

    #[test]
    fn files_inside_images_have_numbers_without_state() {
        let all: &'static AtomicUsize = Box::leak(Box::default());
        let nodes = Nodes::within(10, all);
        let file =
            |key: &str, part, number| Node::ImageFile(SnapshotKey(key.into()), FileId { part, number });
        let mut seen = std::collections::HashSet::new();
        for (key, part) in [("a", 0), ("b", 0), ("b", 1), ("b", 2)] {
            for number in (2..100_000).chain([u32::MAX]) {
                let node = file(key, part, number);
                let ino = nodes.remember(&node).unwrap();
                assert!(seen.insert(ino) && nodes.remember(&node).unwrap() == ino);
                assert_eq!((nodes.get(ino), nodes.number_of(&node)), (Some(node), Some(ino)));
            }
        }
        assert_eq!(all.load(Relaxed), 5);
        let ino = nodes.remember(&file("a", 0, 12)).unwrap();
        nodes.forget(ino, 1000);
        assert!(nodes.get(ino).is_some());
        assert_eq!(nodes.get(u64::MAX), None);
    }
}
