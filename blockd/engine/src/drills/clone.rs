//! Writable clone of an image: it reads the blocks of the cloud snapshot, and keeps written ones in an
//! unlinked file, which ends with the process.

use crate::free_space::{SpaceLevel, space_of};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockSet, BlockSource, Extent};
use blockd_nbd::{
    BlockDevice, Client, DeviceError, DeviceErrorKind, ExportCatalog, ExportError, ExportInfo, Progress,
    ZeroFlags,
};
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Maximum size of the written blocks, in bytes.
const MAX_WRITTEN_BYTES: u64 = 8 << 30;
/// Written bytes between two checks of the free space.
const SPACE_CHECK_BYTES: u64 = 16 << 20;
/// Length of a write of zeroes, in bytes.
const ZEROES_BYTES: usize = 1 << 20;

/// Clone of an image.
pub(super) struct DrillClone {
    image: Arc<dyn BlockSource>,
    /// Directory of the file.
    dir: PathBuf,
    file: File,
    written: Mutex<BlockSet>,
    /// A write was refused for lack of space.
    is_full: AtomicBool,
    /// Held during a write, with the size of the written blocks at the last check of the free space.
    writing: Mutex<u64>,
}

impl DrillClone {
    /// Creates a clone with a file in a directory.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn new(image: Arc<dyn BlockSource>, dir: &Path) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => File::from(fd),
            // Not every filesystem has unnamed files.
            Err(_) => {
                let path = dir.join("clone");
                let file = File::options().read(true).write(true).create_new(true).open(&path)?;
                std::fs::remove_file(&path)?;
                file
            }
        };
        file.set_len(image.size_bytes())?;
        let (dir, written) = (dir.to_owned(), Mutex::default());
        Ok(Self { image, dir, file, written, is_full: AtomicBool::new(false), writing: Mutex::new(0) })
    }

    /// Returns true if the clone refused a write for lack of space on this host.
    pub fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    fn write_error(&self, error: &io::Error) -> DeviceError {
        if error.kind() == io::ErrorKind::StorageFull {
            self.is_full.store(true, Ordering::Relaxed);
        }
        device_error("write", error)
    }

    fn read_into(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let len_bytes = buf.len() as u64;
        let range = Extent::touching(offset_bytes, len_bytes);
        let parts: Vec<(Extent, bool)> = {
            let written = self.written.lock();
            let own = written.extents_in(range).map(|extent| (extent, true));
            own.chain(written.gaps_in(range).map(|extent| (extent, false))).collect()
        };
        for (extent, is_written) in parts {
            let start = extent.offset_bytes().max(offset_bytes);
            let end = (extent.offset_bytes() + extent.len_bytes()).min(offset_bytes + len_bytes);
            let part = &mut buf[(start - offset_bytes) as usize..(end - offset_bytes) as usize];
            if is_written {
                self.file.read_exact_at(part, start)?;
            } else {
                self.image.read_at(start, part)?;
            }
        }
        Ok(())
    }

    /// Refuses further blocks if the clone or the data directory is full.
    fn check_space(&self, checked: &mut u64, range: Extent) -> io::Result<()> {
        let written = self.written.lock();
        let more = range.len_bytes() - written.intersection_len(range) * BLOCK_SIZE_BYTES;
        let size_bytes = written.len_bytes() + more;
        drop(written);
        if more == 0 || (*checked > 0 && size_bytes < *checked + SPACE_CHECK_BYTES) {
            return Ok(());
        }
        if size_bytes > MAX_WRITTEN_BYTES || SpaceLevel::of(space_of(&self.dir)?) != SpaceLevel::Enough {
            return Err(io::ErrorKind::StorageFull.into());
        }
        *checked = size_bytes;
        Ok(())
    }

    fn write_from(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()> {
        let range = Extent::touching(offset_bytes, data.len() as u64);
        let mut checked = self.writing.lock();
        self.check_space(&mut checked, range)?;
        self.copy_up(range, Extent::inside(offset_bytes, data.len() as u64))?;
        self.file.write_all_at(data, offset_bytes)?;
        self.written.lock().insert_extent(range);
        Ok(())
    }

    /// Copies the blocks at the ends of a range that a write covers in part.
    fn copy_up(&self, range: Extent, whole: Extent) -> io::Result<()> {
        let last = Extent::between(blockd_extent::BlockIndex(range.end().0.saturating_sub(1)), range.end());
        let first = Extent::new(range.start, 1);
        let mut block = [0; BLOCK_SIZE_BYTES as usize];
        for end in if first == last { vec![first] } else { vec![first, last] } {
            let is_covered = whole.intersection(end) == end;
            if is_covered || self.written.lock().contains(end.start) {
                continue;
            }
            let offset_bytes = end.offset_bytes();
            let inside = BLOCK_SIZE_BYTES.min(self.image.size_bytes().saturating_sub(offset_bytes));
            let block = &mut block[..inside as usize];
            self.image.read_at(offset_bytes, block)?;
            self.file.write_all_at(block, offset_bytes)?;
        }
        Ok(())
    }

    fn zero(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        let whole = Extent::inside(offset_bytes, len_bytes);
        if !whole.is_empty() && self.punch(whole)? {
            let (start, end) = (whole.offset_bytes(), whole.offset_bytes() + whole.len_bytes());
            self.write_zeroes_from(offset_bytes, start - offset_bytes)?;
            return self.write_zeroes_from(end, offset_bytes + len_bytes - end);
        }
        self.write_zeroes_from(offset_bytes, len_bytes)
    }

    /// Zeroes whole blocks without space for them; returns false if the filesystem cannot.
    fn punch(&self, whole: Extent) -> io::Result<bool> {
        let mut checked = self.writing.lock();
        self.check_space(&mut checked, whole)?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punched = rustix::fs::fallocate(&self.file, flags, whole.offset_bytes(), whole.len_bytes());
        if punched.is_ok() {
            self.written.lock().insert_extent(whole);
        }
        Ok(punched.is_ok())
    }

    fn write_zeroes_from(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        let zeroes = vec![0; ZEROES_BYTES.min(usize::try_from(len_bytes).unwrap_or(ZEROES_BYTES))];
        let end = offset_bytes + len_bytes;
        let mut at = offset_bytes;
        while at < end {
            let len = zeroes.len().min(usize::try_from(end - at).unwrap_or(ZEROES_BYTES));
            self.write_from(at, &zeroes[..len])?;
            at += len as u64;
        }
        Ok(())
    }
}

fn device_error(operation: &str, error: &io::Error) -> DeviceError {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull => DeviceErrorKind::NoSpace,
        _ => DeviceErrorKind::Io,
    };
    DeviceError::new(kind, format!("{operation} failed on the clone of a drill: {error}"))
}

impl BlockDevice for DrillClone {
    fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        let read = self.read_into(offset_bytes, buf);
        read.map(|()| Progress::Done).map_err(|error| device_error("read", &error))
    }

    fn write(&self, offset_bytes: u64, data: &[u8], _fua: bool) -> Result<(), DeviceError> {
        self.write_from(offset_bytes, data).map_err(|error| self.write_error(&error))
    }

    /// The clone ends with the process: nothing need be durable.
    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn trim(&self, _offset_bytes: u64, _len_bytes: u64, _fua: bool) -> Result<(), DeviceError> {
        Ok(())
    }

    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64, _flags: ZeroFlags) -> Result<(), DeviceError> {
        self.zero(offset_bytes, len_bytes).map_err(|error| self.write_error(&error))
    }
}

/// Catalog of clones by the names of their exports.
pub(super) struct CloneExports(pub BTreeMap<String, Arc<DrillClone>>);

impl ExportCatalog for CloneExports {
    fn open(&self, name: &str, _client: &Client) -> Result<Arc<dyn BlockDevice>, ExportError> {
        self.0.get(name).map(|clone| Arc::clone(clone) as _).ok_or(ExportError::Unknown)
    }

    fn list(&self, _client: &Client) -> Vec<ExportInfo> {
        let exports = self.0.iter().map(|(name, clone)| ExportInfo {
            name: name.clone(),
            description: String::new(),
            size_bytes: clone.size_bytes(),
            read_only: false,
        });
        exports.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Image whose byte at each offset depends on its block; not a multiple of the block size.
    struct Pattern;

    const SIZE_BYTES: u64 = 16 * BLOCK_SIZE_BYTES + 512;

    fn pattern(at: u64) -> u8 {
        (at / BLOCK_SIZE_BYTES + 1) as u8
    }

    impl BlockSource for Pattern {
        fn size_bytes(&self) -> u64 {
            SIZE_BYTES
        }

        fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
            assert!(offset_bytes + buf.len() as u64 <= SIZE_BYTES, "read beyond the end");
            (offset_bytes..).zip(buf).for_each(|(at, byte)| *byte = pattern(at));
            Ok(())
        }
    }

    #[test]
    fn clone_reads_its_writes_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let clone = DrillClone::new(Arc::new(Pattern), dir.path()).unwrap();
        let mut expected: Vec<u8> = (0..SIZE_BYTES).map(pattern).collect();
        let check = |expected: &[u8]| {
            let mut found = vec![0; expected.len()];
            clone.read(0, &mut found).unwrap();
            assert!(found == expected);
            let mut part = [0; 5000];
            clone.read(3000, &mut part).unwrap();
            assert!(part == expected[3000..8000]);
        };
        check(&expected);
        // Inside a block, over several blocks, in the last short block, and over earlier writes.
        let writes =
            [(100, 50), (8000, 20_000), (SIZE_BYTES - 300, 300), (8100, 10), (0, 4096), (20_000, 30_000)];
        for (nth, (at, len)) in writes.into_iter().enumerate() {
            let data = vec![200 + nth as u8; len];
            clone.write(at, &data, true).unwrap();
            expected[at as usize..][..len].copy_from_slice(&data);
            check(&expected);
        }
        for (at, len) in [(4000, 9000), (10, 20), (SIZE_BYTES - 5000, 5000)] {
            clone.write_zeroes(at, len, ZeroFlags::default()).unwrap();
            expected[at as usize..][..len as usize].fill(0);
            check(&expected);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn clone_refuses_more_blocks_than_its_limit() {
        /// Endless zeroes.
        struct Large;
        impl BlockSource for Large {
            fn size_bytes(&self) -> u64 {
                1 << 40
            }
            fn read_at(&self, _: u64, buf: &mut [u8]) -> io::Result<()> {
                buf.fill(0);
                Ok(())
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let clone = DrillClone::new(Arc::new(Large), dir.path()).unwrap();
        clone.write_zeroes(0, MAX_WRITTEN_BYTES, ZeroFlags::default()).unwrap();
        for further in [MAX_WRITTEN_BYTES, MAX_WRITTEN_BYTES + SPACE_CHECK_BYTES] {
            let full = clone.write_zeroes(further, SPACE_CHECK_BYTES, ZeroFlags::default());
            assert_eq!(full.unwrap_err().kind(), DeviceErrorKind::NoSpace);
        }
        // Written blocks can be written again.
        clone.write(8192, &[1; 4096], false).unwrap();
    }
}
