//! Journal of the packs in the store, from which an interrupted backup resumes.
//!
//! A pack is recorded after the store has confirmed it. The record has the lengths of the pack's frames, from
//! which the backup builds the index.
//!
//! A record without frames for pack number 2^32 - 1, which no backup uses, marks the start of the commit.
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
//! | 4 | 4 | n, number of its frames |
//! | 8 | 4 n | stored lengths of the frames |
//! | 8 + 4 n | 8 | XXH3-64 of the bytes of the record before it |

use crate::{BackupSpec, CloudError, Repository, frame::MAX_STORED_LEN, plan::PACK_FRAMES};
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

    /// Durably records a stored pack.
    ///
    /// # Errors
    /// [`CloudError::Journal`].
    fn record(&self, pack_no: u32, frame_lens: &[u32]) -> Result<(), CloudError>;

    /// Durably records the start of the commit: from now on the snapshot may exist.
    ///
    /// # Errors
    /// [`CloudError::Journal`].
    fn record_commit(&self) -> Result<(), CloudError>;

    /// Returns true if the start of the commit is recorded.
    fn may_be_committed(&self) -> bool;
}

/// Identity of a backup: digest of its snapshot, salt, key and blocks.
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
}

#[derive(Debug)]
struct JournalFile {
    file: File,
    end: u64,
    /// Offset of each pack's record.
    records: BTreeMap<u32, u64>,
}

impl FileJournal {
    /// Opens or creates the journal of a backup. Truncates it at the first incomplete or damaged record; as
    /// the dropped records may have included the start of the commit, that is then recorded again.
    ///
    /// # Errors
    /// [`CloudError::ForeignJournal`] if the file belongs to another backup, [`CloudError::Journal`].
    pub fn open(path: &Path, binding: &JournalBinding) -> Result<Self, CloudError> {
        let failed = |what| move |source| CloudError::Journal { path: path.to_owned(), what, source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path).map_err(failed("open"))?;
        let len = file.metadata().map_err(failed("stat"))?.len();
        let header = header(binding);
        let mut state = JournalFile { file, end: HEADER_LEN as u64, records: BTreeMap::new() };
        let mut was_cut = false;
        if len < HEADER_LEN as u64 {
            // An earlier run stopped before the header was durable, so nothing was recorded.
            create(&state.file, path, &header).map_err(failed("creation"))?;
        } else {
            let mut found = [0; HEADER_LEN];
            state.file.read_exact_at(&mut found, 0).map_err(failed("read"))?;
            if found != header {
                return Err(CloudError::ForeignJournal { path: path.to_owned() });
            }
            state.scan().map_err(failed("read"))?;
            debug_assert!(state.end <= len, "records behind the end of the journal");
            was_cut = state.end < len;
            state.file.set_len(state.end).map_err(failed("truncation to the last complete record"))?;
        }
        let journal = Self { path: path.to_owned(), state: Mutex::new(state) };
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

fn encode_record(pack_no: u32, lens: &[u32]) -> Vec<u8> {
    let mut record = Vec::with_capacity(RECORD_HEAD_LEN + lens.len() * 4 + CHECKSUM_LEN);
    record.extend_from_slice(&pack_no.to_le_bytes());
    record.extend_from_slice(&(lens.len() as u32).to_le_bytes());
    for len in lens {
        record.extend_from_slice(&len.to_le_bytes());
    }
    let checksum = xxh3_64(&record).to_le_bytes();
    record.extend_from_slice(&checksum);
    record
}

/// Reads one record; `None` if it is incomplete or damaged.
fn read_record(reader: &mut impl Read) -> io::Result<Option<(u32, Vec<u32>)>> {
    let mut head = [0; RECORD_HEAD_LEN];
    let count = |head: &[u8; 8]| u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    if !fill(reader, &mut head)? || u64::from(count(&head)) > PACK_FRAMES {
        return Ok(None);
    }
    let mut body = vec![0; count(&head) as usize * 4 + CHECKSUM_LEN];
    if !fill(reader, &mut body)? {
        return Ok(None);
    }
    let (lens, checksum) = body.split_at(body.len() - CHECKSUM_LEN);
    if xxh3_64(&[&head, lens].concat()).to_le_bytes() != checksum {
        return Ok(None);
    }
    let lens: Vec<u32> = lens.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    if lens.iter().any(|len| *len as usize > MAX_STORED_LEN) {
        return Ok(None);
    }
    Ok(Some((u32::from_le_bytes([head[0], head[1], head[2], head[3]]), lens)))
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
    fn scan(&mut self) -> io::Result<()> {
        let mut reader = io::BufReader::new(ReadAt { file: &self.file, at: self.end });
        while let Some((pack_no, lens)) = read_record(&mut reader)? {
            self.records.insert(pack_no, self.end);
            self.end += (RECORD_HEAD_LEN + lens.len() * 4 + CHECKSUM_LEN) as u64;
        }
        Ok(())
    }
}

impl BackupJournal for FileJournal {
    fn completed(&self) -> Vec<u32> {
        self.state.lock().records.range(..COMMIT_MARK).map(|(pack_no, _)| *pack_no).collect()
    }

    fn frame_lens(&self, pack_no: u32) -> Result<Option<Vec<u32>>, CloudError> {
        let state = self.state.lock();
        let Some(at) = state.records.get(&pack_no) else { return Ok(None) };
        debug_assert!((HEADER_LEN as u64..state.end).contains(at), "record at {at} of {}", state.end);
        let record = read_record(&mut ReadAt { file: &state.file, at: *at })
            .map_err(self.failed("read"))?
            .filter(|(found, _)| *found == pack_no);
        match record {
            Some((_, lens)) => Ok(Some(lens)),
            None => {
                let source =
                    io::Error::new(io::ErrorKind::InvalidData, "the record changed after it was written");
                Err(self.failed("read")(source))
            }
        }
    }

    fn record(&self, pack_no: u32, frame_lens: &[u32]) -> Result<(), CloudError> {
        let record = encode_record(pack_no, frame_lens);
        let reread = read_record(&mut &record[..]);
        assert!(
            matches!(&reread, Ok(Some((number, lens))) if (*number, &lens[..]) == (pack_no, frame_lens)),
            "the record of pack {pack_no} does not decode to itself"
        );
        assert!(pack_no != COMMIT_MARK || frame_lens.is_empty(), "a pack has the number of the commit");
        let mut state = self.state.lock();
        state.file.write_all_at(&record, state.end).map_err(self.failed("write"))?;
        state.file.sync_data().map_err(self.failed("sync"))?;
        let at = state.end;
        state.records.insert(pack_no, at);
        state.end += record.len() as u64;
        Ok(())
    }

    fn record_commit(&self) -> Result<(), CloudError> {
        if self.may_be_committed() { Ok(()) } else { self.record(COMMIT_MARK, &[]) }
    }

    fn may_be_committed(&self) -> bool {
        self.state.lock().records.contains_key(&COMMIT_MARK)
    }
}

/// Journal in memory, for backups that are not resumed after a restart.
#[derive(Default, Debug)]
pub struct MemoryJournal {
    packs: Mutex<BTreeMap<u32, Vec<u32>>>,
}

impl BackupJournal for MemoryJournal {
    fn completed(&self) -> Vec<u32> {
        self.packs.lock().range(..COMMIT_MARK).map(|(pack_no, _)| *pack_no).collect()
    }

    fn frame_lens(&self, pack_no: u32) -> Result<Option<Vec<u32>>, CloudError> {
        Ok(self.packs.lock().get(&pack_no).cloned())
    }

    fn record(&self, pack_no: u32, frame_lens: &[u32]) -> Result<(), CloudError> {
        self.packs.lock().insert(pack_no, frame_lens.to_vec());
        Ok(())
    }

    fn record_commit(&self) -> Result<(), CloudError> {
        self.record(COMMIT_MARK, &[])
    }

    fn may_be_committed(&self) -> bool {
        self.packs.lock().contains_key(&COMMIT_MARK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BINDING: JournalBinding = JournalBinding([3; 32]);

    fn open(path: &Path) -> FileJournal {
        FileJournal::open(path, &BINDING).unwrap()
    }

    #[test]
    fn records_survive_and_the_last_word_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = open(&path);
        journal.record(7, &[1, 2, 3]).unwrap();
        journal.record(0, &[]).unwrap();
        journal.record(7, &[4, 5]).unwrap();
        for journal in [journal, open(&path)] {
            assert_eq!(journal.completed(), [0, 7]);
            assert_eq!(journal.frame_lens(7).unwrap(), Some(vec![4, 5]));
            assert_eq!(journal.frame_lens(0).unwrap(), Some(vec![]));
            assert_eq!(journal.frame_lens(1).unwrap(), None);
        }
    }

    #[test]
    fn that_the_commit_began_is_remembered_and_is_no_pack() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journals: [Box<dyn BackupJournal>; 2] = [Box::new(open(&path)), Box::<MemoryJournal>::default()];
        for journal in &journals {
            journal.record(0, &[1]).unwrap();
            assert!(!journal.may_be_committed());
            journal.record_commit().unwrap();
            journal.record_commit().unwrap();
            assert!(journal.may_be_committed());
            assert_eq!(journal.completed(), [0]);
        }
        let again = open(&path);
        assert!(again.may_be_committed());
        assert_eq!(again.completed(), [0]);
    }

    #[test]
    fn truncated_journal_keeps_complete_records() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = open(&path);
        let mut ends = vec![HEADER_LEN];
        for pack in 0..4 {
            let lens = vec![100; pack as usize + 1];
            journal.record(pack, &lens).unwrap();
            ends.push(ends.last().unwrap() + encode_record(pack, &lens).len());
        }
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), *ends.last().unwrap());
        for cut in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let journal = open(&path);
            let whole = ends.iter().filter(|end| **end <= cut).count().saturating_sub(1);
            assert_eq!(journal.completed().len(), whole, "cut at {cut}");
            journal.record(9, &[50]).unwrap();
            assert_eq!(open(&path).completed().len(), whole + 1, "cut at {cut}");
        }
    }

    #[test]
    fn flipped_journal_bit_drops_records_and_changes_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = open(&path);
        journal.record(0, &[11, 12]).unwrap();
        journal.record(1, &[13]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &flipped).unwrap();
            match FileJournal::open(&path, &BINDING) {
                Err(CloudError::ForeignJournal { .. }) => assert!(bit / 8 < HEADER_LEN),
                Err(other) => panic!("bit {bit}: {other}"),
                Ok(journal) => {
                    assert!(bit / 8 >= HEADER_LEN);
                    for pack in journal.completed() {
                        let expected: &[u32] = if pack == 0 { &[11, 12] } else { &[13] };
                        assert_eq!(journal.frame_lens(pack).unwrap().unwrap(), expected, "bit {bit}");
                    }
                    assert!(journal.completed().len() < 2, "bit {bit}");
                }
            }
        }
    }

    #[test]
    fn journal_with_a_lost_record_leaves_the_commit_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = open(&path);
        journal.record(0, &[11]).unwrap();
        journal.record(1, &[12]).unwrap();
        assert!(!open(&path).may_be_committed(), "nothing was lost");
        journal.record_commit().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        // In the first record, far before the mark.
        bytes[HEADER_LEN + RECORD_HEAD_LEN] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        // Once more: the first one to open it cut it.
        for journal in [open(&path), open(&path)] {
            assert!(journal.may_be_committed());
            assert!(journal.completed().is_empty());
        }
    }

    #[test]
    fn stored_layout_is_stable() {
        let golden = include_bytes!("../tests/golden/journal-v1.bin");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = open(&path);
        journal.record(7, &[1, 2, 0x0001_0203]).unwrap();
        journal.record(0, &[5]).unwrap();
        journal.record_commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), golden);
        let copy = dir.path().join("copy");
        std::fs::write(&copy, golden).unwrap();
        let journal = open(&copy);
        assert_eq!(journal.completed(), [0, 7]);
        assert_eq!(journal.frame_lens(7).unwrap(), Some(vec![1, 2, 0x0001_0203]));
        assert_eq!(journal.frame_lens(0).unwrap(), Some(vec![5]));
        assert!(journal.may_be_committed());
    }

    #[test]
    fn journal_of_another_backup_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        open(&path);
        let error = FileJournal::open(&path, &JournalBinding([4; 32])).unwrap_err();
        assert!(matches!(error, CloudError::ForeignJournal { .. }));
    }
}
