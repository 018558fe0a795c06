//! Disk cache of stored frames and index pages, encrypted if the repository is.
//!
//! The cache reveals no more than the objects in the store: decrypted data is never written to it. Each entry
//! is a separate file, so that the least recently used ones can be removed individually.
//!
//! The file `<2 hex digits>/<64 hex digits>` holds the entry whose key has these digits (the first two also
//! name the directory). Its content, integers little-endian:
//!
//! | at | length | what |
//! |---|---|---|
//! | 0 | 8 | `BLKDPIEC` |
//! | 8 | 2 | version, 1 |
//! | 10 | 2 | 0 |
//! | 12 | 4 | `n`, length of the entry |
//! | 16 | 16 | XXH3-128 (seed 0) of the key's 32 bytes, then the entry |
//! | 32 | n | the entry |
//!
//! The key is SHA-256 of `"blockd cached piece v1"`, key id (16 bytes), salt of the delta (32), offset (u64),
//! length (u64) and the object's key. A file is written under a temporary name and renamed, without an fsync:
//! after a power failure its content is arbitrary, which the checksum detects. Temporary files (a number and
//! `.tmp`) are removed when the cache is opened; files with other names are foreign and stay. An entry of
//! another version is a miss.

use super::lru::Lru;
use crate::CloudError;
use parking_lot::Mutex;
use rustix::{
    buffer::spare_capacity,
    io::{read, retry_on_intr},
};
use sha2::{Digest, Sha256};
use std::{
    fmt::Write as _,
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant, SystemTime},
};
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

const MAGIC: &[u8; 8] = b"BLKDPIEC";
const VERSION: u16 = 1;
const HEADER_LEN: usize = 32;
/// Maximum length of an entry: larger than typical pages and roots of an index.
const MAX_PIECE_LEN: u64 = 8 << 20;
/// Disk space granularity of a file.
const FILE_GRAIN_BYTES: u64 = 4096;
/// Age from which a read renews the file's modification time: keeps the LRU order across restarts at low
/// cost.
const TOUCH_AFTER: Duration = Duration::from_secs(60);
/// Minimum interval between warnings about I/O errors of the cache.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Key of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PieceKey([u8; 32]);

impl PieceKey {
    /// Returns the key of `len_bytes` bytes of an object of the delta with this salt.
    pub fn new(key_id: Uuid, salt: &[u8; 32], object: &str, offset_bytes: u64, len_bytes: u64) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(b"blockd cached piece v1");
        hasher.update(key_id.as_bytes());
        hasher.update(salt);
        hasher.update(offset_bytes.to_le_bytes());
        hasher.update(len_bytes.to_le_bytes());
        hasher.update(object.as_bytes());
        Self(hasher.finalize().into())
    }

    fn name(&self) -> String {
        let mut name = String::with_capacity(64);
        for byte in self.0 {
            // Writing to a string does not fail.
            let _ = write!(name, "{byte:02x}");
        }
        debug_assert!(Self::from_name(&name) == Some(*self), "{name} names another piece");
        name
    }

    fn from_name(name: &str) -> Option<Self> {
        let mut key = [0; 32];
        if name.len() != 64 || name.bytes().any(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        for (byte, pair) in key.iter_mut().zip(name.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(key))
    }
}

struct CachedFile {
    touched: SystemTime,
}

/// Disk cache below a directory, used by one process at a time.
pub(crate) struct DiskCache {
    dir: PathBuf,
    pieces: Mutex<Lru<PieceKey, CachedFile>>,
    last_warning: Mutex<Option<Instant>>,
    temp: AtomicU64,
    damaged: AtomicU64,
}

/// Returns true for names of cache directories.
fn is_shard(name: &str) -> bool {
    name.len() == 2 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns true for names of temporary files.
fn is_temp(name: &str) -> bool {
    let number = name.strip_suffix(".tmp");
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn grain(len_bytes: u64) -> u64 {
    (len_bytes + HEADER_LEN as u64).next_multiple_of(FILE_GRAIN_BYTES)
}

impl DiskCache {
    /// Opens the cache in a directory, which is created if missing, and evicts entries beyond `max_bytes`.
    /// Blocks while it lists the directory.
    pub fn open(dir: &Path, max_bytes: u64) -> Result<Self, CloudError> {
        let failed = |what: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| CloudError::Cache { path, what, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("creation", dir))?;
        let mut found = Vec::new();
        for shard in fs::read_dir(dir).map_err(failed("listing", dir))? {
            let shard = shard.map_err(failed("listing", dir))?;
            let digits = shard.file_name();
            // Foreign files stay: the directory may be configured by mistake.
            let Some(digits) = digits.to_str().filter(|name| is_shard(name)) else { continue };
            if !shard.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let shard = shard.path();
            for file in fs::read_dir(&shard).map_err(failed("listing", &shard))? {
                let file = file.map_err(failed("listing", &shard))?;
                let name = file.file_name();
                let Some(name) = name.to_str() else { continue };
                // Does not follow symbolic links.
                let Ok(meta) = file.metadata() else { continue };
                if !meta.is_file() {
                    continue;
                }
                if is_temp(name) {
                    let _ = fs::remove_file(file.path());
                } else if let Some(key) = PieceKey::from_name(name).filter(|_| name.starts_with(digits)) {
                    let touched = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    found.push((touched, key, meta.len()));
                }
            }
        }
        found.sort_by_key(|(touched, key, _)| (*touched, key.0));
        let mut pieces = Lru::new(max_bytes);
        let cache = Self {
            dir: dir.to_owned(),
            pieces: Mutex::new(Lru::new(0)),
            last_warning: Mutex::new(None),
            temp: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
        };
        for (touched, key, len) in found {
            for (gone, _) in
                pieces.insert(key, CachedFile { touched }, len.next_multiple_of(FILE_GRAIN_BYTES))
            {
                let _ = fs::remove_file(cache.path(&gone));
            }
        }
        *cache.pieces.lock() = pieces;
        Ok(cache)
    }

    fn path(&self, key: &PieceKey) -> PathBuf {
        let name = key.name();
        self.dir.join(&name[..2]).join(name)
    }

    /// Returns an entry with a valid checksum.
    pub fn get(&self, key: &PieceKey) -> Option<Vec<u8>> {
        let mut room = Vec::new();
        self.read(key, &mut room, |head, piece| (*head == header(key, piece)).then_some(()))?;
        room.drain(..HEADER_LEN);
        Some(room)
    }

    /// Returns the result of `open` on an entry. Skips the checksum, because in-place decryption
    /// authenticates the data. `room` is a reusable buffer.
    pub fn open_piece<T>(
        &self,
        key: &PieceKey,
        room: &mut Vec<u8>,
        open: impl FnOnce(&mut [u8]) -> Option<T>,
    ) -> Option<T> {
        self.read(key, room, |head, piece| {
            let is_ours = head.starts_with(&header_start(piece.len()));
            if is_ours { open(piece) } else { None }
        })
    }

    /// Reads an entry and its header into `room`; removes it if `check` fails.
    fn read<T>(
        &self,
        key: &PieceKey,
        room: &mut Vec<u8>,
        check: impl FnOnce(&[u8; HEADER_LEN], &mut [u8]) -> Option<T>,
    ) -> Option<T> {
        let touch = {
            let mut pieces = self.pieces.lock();
            // Marks the entry as used even if the read fails.
            let piece = pieces.get(key)?;
            piece.touched.elapsed().is_ok_and(|age| age > TOUCH_AFTER)
        };
        let path = self.path(key);
        let found = read_file(&path, room)
            .map(|()| room.split_first_chunk_mut().and_then(|(head, piece)| check(head, piece)));
        match found {
            Ok(Some(good)) => {
                if touch {
                    self.touch(key, &path);
                }
                return Some(good);
            }
            Ok(None) => {
                self.damaged.fetch_add(1, Relaxed);
                tracing::warn!(path = %path.display(), "cache entry is damaged: fetching it again");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.warn_rate_limited("read", &path, &error),
        }
        self.forget(key);
        None
    }

    fn touch(&self, key: &PieceKey, path: &Path) {
        let now = SystemTime::now();
        if let Ok(file) = fs::File::open(path)
            && file.set_modified(now).is_ok()
        {
            let mut pieces = self.pieces.lock();
            if pieces.contains(key) {
                let len = fs::metadata(path).map_or(FILE_GRAIN_BYTES, |meta| meta.len());
                pieces.insert(*key, CachedFile { touched: now }, len.next_multiple_of(FILE_GRAIN_BYTES));
            }
        }
    }

    /// Stores an entry and evicts others. Write errors are logged only: the entry is fetched again.
    pub fn put(&self, key: &PieceKey, bytes: &[u8]) {
        if bytes.len() as u64 > MAX_PIECE_LEN || self.pieces.lock().contains(key) {
            return;
        }
        let path = self.path(key);
        if let Err(error) = self.write(&path, key, bytes) {
            self.warn_rate_limited("write", &path, &error);
            return;
        }
        let piece = CachedFile { touched: SystemTime::now() };
        debug_assert!(
            fs::metadata(&path).map_or(true, |meta| meta.len() == (HEADER_LEN + bytes.len()) as u64)
        );
        let gone = self.pieces.lock().insert(*key, piece, grain(bytes.len() as u64));
        for (gone, _) in gone.into_iter().filter(|(gone, _)| gone != key) {
            let _ = fs::remove_file(self.path(&gone));
        }
        if !self.pieces.lock().contains(key) {
            let _ = fs::remove_file(&path);
        }
    }

    fn write(&self, path: &Path, key: &PieceKey, bytes: &[u8]) -> io::Result<()> {
        assert!(bytes.len() as u64 <= MAX_PIECE_LEN, "a piece of {} bytes", bytes.len());
        let temp = self.dir.join(&key.name()[..2]).join(format!("{}.tmp", self.temp.fetch_add(1, Relaxed)));
        let options = || {
            let mut options = fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options
        };
        let mut file = match options().open(&temp) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(shard) = temp.parent() {
                    fs::DirBuilder::new().recursive(true).mode(0o700).create(shard)?;
                }
                options().open(&temp)?
            }
            opened => opened?,
        };
        let written = file.write_all(&header(key, bytes)).and_then(|()| file.write_all(bytes));
        let renamed = written.and_then(|()| fs::rename(&temp, path));
        if renamed.is_err() {
            let _ = fs::remove_file(&temp);
        }
        renamed
    }

    /// Removes an entry.
    pub fn forget(&self, key: &PieceKey) {
        self.pieces.lock().remove(key);
        let _ = fs::remove_file(self.path(key));
    }

    fn warn_rate_limited(&self, operation: &str, path: &Path, error: &io::Error) {
        let mut last_warning = self.last_warning.lock();
        if last_warning.is_none_or(|at| at.elapsed() > WARNING_INTERVAL) {
            *last_warning = Some(Instant::now());
            tracing::warn!(path = %path.display(), %error, "{operation} failed on cache entry");
        }
    }

    /// Returns the total size of the files in bytes.
    pub fn bytes(&self) -> u64 {
        self.pieces.lock().bytes()
    }

    /// Returns the number of damaged entries found since the cache was opened.
    pub fn damaged(&self) -> u64 {
        self.damaged.load(Relaxed)
    }
}

/// Returns the bytes of the header that precede the checksum.
fn header_start(len: usize) -> [u8; 16] {
    let mut start = [0; 16];
    start[..8].copy_from_slice(MAGIC);
    start[8..10].copy_from_slice(&VERSION.to_le_bytes());
    start[12..].copy_from_slice(&(len as u32).to_le_bytes());
    start
}

fn header(key: &PieceKey, bytes: &[u8]) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    let (start, sum) = header.split_at_mut(16);
    start.copy_from_slice(&header_start(bytes.len()));
    let mut hasher = Xxh3::new();
    hasher.update(&key.0);
    hasher.update(bytes);
    sum.copy_from_slice(&hasher.digest128().to_le_bytes());
    header
}

/// Reads a file into `room`; fails if it is too long.
fn read_file(path: &Path, room: &mut Vec<u8>) -> io::Result<()> {
    let file = fs::File::open(path)?;
    let len = file.metadata()?.len();
    room.clear();
    if len > MAX_PIECE_LEN + HEADER_LEN as u64 {
        return Ok(());
    }
    // One byte more than expected, to detect data behind the end.
    room.reserve(len as usize + 1);
    while room.len() as u64 <= len && retry_on_intr(|| read(&file, spare_capacity(room)))? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> PieceKey {
        PieceKey::new(Uuid::from_u128(7), &[9; 32], "blockd/data/x", number, 10)
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        let shards = fs::read_dir(dir).unwrap().map(|shard| shard.unwrap().path());
        shards.flat_map(|shard| fs::read_dir(shard).unwrap().map(|file| file.unwrap().path())).collect()
    }

    #[test]
    fn cache_entries_survive_a_restart_within_the_byte_limit() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(dir.path(), 10 * 4096).unwrap();
        for number in 0..30 {
            cache.put(&key(number), &[number as u8; 1000]);
            assert_eq!(cache.get(&key(0)).unwrap(), [0; 1000], "an entry in use stays");
            assert!(cache.bytes() <= 10 * 4096);
        }
        assert_eq!(files(dir.path()).len(), 10);
        drop(cache);
        let cache = DiskCache::open(dir.path(), 10 * 4096).unwrap();
        assert_eq!(cache.get(&key(29)).unwrap(), [29; 1000]);
        assert_eq!(cache.get(&key(3)), None);
        drop(cache);
        let cache = DiskCache::open(dir.path(), 4 * 4096).unwrap();
        assert_eq!(files(dir.path()).len(), 4);
        cache.put(&key(99), &vec![1; 5 * 4096]);
        assert_eq!(cache.get(&key(99)), None, "an entry larger than the cache is not kept");
        assert_eq!(files(dir.path()).len(), 4);
    }

    #[test]
    fn damaged_or_foreign_cache_entry_is_a_miss() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(dir.path(), 1 << 20).unwrap();
        let put = || {
            cache.put(&key(1), b"content");
            let path = cache.path(&key(1));
            let bytes = fs::read(&path).unwrap();
            (path, bytes)
        };
        // As opening a sealed part authenticates it.
        let mut room = Vec::new();
        let mut open = || cache.open_piece(&key(1), &mut room, |piece| (piece == b"content").then_some(()));
        let (_, bytes) = put();
        assert!(open().is_some());
        for at in 0..bytes.len() {
            let (path, mut bytes) = put();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, &bytes).unwrap();
            let is_checksum = (16..HEADER_LEN).contains(&at);
            let damaged = cache.damaged();
            assert_eq!(open().is_some(), is_checksum, "byte {at}");
            assert_eq!(path.exists(), is_checksum);
            cache.put(&key(1), b"content");
            fs::write(&path, bytes).unwrap();
            assert_eq!(cache.get(&key(1)), None, "byte {at}");
            assert!(!path.exists());
            assert_eq!(cache.damaged(), damaged + 2 - u64::from(is_checksum));
        }
        for len in 0..bytes.len() {
            let (path, bytes) = put();
            fs::write(&path, &bytes[..len]).unwrap();
            assert_eq!(cache.get(&key(1)), None, "cut to {len}");
        }
        let (path, mut longer) = put();
        longer.push(0);
        fs::write(&path, longer).unwrap();
        assert_eq!(cache.get(&key(1)), None);
        let (path, bytes) = put();
        cache.put(&key(2), b"another");
        fs::write(cache.path(&key(2)), bytes).unwrap();
        assert_eq!(cache.get(&key(2)), None, "a file in the place of another");
        fs::remove_file(path).unwrap();
        assert_eq!(cache.get(&key(1)), None);
        cache.put(&key(1), b"again");
        assert_eq!(cache.get(&key(1)).unwrap(), b"again");
        // With and without the checksum, then truncated ones, and two more.
        assert_eq!(cache.damaged() as usize, 3 * bytes_len() - 16 + 2);
    }

    fn bytes_len() -> usize {
        HEADER_LEN + b"content".len()
    }

    #[test]
    fn leftovers_of_a_killed_writer_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(dir.path(), 1 << 20).unwrap();
        cache.put(&key(1), b"content");
        let shard = cache.path(&key(1)).parent().unwrap().to_owned();
        drop(cache);
        fs::write(shard.join("0.tmp"), b"half").unwrap();
        let foreign = dir.path().join("photos");
        let misplaced = dir.path().join("00").join(key(1).name());
        let others = [
            shard.join("readme"),
            shard.join("notes.tmp"),
            foreign.join("0.tmp"),
            foreign.join("picture"),
            dir.path().join("0A").join("0.tmp"),
            misplaced,
        ];
        for other in &others {
            fs::create_dir_all(other.parent().unwrap()).unwrap();
            fs::write(other, b"?").unwrap();
        }
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("0.tmp"), b"?").unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("01")).unwrap();
        let cache = DiskCache::open(dir.path(), 1 << 20).unwrap();
        assert!(!shard.join("0.tmp").exists());
        assert!(cache.get(&key(1)).is_some());
        drop(cache);
        let cache = DiskCache::open(dir.path(), 0).unwrap();
        assert_eq!(cache.get(&key(1)), None);
        assert!(others.iter().all(|other| other.exists()));
        assert!(outside.path().join("0.tmp").exists());
    }

    #[test]
    fn stored_layout_is_stable() {
        let golden = include_bytes!("../../tests/golden/cache-entry-v1.bin");
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(dir.path(), 1 << 20).unwrap();
        cache.put(&key(5), b"golden");
        let path = cache.path(&key(5));
        let name = "1b/1b319ad56c3541b62afd48c5a82a1eaab8fe937502ac65e77f8f38254a4c7bf8";
        assert_eq!(path.strip_prefix(dir.path()).unwrap().to_str().unwrap(), name);
        assert_eq!(fs::read(&path).unwrap(), golden);
        drop(cache);
        fs::write(&path, golden).unwrap();
        let cache = DiskCache::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(cache.get(&key(5)).unwrap(), b"golden");
    }
}
