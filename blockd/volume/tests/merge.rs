//! Merges that resume after a stop, a process crash or a full disk.

use crate::sim::disk::{Attached, Disk, Fault, FaultError, OpKind};
use crate::support::{content, names_in, open, volume_dir};
use blockd_extent::{BLOCK_SIZE_BYTES, SnapshotId, VolumeId};
use blockd_volume::{MergeStats, Volume, VolumeErrorKind};
use std::{cell::Cell, path::PathBuf, sync::Arc};

const BLOCKS: u64 = 64;
/// Blocks between two progress notes.
const NOTE_BLOCKS: u64 = 4;

/// Returns the content of a block written in a round.
fn block_content(block: u64, round: u64) -> Vec<u8> {
    let mut data = vec![0; BLOCK_SIZE_BYTES as usize];
    data[..8].copy_from_slice(&(block << 8 | round).to_le_bytes());
    data[4088..].copy_from_slice(&(block << 8 | round).to_le_bytes());
    data
}

/// Merges up to a number of copied blocks, with a note after each `note_blocks`; returns the copied blocks,
/// and true if the merge was committed.
fn merge(volume: &Volume, max_blocks: u64, note_blocks: u64) -> Result<(u64, bool), VolumeErrorKind> {
    let copied = Cell::new(0);
    let go_on = |bytes: u64| {
        let blocks = bytes / BLOCK_SIZE_BYTES;
        let may_continue = copied.get() + blocks <= max_blocks;
        copied.set(copied.get() + if may_continue { blocks } else { 0 });
        may_continue
    };
    let done = volume.merge_next_with_progress(&go_on, note_blocks * BLOCK_SIZE_BYTES);
    done.map(|done| (copied.get(), done)).map_err(|error| error.kind())
}

/// Volume with two layers to merge, on a simulated disk.
struct MergeFixture {
    _root: tempfile::TempDir,
    dir: PathBuf,
    disk: Attached,
    volume: Option<Arc<Volume>>,
    extent_blocks: u64,
}

impl MergeFixture {
    /// Creates a volume that grew from `first_blocks`. The lower layer has the even blocks of that time,
    /// the upper one each block whose number is a multiple of `step`; merging down copies less.
    fn new(first_blocks: u64, step: u64) -> Self {
        Self::with_extents(first_blocks, step, 1)
    }

    /// Creates the same with extents of `extent_blocks` in the upper layer.
    fn with_extents(first_blocks: u64, step: u64, extent_blocks: u64) -> Self {
        let (root, dir) = volume_dir();
        let disk = Disk::attach(root.path(), 1).unwrap();
        let volume = Volume::create(&dir, VolumeId::from_u64(5), first_blocks * BLOCK_SIZE_BYTES).unwrap();
        for block in (0..first_blocks).step_by(2) {
            volume.write(block * BLOCK_SIZE_BYTES, &block_content(block, 1), false).unwrap();
        }
        volume.freeze(SnapshotId::from_u64(1)).unwrap();
        if first_blocks < BLOCKS {
            volume.grow(BLOCKS * BLOCK_SIZE_BYTES).unwrap();
        }
        for block in (0..BLOCKS).filter(|block| block % step < extent_blocks) {
            volume.write(block * BLOCK_SIZE_BYTES, &block_content(block, 2), false).unwrap();
        }
        volume.freeze(SnapshotId::from_u64(2)).unwrap();
        volume.delete_snapshot(SnapshotId::from_u64(1)).unwrap();
        Self { _root: root, dir, disk, volume: Some(volume), extent_blocks }
    }

    fn volume(&self) -> &Volume {
        self.volume.as_ref().unwrap()
    }

    /// Crashes the process and opens the volume in another one.
    fn kill(&mut self) {
        self.volume = None;
        self.volume = Some(open(&self.dir));
    }

    fn merge(&self, max_blocks: u64) -> (u64, bool) {
        self.merge_noting(max_blocks, NOTE_BLOCKS)
    }

    fn merge_noting(&self, max_blocks: u64, note_blocks: u64) -> (u64, bool) {
        merge(self.volume(), max_blocks, note_blocks).unwrap()
    }

    fn stats(&self) -> MergeStats {
        self.volume().stats().merge
    }

    fn has_note(&self) -> bool {
        self.dir.join("volume.merge").exists()
    }

    /// Fails writes of data as on a full disk.
    fn fill_disk(&self) {
        let full = Fault { path_contains: ".data".into(), ..Fault::every(FaultError::NoSpace) };
        self.disk.inject(Fault { kinds: vec![OpKind::Write], ..full });
    }

    fn check(&self, first_blocks: u64, step: u64) {
        let mut found = vec![0; BLOCK_SIZE_BYTES as usize];
        for block in 0..BLOCKS {
            self.volume().read(block * BLOCK_SIZE_BYTES, &mut found).unwrap();
            let expected = match (block % step < self.extent_blocks, block % 2) {
                (true, _) => block_content(block, 2),
                (_, 0) if block < first_blocks => block_content(block, 1),
                _ => vec![0; BLOCK_SIZE_BYTES as usize],
            };
            assert!(found == expected, "block {block}");
        }
    }
}

#[test]
fn killed_merge_continues_at_its_note() {
    let mut fixture = MergeFixture::new(BLOCKS, 4);
    assert_eq!((fixture.stats().layers, fixture.stats().total_bytes), (1, 0));
    assert_eq!(fixture.merge(11), (11, false));
    let stats = fixture.stats();
    assert_eq!(
        (stats.layers, stats.done_bytes, stats.total_bytes),
        (1, 11 * BLOCK_SIZE_BYTES, 16 * BLOCK_SIZE_BYTES)
    );
    assert!(fixture.has_note() && fixture.volume().check().findings.is_empty());
    fixture.kill();
    assert_eq!(fixture.stats().layers, 1);
    // The three blocks after the note are copied again.
    assert_eq!(fixture.merge(2), (2, false));
    assert_eq!(fixture.stats().done_bytes, 10 * BLOCK_SIZE_BYTES);
    fixture.kill();
    assert_eq!(fixture.merge(u64::MAX), (8, true));
    assert_eq!(fixture.stats(), MergeStats::default());
    assert!(!fixture.has_note(), "the note outlived the merge");
    fixture.check(BLOCKS, 4);
    fixture.kill();
    fixture.check(BLOCKS, 4);
    let data_files = names_in(&fixture.dir).iter().filter(|name| name.ends_with(".data")).count();
    assert_eq!((data_files, fixture.volume().check().findings.len()), (2, 0));
}

#[test]
fn stopped_merge_continues_at_its_position() {
    let fixture = MergeFixture::new(BLOCKS, 4);
    assert_eq!(fixture.merge(11), (11, false));
    assert_eq!(fixture.merge(u64::MAX), (5, true));
    fixture.check(BLOCKS, 4);
}

fn shares(fixture: &MergeFixture) -> usize {
    fixture.disk.operations().iter().filter(|call| call.kind == OpKind::Share).count()
}

#[test]
fn shareable_extents_are_not_copied() {
    let mut fixture = MergeFixture::with_extents(BLOCKS, 32, 9);
    fixture.disk.set_shares_extents(true);
    // A shared extent counts like the minimum length for sharing, 8 blocks.
    assert_eq!(fixture.merge_noting(u64::MAX, BLOCKS), (2 * 8, true));
    fixture.check(BLOCKS, 32);
    fixture.kill();
    fixture.check(BLOCKS, 32);
    assert_eq!(shares(&fixture), 2);
}

#[test]
fn short_extents_are_shared_only_on_a_full_disk() {
    let mut fixture = MergeFixture::new(BLOCKS, 4);
    fixture.disk.set_shares_extents(true);
    assert_eq!(fixture.merge(u64::MAX), (16, true));
    assert_eq!(shares(&fixture), 0);
    fixture.check(BLOCKS, 4);

    fixture = MergeFixture::new(BLOCKS, 4);
    fixture.disk.set_shares_extents(true);
    fixture.fill_disk();
    assert_eq!(fixture.merge(u64::MAX), (16, true));
    assert_eq!(shares(&fixture), 16);
    fixture.disk.clear_faults();
    fixture.kill();
    fixture.check(BLOCKS, 4);
}

/// A merge down extends the lower layer's file; the next start truncates it.
#[test]
fn blocks_beyond_lower_layer_are_copied_again() {
    const FIRST: u64 = 40;
    let mut fixture = MergeFixture::new(FIRST, 8);
    assert_eq!(fixture.merge(u64::MAX), (0, true), "the empty layer of the growth is merged first");
    assert_eq!(fixture.merge_noting(7, 1), (7, false), "copied up to block 48");
    fixture.kill();
    assert_eq!(fixture.merge_noting(2, 1), (2, false), "blocks 40 and 48 were truncated");
    assert_eq!(
        fixture.merge_noting(u64::MAX, 1),
        (3, true),
        "blocks beyond the lower layer are copied again in the same process"
    );
    fixture.check(FIRST, 8);
    fixture.kill();
    fixture.check(FIRST, 8);
}

#[test]
fn note_is_removed_with_freed_space() {
    let mut fixture = MergeFixture::new(BLOCKS, 4);
    assert_eq!(fixture.merge(9), (9, false));
    assert!(fixture.has_note());
    fixture.fill_disk();
    let error = fixture.volume().merge_next_with_progress(&|_| true, BLOCK_SIZE_BYTES).unwrap_err();
    assert_eq!(error.kind(), VolumeErrorKind::NoSpace);
    assert!(!fixture.has_note(), "a note of punched blocks");
    assert_eq!(fixture.stats().total_bytes, 0);
    fixture.disk.clear_faults();
    fixture.kill();
    assert_eq!(fixture.merge(u64::MAX), (16, true));
    fixture.check(BLOCKS, 4);
}

#[test]
fn failed_note_restarts_the_merge() {
    let mut fixture = MergeFixture::new(BLOCKS, 4);
    let full = Fault { path_contains: "volume.merge".into(), ..Fault::every(FaultError::NoSpace) };
    fixture.disk.inject(full);
    assert_eq!(fixture.merge(11), (11, false));
    fixture.disk.clear_faults();
    fixture.kill();
    assert_eq!(fixture.merge(11), (11, false));
    fixture.volume = None;
    let note = fixture.dir.join("volume.merge");
    let mut bytes = std::fs::read(&note).unwrap();
    bytes[50] ^= 4;
    std::fs::write(&note, bytes).unwrap();
    fixture.kill();
    assert!(!fixture.has_note(), "an unreadable note was kept");
    assert_eq!(fixture.merge(u64::MAX), (16, true));
    fixture.check(BLOCKS, 4);
}

fn write(volume: &Volume, blocks: impl Iterator<Item = u64>, round: u8) {
    for block in blocks {
        volume.write(block * BLOCK_SIZE_BYTES, &[round; BLOCK_SIZE_BYTES as usize], false).unwrap();
    }
}

/// Another merge may overwrite blocks that a note covers.
#[test]
fn new_merge_removes_note_of_other_pair() {
    let (root, dir) = volume_dir();
    let disk = Disk::attach(root.path(), 1).unwrap();
    let volume = Volume::create(&dir, VolumeId::from_u64(5), BLOCKS * BLOCK_SIZE_BYTES).unwrap();
    let id = SnapshotId::from_u64;
    write(&volume, 0..BLOCKS, 1);
    volume.freeze(id(1)).unwrap();
    write(&volume, (0..BLOCKS).step_by(4), 2);
    volume.freeze(id(2)).unwrap();
    write(&volume, (2..BLOCKS).step_by(4), 3);
    volume.freeze(id(3)).unwrap();
    volume.delete_snapshot(id(1)).unwrap();
    // The merge of the first two layers stops and then fails; its note stays.
    assert_eq!(merge(&volume, 5, 1), Ok((5, false)));
    let note = dir.join("volume.merge");
    assert!(note.exists());
    let unreadable =
        Fault { kinds: vec![OpKind::Read], path_contains: ".data".into(), ..Fault::every(FaultError::Io) };
    disk.inject(unreadable);
    assert_eq!(merge(&volume, u64::MAX, 1), Err(VolumeErrorKind::Io));
    disk.clear_faults();
    assert!(note.exists());
    // Now the second and third layers are the first pair.
    volume.delete_snapshot(id(2)).unwrap();
    assert_eq!(merge(&volume, 0, 1), Ok((0, false)));
    assert!(!note.exists(), "the note of another pair was kept");

    drop(volume);
    let volume = open(&dir);
    while merge(&volume, u64::MAX, 1).unwrap().1 {}
    for (block, content) in content(&volume).chunks(BLOCK_SIZE_BYTES as usize).enumerate() {
        let expected = [2, 1, 3, 1][block % 4];
        assert!(content.iter().all(|byte| *byte == expected), "block {block}");
    }
}
