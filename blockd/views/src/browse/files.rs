//! Files inside cloud snapshots, for the control API: single directories, and byte ranges of files.

use super::browser::Browser;
use blockd_api::{
    CredentialRef, ErrorCode, List,
    browse::{
        FileKind, FileList, FilePath, FileRange, FileRanges, ListFileRanges, ListFiles, ReadFile,
        SnapshotFile, SnapshotXattr,
    },
};
use blockd_cloud::{CloudError, CloudSnapshotId};
use blockd_engine::error::{Advice, ServiceError, cloud_code, hint};
use blockd_fuse::inside::{self, FileStat, FileTree, ImageFiles, Xattr};
use jiff::Timestamp;
use std::{error::Error, io, sync::Arc};
use tokio::runtime::Handle;

/// Maximum number of images whose file trees stay open for the control API.
const MAX_FILES: usize = 8;
/// Maximum length of one read, in bytes.
const MAX_READ_BYTES: u64 = 8 << 20;
/// Maximum number of entries returned for a directory.
const MAX_ENTRIES: usize = 100_000;
/// Maximum number of data ranges of a file in one response.
const MAX_EXTENTS: usize = 1024;
/// Maximum number of ranges examined for one response: many short ranges may form one extent.
const MAX_RANGES: usize = 1 << 16;

/// File tree of a cloud snapshot.
pub struct FileReader {
    id: CloudSnapshotId,
    files: Arc<ImageFiles>,
}

fn refused(id: &CloudSnapshotId, path: &FilePath, error: &io::Error) -> ServiceError {
    let cause = cloud_cause(error);
    let code = match error.kind() {
        io::ErrorKind::NotFound => ErrorCode::FileNotFound,
        io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory | io::ErrorKind::InvalidInput => {
            ErrorCode::InvalidRequest
        }
        io::ErrorKind::TimedOut => ErrorCode::StoreTimeout,
        io::ErrorKind::ResourceBusy => ErrorCode::CloudsnapInUse,
        io::ErrorKind::NotConnected => cause.map_or(ErrorCode::StoreFailed, cloud_code),
        _ => match cause {
            // Missing objects are damage.
            None | Some(CloudError::Store(_)) => ErrorCode::CloudsnapDamaged,
            Some(cause) => cloud_code(cause),
        },
    };
    let what = match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => error.to_string(),
    };
    let failed = ServiceError::refused(code, format!("read failed on {path} in cloud snapshot {id}: {what}"));
    match cause {
        Some(CloudError::Store(error)) => failed.with_hint(|code, _| hint(code, Some(error.kind))),
        Some(_) => failed.with_hint(|code, _| hint(code, None)),
        None => failed,
    }
}

/// Returns the error of the cloud snapshot that caused an error of its files.
fn cloud_cause(error: &io::Error) -> Option<&CloudError> {
    let mut next = error.get_ref().map(|error| error as &(dyn Error + 'static));
    while let Some(error) = next {
        if let Some(cause) = error.downcast_ref::<Arc<CloudError>>() {
            return Some(cause);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn kind(kind: inside::FileKind) -> FileKind {
    match kind {
        inside::FileKind::Regular => FileKind::File,
        inside::FileKind::Directory => FileKind::Directory,
        inside::FileKind::Symlink => FileKind::Symlink,
        inside::FileKind::BlockDevice => FileKind::BlockDevice,
        inside::FileKind::CharDevice => FileKind::CharDevice,
        inside::FileKind::Fifo => FileKind::Fifo,
        inside::FileKind::Socket => FileKind::Socket,
    }
}

fn file(path: FilePath, stat: Option<FileStat>, target: Option<Vec<u8>>) -> SnapshotFile {
    let modified = stat.and_then(|stat| stat.modified).and_then(|time| Timestamp::try_from(time).ok());
    SnapshotFile {
        path,
        kind: stat.map_or(FileKind::Damaged, |stat| kind(stat.kind)),
        size_bytes: stat.map_or(0, |stat| stat.size_bytes),
        mode: stat.map_or(0, |stat| stat.mode),
        uid: stat.map_or(0, |stat| stat.uid),
        gid: stat.map_or(0, |stat| stat.gid),
        modified_at: modified,
        inode: stat.map(|stat| stat.number).filter(|number| *number > 0),
        links: stat.map(|stat| stat.links),
        target: target.map(FilePath::from_bytes),
    }
}

impl Browser {
    /// Opens the file tree of a cloud snapshot. Blocks.
    pub fn snapshot_files(
        &self,
        snap: &blockd_api::cloudsnaps::CloudSnapshotId,
        cred_id: Option<&CredentialRef>,
    ) -> Result<FileReader, ServiceError> {
        let id: CloudSnapshotId = *snap;
        let found = |files: &[(CloudSnapshotId, Arc<ImageFiles>)]| {
            files.iter().find(|(other, _)| *other == id).map(|(_, files)| Arc::clone(files))
        };
        if let Some(files) = found(&self.browse.files.lock()) {
            return Ok(FileReader { id, files });
        }
        let (snapshot, _) = self.open_cloudsnap(&Handle::current(), &id, cred_id)?;
        let files = ImageFiles::open(Arc::new(snapshot));
        let files = Arc::new(files.map_err(|error| refused(&id, &FilePath::root(), &error))?);
        let mut open = self.browse.files.lock();
        if open.len() >= MAX_FILES {
            open.remove(0);
        }
        open.push((id, Arc::clone(&files)));
        Ok(FileReader { id, files })
    }
}

impl FileReader {
    /// Describes a file, and its entries if it is a directory.
    ///
    /// # Errors
    /// The file does not exist or cannot be read.
    pub fn list(&self, query: &ListFiles) -> Result<FileList, ServiceError> {
        let path = &query.path;
        let bytes = path.as_bytes();
        self.check_supported(path)?;
        let refused = |error: io::Error| refused(&self.id, path, &error);
        let stat = self.files.stat(bytes).map_err(refused)?;
        let mut entries = Vec::new();
        if stat.kind == inside::FileKind::Directory && query.entries {
            let found = self.files.read_dir(bytes, MAX_ENTRIES).map_err(refused)?;
            entries.extend(found.into_iter().map(|entry| {
                let path = path.join(&entry.name);
                let link = entry.stat.filter(|stat| stat.kind == inside::FileKind::Symlink);
                let target = link.and_then(|_| self.files.read_link(path.as_bytes()).ok());
                file(path, entry.stat, target)
            }));
        }
        let target = match stat.kind {
            inside::FileKind::Symlink => self.files.read_link(bytes).ok(),
            _ => None,
        };
        let xattrs = if query.xattrs { self.files.xattrs(bytes).map_err(refused)? } else { Vec::new() };
        let xattr = |xattr: Xattr| SnapshotXattr {
            name: FilePath::from_bytes(xattr.name),
            value: FilePath::from_bytes(xattr.value),
        };
        Ok(FileList {
            file: file(path.clone(), Some(stat), target),
            list: entries.into(),
            xattrs: xattrs.into_iter().map(xattr).collect(),
        })
    }

    /// Reads a range of a file; the result is short only at the end of the file.
    ///
    /// # Errors
    /// The file does not exist, is not a regular file, or cannot be read.
    pub fn read(&self, query: &ReadFile) -> Result<Vec<u8>, ServiceError> {
        self.check_supported(&query.path)?;
        let len = usize::try_from(query.len_bytes.min(MAX_READ_BYTES)).unwrap_or(0);
        self.files
            .read(query.path.as_bytes(), query.offset_bytes, len)
            .map_err(|error| refused(&self.id, &query.path, &error))
    }

    /// Returns the data ranges of a file.
    ///
    /// # Errors
    /// The file does not exist, is not a regular file, or cannot be read.
    pub fn ranges(&self, query: &ListFileRanges) -> Result<FileRanges, ServiceError> {
        self.check_supported(&query.path)?;
        data_ranges(&*self.files, query.path.as_bytes(), query.offset_bytes)
            .map_err(|error| refused(&self.id, &query.path, &error))
    }

    /// Refuses a path in an image or partition without supported files.
    fn check_supported(&self, path: &FilePath) -> Result<(), ServiceError> {
        let reason = self.files.unreadable_reason(path.as_bytes());
        let Some(reason) = reason.map_err(|error| refused(&self.id, path, &error))? else { return Ok(()) };
        let message = format!("read failed on {path} in cloud snapshot {}: {reason}", self.id);
        Err(with_image_hint(ServiceError::refused(ErrorCode::NoFiles, message)))
    }
}

fn data_ranges(files: &dyn FileTree, path: &[u8], from_bytes: u64) -> io::Result<FileRanges> {
    let stat = files.stat(path)?;
    match stat.kind {
        inside::FileKind::Regular => {}
        inside::FileKind::Directory => return Err(io::ErrorKind::IsADirectory.into()),
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
    let size_bytes = stat.size_bytes;
    let mut data: Vec<FileRange> = Vec::new();
    let mut at = from_bytes.min(size_bytes);
    for _ in 0..MAX_RANGES {
        if at >= size_bytes {
            break;
        }
        let range = files.range_at(path, at)?;
        // A damaged image must not cause a loop: each step advances, at most to the end of the file.
        let end = range.end_bytes.clamp(at + 1, size_bytes);
        if range.is_data {
            let is_full = data.len() >= MAX_EXTENTS;
            match data.last_mut() {
                Some(last) if last.offset_bytes + last.len_bytes == at => last.len_bytes += end - at,
                _ if is_full => break,
                _ => data.push(FileRange { offset_bytes: at, len_bytes: end - at }),
            }
        }
        at = end;
    }
    let next = (at < size_bytes).then_some(at);
    Ok(FileRanges { size_bytes, list: List { items: data, next } })
}

fn with_image_hint(error: ServiceError) -> ServiceError {
    error.with_hint(|_, _| {
        Some(Advice::of(
            "mount the whole image instead: `blockctl browse mount DIR` shows it as disk.img, for a loop device",
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_extent::{BlockSource, DataRange};
    use blockd_fuse::inside::FileEntry;

    /// Fake file with `data` bytes of data at each multiple of `step`, reported in ranges of up to
    /// `max_range` bytes.
    struct SparseFile {
        size: u64,
        step: u64,
        data: u64,
        max_range: u64,
    }

    impl FileTree for SparseFile {
        fn stat(&self, path: &[u8]) -> io::Result<FileStat> {
            let kind = match path {
                b"/file" => inside::FileKind::Regular,
                b"/dir" => inside::FileKind::Directory,
                b"/pipe" => inside::FileKind::Fifo,
                _ => return Err(io::ErrorKind::NotFound.into()),
            };
            let (size_bytes, allocated_bytes) = (self.size, 0);
            let (mode, uid, gid, links, device) = (0o644, 0, 0, 1, None);
            let (modified, accessed, changed) = (None, None, None);
            Ok(FileStat {
                kind,
                number: 0,
                size_bytes,
                allocated_bytes,
                mode,
                uid,
                gid,
                links,
                device,
                modified,
                accessed,
                changed,
            })
        }

        fn read_dir(&self, _: &[u8], _: usize) -> io::Result<Vec<FileEntry>> {
            unimplemented!()
        }

        fn read_link(&self, _: &[u8]) -> io::Result<Vec<u8>> {
            unimplemented!()
        }

        fn read(&self, _: &[u8], _: u64, _: usize) -> io::Result<Vec<u8>> {
            unimplemented!()
        }

        fn range_at(&self, _: &[u8], offset_bytes: u64) -> io::Result<DataRange> {
            let within = offset_bytes % self.step;
            let (is_data, border) = if within < self.data { (true, self.data) } else { (false, self.step) };
            let max_end = (offset_bytes / self.max_range + 1) * self.max_range;
            Ok(DataRange { is_data, end_bytes: (offset_bytes - within + border).min(max_end) })
        }

        fn xattrs(&self, _: &[u8]) -> io::Result<Vec<Xattr>> {
            unimplemented!()
        }
    }

    /// Fake image of zeros, without a filesystem.
    struct EmptyImage;

    impl BlockSource for EmptyImage {
        fn size_bytes(&self) -> u64 {
            1 << 20
        }

        fn read_at(&self, _: u64, buf: &mut [u8]) -> io::Result<()> {
            buf.fill(0);
            Ok(())
        }
    }

    #[test]
    fn requests_without_files_name_snapshot_and_cause() {
        let files = Arc::new(ImageFiles::open(Arc::new(EmptyImage)).unwrap());
        let id: CloudSnapshotId = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61".parse().unwrap();
        let (reader, path) = (FileReader { id, files }, FilePath::root().join(b"etc"));
        let (cloud_snapshot_id, credential, offset_bytes) = (id, None, 0);
        let list = ListFiles {
            cloud_snapshot_id,
            path: path.clone(),
            entries: false,
            xattrs: false,
            credential: credential.clone(),
        };
        let ranges = ListFileRanges {
            cloud_snapshot_id,
            path: path.clone(),
            offset_bytes,
            credential: credential.clone(),
        };
        let read = ReadFile { cloud_snapshot_id, path, offset_bytes, len_bytes: 9, credential };
        let errors = [
            reader.list(&list).unwrap_err(),
            reader.ranges(&ranges).unwrap_err(),
            reader.read(&read).unwrap_err(),
        ];
        let expected =
            format!("read failed on /etc in cloud snapshot {id}: it has no ext2, ext3 or ext4 filesystem");
        for error in errors.map(|error| error.to_api()) {
            assert_eq!((error.code, error.message), (ErrorCode::NoFiles, expected.clone()));
        }
    }

    #[test]
    fn data_extents_are_joined_clamped_and_bounded() {
        let file = SparseFile { size: 1000, step: 300, data: 100, max_range: 40 };
        let range = |offset_bytes, len_bytes| FileRange { offset_bytes, len_bytes };
        let found = data_ranges(&file, b"/file", 0).unwrap();
        let data = vec![range(0, 100), range(300, 100), range(600, 100), range(900, 100)];
        assert_eq!(found, FileRanges { size_bytes: 1000, list: data.into() });
        let found = data_ranges(&file, b"/file", 650).unwrap();
        assert_eq!(found.list.items, [range(650, 50), range(900, 100)]);
        assert_eq!(data_ranges(&file, b"/file", 5000).unwrap().list.next, None);

        // Further extents come with the next request, without duplicates.
        let file = SparseFile { size: 1 << 24, step: 4096, data: 1024, max_range: 1 << 30 };
        let (mut at, mut total, mut requests) = (0, 0, 0);
        while at < file.size {
            let found = data_ranges(&file, b"/file", at).unwrap();
            assert!(found.list.items.len() <= MAX_EXTENTS && found.list.next.is_none_or(|next| next > at));
            total += found.list.items.iter().map(|range| range.len_bytes).sum::<u64>();
            (at, requests) = (found.list.next.unwrap_or(found.size_bytes), requests + 1);
        }
        assert_eq!((total, requests), ((1 << 24) / 4, 4));

        // An image without progress is abandoned after a bounded number of steps.
        let file = SparseFile { size: u64::MAX, step: u64::MAX, data: u64::MAX, max_range: 1 };
        assert_eq!(data_ranges(&file, b"/file", 0).unwrap().list.next, Some(MAX_RANGES as u64));
        assert_eq!(data_ranges(&file, b"/dir", 0).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert_eq!(data_ranges(&file, b"/pipe", 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
