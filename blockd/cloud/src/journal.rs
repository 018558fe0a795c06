//! Journal of the packs in the store, from which an interrupted backup resumes.
//!
//! A pack is recorded after the store has confirmed it. The record has the lengths of the pack's frames, from
//! which the backup builds the index, and their compression level. Where the level is chosen for each pack,
//! it is also recorded before the pack is sent: a pack that is sent again has the same bytes.
//!
//! A record for pack number 2^32 - 1, which no backup uses, marks the start of the commit.
//! Records follow the header without gaps; the first incomplete or damaged one ends the file. All integers
//! are little-endian.
//!
//! | offset | bytes | header |
//! |---|---|---|
//! | 0 | 8 | magic `BLKDJRNL` |
//! | 8 | 2 | version, 1 |
//! | 10 | 2 | zero |
//! | 12 | 32 | [binding](JournalBinding) |
//! | 44 | 8 | XXH3-64 of bytes 0 to 43 |
//!
//! | offset | bytes | record |
//! |---|---|---|
//! | 0 | 4 | number of the pack |
//! | 4 | 2 | n, number of its frames; 0 before it is stored |
//! | 6 | 1 | level: 0 none, 1 lz4, L + 1 for level L of zstd |
//! | 7 | 1 | 1 if it is stored, 0 before |
//! | 8 | 4 n | stored lengths of the frames |
//! | 8 + 4 n | 8 | XXH3-64 of the bytes of the record before it |

#[cfg(test)]
mod tests;

use crate::{
    BackupSpec, CloudError, CompressionLevel, Repository,
    codec::{level_byte, level_of_byte},
    frame::MAX_STORED_LEN,
    plan::PACK_FRAMES,
};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"BLKDJRNL";
const VERSION: u16 = 1;
const HEADER_LEN: usize = 8 + 2 + 2 + 32 + 8;
const RECORD_HEAD_LEN: usize = 8;
const CHECKSUM_LEN: usize = 8;
/// Pack number that marks the record of the commit.
const COMMIT_MARK: u32 = u32::MAX;

/// Record of a backup's stored packs across restarts. Called concurrently on blocking threads.
pub trait BackupJournal: Send + Sync {
    /// Returns the numbers of the recorded packs.
    fn completed(&self) -> Vec<u32>;

    /// Returns the stored lengths of the frames of a recorded pack.
    ///
    /// # Errors
    /// [`CloudError::Journal`].
    fn frame_lens(&self, pack_no: u32) -> Result<Option<Vec<u32>>, CloudError>;

    /// Returns the level of a pack that was recorded, or whose level was. Waits for no disk.
    fn level(&self, pack_no: u32) -> Option<CompressionLevel>;

    /// Durably records the level of a pack before it is sent.
    ///
    /// # Errors
    /// [`CloudError::Journal`].
    fn record_level(&self, pack_no: u32, level: CompressionLevel) -> Result<(), CloudError>;

    /// Durably records a stored pack.
    ///
    /// # Errors
    /// [`CloudError::Journal`].
    fn record(&self, pack_no: u32, level: CompressionLevel, frame_lens: &[u32]) -> Result<(), CloudError>;

    /// Durably records the start of the commit: from now on the snapshot may exist.
    ///
    /// # Errors
    /// [`CloudError::Journal`].
    fn record_commit(&self) -> Result<(), CloudError>;

    /// Returns true if the start of the commit is recorded.
    fn may_be_committed(&self) -> bool;
}

/// Identity of a backup: digest of its snapshot, salt, key, type and blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalBinding([u8; 32]);

impl JournalBinding {
    /// Returns the binding of a backup.
    pub fn of(repo: &Repository, spec: &BackupSpec) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(b"blockd journal v1");
        hasher.update(repo.key().key_id().as_bytes());
        hasher.update(spec.cluster.as_bytes());
        for number in [spec.volume.as_u64(), spec.snapshot.as_u64(), spec.size_bytes] {
            hasher.update(number.to_le_bytes());
        }
        hasher.update(spec.delta_salt);
        hasher.update([spec.synthetic.into()]);
        // Extents, because the encoding depends on the construction of the set.
        for run in spec.data.extents() {
            hasher.update(run.start.0.to_le_bytes());
            hasher.update(run.len_blocks.to_le_bytes());
        }
        Self(hasher.finalize().into())
    }
}

/// Journal in a file: a header, then one record for each pack, with a checksum and synced separately.
///
/// Takes some dozen bytes of memory for each pack (32 MiB of blocks).
#[derive(Debug)]
pub struct FileJournal {
    path: PathBuf,
    state: Mutex<JournalFile>,
    /// Levels of the packs. Async threads read them: they must not wait for the syncs under the other mutex.
    levels: Mutex<BTreeMap<u32, CompressionLevel>>,
}

#[derive(Debug)]
struct JournalFile {
    file: File,
    end: u64,
    /// Offset of the record of each stored pack.
    stored: BTreeMap<u32, u64>,
}

/// Record of a pack.
#[derive(PartialEq, Eq)]
struct Record {
    pack_no: u32,
    level: CompressionLevel,
    /// Stored lengths of its frames; `None` before it is stored.
    frame_lens: Option<Vec<u32>>,
}

impl FileJournal {
    /// Opens or creates the journal of a backup. Truncates it at the first incomplete or damaged record; as
    /// the dropped records may have included the start of the commit, that is then recorded again.
    ///
    /// # Errors
    /// [`CloudError::ForeignJournal`] if the file belongs to another backup, [`CloudError::Journal`].
    pub fn open(path: &Path, binding: &JournalBinding) -> Result<Self, CloudError> {
        Self::open_as(path, binding, false)
    }

    /// Opens the journal of a backup on a store without create-if-absent, created empty before the plan.
    ///
    /// A put of an earlier run may still replace a pack there, so each pack must keep its recorded level.
    ///
    /// # Errors
    /// [`CloudError::JournalLost`] if the file is missing, is damaged, or belongs to another backup; it is
    /// not changed. [`CloudError::Journal`].
    pub fn open_complete(path: &Path, binding: &JournalBinding) -> Result<Self, CloudError> {
        Self::open_as(path, binding, true)
    }

    fn open_as(path: &Path, binding: &JournalBinding, is_complete: bool) -> Result<Self, CloudError> {
        let failed = |what| move |source| CloudError::Journal { path: path.to_owned(), what, source };
        let lost = |what| CloudError::JournalLost { found: format!("{} {what}", path.display()) };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(!is_complete).truncate(false);
        let file = match options.open(path) {
            Err(error) if is_complete && error.kind() == io::ErrorKind::NotFound => {
                return Err(lost("is missing"));
            }
            opened => opened.map_err(failed("open"))?,
        };
        let len = file.metadata().map_err(failed("stat"))?.len();
        let header = header(binding);
        let end = HEADER_LEN as u64;
        let mut state = JournalFile { file, end, stored: BTreeMap::new() };
        let mut levels = BTreeMap::new();
        let mut was_cut = false;
        if len < HEADER_LEN as u64 {
            // An earlier run stopped before the header was durable, so nothing was recorded.
            create(&state.file, path, &header).map_err(failed("creation"))?;
        } else {
            let mut found = [0; HEADER_LEN];
            state.file.read_exact_at(&mut found, 0).map_err(failed("read"))?;
            if found != header && is_complete {
                return Err(lost("has another header"));
            }
            if found != header {
                return Err(CloudError::ForeignJournal { path: path.to_owned() });
            }
            levels = state.scan().map_err(failed("read"))?;
            debug_assert!(state.end <= len, "records behind the end of the journal");
            was_cut = state.end < len;
            if was_cut && is_complete {
                return Err(lost("has an incomplete or damaged record"));
            }
            state.file.set_len(state.end).map_err(failed("truncation to the last complete record"))?;
        }
        let journal = Self { path: path.to_owned(), state: Mutex::new(state), levels: Mutex::new(levels) };
        if was_cut {
            journal.record_commit()?;
        }
        Ok(journal)
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> CloudError + '_ {
        move |source| CloudError::Journal { path: self.path.clone(), what, source }
    }
}

fn header(binding: &JournalBinding) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(MAGIC);
    header[8..10].copy_from_slice(&VERSION.to_le_bytes());
    header[12..44].copy_from_slice(&binding.0);
    let checksum = xxh3_64(&header[..44]).to_le_bytes();
    header[44..].copy_from_slice(&checksum);
    header
}

fn create(file: &File, path: &Path, header: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all_at(header, 0)?;
    file.sync_all()?;
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

impl Record {
    fn encode(&self) -> Vec<u8> {
        let lens = self.frame_lens.as_deref().unwrap_or_default();
        let mut record = Vec::with_capacity(RECORD_HEAD_LEN + lens.len() * 4 + CHECKSUM_LEN);
        record.extend_from_slice(&self.pack_no.to_le_bytes());
        record.extend_from_slice(&(lens.len() as u16).to_le_bytes());
        record.extend_from_slice(&[level_byte(self.level), u8::from(self.frame_lens.is_some())]);
        for len in lens {
            record.extend_from_slice(&len.to_le_bytes());
        }
        let checksum = xxh3_64(&record).to_le_bytes();
        record.extend_from_slice(&checksum);
        record
    }

    /// Reads one record; `None` if it is incomplete or damaged.
    fn read(reader: &mut impl Read) -> io::Result<Option<Self>> {
        let mut head = [0; RECORD_HEAD_LEN];
        if !fill(reader, &mut head)? {
            return Ok(None);
        }
        let [a, b, c, d, low, high, level, is_stored] = head;
        let count = u16::from_le_bytes([low, high]);
        let (Some(level), 0 | 1) = (level_of_byte(level), is_stored) else { return Ok(None) };
        if u64::from(count) > PACK_FRAMES {
            return Ok(None);
        }
        let mut body = vec![0; usize::from(count) * 4 + CHECKSUM_LEN];
        if !fill(reader, &mut body)? {
            return Ok(None);
        }
        let (lens, checksum) = body.split_at(body.len() - CHECKSUM_LEN);
        if xxh3_64(&[&head, lens].concat()).to_le_bytes() != checksum {
            return Ok(None);
        }
        let lens: Vec<u32> =
            lens.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        if lens.iter().any(|len| *len as usize > MAX_STORED_LEN) {
            return Ok(None);
        }
        let pack_no = u32::from_le_bytes([a, b, c, d]);
        Ok(Some(Self { pack_no, level, frame_lens: (is_stored == 1).then_some(lens) }))
    }
}

/// Fills the buffer; returns false at the end of the file.
fn fill(reader: &mut impl Read, buf: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buf) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reader of a file from an offset.
struct ReadAt<'a> {
    file: &'a File,
    at: u64,
}

impl Read for ReadAt<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read_at(buf, self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl JournalFile {
    /// Finds the complete records, and returns the levels of their packs.
    fn scan(&mut self) -> io::Result<BTreeMap<u32, CompressionLevel>> {
        let mut levels = BTreeMap::new();
        let mut reader = io::BufReader::new(ReadAt { file: &self.file, at: self.end });
        while let Some(record) = Record::read(&mut reader)? {
            levels.insert(record.pack_no, record.level);
            if record.frame_lens.is_some() {
                self.stored.insert(record.pack_no, self.end);
            }
            self.end += record.encode().len() as u64;
        }
        Ok(levels)
    }
}

impl FileJournal {
    fn append(&self, record: &Record) -> Result<(), CloudError> {
        let encoded = record.encode();
        let reread = Record::read(&mut &encoded[..]);
        let pack_no = record.pack_no;
        assert!(
            matches!(&reread, Ok(Some(reread)) if reread == record),
            "the record of pack {pack_no} does not decode to itself"
        );
        let mut state = self.state.lock();
        state.file.write_all_at(&encoded, state.end).map_err(self.failed("write"))?;
        state.file.sync_data().map_err(self.failed("sync"))?;
        if record.frame_lens.is_some() {
            let offset = state.end;
            state.stored.insert(record.pack_no, offset);
        }
        state.end += encoded.len() as u64;
        drop(state);
        self.levels.lock().insert(record.pack_no, record.level);
        Ok(())
    }
}

impl BackupJournal for FileJournal {
    fn completed(&self) -> Vec<u32> {
        self.state.lock().stored.range(..COMMIT_MARK).map(|(pack_no, _)| *pack_no).collect()
    }

    fn frame_lens(&self, pack_no: u32) -> Result<Option<Vec<u32>>, CloudError> {
        let state = self.state.lock();
        let Some(at) = state.stored.get(&pack_no) else { return Ok(None) };
        debug_assert!((HEADER_LEN as u64..state.end).contains(at), "record at {at} of {}", state.end);
        let record = Record::read(&mut ReadAt { file: &state.file, at: *at })
            .map_err(self.failed("read"))?
            .filter(|record| record.pack_no == pack_no);
        match record.and_then(|record| record.frame_lens) {
            Some(lens) => Ok(Some(lens)),
            None => {
                let source =
                    io::Error::new(io::ErrorKind::InvalidData, "the record changed after it was written");
                Err(self.failed("read")(source))
            }
        }
    }

    fn level(&self, pack_no: u32) -> Option<CompressionLevel> {
        self.levels.lock().get(&pack_no).copied()
    }

    fn record_level(&self, pack_no: u32, level: CompressionLevel) -> Result<(), CloudError> {
        self.append(&Record { pack_no, level, frame_lens: None })
    }

    fn record(&self, pack_no: u32, level: CompressionLevel, frame_lens: &[u32]) -> Result<(), CloudError> {
        assert!(pack_no != COMMIT_MARK || frame_lens.is_empty(), "a pack has the number of the commit");
        self.append(&Record { pack_no, level, frame_lens: Some(frame_lens.to_vec()) })
    }

    fn record_commit(&self) -> Result<(), CloudError> {
        if self.may_be_committed() {
            return Ok(());
        }
        self.record(COMMIT_MARK, CompressionLevel::None, &[])
    }

    fn may_be_committed(&self) -> bool {
        self.state.lock().stored.contains_key(&COMMIT_MARK)
    }
}

/// Journal in memory, for backups that are not resumed after a restart.
#[derive(Default, Debug)]
pub struct MemoryJournal {
    packs: Mutex<BTreeMap<u32, Vec<u32>>>,
    levels: Mutex<BTreeMap<u32, CompressionLevel>>,
}

impl BackupJournal for MemoryJournal {
    fn completed(&self) -> Vec<u32> {
        self.packs.lock().range(..COMMIT_MARK).map(|(pack_no, _)| *pack_no).collect()
    }

    fn frame_lens(&self, pack_no: u32) -> Result<Option<Vec<u32>>, CloudError> {
        Ok(self.packs.lock().get(&pack_no).cloned())
    }

    fn level(&self, pack_no: u32) -> Option<CompressionLevel> {
        self.levels.lock().get(&pack_no).copied()
    }

    fn record_level(&self, pack_no: u32, level: CompressionLevel) -> Result<(), CloudError> {
        self.levels.lock().insert(pack_no, level);
        Ok(())
    }

    fn record(&self, pack_no: u32, level: CompressionLevel, frame_lens: &[u32]) -> Result<(), CloudError> {
        self.levels.lock().insert(pack_no, level);
        self.packs.lock().insert(pack_no, frame_lens.to_vec());
        Ok(())
    }

    fn record_commit(&self) -> Result<(), CloudError> {
        self.record(COMMIT_MARK, CompressionLevel::None, &[])
    }

    fn may_be_committed(&self) -> bool {
        self.packs.lock().contains_key(&COMMIT_MARK)
    }
}
