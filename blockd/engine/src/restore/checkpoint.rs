//! Record of a restore's blocks in a file, from which an interrupted restore resumes.
//!
//! Layout, little-endian. A header:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic `BLKDRSTR` |
//! | 8 | 2 | version, 1 |
//! | 10 | 6 | zero |
//! | 16 | 16 | the task |
//! | 32 | 32 | salt of the cloud snapshot's own delta |
//! | 64 | 8 | size of the volume in bytes |
//! | 72 | 8 | fingerprint of the target's files |
//! | 80 | 8 | xxh3-64 of all before |
//!
//! and then records, whose sets are united:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | length s of the set of settled blocks, which need no restore any more: written, or zero |
//! | 4 | length w of the set of blocks that were written |
//! | s + w | both sets |
//! | 8 | xxh3-64 of the record before |
//!
//! A record is written after its blocks are durable. Bytes after the last complete record were in progress at
//! the interruption, and are dropped.

use crate::volume_io::to_io;
use blockd_cloud::{BlockWriter, Manifest};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use blockd_volume::RestoreTarget;
use parking_lot::{Mutex, RwLock};
use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"BLKDRSTR";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 88;
const FINGERPRINT_AT: usize = 72;
const SUM_AT: usize = 80;

/// Returns the path of a task's file.
pub(crate) fn path(task_dir: &Path) -> PathBuf {
    task_dir.join("restored")
}

/// Restored blocks.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct RestoredBlocks {
    /// Blocks that need no restore any more.
    pub(crate) settled: BlockSet,
    /// Written blocks.
    pub(crate) written: BlockSet,
}

/// State of an interrupted restore.
#[derive(PartialEq, Debug)]
pub(crate) struct Checkpoint {
    pub(crate) restored: RestoredBlocks,
    /// Fingerprint of the target's files.
    pub(crate) fingerprint: u64,
    /// End of the last complete record.
    pub(crate) end: u64,
}

fn header(task: Uuid, manifest: &Manifest, fingerprint: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..10].copy_from_slice(&VERSION.to_le_bytes());
    header[16..32].copy_from_slice(task.as_bytes());
    header[32..64].copy_from_slice(&manifest.delta.salt);
    header[64..72].copy_from_slice(&manifest.size_bytes.to_le_bytes());
    header[FINGERPRINT_AT..SUM_AT].copy_from_slice(&fingerprint.to_le_bytes());
    let sum = xxh3_64(&header[..SUM_AT]).to_le_bytes();
    header[SUM_AT..].copy_from_slice(&sum);
    header
}

/// Takes the first record; `None` if it is incomplete.
fn take_record<'a>(bytes: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (head, rest) = bytes.split_first_chunk::<8>()?;
    let len = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
    let (settled, rest) = rest.split_at_checked(len(0))?;
    let (written, rest) = rest.split_at_checked(len(4))?;
    let (sum, rest) = rest.split_first_chunk::<8>()?;
    let whole = bytes.get(..8 + settled.len() + written.len())?;
    if xxh3_64(whole).to_le_bytes() != *sum {
        return None;
    }
    *bytes = rest;
    Some((settled, written))
}

/// Removes the checkpoint file; must precede the removal of its volume.
///
/// # Errors
/// The file cannot be removed.
pub(crate) fn forget(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => blockd_files::sync_dir(path.parent().unwrap_or(Path::new("."))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Reads the checkpoint of an earlier run; `None` if there is nothing to resume.
pub(crate) fn load(path: &Path, task: Uuid, manifest: &Manifest) -> io::Result<Option<Checkpoint>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let stored = bytes.get(FINGERPRINT_AT..SUM_AT).and_then(|raw| raw.try_into().ok());
    let fingerprint = stored.map_or(0, u64::from_le_bytes);
    let Some(mut rest) = bytes.strip_prefix(&header(task, manifest, fingerprint)) else {
        tracing::warn!(path = %path.display(), "checkpoint of the restore is damaged or of another task; restarting the restore");
        return Ok(None);
    };
    let mut found = RestoredBlocks::default();
    let mut end = bytes.len() - rest.len();
    let everything = Extent::whole(manifest.size_bytes).end();
    while let Some((settled, written)) = take_record(&mut rest) {
        let (Ok(settled), Ok(written)) = (BlockSet::from_bytes(settled), BlockSet::from_bytes(written))
        else {
            break;
        };
        if [&settled, &written].iter().any(|set| set.last().is_some_and(|last| last >= everything)) {
            break;
        }
        found.settled.union_with(&settled);
        found.written.union_with(&written);
        end = bytes.len() - rest.len();
    }
    Ok(Some(Checkpoint { restored: found, fingerprint, end: end as u64 }))
}

/// Blocks since the last record.
#[derive(Default)]
struct Pending {
    blocks: RestoredBlocks,
    bytes: u64,
}

/// Open checkpoint file.
struct CheckpointFile {
    file: File,
    /// A sync failed: the kernel may have dropped any block that is not recorded.
    has_failed: bool,
}

/// Writer of a restored volume that records its blocks. The volume is removed from it on request, not when
/// the last thread drops it.
pub(crate) struct Writer {
    target: RwLock<Option<RestoreTarget>>,
    /// Held briefly, so that blocks are written while others are synced.
    pending: Mutex<Pending>,
    /// Held during a sync.
    record: Mutex<CheckpointFile>,
    /// Bytes between two durable records.
    every_bytes: u64,
}

impl Writer {
    /// Creates the checkpoint file of a new restore, which gets a record each `every_bytes` restored bytes.
    ///
    /// # Errors
    /// The file cannot be written, or the target cannot be inspected.
    pub(crate) fn begin(
        target: RestoreTarget,
        path: &Path,
        task: Uuid,
        manifest: &Manifest,
        every_bytes: u64,
    ) -> io::Result<Self> {
        let dir = path.parent().unwrap_or(Path::new("."));
        blockd_files::make_dir(dir)?;
        let fingerprint = target.fingerprint().map_err(to_io)?;
        blockd_files::write_atomically(path, &header(task, manifest, fingerprint))?;
        Self::append(target, path, HEADER_BYTES as u64, every_bytes)
    }

    /// Appends to the last complete record.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(crate) fn append(target: RestoreTarget, path: &Path, end: u64, every_bytes: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).open(path)?;
        file.set_len(end)?;
        let record = Mutex::new(CheckpointFile { file, has_failed: false });
        Ok(Self { target: RwLock::new(Some(target)), pending: Mutex::default(), record, every_bytes })
    }

    /// Removes the volume from the writer, after running writes; later writes fail.
    pub(crate) fn take(&self) -> Option<RestoreTarget> {
        self.target.write().take()
    }

    /// Syncs the restored blocks, then records them.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub(crate) fn checkpoint(&self) -> io::Result<()> {
        let target = self.target.read();
        let target = target.as_ref().ok_or_else(over)?;
        self.checkpoint_from(target, 1)
    }

    /// Writes a record, if at least `min_bytes` bytes are pending.
    fn checkpoint_from(&self, target: &RestoreTarget, min_bytes: u64) -> io::Result<()> {
        let mut record = self.record.lock();
        let pending = {
            let mut pending = self.pending.lock();
            // Another thread may just have recorded them.
            if pending.bytes < min_bytes {
                return Ok(());
            }
            std::mem::take(&mut *pending)
        };
        if record.has_failed {
            return Err(io::Error::other("an earlier sync of restored blocks failed"));
        }
        record.has_failed = true;
        target.sync().map_err(to_io)?;
        record.write(&pending.blocks)?;
        record.has_failed = false;
        Ok(())
    }
}

impl CheckpointFile {
    fn write(&mut self, blocks: &RestoredBlocks) -> io::Result<()> {
        let (settled, written) = (blocks.settled.to_bytes(), blocks.written.to_bytes());
        let mut bytes = Vec::with_capacity(16 + settled.len() + written.len());
        for set in [&settled, &written] {
            let len = u32::try_from(set.len()).map_err(|_| io::Error::other("too many blocks at once"))?;
            bytes.extend_from_slice(&len.to_le_bytes());
        }
        bytes.extend_from_slice(&settled);
        bytes.extend_from_slice(&written);
        bytes.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
        self.file.write_all(&bytes)?;
        self.file.sync_data()
    }
}

fn over() -> io::Error {
    io::Error::other("the restore has ended")
}

impl BlockWriter for Writer {
    fn write_blocks(&self, start: BlockIndex, data: &[u8]) -> io::Result<()> {
        let target = self.target.read();
        let target = target.as_ref().ok_or_else(over)?;
        target.write_blocks(start, data).map_err(to_io)?;
        let extent = Extent::new(start, data.len() as u64 / BLOCK_SIZE_BYTES);
        self.pending.lock().blocks.written.insert_extent(extent);
        Ok(())
    }

    fn settled(&self, extents: &[Extent]) -> io::Result<()> {
        let target = self.target.read();
        let target = target.as_ref().ok_or_else(over)?;
        let is_due = {
            let mut pending = self.pending.lock();
            for extent in extents {
                pending.blocks.settled.insert_extent(*extent);
                pending.bytes += extent.len_bytes();
            }
            pending.bytes >= self.every_bytes
        };
        if is_due { self.checkpoint_from(target, self.every_bytes) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_cloud::{BackupType, CompressionReport, Delta, IndexRef};
    use blockd_extent::{SnapshotId, VolumeId};
    use jiff::Timestamp;

    const SIZE_BYTES: u64 = 64 << 20;

    fn manifest() -> Manifest {
        let (cluster, volume, snapshot) = (Uuid::nil(), VolumeId::from_u64(1), SnapshotId::from_u64(2));
        let index = IndexRef { len_bytes: 0, root_offset_bytes: 0, root_len_bytes: 0, root_sha256: [0; 32] };
        let delta = Delta {
            cluster,
            volume,
            snapshot,
            key_id: Uuid::nil(),
            salt: [7; 32],
            index,
            pack_count: 0,
            frames: 0,
            data_blocks: 0,
            zero_blocks: 0,
            reference_blocks: 0,
            stored_bytes: 0,
        };
        Manifest {
            format_version: 1,
            cluster,
            volume,
            snapshot,
            description: blockd_cloud::SnapshotDescription::default(),
            size_bytes: SIZE_BYTES,
            backup_type: BackupType::Full,
            started: Timestamp::UNIX_EPOCH,
            finished: Timestamp::UNIX_EPOCH,
            dirty_bytes: 0,
            stored_bytes: 0,
            pack_count: 0,
            requests: Default::default(),
            encryption: "none".into(),
            compression: CompressionReport::default(),
            base: None,
            repairs: None,
            delta,
            chain: Vec::new(),
            sources: Vec::new(),
        }
    }

    fn blocks(start: u64, len: u64) -> Extent {
        Extent::new(BlockIndex(start), len)
    }

    #[test]
    fn stored_layout_is_stable() {
        let golden = include_bytes!("../../tests/golden/checkpoint-v1.bin");
        let folder = tempfile::tempdir().unwrap();
        let (dir, id, task) = (folder.path().join("1"), VolumeId::from_u64(1), Uuid::from_u128(9));
        let (file, manifest) = (path(&folder.path().join("task")), manifest());
        let target = RestoreTarget::create(&dir, id, SIZE_BYTES).unwrap();
        let writer = Writer::begin(target, &file, task, &manifest, 1 << 30).unwrap();
        let restored =
            [(vec![blocks(0, 9), blocks(20, 1)], blocks(3, 2)), (vec![blocks(16383, 1)], blocks(16383, 1))];
        for (settled, written) in &restored {
            writer.write_blocks(written.start, &vec![1; written.len_bytes() as usize]).unwrap();
            writer.settled(settled).unwrap();
            writer.checkpoint().unwrap();
        }
        // The fingerprint of a target depends on its inodes.
        let fingerprint = 0x1122_3344_5566_7788;
        let header = header(task, &manifest, fingerprint);
        assert_eq!([&header, &std::fs::read(&file).unwrap()[HEADER_BYTES..]].concat(), golden);
        std::fs::write(&file, golden).unwrap();
        let restored = RestoredBlocks {
            settled: restored.iter().flat_map(|(settled, _)| settled.iter().copied()).collect(),
            written: restored.iter().map(|(_, written)| *written).collect(),
        };
        let end = golden.len() as u64;
        assert_eq!(load(&file, task, &manifest).unwrap(), Some(Checkpoint { restored, fingerprint, end }));
    }

    #[test]
    fn blocks_are_written_during_a_sync() {
        let folder = tempfile::tempdir().unwrap();
        let target =
            RestoreTarget::create(&folder.path().join("1"), VolumeId::from_u64(1), SIZE_BYTES).unwrap();
        let file = path(&folder.path().join("task"));
        let writer = Writer::begin(target, &file, Uuid::nil(), &manifest(), 1 << 20).unwrap();
        let mut syncing = writer.record.lock();
        writer.write_blocks(BlockIndex(3), &[1; 8192]).unwrap();
        writer.settled(&[blocks(0, 9)]).unwrap();
        // The sync fails: the kernel may have dropped these blocks as well.
        syncing.has_failed = true;
        drop(syncing);
        assert!(writer.checkpoint().is_err());
        let found = load(&file, Uuid::nil(), &manifest()).unwrap().unwrap().restored;
        assert_eq!(found, RestoredBlocks::default());
    }

    #[test]
    fn restored_extents_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, id, task) = (folder.path().join("1"), VolumeId::from_u64(1), Uuid::from_u128(9));
        let (file, manifest) = (path(&folder.path().join("task")), manifest());
        assert_eq!(load(&file, task, &manifest).unwrap(), None);
        let target = RestoreTarget::create(&dir, id, SIZE_BYTES).unwrap();
        let writer = Writer::begin(target, &file, task, &manifest, 1 << 20).unwrap();
        writer.write_blocks(BlockIndex(3), &[1; 8192]).unwrap();
        writer.settled(&[blocks(0, 9), blocks(20, 1)]).unwrap();
        assert_eq!(load(&file, task, &manifest).unwrap().unwrap().restored, RestoredBlocks::default());
        writer.checkpoint().unwrap();
        // Enough for an automatic record, then less.
        writer.settled(&[blocks(256, 256)]).unwrap();
        writer.settled(&[blocks(1000, 1)]).unwrap();
        let expected = RestoredBlocks {
            settled: BlockSet::from_iter([blocks(0, 9), blocks(20, 1), blocks(256, 256)]),
            written: BlockSet::from_iter([blocks(3, 2)]),
        };
        let Checkpoint { restored: found, fingerprint, end } = load(&file, task, &manifest).unwrap().unwrap();
        assert_eq!(found, expected);

        // A torn record is dropped, and the next one takes its place.
        let whole = std::fs::read(&file).unwrap();
        assert_eq!(end, whole.len() as u64);
        for len in HEADER_BYTES..whole.len() {
            std::fs::write(&file, &whole[..len]).unwrap();
            let found = load(&file, task, &manifest).unwrap().unwrap();
            assert!(found.end <= len as u64);
            assert!(found.restored.settled.len_blocks() < expected.settled.len_blocks());
        }
        let torn = [&whole[..], &whole[HEADER_BYTES..whole.len() - 3]].concat();
        std::fs::write(&file, &torn).unwrap();
        drop(writer.take());
        let target =
            RestoreTarget::reopen(&dir, id, SIZE_BYTES, expected.written, fingerprint).unwrap().unwrap();
        let end = load(&file, task, &manifest).unwrap().unwrap().end;
        let writer = Writer::append(target, &file, end, 1 << 20).unwrap();
        writer.settled(&[blocks(5000, 300)]).unwrap();
        let found = load(&file, task, &manifest).unwrap().unwrap().restored;
        assert_eq!(found.settled.len_blocks(), expected.settled.len_blocks() + 300);

        // Records of another restore are ignored.
        assert_eq!(load(&file, Uuid::nil(), &manifest).unwrap(), None);
        let mut other = manifest;
        other.delta.salt = [8; 32];
        assert_eq!(load(&file, task, &other).unwrap(), None);
        assert!(writer.take().is_some() && writer.settled(&[blocks(0, 1)]).is_err());
    }
}
