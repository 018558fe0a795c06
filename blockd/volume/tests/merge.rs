//! A merge that was stopped, killed or cut off by a full disk, and what it goes on with.

use crate::sim::disk::{Attached, Disk, Fault, FaultError, OpKind};
use blockd_extent::{BLOCK_SIZE_BYTES, SnapshotId, VolumeId};
use blockd_volume::{MergeStats, OpenOptions, Volume, VolumeErrorKind};
use std::{
    cell::Cell,
    path::{Path, PathBuf},
    sync::Arc,
};

const BLOCKS: u64 = 64;
/// Merges write down how far they are after so many blocks.
const NOTE_BLOCKS: u64 = 4;

/// Returns the content of a block written in a round.
fn content(block: u64, round: u64) -> Vec<u8> {
    let mut data = vec![0; BLOCK_SIZE_BYTES as usize];
    data[..8].copy_from_slice(&(block << 8 | round).to_le_bytes());
    data[4088..].copy_from_slice(&(block << 8 | round).to_le_bytes());
    data
}

/// Merges until so many blocks were copied, with a note after every few; how many were, and whether the merge
/// came to its end.
fn merge(volume: &Volume, at_most_blocks: u64, note_blocks: u64) -> Result<(u64, bool), VolumeErrorKind> {
    let copied = Cell::new(0);
    let go_on = |bytes: u64| {
        let blocks = bytes / BLOCK_SIZE_BYTES;
        let goes_on = copied.get() + blocks <= at_most_blocks;
        copied.set(copied.get() + if goes_on { blocks } else { 0 });
        goes_on
    };
    let done = volume.merge_next_noting(&go_on, note_blocks * BLOCK_SIZE_BYTES);
    done.map(|done| (copied.get(), done)).map_err(|error| error.kind())
}

struct Bed {
    _root: tempfile::TempDir,
    dir: PathBuf,
    disk: Attached,
    volume: Option<Arc<Volume>>,
    run: u64,
}

impl Bed {
    /// Creates a volume with a layer of the even blocks, from before it grew, below a layer of every n-th
    /// block; merging down copies less.
    fn new(first_blocks: u64, step: u64) -> Self {
        Self::with_runs(first_blocks, step, 1)
    }

    /// The same with so many neighbouring blocks in each place of the upper layer.
    fn with_runs(first_blocks: u64, step: u64, run: u64) -> Self {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::attach(root.path(), 1).unwrap();
        let dir = root.path().join("v");
        let volume = Volume::create(&dir, VolumeId::from_u64(5), first_blocks * BLOCK_SIZE_BYTES).unwrap();
        for block in (0..first_blocks).step_by(2) {
            volume.write(block * BLOCK_SIZE_BYTES, &content(block, 1), false).unwrap();
        }
        volume.freeze(SnapshotId::from_u64(1)).unwrap();
        if first_blocks < BLOCKS {
            volume.grow(BLOCKS * BLOCK_SIZE_BYTES).unwrap();
        }
        for block in (0..BLOCKS).filter(|block| block % step < run) {
            volume.write(block * BLOCK_SIZE_BYTES, &content(block, 2), false).unwrap();
        }
        volume.freeze(SnapshotId::from_u64(2)).unwrap();
        volume.delete_snapshot(SnapshotId::from_u64(1)).unwrap();
        Self { _root: root, dir, disk, volume: Some(volume), run }
    }

    fn volume(&self) -> &Volume {
        self.volume.as_ref().unwrap()
    }

    /// Another process opens the volume, which the one before left as it was.
    fn kill(&mut self) {
        self.volume = None;
        self.volume = Some(Volume::open(&self.dir, &OpenOptions::default()).unwrap());
    }

    /// Merges until so many blocks were copied in this call; how many were, and whether the merge came to its
    /// end.
    fn merge(&self, at_most_blocks: u64) -> (u64, bool) {
        self.merge_noting(at_most_blocks, NOTE_BLOCKS)
    }

    fn merge_noting(&self, at_most_blocks: u64, note_blocks: u64) -> (u64, bool) {
        merge(self.volume(), at_most_blocks, note_blocks).unwrap()
    }

    fn stats(&self) -> MergeStats {
        self.volume().stats().merge
    }

    fn note(&self) -> bool {
        self.dir.join("volume.merge").exists()
    }

    fn check(&self, first_blocks: u64, step: u64) {
        let mut found = vec![0; BLOCK_SIZE_BYTES as usize];
        for block in 0..BLOCKS {
            self.volume().read(block * BLOCK_SIZE_BYTES, &mut found).unwrap();
            let expected = match (block % step < self.run, block % 2) {
                (true, _) => content(block, 2),
                (_, 0) if block < first_blocks => content(block, 1),
                _ => vec![0; BLOCK_SIZE_BYTES as usize],
            };
            assert!(found == expected, "block {block}");
        }
    }
}

fn files(dir: &Path, end: &str) -> usize {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().ends_with(end)).count()
}

#[test]
fn killed_merge_continues_at_its_note() {
    let mut bed = Bed::new(BLOCKS, 4);
    assert_eq!((bed.stats().layers, bed.stats().total_bytes), (1, 0));
    assert_eq!(bed.merge(11), (11, false));
    let stats = bed.stats();
    assert_eq!(
        (stats.layers, stats.done_bytes, stats.total_bytes),
        (1, 11 * BLOCK_SIZE_BYTES, 16 * BLOCK_SIZE_BYTES)
    );
    assert!(bed.note() && bed.volume().check().findings.is_empty());
    bed.kill();
    assert_eq!(bed.stats().layers, 1);
    // What was copied after the note is copied again; here again a note comes after four blocks.
    assert_eq!(bed.merge(2), (2, false));
    assert_eq!(bed.stats().done_bytes, 10 * BLOCK_SIZE_BYTES);
    bed.kill();
    assert_eq!(bed.merge(u64::MAX), (8, true));
    assert_eq!(bed.stats(), MergeStats::default());
    assert!(!bed.note(), "the note goes with the merge");
    bed.check(BLOCKS, 4);
    bed.kill();
    bed.check(BLOCKS, 4);
    assert_eq!((files(&bed.dir, ".data"), bed.volume().check().findings.len()), (2, 0));
}

#[test]
fn paused_merge_continues_where_it_was() {
    let bed = Bed::new(BLOCKS, 4);
    assert_eq!(bed.merge(11), (11, false));
    assert_eq!(bed.merge(u64::MAX), (5, true));
    bed.check(BLOCKS, 4);
}

fn shares(bed: &Bed) -> usize {
    bed.disk.operations().iter().filter(|call| call.kind == OpKind::Share).count()
}

/// On a disk that can share extents, long extents are not copied.
#[test]
fn shareable_extents_are_not_copied() {
    let mut bed = Bed::with_runs(BLOCKS, 32, 9);
    bed.disk.set_shares_extents(true);
    // A shared extent counts as the shortest one that is shared, of 8 blocks.
    assert_eq!(bed.merge_noting(u64::MAX, BLOCKS), (2 * 8, true));
    bed.check(BLOCKS, 32);
    bed.kill();
    bed.check(BLOCKS, 32);
    assert_eq!(shares(&bed), 2);
}

/// Single blocks are copied, unless there is no space for that.
#[test]
fn short_runs_are_copied_though_they_could_be_shared() {
    let mut bed = Bed::new(BLOCKS, 4);
    bed.disk.set_shares_extents(true);
    assert_eq!(bed.merge(u64::MAX), (16, true));
    assert_eq!(shares(&bed), 0);
    bed.check(BLOCKS, 4);

    bed = Bed::new(BLOCKS, 4);
    bed.disk.set_shares_extents(true);
    let full = Fault {
        kinds: vec![OpKind::Write],
        path_contains: ".data".into(),
        ..Fault::every(FaultError::NoSpace)
    };
    bed.disk.inject(full);
    assert_eq!(bed.merge(u64::MAX), (16, true));
    assert_eq!(shares(&bed), 16);
    bed.disk.mend();
    bed.kill();
    bed.check(BLOCKS, 4);
}

/// The lower layer's file is made longer for what the upper one holds there; the next process cuts it again.
#[test]
fn blocks_beyond_lower_layer_are_copied_again() {
    const FIRST: u64 = 40;
    let mut bed = Bed::new(FIRST, 8);
    assert_eq!(bed.merge(u64::MAX), (0, true), "the growth left an empty layer");
    assert_eq!(bed.merge_noting(7, 1), (7, false), "block 48 is there");
    bed.kill();
    assert_eq!(bed.merge_noting(2, 1), (2, false), "blocks 40 and 48 were cut off");
    assert_eq!(bed.merge_noting(u64::MAX, 1), (3, true), "in the same process as well");
    bed.check(FIRST, 8);
    bed.kill();
    bed.check(FIRST, 8);
}

#[test]
fn note_is_removed_with_freed_space() {
    let mut bed = Bed::new(BLOCKS, 4);
    assert_eq!(bed.merge(9), (9, false));
    assert!(bed.note());
    let full = Fault {
        kinds: vec![OpKind::Write],
        path_contains: ".data".into(),
        ..Fault::every(FaultError::NoSpace)
    };
    bed.disk.inject(full);
    let error = bed.volume().merge_next_noting(&|_| true, BLOCK_SIZE_BYTES).unwrap_err();
    assert_eq!(error.kind(), VolumeErrorKind::NoSpace);
    assert!(!bed.note(), "it speaks of blocks that are punched out");
    assert_eq!(bed.stats().total_bytes, 0);
    bed.disk.mend();
    bed.kill();
    assert_eq!(bed.merge(u64::MAX), (16, true));
    bed.check(BLOCKS, 4);
}

#[test]
fn failed_note_forces_a_full_comparison() {
    let mut bed = Bed::new(BLOCKS, 4);
    let full = Fault { path_contains: "volume.merge".into(), ..Fault::every(FaultError::NoSpace) };
    bed.disk.inject(full);
    assert_eq!(bed.merge(11), (11, false));
    bed.disk.mend();
    bed.kill();
    assert_eq!(bed.merge(11), (11, false));
    bed.volume = None;
    let note = bed.dir.join("volume.merge");
    let mut bytes = std::fs::read(&note).unwrap();
    bytes[50] ^= 4;
    std::fs::write(&note, bytes).unwrap();
    bed.kill();
    assert!(!bed.note(), "what cannot be read is garbage");
    assert_eq!(bed.merge(u64::MAX), (16, true));
    bed.check(BLOCKS, 4);
}

fn write(volume: &Volume, blocks: impl Iterator<Item = u64>, round: u8) {
    for block in blocks {
        volume.write(block * BLOCK_SIZE_BYTES, &[round; BLOCK_SIZE_BYTES as usize], false).unwrap();
    }
}

/// A note covers blocks that another merge may overwrite.
#[test]
fn new_merge_removes_note_of_other_pair() {
    let root = tempfile::tempdir().unwrap();
    let disk = Disk::attach(root.path(), 1).unwrap();
    let dir = root.path().join("v");
    let volume = Volume::create(&dir, VolumeId::from_u64(5), BLOCKS * BLOCK_SIZE_BYTES).unwrap();
    let id = SnapshotId::from_u64;
    write(&volume, 0..BLOCKS, 1);
    volume.freeze(id(1)).unwrap();
    write(&volume, (0..BLOCKS).step_by(4), 2);
    volume.freeze(id(2)).unwrap();
    write(&volume, (2..BLOCKS).step_by(4), 3);
    volume.freeze(id(3)).unwrap();
    volume.delete_snapshot(id(1)).unwrap();
    // The second layer goes into the first one until the disk fails; what was written down stays.
    assert_eq!(merge(&volume, 5, 1), Ok((5, false)));
    let note = dir.join("volume.merge");
    assert!(note.exists());
    let unreadable =
        Fault { kinds: vec![OpKind::Read], path_contains: ".data".into(), ..Fault::every(FaultError::Io) };
    disk.inject(unreadable);
    assert_eq!(merge(&volume, u64::MAX, 1), Err(VolumeErrorKind::Io));
    disk.mend();
    assert!(note.exists());
    // Now another pair comes first: the third layer and the second one.
    volume.delete_snapshot(id(2)).unwrap();
    assert_eq!(merge(&volume, 0, 1), Ok((0, false)));
    assert!(!note.exists(), "the note of a dropped merge");

    drop(volume);
    let volume: Arc<Volume> = Volume::open(&dir, &OpenOptions::default()).unwrap();
    while merge(&volume, u64::MAX, 1).unwrap().1 {}
    let mut found = vec![0; (BLOCKS * BLOCK_SIZE_BYTES) as usize];
    volume.read(0, &mut found).unwrap();
    for (block, content) in found.chunks(BLOCK_SIZE_BYTES as usize).enumerate() {
        let expected = [2, 1, 3, 1][block % 4];
        assert!(content.iter().all(|byte| *byte == expected), "block {block}");
    }
}
