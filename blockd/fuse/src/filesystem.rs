//! FUSE operations on the tree.

use crate::{
    dirs::OpenDir,
    inside::Xattr,
    nodes::{Node, Nodes},
    open_file::Open,
    pool::Pool,
    tree::Tree,
};
use fuser::{
    AccessFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, ReplyAttr, ReplyBmap, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyXattr, Request,
};
use parking_lot::Mutex;
use rustix::io::Errno as SystemError;
use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

/// Maximum length of a read, in bytes: the largest request of the kernel.
const MAX_READ: u32 = 1 << 20;
/// Maximum number of background requests of the kernel, such as readahead.
const MAX_BACKGROUND: u16 = 64;
/// Maximum number of open files: a process with a copy of the descriptor can hide `RELEASE` requests from
/// this one.
const MAX_OPEN: usize = 4096;

struct Shared {
    tree: Tree,
    nodes: Nodes,
    open: Mutex<HashMap<u64, Arc<Open>>>,
    next_handle: AtomicU64,
    /// Number of entries of open directories.
    dir_entries: Arc<AtomicUsize>,
}

/// The filesystem of one mount.
pub(crate) struct BrowseFilesystem {
    shared: Arc<Shared>,
    pool: Pool,
    /// The kernel checks permissions, because other users may access the mount.
    checks_access: bool,
}

fn errno(error: &io::Error) -> Errno {
    let code = match (error.raw_os_error(), error.kind()) {
        (Some(code), _) => return Errno::from_i32(code),
        (None, io::ErrorKind::NotFound) => SystemError::NOENT,
        (None, io::ErrorKind::NotADirectory) => SystemError::NOTDIR,
        (None, io::ErrorKind::IsADirectory) => SystemError::ISDIR,
        (None, io::ErrorKind::InvalidInput) => SystemError::INVAL,
        (None, io::ErrorKind::Unsupported) => SystemError::OPNOTSUPP,
        (None, io::ErrorKind::ResourceBusy) => SystemError::BUSY,
        // The store refuses reads: nothing is known to be damaged.
        (None, io::ErrorKind::NotConnected) => SystemError::REMOTEIO,
        (None, _) => SystemError::IO,
    };
    Errno::from_i32(code.raw_os_error())
}

impl Shared {
    fn node(&self, ino: INodeNo) -> io::Result<Node> {
        self.nodes.get(ino.0).ok_or_else(|| io::Error::from(SystemError::STALE))
    }

    fn add(&self, opened: Open) -> io::Result<FileHandle> {
        let mut open = self.open.lock();
        if open.len() >= MAX_OPEN {
            return Err(SystemError::NFILE.into());
        }
        let handle = self.next_handle.fetch_add(1, Relaxed);
        open.insert(handle, Arc::new(opened));
        Ok(FileHandle(handle))
    }

    fn find(&self, handle: FileHandle) -> io::Result<Arc<Open>> {
        self.open.lock().get(&handle.0).cloned().ok_or_else(|| io::Error::from(SystemError::BADF))
    }

    fn lookup(&self, parent: &Node, name: &[u8], reply: ReplyEntry) {
        let found = self.tree.lookup(parent, name).and_then(|node| {
            let ino = self.nodes.remember(&node)?;
            self.tree.attr(&node, ino).inspect_err(|_| self.nodes.forget(ino, 1))
        });
        match found {
            Ok((attr, ttl)) => reply.entry(&ttl, &attr, Generation(0)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn open_node(&self, node: &Node) -> io::Result<Open> {
        match node {
            Node::Image(key) => Ok(Open::Image(self.tree.image(key)?)),
            Node::Manifest(key) => Ok(Open::Text(self.tree.manifest(key)?)),
            Node::Unlisted => Ok(Open::Text(self.tree.unlisted()?)),
            Node::ImageFile(key, file) => {
                let files = self.tree.files(key)?;
                let size_bytes = files.stat_of(*file)?.size_bytes;
                Ok(Open::File { files, file: *file, size_bytes })
            }
            _ => Err(io::ErrorKind::IsADirectory.into()),
        }
    }
}

thread_local! {
    /// Buffer for reads, reused.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl BrowseFilesystem {
    /// Creates the filesystem with this many threads for requests that may block. With `checks_access`, for
    /// mounts of several users, the kernel checks permissions by modes and access lists.
    pub fn new(tree: Tree, threads: usize, checks_access: bool) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            tree,
            nodes: Nodes::new(),
            open: Mutex::default(),
            next_handle: AtomicU64::new(1),
            dir_entries: Arc::default(),
        });
        Ok(Self { shared, pool: Pool::new(threads, 256)?, checks_access })
    }

    /// Replies with a selection of a node's extended attributes, or with its length if `size` is zero.
    fn reply_xattr(
        &self,
        ino: INodeNo,
        size: u32,
        reply: ReplyXattr,
        pick: impl FnOnce(Vec<Xattr>) -> io::Result<Vec<u8>> + Send + 'static,
    ) {
        let node = match self.shared.node(ino) {
            Ok(node) => node,
            Err(error) => return reply.error(errno(&error)),
        };
        self.run(!matches!(node, Node::ImageFile(..) | Node::Files(_)), move |shared| {
            match shared.tree.xattrs(&node).and_then(pick) {
                Ok(bytes) if size == 0 => reply.size(u32::try_from(bytes.len()).unwrap_or(u32::MAX)),
                Ok(bytes) if bytes.len() > size as usize => reply.error(Errno::ERANGE),
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    /// Runs quick work on the session's thread, and work that may block in the pool.
    fn run(&self, is_quick: bool, work: impl FnOnce(&Shared) + Send + 'static) {
        if is_quick {
            work(&self.shared);
        } else {
            let shared = self.shared.clone();
            self.pool.run(move || work(&shared));
        }
    }
}

impl Filesystem for BrowseFilesystem {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Optional features, for performance.
        let wanted = [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
        ];
        for flag in wanted {
            let _ = config.add_capabilities(flag);
        }
        // The group bits of a file with an access list are the mask of the list. Taken as group permissions
        // they would admit users that the list refuses.
        if self.checks_access && config.add_capabilities(InitFlags::FUSE_POSIX_ACL).is_err() {
            tracing::error!("mount for other users refused: the kernel does not support FUSE_POSIX_ACL");
            return Err(io::ErrorKind::Unsupported.into());
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        if let Err(max) = config.set_max_readahead(MAX_READ) {
            let _ = config.set_max_readahead(max);
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let parent = match self.shared.node(parent) {
            Ok(parent) => parent,
            Err(error) => return reply.error(errno(&error)),
        };
        let quick = match parent {
            Node::Root | Node::Volume(_) => true,
            Node::Snapshot(_) => name != "manifest.json" && name != "files",
            _ => false,
        };
        let name = name.as_bytes().to_vec();
        self.run(quick, move |shared| shared.lookup(&parent, &name, reply));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, lookups: u64) {
        self.shared.nodes.forget(ino.0, lookups);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let node = match self.shared.node(ino) {
            Ok(node) => node,
            Err(error) => return reply.error(errno(&error)),
        };
        self.run(Tree::is_quick(&node), move |shared| match shared.tree.attr(&node, ino.0) {
            Ok((attr, ttl)) => reply.attr(&ttl, &attr),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let node = match self.shared.node(ino) {
            Ok(node) => node,
            Err(error) => return reply.error(errno(&error)),
        };
        self.run(Tree::is_quick(&node), move |shared| match shared.tree.link(&node) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let node = match self.shared.node(ino) {
            Ok(node) => node,
            Err(error) => return reply.error(errno(&error)),
        };
        self.run(false, move |shared| match shared.open_node(&node).and_then(|open| shared.add(open)) {
            // The text can change between opens.
            Ok(handle) if node == Node::Unlisted => reply.opened(handle, FopenFlags::FOPEN_DIRECT_IO),
            // Snapshots are immutable, so the kernel's page cache stays valid.
            Ok(handle) => reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let open = match self.shared.find(fh) {
            Ok(open) => open,
            Err(error) => return reply.error(errno(&error)),
        };
        let len = size.min(MAX_READ) as usize;
        // Cached data needs no thread of the pool.
        let reply = BUFFER.with_borrow_mut(|buf| match open.try_read(offset, len, buf) {
            Ok(true) => {
                reply.data(buf);
                None
            }
            Ok(false) => Some(reply),
            Err(error) => {
                reply.error(errno(&error));
                None
            }
        });
        let Some(reply) = reply else { return };
        self.run(false, move |_| {
            BUFFER.with_borrow_mut(|buf| match open.read(offset, len, buf) {
                Ok(()) => reply.data(buf),
                Err(error) => reply.error(errno(&error)),
            });
        });
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // Read-only: after ENOSYS the kernel sends no further FLUSH requests.
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    // Ordinary tools send the following requests; the defaults of `fuser` would log each as unsupported.

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // After ENOSYS the kernel reports files as always ready.
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOTTY);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.as_bytes().to_vec();
        self.reply_xattr(ino, size, reply, move |xattrs| {
            let found = xattrs.into_iter().find(|xattr| xattr.name == name);
            found.map(|xattr| xattr.value).ok_or_else(|| io::Error::from(SystemError::NODATA))
        });
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.reply_xattr(ino, size, reply, |xattrs| {
            Ok(xattrs.into_iter().flat_map(|xattr| xattr.name.into_iter().chain([0])).collect())
        });
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.shared.open.lock().remove(&fh.0);
        reply.ok();
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let open = match self.shared.find(fh) {
            Ok(open) => open,
            Err(error) => return reply.error(errno(&error)),
        };
        self.run(false, move |_| match open.seek(offset, whence) {
            Ok(found) => reply.offset(found),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let node = match self.shared.node(ino) {
            Ok(node) => node,
            Err(error) => return reply.error(errno(&error)),
        };
        let quick = matches!(node, Node::Root | Node::Volume(_) | Node::Snapshot(_));
        self.run(quick, move |shared| {
            let children = shared.tree.children(&node);
            let dir = children.and_then(|children| OpenDir::new(children, &shared.dir_entries));
            match dir.and_then(|dir| shared.add(Open::Dir(dir))) {
                Ok(handle) => reply.opened(handle, FopenFlags::empty()),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let open = match self.shared.find(fh) {
            Ok(open) => open,
            Err(error) => return reply.error(errno(&error)),
        };
        let Open::Dir(dir) = &*open else { return reply.error(Errno::ENOTDIR) };
        dir.fill(&self.shared.nodes, ino.0, offset, |ino, next, kind, name| {
            reply.add(INodeNo(ino), next, kind, OsStr::from_bytes(name))
        });
        reply.ok();
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let open = match self.shared.find(fh) {
            Ok(open) => open,
            Err(error) => return reply.error(errno(&error)),
        };
        self.run(false, move |shared| {
            let Open::Dir(dir) = &*open else { return reply.error(Errno::ENOTDIR) };
            let filled = dir.fill_plus(&shared.tree, &shared.nodes, ino.0, offset, |entry| {
                let name = OsStr::from_bytes(entry.name);
                reply.add(INodeNo(entry.ino), entry.next, name, &entry.ttl, &entry.attr, Generation(0))
            });
            match filled {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.shared.open.lock().remove(&fh.0);
        reply.ok();
    }
}
