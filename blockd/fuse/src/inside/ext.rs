//! Files of ext2, ext3 and ext4, read by `blockd-ext4`, which checks untrusted input and bounds the cost of
//! each operation.

use super::{FileEntry, FileStat, FileTree, Files, NumberedFiles, is_outage, large};
use blockd_ext4::{ExtError, Filesystem, Inode, InodeNumber, JournalState, ReadAt, Xattr};
use blockd_extent::{BlockSource, DataRange};
use hashlink::LruCache;
use parking_lot::Mutex;
use std::{collections::VecDeque, io, ops::Range, sync::Arc};

/// Maximum number of entries of a directory in a mount.
const MAX_MOUNT_ENTRIES: usize = 1_000_000;
/// Number of cached inodes of recently read files.
const MAX_INODES: usize = 64;
/// Maximum size of cached names, in bytes.
const MAX_NAMES_BYTES: usize = 4 << 20;
/// Maximum size of the cached names of the last listed directory, in bytes. They stay cached beyond
/// [`MAX_NAMES_BYTES`].
const MAX_NEWEST_BYTES: usize = 64 << 20;

/// Adapter of an image.
pub(super) struct Source(pub Arc<dyn BlockSource>);

impl ReadAt for Source {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_exact_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset_bytes, buf)
    }

    fn will_need(&self, ranges: &[Range<u64>]) {
        self.0.will_need(ranges);
    }
}

/// Returns true if the image holds an ext2, ext3 or ext4 filesystem, by its magic number.
pub(super) fn probe(image: &Arc<dyn BlockSource>) -> io::Result<bool> {
    blockd_ext4::probe(&Source(Arc::clone(image))).map_err(convert)
}

/// Returns true if the journal of the filesystem is on another device.
pub(super) fn has_external_journal(image: &Arc<dyn BlockSource>) -> io::Result<bool> {
    blockd_ext4::names_journal_device(&Source(Arc::clone(image))).map_err(convert)
}

/// Returns the number of inodes in use, without a replay of the journal, which would read much of it.
///
/// # Errors
/// Those of [`open`].
pub(super) fn count_files(image: Arc<dyn BlockSource>) -> io::Result<u64> {
    let fs = Filesystem::open_without_replay(Arc::new(Source(image))).map_err(convert)?;
    fs.count_inodes_in_use().map_err(convert)
}

/// Opens the filesystem of an image.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if it is damaged, [`io::ErrorKind::Unsupported`] for unsupported features;
/// other kinds are errors of the image.
pub(super) fn open(image: Arc<dyn BlockSource>) -> io::Result<Arc<dyn Files>> {
    let fs = Filesystem::open(Arc::new(Source(image))).map_err(convert)?;
    let info = fs.info();
    if let JournalState::Replayed { fast_commits: true, .. } = info.journal {
        tracing::warn!(
            "fast commits of a browsed filesystem are not replayed: the changes synced last may be missing"
        );
    }
    if let JournalState::Replayed { transactions, damaged: true, .. } = info.journal {
        tracing::warn!(
            transactions,
            "journal of a browsed filesystem ends with a damaged transaction, which is not replayed"
        );
    }
    tracing::debug!(?info, "opened a filesystem for browsing");
    let (inodes, names) = (Mutex::new(LruCache::new(MAX_INODES)), Mutex::default());
    let (numbered, numbered_names) = (Mutex::new(LruCache::new(MAX_INODES)), Mutex::default());
    Ok(Arc::new(ExtTree { fs, large: Mutex::new(()), inodes, names, numbered, numbered_names }))
}

/// Returns at most `max_ranges` byte ranges of metadata, without journal replay.
///
/// # Errors
/// See [`open`].
pub(super) fn metadata(image: Arc<dyn BlockSource>, max_ranges: usize) -> io::Result<Vec<Range<u64>>> {
    let found = Filesystem::open_without_replay(Arc::new(Source(image))).map(|fs| fs.metadata(max_ranges));
    found.map_err(convert)
}

fn convert(error: ExtError) -> io::Error {
    let kind = match error {
        ExtError::NotFound => io::ErrorKind::NotFound,
        ExtError::NotADirectory => io::ErrorKind::NotADirectory,
        ExtError::IsADirectory => io::ErrorKind::IsADirectory,
        ExtError::NotAFile
        | ExtError::NotALink
        | ExtError::TooManyLinks
        | ExtError::TooManyEntries { .. } => io::ErrorKind::InvalidInput,
        ExtError::Unsupported { .. } => io::ErrorKind::Unsupported,
        // Errors of the image keep their kind.
        ExtError::Read { .. } => {
            let read = error.to_string();
            let ExtError::Read { source, .. } = error else { return io::Error::other(read) };
            return io::Error::new(source.kind(), ImageError { read, source });
        }
        _ => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, error.to_string())
}

fn stat_of(inode: &Inode) -> FileStat {
    FileStat {
        kind: inode.kind,
        number: inode.number.0.into(),
        size_bytes: inode.size_bytes,
        allocated_bytes: inode.allocated_bytes,
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        links: inode.links.into(),
        device: inode.device.map(|device| (device.major, device.minor)),
        modified: Some(inode.modified.into()),
        accessed: Some(inode.accessed.into()),
        changed: Some(inode.changed.into()),
    }
}

/// Names of a directory, sorted.
type Names = Arc<Vec<(Vec<u8>, InodeNumber)>>;

/// Cache of the names of recently listed directories, as lookups follow a listing.
struct NameCache<K> {
    dirs: VecDeque<(K, Names)>,
    len_bytes: usize,
}

impl<K> Default for NameCache<K> {
    fn default() -> Self {
        Self { dirs: VecDeque::new(), len_bytes: 0 }
    }
}

fn names_len<K: AsRef<[u8]>>(key: &K, names: &Names) -> usize {
    let each = |(name, _): &(Vec<u8>, InodeNumber)| name.len() + size_of::<(Vec<u8>, InodeNumber)>();
    key.as_ref().len() + names.iter().map(each).sum::<usize>()
}

impl<K: AsRef<[u8]> + PartialEq> NameCache<K> {
    fn insert(&mut self, key: K, names: Names) {
        let len = names_len(&key, &names);
        if len > MAX_NEWEST_BYTES || self.dirs.iter().any(|(known, _)| *known == key) {
            return;
        }
        self.len_bytes += len;
        self.dirs.push_back((key, names));
        while self.len_bytes > MAX_NAMES_BYTES
            && self.dirs.len() > 1
            && let Some((key, names)) = self.dirs.pop_front()
        {
            self.len_bytes -= names_len(&key, &names);
        }
    }

    fn find(&self, key: &[u8]) -> Option<Names> {
        let mut dirs = self.dirs.iter().rev();
        dirs.find(|(known, _)| known.as_ref() == key).map(|(_, names)| Arc::clone(names))
    }
}

/// Open filesystem, usable by several threads concurrently.
struct ExtTree {
    fs: Filesystem,
    /// Serializes listings of large directories.
    large: Mutex<()>,
    /// Caches of access by path.
    inodes: Mutex<LruCache<Vec<u8>, Arc<Inode>>>,
    names: Mutex<NameCache<Vec<u8>>>,
    /// Caches of access by inode number.
    numbered: Mutex<LruCache<u32, Arc<Inode>>>,
    numbered_names: Mutex<NameCache<[u8; 4]>>,
}

impl ExtTree {
    fn inode(&self, path: &[u8]) -> Result<Inode, ExtError> {
        if let Some(at) = path.iter().rposition(|byte| *byte == b'/') {
            let (dir, name) = (&path[..at.max(1)], &path[at + 1..]);
            let known = self.names.lock().find(dir);
            if let Some(names) = known {
                let found = names.binary_search_by(|(other, _)| other.as_slice().cmp(name));
                // A miss is no proof that the name does not exist, such as for `..`.
                if let Some((_, number)) = found.ok().and_then(|index| names.get(index)) {
                    return self.fs.inode(*number);
                }
            }
        }
        self.fs.resolve(path)
    }

    /// Returns the inode of a path through the cache, for a sequence of reads.
    fn inode_to_read(&self, path: &[u8]) -> Result<Arc<Inode>, ExtError> {
        if let Some(inode) = self.inodes.lock().get(path) {
            return Ok(Arc::clone(inode));
        }
        let inode = Arc::new(self.inode(path)?);
        self.inodes.lock().insert(path.to_vec(), Arc::clone(&inode));
        Ok(inode)
    }

    fn entries(&self, path: &[u8], max_entries: usize) -> io::Result<Vec<FileEntry>> {
        let (dir, ancestors) = self.fs.resolve_with_ancestors(path).map_err(convert)?;
        // A recursive walk into an ancestor would not terminate.
        let is_loop = |number: &InodeNumber| *number == dir.number || ancestors.contains(number);
        let (found, names) = self.listed(&dir, max_entries, is_loop)?;
        self.names.lock().insert(path.to_vec(), names);
        Ok(found)
    }

    /// Returns the sorted entries of a directory, without `.` and `..`, and their names for the cache.
    /// Entries for which `is_loop` returns true have no attributes.
    fn listed(
        &self,
        dir: &Inode,
        max_entries: usize,
        is_loop: impl Fn(&InodeNumber) -> bool,
    ) -> io::Result<(Vec<FileEntry>, Names)> {
        let is_large = dir.size_bytes > large::LARGE_DIR_BYTES;
        let _listing = is_large.then(|| large::begin(&self.large)).transpose()?;
        let mut entries = self.fs.read_dir(dir, max_entries).map_err(convert)?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        // A lookup finds only the first of several entries with the same name.
        entries.dedup_by(|b, a| a.name == b.name);
        let mut names: Vec<_> = entries.into_iter().map(|entry| (entry.name, entry.inode)).collect();
        let mut found = Vec::with_capacity(names.len());
        for (name, number) in &names {
            let stat = match self.fs.inode(*number) {
                _ if is_loop(number) => None,
                Ok(inode) => Some(stat_of(&inode)),
                // An outage is no damage, and each further entry would wait for its timeout.
                Err(error) => match convert(error) {
                    error if is_outage(&error) => return Err(error),
                    _ => None,
                },
            };
            found.push(FileEntry { name: name.clone(), number: number.0, stat });
        }
        names.retain(|(_, number)| !is_loop(number));
        Ok((found, Arc::new(names)))
    }

    /// Returns an inode by number through the cache, for a sequence of reads.
    fn numbered(&self, number: u32) -> Result<Arc<Inode>, ExtError> {
        if let Some(inode) = self.numbered.lock().get(&number) {
            return Ok(Arc::clone(inode));
        }
        let inode = Arc::new(self.fs.inode(InodeNumber(number))?);
        self.numbered.lock().insert(number, Arc::clone(&inode));
        Ok(inode)
    }

    fn number_in(&self, dir: u32, name: &[u8]) -> Result<InodeNumber, ExtError> {
        let known = self.numbered_names.lock().find(&dir.to_le_bytes());
        if let Some(names) = known {
            let found = names.binary_search_by(|(other, _)| other.as_slice().cmp(name));
            // A miss is no proof that the name does not exist: the cache omits directory loops.
            if let Some((_, number)) = found.ok().and_then(|index| names.get(index)) {
                return Ok(*number);
            }
        }
        let inode = self.numbered(dir)?;
        self.fs.lookup(&inode, name)
    }

    fn bytes(&self, inode: &Inode, offset_bytes: u64, len: usize) -> Result<Vec<u8>, ExtError> {
        let left = inode.size_bytes.saturating_sub(offset_bytes);
        let mut bytes = vec![0; len.min(usize::try_from(left).unwrap_or(len))];
        let read = self.fs.read(inode, offset_bytes, &mut bytes)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    fn range(&self, inode: &Inode, offset_bytes: u64) -> Result<DataRange, ExtError> {
        let extent = self.fs.extent_at(inode, offset_bytes)?;
        Ok(DataRange { is_data: extent.is_data, end_bytes: extent.end_bytes })
    }
}

/// Error of a read of the image, which stays its source.
#[derive(Debug, thiserror::Error)]
#[error("{read}: {source}")]
struct ImageError {
    read: String,
    source: io::Error,
}

impl FileTree for ExtTree {
    fn stat(&self, path: &[u8]) -> io::Result<FileStat> {
        self.inode(path).map(|inode| stat_of(&inode)).map_err(convert)
    }

    fn read_dir(&self, path: &[u8], max_entries: usize) -> io::Result<Vec<FileEntry>> {
        self.entries(path, max_entries)
    }

    fn read_link(&self, path: &[u8]) -> io::Result<Vec<u8>> {
        self.inode(path).and_then(|inode| self.fs.read_link(&inode)).map_err(convert)
    }

    fn read(&self, path: &[u8], offset_bytes: u64, len: usize) -> io::Result<Vec<u8>> {
        let inode = self.inode_to_read(path).map_err(convert)?;
        self.bytes(&inode, offset_bytes, len).map_err(convert)
    }

    fn range_at(&self, path: &[u8], offset_bytes: u64) -> io::Result<DataRange> {
        let inode = self.inode_to_read(path);
        inode.and_then(|inode| self.range(&inode, offset_bytes)).map_err(convert)
    }

    fn xattrs(&self, path: &[u8]) -> io::Result<Vec<Xattr>> {
        self.inode(path).and_then(|inode| self.fs.xattrs(&inode)).map_err(convert)
    }
}

impl NumberedFiles for ExtTree {
    fn stat_of(&self, number: u32) -> io::Result<FileStat> {
        self.fs.inode(InodeNumber(number)).map(|inode| stat_of(&inode)).map_err(convert)
    }

    fn lookup_in(&self, dir: u32, name: &[u8]) -> io::Result<u32> {
        let number = self.number_in(dir, name).map_err(convert)?.0;
        match number == dir || number == InodeNumber::ROOT.0 {
            true => Err(io::Error::new(io::ErrorKind::InvalidData, "directory loop")),
            false => Ok(number),
        }
    }

    fn entries_of(&self, dir: u32) -> io::Result<Vec<FileEntry>> {
        let is_loop = |number: &InodeNumber| number.0 == dir || *number == InodeNumber::ROOT;
        let inode = self.fs.inode(InodeNumber(dir)).map_err(convert)?;
        let (entries, names) = self.listed(&inode, MAX_MOUNT_ENTRIES, is_loop)?;
        self.numbered_names.lock().insert(dir.to_le_bytes(), names);
        Ok(entries)
    }

    fn link_of(&self, number: u32) -> io::Result<Vec<u8>> {
        let inode = self.fs.inode(InodeNumber(number));
        inode.and_then(|inode| self.fs.read_link(&inode)).map_err(convert)
    }

    fn read_of(&self, number: u32, offset_bytes: u64, len: usize) -> io::Result<Vec<u8>> {
        let inode = self.numbered(number);
        inode.and_then(|inode| self.bytes(&inode, offset_bytes, len)).map_err(convert)
    }

    fn range_of(&self, number: u32, offset_bytes: u64) -> io::Result<DataRange> {
        let inode = self.numbered(number);
        inode.and_then(|inode| self.range(&inode, offset_bytes)).map_err(convert)
    }

    fn xattrs_of(&self, number: u32) -> io::Result<Vec<Xattr>> {
        let inode = self.fs.inode(InodeNumber(number));
        inode.and_then(|inode| self.fs.xattrs(&inode)).map_err(convert)
    }
}

impl Files for ExtTree {}
