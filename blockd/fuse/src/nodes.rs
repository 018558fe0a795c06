//! Inode numbers: which node of the tree each one is, for as long as the kernel remembers it.

use crate::SnapshotKey;
use parking_lot::Mutex;
use rustix::io::Errno as SystemError;
use std::{collections::HashMap, io, sync::Arc};

/// How many nodes the kernel may know at once: whoever serves a mount beside this process can keep from it what the kernel forgot.
const NODES_MOST: usize = 1 << 21;
/// How long their paths may be in all, in bytes.
const PATHS_LEN_MOST: usize = 256 << 20;

/// A place in the tree.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Node {
    /// The mount itself.
    Root,
    /// The snapshots of one volume, by the name of its directory.
    Volume(Arc<str>),
    /// The link to the newest snapshot of a volume.
    Latest(Arc<str>),
    /// What there is of a snapshot.
    Snapshot(SnapshotKey),
    /// Its image.
    Image(SnapshotKey),
    /// What is known of it.
    Manifest(SnapshotKey),
    /// The files in it.
    Files(SnapshotKey),
    /// One of them, by its path, which begins with `/` and is not only that.
    Inside(SnapshotKey, Arc<[u8]>),
}

impl Node {
    fn path_len(&self) -> usize {
        match self {
            Self::Inside(_, path) => path.len(),
            _ => 0,
        }
    }
}

struct Known {
    node: Node,
    /// How often the kernel was told of it, less what it said that it forgot.
    lookups: u64,
}

struct Table {
    by_ino: HashMap<u64, Known>,
    by_node: HashMap<Node, u64>,
    next: u64,
    /// What the paths of all are long.
    paths_len: usize,
    /// How often a node was looked for.
    #[cfg(test)]
    looked_up: u64,
}

/// All nodes that the kernel knows.
pub(crate) struct Nodes {
    table: Mutex<Table>,
    /// How many there may be.
    most: usize,
    paths_len_most: usize,
}

/// The number of the root, by the protocol.
pub(crate) const ROOT_INO: u64 = 1;

impl Nodes {
    pub fn new() -> Self {
        Self::within(NODES_MOST, PATHS_LEN_MOST)
    }

    fn within(most: usize, paths_len_most: usize) -> Self {
        let root = Known { node: Node::Root, lookups: 1 };
        Self {
            table: Mutex::new(Table {
                by_ino: HashMap::from([(ROOT_INO, root)]),
                by_node: HashMap::from([(Node::Root, ROOT_INO)]),
                next: ROOT_INO + 1,
                paths_len: 0,
                #[cfg(test)]
                looked_up: 0,
            }),
            most,
            paths_len_most,
        }
    }

    /// The node of a number that the kernel was told.
    pub fn get(&self, ino: u64) -> Option<Node> {
        self.table.lock().by_ino.get(&ino).map(|known| known.node.clone())
    }

    /// The number of a node, of which the kernel is told once more.
    ///
    /// # Errors
    /// The kernel knows too many.
    pub fn remember(&self, node: &Node) -> io::Result<u64> {
        let mut table = self.table.lock();
        #[cfg(test)]
        {
            table.looked_up += 1;
        }
        if let Some(ino) = table.by_node.get(node).copied() {
            if let Some(known) = table.by_ino.get_mut(&ino) {
                known.lookups += 1;
            }
            return Ok(ino);
        }
        let paths_len = table.paths_len + node.path_len();
        if table.by_ino.len() >= self.most || paths_len > self.paths_len_most {
            return Err(SystemError::NOMEM.into());
        }
        table.paths_len = paths_len;
        let ino = table.next;
        table.next += 1;
        table.by_ino.insert(ino, Known { node: node.clone(), lookups: 1 });
        table.by_node.insert(node.clone(), ino);
        Ok(ino)
    }

    /// The number of a node, if the kernel was told of it.
    pub fn number_of(&self, node: &Node) -> Option<u64> {
        #[cfg(test)]
        {
            self.table.lock().looked_up += 1;
        }
        self.table.lock().by_node.get(node).copied()
    }

    /// How often a node was looked for so far.
    #[cfg(test)]
    pub fn looked_up(&self) -> u64 {
        self.table.lock().looked_up
    }

    /// The kernel forgot so many times that it was told of a number.
    pub fn forget(&self, ino: u64, lookups: u64) {
        if ino == ROOT_INO {
            return;
        }
        let mut table = self.table.lock();
        let Some(known) = table.by_ino.get_mut(&ino) else { return };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups == 0
            && let Some(known) = table.by_ino.remove(&ino)
        {
            table.by_node.remove(&known.node);
            table.paths_len -= known.node.path_len();
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.table.lock().by_ino.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_live_as_long_as_the_kernel_remembers_them() {
        let nodes = Nodes::new();
        let volume = Node::Volume("a".into());
        let ino = nodes.remember(&volume).unwrap();
        assert_eq!(nodes.remember(&volume).unwrap(), ino);
        nodes.forget(ino, 1);
        assert_eq!(nodes.get(ino), Some(volume.clone()));
        nodes.forget(ino, 5);
        assert_eq!(nodes.get(ino), None);
        let again = nodes.remember(&volume).unwrap();
        assert!(again > ino, "no number comes twice");
        nodes.forget(ROOT_INO, 100);
        assert_eq!((nodes.get(ROOT_INO), nodes.len()), (Some(Node::Root), 2));
    }

    #[test]
    fn there_are_not_more_than_there_may_be() {
        let inside = |path: &[u8]| Node::Inside(SnapshotKey("a".into()), path.into());
        let nodes = Nodes::within(3, 10);
        let first = nodes.remember(&inside(b"/12345")).unwrap();
        assert!(nodes.remember(&inside(b"/6789")).is_err(), "their paths are too long together");
        nodes.remember(&inside(b"/678")).unwrap();
        assert!(nodes.remember(&Node::Volume("a".into())).is_err());
        assert_eq!(nodes.remember(&inside(b"/12345")).unwrap(), first, "those that are known are told again");
        nodes.forget(first, 2);
        nodes.remember(&inside(b"/56789")).unwrap();
    }
}
