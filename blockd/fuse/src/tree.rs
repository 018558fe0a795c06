//! Tree of nodes with their children and attributes.

use crate::{
    Catalog, SnapshotKey,
    inside::{FileId, FileKind, FileStat, ImageFiles, NamedFile, Xattr},
    listing::Listing,
    nodes::Node,
};
use blockd_extent::BlockSource;
use fuser::{FileAttr, FileType, INodeNo};
use hashlink::LruCache;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Maximum number of images kept open for reuse, and of their filesystems.
const MAX_OPEN: usize = 32;
/// Time to live of attributes that can change, such as the existence of a snapshot.
pub(crate) const TTL_CHANGING: Duration = Duration::from_secs(1);
/// Time to live of constant attributes.
pub(crate) const TTL_FIXED: Duration = Duration::from_secs(3600);

const IMAGE_NAME: &[u8] = b"disk.img";
const MANIFEST_NAME: &[u8] = b"manifest.json";
const FILES_NAME: &[u8] = b"files";
const LATEST_NAME: &[u8] = b"latest";
/// File next to the volumes if a store could not be listed.
const UNLISTED_NAME: &str = "STORES-NOT-LISTED.txt";

/// Entry of a directory.
pub(crate) struct Child {
    pub name: Vec<u8>,
    pub node: Node,
    pub kind: FileType,
    /// Attributes, if known without a lookup.
    pub stat: Option<FileStat>,
    /// The attributes are damaged.
    pub damaged: bool,
}

impl Child {
    pub fn new(name: &[u8], node: Node, kind: FileType) -> Self {
        Self { name: name.to_vec(), node, kind, stat: None, damaged: false }
    }
}

struct Opened {
    images: LruCache<SnapshotKey, Arc<dyn BlockSource>>,
    files: LruCache<SnapshotKey, Arc<ImageFiles>>,
    /// Attributes of the roots of opened images; `None` without a filesystem, or with several.
    roots: HashMap<SnapshotKey, Option<FileStat>>,
}

/// Tree of one mount.
pub(crate) struct Tree {
    catalog: Arc<dyn Catalog>,
    listing: Mutex<Arc<Listing>>,
    opened: Mutex<Opened>,
    since: SystemTime,
    uid: u32,
    gid: u32,
}

fn gone() -> io::Error {
    io::ErrorKind::NotFound.into()
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

impl Tree {
    /// Creates a tree whose nodes, except files inside images, belong to the user of this process.
    pub fn new(catalog: Arc<dyn Catalog>) -> Self {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Self::of_owner(catalog, uid, gid)
    }

    /// Creates a tree whose nodes, except files inside images, belong to this user and group.
    pub fn of_owner(catalog: Arc<dyn Catalog>, uid: u32, gid: u32) -> Self {
        let listing = Mutex::new(Arc::new(Listing::new(catalog.snapshots())));
        let (images, files) = (LruCache::new(MAX_OPEN), LruCache::new(MAX_OPEN));
        let opened = Mutex::new(Opened { images, files, roots: HashMap::new() });
        Self { catalog, listing, opened, since: SystemTime::now(), uid, gid }
    }

    /// Returns the current listing. Images of snapshots that vanished from it are closed.
    pub fn listing(&self) -> Arc<Listing> {
        let entries = self.catalog.snapshots();
        let mut listing = self.listing.lock();
        if !listing.is_of(&entries) {
            *listing = Arc::new(Listing::new(entries));
            let known = listing.clone();
            let mut opened = self.opened.lock();
            opened.images.retain(|key, _| known.find(key).is_some());
            opened.files.retain(|key, _| known.find(key).is_some());
            opened.roots.retain(|key, _| known.find(key).is_some());
        }
        listing.clone()
    }

    /// Opens the image of a snapshot. May block.
    pub fn image(&self, key: &SnapshotKey) -> io::Result<Arc<dyn BlockSource>> {
        if let Some(image) = self.opened.lock().images.get(key) {
            return Ok(image.clone());
        }
        let image = self.catalog.open(key)?;
        self.opened.lock().images.insert(key.clone(), image.clone());
        Ok(image)
    }

    /// Opens the files inside a snapshot's image. May block.
    pub fn files(&self, key: &SnapshotKey) -> io::Result<Arc<ImageFiles>> {
        if let Some(files) = self.opened.lock().files.get(key) {
            return Ok(files.clone());
        }
        let files = Arc::new(ImageFiles::open(self.image(key)?)?);
        self.opened.lock().files.insert(key.clone(), files.clone());
        Ok(files)
    }

    /// Returns the attributes of the root of a snapshot's single filesystem. May block.
    fn root(&self, key: &SnapshotKey) -> io::Result<Option<FileStat>> {
        if let Some(root) = self.opened.lock().roots.get(key) {
            return Ok(*root);
        }
        let root = self.files(key)?.root()?;
        self.opened.lock().roots.insert(key.clone(), root);
        Ok(root)
    }

    /// Returns true if the attributes of a node are available without a store.
    pub fn is_quick(node: &Node) -> bool {
        matches!(
            node,
            Node::Root
                | Node::Unlisted
                | Node::Volume(_)
                | Node::Latest(_)
                | Node::Snapshot(_)
                | Node::Image(_)
        )
    }

    /// Looks up a name below a node. May block, unless the parent is the root, a volume or a snapshot.
    pub fn lookup(&self, parent: &Node, name: &[u8]) -> io::Result<Node> {
        let listing = self.listing();
        let text = || std::str::from_utf8(name).map_err(|_| gone());
        match parent {
            Node::Root => {
                let name = text()?;
                match listing.volumes.get_key_value(name) {
                    Some((name, _)) => Ok(Node::Volume(name.clone())),
                    None if name == UNLISTED_NAME && self.unlisted().is_ok() => Ok(Node::Unlisted),
                    None => Err(gone()),
                }
            }
            Node::Volume(volume) => {
                let (volume, dir) = listing.volumes.get_key_value(volume).ok_or_else(gone)?;
                if name == LATEST_NAME && dir.latest.is_some() {
                    return Ok(Node::Latest(volume.clone()));
                }
                let index = dir.snapshots.get(text()?).ok_or_else(gone)?;
                Ok(Node::Snapshot(listing.entry(*index).key.clone()))
            }
            Node::Snapshot(key) => {
                listing.find(key).ok_or_else(gone)?;
                match name {
                    IMAGE_NAME => Ok(Node::Image(key.clone())),
                    MANIFEST_NAME => Ok(Node::Manifest(key.clone())),
                    FILES_NAME => Ok(Node::Files(key.clone())),
                    _ => Err(gone()),
                }
            }
            Node::Files(key) => self.lookup_file(key, FileId::ROOT, name),
            Node::ImageFile(key, file) => self.lookup_file(key, *file, name),
            Node::Latest(_) | Node::Image(_) | Node::Manifest(_) | Node::Unlisted => {
                Err(io::ErrorKind::NotADirectory.into())
            }
        }
    }

    fn lookup_file(&self, key: &SnapshotKey, dir: FileId, name: &[u8]) -> io::Result<Node> {
        Ok(Node::ImageFile(key.clone(), self.files(key)?.lookup_in(dir, name)?))
    }

    /// Returns the children of a node in display order. May block like [`lookup`](Self::lookup).
    pub fn children(&self, node: &Node) -> io::Result<Vec<Child>> {
        let listing = self.listing();
        match node {
            Node::Root => {
                let volumes = listing.volumes.keys();
                let mut children: Vec<Child> = volumes
                    .map(|name| Child::new(name.as_bytes(), Node::Volume(name.clone()), FileType::Directory))
                    .collect();
                if self.unlisted().is_ok() && !listing.volumes.contains_key(UNLISTED_NAME) {
                    let name = UNLISTED_NAME.as_bytes();
                    children.push(Child::new(name, Node::Unlisted, FileType::RegularFile));
                }
                Ok(children)
            }
            Node::Volume(volume) => {
                let dir = listing.volumes.get(volume).ok_or_else(gone)?;
                let snapshots = dir.snapshots.iter().map(|(name, index)| {
                    let node = Node::Snapshot(listing.entry(*index).key.clone());
                    Child::new(name.as_bytes(), node, FileType::Directory)
                });
                let latest = Child::new(LATEST_NAME, Node::Latest(volume.clone()), FileType::Symlink);
                Ok(snapshots.chain([latest]).collect())
            }
            Node::Snapshot(key) => {
                listing.find(key).ok_or_else(gone)?;
                Ok(vec![
                    Child::new(IMAGE_NAME, Node::Image(key.clone()), FileType::RegularFile),
                    Child::new(FILES_NAME, Node::Files(key.clone()), FileType::Directory),
                    Child::new(MANIFEST_NAME, Node::Manifest(key.clone()), FileType::RegularFile),
                ])
            }
            Node::Files(key) => self.files_below(key, FileId::ROOT),
            Node::ImageFile(key, file) => self.files_below(key, *file),
            Node::Latest(_) | Node::Image(_) | Node::Manifest(_) | Node::Unlisted => {
                Err(io::ErrorKind::NotADirectory.into())
            }
        }
    }

    fn files_below(&self, key: &SnapshotKey, dir: FileId) -> io::Result<Vec<Child>> {
        let child = |entry: NamedFile| Child {
            node: Node::ImageFile(key.clone(), entry.file),
            kind: entry.stat.map_or(FileType::RegularFile, |stat| file_type(stat.kind)),
            damaged: entry.stat.is_none(),
            stat: entry.stat,
            name: entry.name,
        };
        Ok(self.files(key)?.entries_of(dir)?.into_iter().map(child).collect())
    }

    /// Returns the manifest of a snapshot. May block.
    pub fn manifest(&self, key: &SnapshotKey) -> io::Result<Vec<u8>> {
        self.catalog.manifest_json(key)
    }

    /// Returns the text about stores that could not be listed.
    pub fn unlisted(&self) -> io::Result<Vec<u8>> {
        self.catalog.unlisted().map(String::into_bytes).ok_or_else(gone)
    }

    /// Returns the target of a link. May block for links inside images.
    pub fn link(&self, node: &Node) -> io::Result<Vec<u8>> {
        match node {
            Node::Latest(volume) => {
                let listing = self.listing();
                let latest = listing.volumes.get(volume).and_then(|dir| dir.latest.clone());
                Ok(latest.ok_or_else(gone)?.as_bytes().to_vec())
            }
            Node::ImageFile(key, file) => self.files(key)?.link_of(*file),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Returns the extended attributes of a node. Only files inside images and their root have any. May
    /// block.
    pub fn xattrs(&self, node: &Node) -> io::Result<Vec<Xattr>> {
        match node {
            // The root may have an access list.
            Node::Files(key) => self.files(key)?.xattrs_of(FileId::ROOT),
            Node::ImageFile(key, file) => self.files(key)?.xattrs_of(*file),
            _ => Ok(Vec::new()),
        }
    }

    /// Returns the attributes of a node with its number and their time to live. May block, unless it
    /// [`is_quick`](Self::is_quick).
    pub fn attr(&self, node: &Node, ino: u64) -> io::Result<(FileAttr, Duration)> {
        self.attr_in(&self.listing(), node, ino)
    }

    /// Returns the attributes with a given listing, which callers share among many nodes.
    pub fn attr_in(&self, listing: &Listing, node: &Node, ino: u64) -> io::Result<(FileAttr, Duration)> {
        let of = |key: &SnapshotKey| listing.find(key).ok_or_else(gone);
        let make = |kind, perm, size, time| self.make_attr(ino, kind, perm, size, time);
        Ok(match node {
            Node::Root => (make(FileType::Directory, 0o555, 0, self.since), TTL_CHANGING),
            Node::Unlisted => {
                let len = self.unlisted()?.len() as u64;
                (make(FileType::RegularFile, 0o444, len, self.since), TTL_CHANGING)
            }
            Node::Volume(volume) => {
                let dir = listing.volumes.get(volume).ok_or_else(gone)?;
                let newest = dir.latest.as_ref().and_then(|name| dir.snapshots.get(name));
                let time = newest.map_or(self.since, |index| listing.entry(*index).created);
                (make(FileType::Directory, 0o555, 0, time), TTL_CHANGING)
            }
            Node::Latest(volume) => {
                let dir = listing.volumes.get(volume).ok_or_else(gone)?;
                let name = dir.latest.as_ref().ok_or_else(gone)?;
                (make(FileType::Symlink, 0o777, name.len() as u64, self.since), TTL_CHANGING)
            }
            Node::Snapshot(key) => (make(FileType::Directory, 0o555, 0, of(key)?.created), TTL_CHANGING),
            Node::Files(key) => {
                let created = of(key)?.created;
                match self.root(key)? {
                    Some(root) => (self.file_attr(&root, ino, created), TTL_FIXED),
                    None => (make(FileType::Directory, 0o555, 0, created), TTL_FIXED),
                }
            }
            Node::Image(key) => {
                let entry = of(key)?;
                let mut attr = make(FileType::RegularFile, 0o400, entry.size_bytes, entry.created);
                attr.blocks = entry.data_bytes.min(entry.size_bytes).div_ceil(512);
                (attr, TTL_FIXED)
            }
            Node::Manifest(key) => {
                let len = self.manifest(key)?.len() as u64;
                (make(FileType::RegularFile, 0o444, len, of(key)?.created), TTL_FIXED)
            }
            Node::ImageFile(key, file) => {
                let created = of(key)?.created;
                (self.file_attr(&self.files(key)?.stat_of(*file)?, ino, created), TTL_FIXED)
            }
        })
    }

    /// Returns the attributes of a directory entry with a given listing. May block.
    pub fn child_attr(&self, listing: &Listing, child: &Child, ino: u64) -> io::Result<(FileAttr, Duration)> {
        match (&child.stat, &child.node) {
            (Some(stat), Node::ImageFile(key, ..)) => {
                let created = listing.find(key).ok_or_else(gone)?.created;
                Ok((self.file_attr(stat, ino, created), TTL_FIXED))
            }
            // The entry is listed; further access to it returns an error.
            _ if child.damaged => Ok((self.make_attr(ino, child.kind, 0, 0, self.since), Duration::ZERO)),
            // A listing opens no image. Mode 0 without a time to live grants no access: the kernel requests
            // the attributes before it uses them.
            (None, Node::Files(key)) if !self.opened.lock().roots.contains_key(key) => {
                Ok((self.make_attr(ino, child.kind, 0, 0, self.since), Duration::ZERO))
            }
            _ => self.attr_in(listing, &child.node, ino),
        }
    }

    fn file_attr(&self, stat: &FileStat, ino: u64, created: SystemTime) -> FileAttr {
        let time = stat.modified.unwrap_or(created);
        let attr = self.make_attr(ino, file_type(stat.kind), stat.mode, stat.size_bytes, time);
        let atime = stat.accessed.unwrap_or(time);
        let ctime = stat.changed.unwrap_or(time);
        let rdev = stat.device.map_or(0, |(major, minor)| minor & 0xff | major << 8 | (minor & !0xff) << 12);
        let blocks = match stat.kind {
            FileKind::Regular => stat.allocated_bytes.div_ceil(512),
            _ => attr.blocks,
        };
        FileAttr { uid: stat.uid, gid: stat.gid, nlink: stat.links, atime, ctime, rdev, blocks, ..attr }
    }

    fn make_attr(&self, ino: u64, kind: FileType, perm: u16, size: u64, time: SystemTime) -> FileAttr {
        FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            // Linux does not ask for it.
            crtime: time,
            kind,
            perm,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}
