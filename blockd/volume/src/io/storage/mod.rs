//! System calls that read, change or sync a volume's files.
//!
//! The kernel performs them, unless a [`Storage`] is attached to the directory, such as a fake disk for fault
//! injection. Reads through io_uring bypass this module; [`File::before_read`] announces them.

#![allow(unsafe_code, reason = "a file is taken on drop; ioctl that shares extents")]

mod share;

use crate::io::closer;
use parking_lot::RwLock;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate};
use std::{
    fs::{Metadata, OpenOptions},
    io::{self, IoSliceMut},
    mem::ManuallyDrop,
    num::NonZeroU64,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

/// Interceptor of the system calls on files below a directory; decides the outcome of each call.
pub trait Storage: Send + Sync {
    /// Returns the number of the file at a path; a rename does not change it.
    fn file_at(&self, path: &Path) -> Option<usize>;

    /// Performs a call on an open file or a path; `kernel` passes it to the kernel.
    ///
    /// # Errors
    /// Those of the call.
    fn perform(
        &self,
        path: &Path,
        file: Option<usize>,
        op: Op<'_>,
        kernel: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()>;
}

/// Call on a file or name.
#[derive(Clone, Copy)]
pub enum Op<'a> {
    /// Creates a directory.
    CreateDir,
    /// Creates a file; an existing one is truncated.
    Create,
    /// Opens a file or directory.
    Open,
    /// Reads content or metadata.
    Read,
    /// Writes bytes.
    Write {
        /// The kernel's file.
        file: &'a std::fs::File,
        /// Position.
        offset_bytes: u64,
        /// Content.
        data: &'a [u8],
    },
    /// Sets the length.
    SetLen(u64),
    /// Allocates space without changing content.
    Reserve,
    /// Zeroes a range without changing the length.
    Zero {
        /// Position.
        offset_bytes: u64,
        /// Length.
        len_bytes: u64,
    },
    /// Shares a range of another file.
    Share {
        /// The kernel's file that has the range.
        from: &'a std::fs::File,
        /// The kernel's file that gets it.
        to: &'a std::fs::File,
        /// Position in both files.
        offset_bytes: u64,
        /// Length.
        len_bytes: u64,
    },
    /// Makes a file durable.
    Sync,
    /// Makes the names in a directory durable.
    SyncDir,
    /// Renames a file or directory to this path.
    Rename(&'a Path),
    /// Creates a hard link at this path.
    Link(&'a Path),
    /// Removes a name of a file.
    Remove,
    /// Removes a directory and its content.
    RemoveTree,
    /// Drops clean pages of the kernel's file.
    DropCache(&'a std::fs::File),
}

/// Attached storages, by directory.
static ATTACHED: RwLock<Vec<(PathBuf, Arc<dyn Storage>)>> = RwLock::new(Vec::new());

/// Attaches a storage to a directory, for all later calls on paths and on files opened later.
pub fn attach_storage(dir: &Path, storage: Arc<dyn Storage>) {
    ATTACHED.write().push((dir.to_owned(), storage));
}

/// Detaches the storage of a directory. Files that are open keep it.
pub fn detach_storage(dir: &Path) {
    ATTACHED.write().retain(|(attached, _)| attached != dir);
}

/// Path or open file on an attached storage.
struct Attached {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    file: Option<usize>,
}

/// Executor of the calls on a path or an open file: the kernel (`None`), or an attached storage.
struct Calls(Option<Box<Attached>>);

impl Calls {
    fn on(path: &Path) -> Self {
        let attached = ATTACHED.read();
        let found = attached.iter().find(|(dir, _)| path.starts_with(dir));
        Self(found.map(|(_, storage)| {
            Box::new(Attached { storage: storage.clone(), path: path.to_owned(), file: None })
        }))
    }

    fn opened(mut self) -> Self {
        if let Some(attached) = &mut self.0 {
            attached.file = attached.storage.file_at(&attached.path);
        }
        self
    }

    #[inline]
    fn run(&self, op: Op<'_>, mut kernel: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        match &self.0 {
            None => kernel(),
            Some(on) => on.storage.perform(&on.path, on.file, op, &mut kernel),
        }
    }

    /// Runs a call with a result that only the kernel returns.
    fn get<T>(&self, op: Op<'_>, mut kernel: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut value = None;
        self.run(op, || kernel().map(|result| value = Some(result)))?;
        value.ok_or_else(|| io::ErrorKind::Unsupported.into())
    }
}

/// Open file; see [`Storage`].
pub(crate) struct File {
    /// Taken by `drop` only.
    inner: ManuallyDrop<std::fs::File>,
    calls: Calls,
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: the field is private to this module, no other code takes the file, and `drop` runs once.
        let file = unsafe { ManuallyDrop::take(&mut self.inner) };
        // Closing a linked file frees no space.
        if file.metadata().is_ok_and(|found| found.nlink() == 0) {
            closer::drop_later(file);
        }
    }
}

impl File {
    /// Creates an empty file; an existing one is truncated.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        Self::open_with(path, Op::Create, options.read(true).write(true).create(true).truncate(true))
    }

    /// Creates a file that must not exist.
    pub(crate) fn create_new(path: &Path) -> io::Result<Self> {
        Self::open_with(path, Op::Create, OpenOptions::new().read(true).write(true).create_new(true))
    }

    /// Opens an existing file for reading and writing.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::open_with(path, Op::Open, OpenOptions::new().read(true).write(true))
    }

    /// Opens an existing file read-only.
    pub(crate) fn open_to_read(path: &Path) -> io::Result<Self> {
        Self::open_with(path, Op::Open, OpenOptions::new().read(true))
    }

    /// Creates an unlinked, empty substitute for a missing file.
    pub(crate) fn empty_substitute(path: &Path) -> io::Result<Self> {
        let inner = rustix::fs::memfd_create("missing", rustix::fs::MemfdFlags::CLOEXEC)?;
        Ok(Self { inner: ManuallyDrop::new(inner.into()), calls: Calls::on(path) })
    }

    fn open_with(path: &Path, op: Op<'_>, options: &OpenOptions) -> io::Result<Self> {
        let calls = Calls::on(path);
        let inner = calls.get(op, || options.open(path))?;
        Ok(Self { inner: ManuallyDrop::new(inner), calls: calls.opened() })
    }

    #[inline]
    pub(crate) fn write_all_at(&self, data: &[u8], offset_bytes: u64) -> io::Result<()> {
        let op = Op::Write { file: &self.inner, offset_bytes, data };
        self.calls.run(op, || self.inner.write_all_at(data, offset_bytes))
    }

    #[inline]
    pub(crate) fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.calls.run(Op::Read, || self.inner.read_exact_at(buf, offset_bytes))
    }

    /// Reads from the page cache; returns the number of bytes.
    #[inline]
    pub(crate) fn read_cached_at(&self, buf: &mut [u8], offset_bytes: u64) -> rustix::io::Result<usize> {
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        let len = buf.len();
        let count = rustix::io::preadv2(&*self.inner, &mut [IoSliceMut::new(buf)], offset_bytes, flags)?;
        assert!(count <= len, "a read fits its buffer");
        Ok(count)
    }

    /// Announces a read that bypasses this module.
    #[inline]
    pub(crate) fn before_read(&self) -> io::Result<()> {
        self.calls.run(Op::Read, || Ok(()))
    }

    /// Opens the file again for reads that bypass the page cache; `None` without support.
    pub(crate) fn open_direct(&self) -> Option<std::fs::File> {
        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        let path = format!("/proc/self/fd/{}", self.inner.as_raw_fd());
        OpenOptions::new().read(true).custom_flags(direct).open(path).ok()
    }

    pub(crate) fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.calls.run(Op::SetLen(len_bytes), || self.inner.set_len(len_bytes))
    }

    /// Allocates space for a range without changing content or length.
    pub(crate) fn reserve(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        let flags = FallocateFlags::KEEP_SIZE;
        self.calls.run(Op::Reserve, || Ok(fallocate(&*self.inner, flags, offset_bytes, len_bytes)?))
    }

    /// Zeroes a range; keeps or frees its space.
    pub(crate) fn zero(&self, offset_bytes: u64, len_bytes: u64, keep_space: bool) -> io::Result<()> {
        let mode = if keep_space { FallocateFlags::ZERO_RANGE } else { FallocateFlags::PUNCH_HOLE };
        let flags = mode | FallocateFlags::KEEP_SIZE;
        self.calls.run(Op::Zero { offset_bytes, len_bytes }, || {
            Ok(fallocate(&*self.inner, flags, offset_bytes, len_bytes)?)
        })
    }

    /// Shares a range of another file without copying. Without support the error is [`cannot_share`] or
    /// [`cannot_share_range`].
    pub(crate) fn share_from(&self, from: &Self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        let op = Op::Share { from: &from.inner, to: &self.inner, offset_bytes, len_bytes };
        self.calls.run(op, || share::share_range(&from.inner, &self.inner, offset_bytes, len_bytes))
    }

    /// Syncs the content and the metadata needed to read it (`fdatasync`).
    pub(crate) fn sync_data(&self) -> io::Result<()> {
        self.calls.run(Op::Sync, || self.inner.sync_data())
    }

    /// Syncs content and all metadata, but not the name (`fsync`).
    pub(crate) fn sync_all(&self) -> io::Result<()> {
        self.calls.run(Op::Sync, || self.inner.sync_all())
    }

    /// Asks the kernel to read a range ahead.
    pub(crate) fn will_need(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        let len = NonZeroU64::new(len_bytes);
        Ok(rustix::fs::fadvise(&*self.inner, offset_bytes, len, rustix::fs::Advice::WillNeed)?)
    }

    /// Drops clean pages of a range from the page cache, so that the next read uses the disk; without a
    /// length, up to the end of the file.
    pub(crate) fn drop_cache(&self, offset_bytes: u64, len_bytes: Option<NonZeroU64>) -> io::Result<()> {
        self.calls.run(Op::DropCache(&self.inner), || {
            let advice = rustix::fs::Advice::DontNeed;
            Ok(rustix::fs::fadvise(&*self.inner, offset_bytes, len_bytes, advice)?)
        })
    }

    /// Returns the offset of the next data at or after an offset.
    pub(crate) fn seek_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        match rustix::fs::seek(&*self.inner, SeekFrom::Data(offset_bytes)) {
            Err(rustix::io::Errno::NXIO) => Ok(None),
            other => Ok(Some(other?)),
        }
    }

    /// Returns the offset of the next hole at or after an offset; the end of the file counts as a hole.
    pub(crate) fn seek_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        Ok(rustix::fs::seek(&*self.inner, SeekFrom::Hole(offset_bytes))?)
    }

    pub(crate) fn metadata(&self) -> io::Result<Metadata> {
        self.inner.metadata()
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl AsRawFd for File {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}

/// Returns true if an error of [`File::share_from`] means that these files can never share extents.
pub(crate) fn cannot_share(error: &io::Error) -> bool {
    use rustix::io::Errno;
    // Kernels and filesystems without support return OPNOTSUPP, NOTTY or NOSYS.
    let never = [Errno::XDEV, Errno::OPNOTSUPP, Errno::NOTTY, Errno::NOSYS, Errno::PERM];
    never.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Returns true if an error of [`File::share_from`] means that this range must be copied, for example because
/// it is not aligned to the filesystem's blocks, or because XFS has exhausted its metadata reserve and
/// reports a full disk although it has space for data.
pub(crate) fn cannot_share_range(error: &io::Error) -> bool {
    error.raw_os_error() != Some(rustix::io::Errno::IO.raw_os_error())
}

/// Reads a whole file.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    Calls::on(path).get(Op::Read, || std::fs::read(path))
}

pub(crate) fn metadata(path: &Path) -> io::Result<Metadata> {
    Calls::on(path).get(Op::Read, || std::fs::metadata(path))
}

pub(crate) fn create_dir(path: &Path) -> io::Result<()> {
    Calls::on(path).run(Op::CreateDir, || std::fs::create_dir(path))
}

/// Renames a file or directory, replacing the target.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    Calls::on(from).run(Op::Rename(to), || std::fs::rename(from, to))
}

/// Creates a hard link in the same filesystem.
pub(crate) fn hard_link(from: &Path, to: &Path) -> io::Result<()> {
    Calls::on(from).run(Op::Link(to), || std::fs::hard_link(from, to))
}

pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    Calls::on(path).run(Op::Remove, || std::fs::remove_file(path))
}

pub(crate) fn remove_dir_all(path: &Path) -> io::Result<()> {
    Calls::on(path).run(Op::RemoveTree, || std::fs::remove_dir_all(path))
}

/// Syncs a directory: makes created, renamed and removed names durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    let handle = Calls::on(dir).get(Op::Open, || std::fs::File::open(dir))?;
    Calls::on(dir).run(Op::SyncDir, || handle.sync_all())
}
