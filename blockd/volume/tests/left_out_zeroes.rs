//! Layers whose fragmented zeroes are left out in memory: every operation treats them as zeroes.

use crate::support::{content, memory_dir, merge_all, names_in, open, snapshot_content};
use blockd_extent::{Extent, SnapshotId, VolumeId};
use blockd_volume::{OpenOptions, Salvage, Volume};
use std::{path::PathBuf, sync::Arc};

const BLOCK: u64 = 4096;
/// Enough for more extents of zeroes than a layer keeps.
const BLOCKS: u64 = 2048;
/// Every fourth block is trimmed.
const ZERO_BLOCKS: u64 = BLOCKS / 4;
const FULL: SnapshotId = SnapshotId::from_u64(1);
const TRIMMED: SnapshotId = SnapshotId::from_u64(2);
const LAST: SnapshotId = SnapshotId::from_u64(3);

/// Volume with three snapshots; the zeroes of the second are fragmented.
struct TrimmedVolume {
    _root: tempfile::TempDir,
    dir: PathBuf,
    volume: Arc<Volume>,
    full: Vec<u8>,
    trimmed: Vec<u8>,
    last: Vec<u8>,
}

impl TrimmedVolume {
    fn new() -> Self {
        let root = memory_dir();
        let dir = root.path().join("v");
        let volume = Volume::create(&dir, VolumeId::from_u64(9), BLOCKS * BLOCK).unwrap();
        let full = vec![1; (BLOCKS * BLOCK) as usize];
        volume.write(0, &full, false).unwrap();
        volume.freeze(FULL).unwrap();
        let mut trimmed = full.clone();
        for at in (0..BLOCKS * BLOCK).step_by(4 * BLOCK as usize) {
            volume.trim(at, BLOCK, false).unwrap();
            trimmed[at as usize..][..4096].fill(0);
            volume.write(at + 2 * BLOCK, &[2; 4096], false).unwrap();
            trimmed[(at + 2 * BLOCK) as usize..][..4096].fill(2);
        }
        volume.freeze(TRIMMED).unwrap();
        let mut last = trimmed.clone();
        for at in (0..BLOCKS * BLOCK).step_by(8 * BLOCK as usize) {
            volume.write(at, &[3; 4096], false).unwrap();
            last[at as usize..][..4096].fill(3);
        }
        volume.freeze(LAST).unwrap();
        Self { _root: root, dir, volume, full, trimmed, last }
    }

    fn check(&self, volume: &Volume, now: &[u8]) {
        assert!(content(volume) == now, "the content differs");
        for (id, expected) in [(FULL, &self.full), (TRIMMED, &self.trimmed), (LAST, &self.last)] {
            if volume.snapshots().iter().any(|found| found.id == id) {
                assert!(snapshot_content(volume, id) == *expected, "snapshot {id} differs");
            }
        }
        assert_eq!(volume.check().findings, Vec::<String>::new());
    }
}

#[test]
fn left_out_zeroes_are_no_data_of_snapshots() {
    let fixture = TrimmedVolume::new();
    fixture.check(&fixture.volume, &fixture.last);
    let changed = fixture.volume.difference(FULL, Some(TRIMMED)).unwrap();
    assert_eq!((changed.zero_bytes(), changed.data_bytes()), (ZERO_BLOCKS * BLOCK, ZERO_BLOCKS * BLOCK));
    let space = fixture.volume.snapshot_space();
    let trimmed = space.iter().find(|found| found.id == TRIMMED).unwrap();
    assert_eq!(trimmed.exclusive_bytes + trimmed.shared_bytes, (BLOCKS - ZERO_BLOCKS) * BLOCK);
}

#[test]
fn rollback_copies_no_left_out_zeroes() {
    let fixture = TrimmedVolume::new();
    let done = fixture.volume.roll_back(TRIMMED, &|| true).unwrap();
    assert_eq!((done.changed_blocks, done.copied_blocks), (BLOCKS / 8, 0));
    fixture.check(&fixture.volume, &fixture.trimmed);
    fixture.volume.close().unwrap();
    fixture.check(&open(&fixture.dir), &fixture.trimmed);
}

#[test]
fn clone_and_merges_keep_left_out_zeroes() {
    let fixture = TrimmedVolume::new();
    let clone_dir = fixture.dir.with_file_name("clone");
    let clone = fixture.volume.clone_to(TRIMMED, &clone_dir, VolumeId::from_u64(10)).unwrap();
    fixture.check(&clone, &fixture.trimmed);
    clone.close().unwrap();
    drop(clone);
    Volume::delete_files(&clone_dir).unwrap();
    fixture.volume.delete_snapshot(FULL).unwrap();
    merge_all(&fixture.volume);
    assert_eq!(fixture.volume.snapshots().len(), 2);
    fixture.check(&fixture.volume, &fixture.last);
    fixture.volume.delete_snapshot(TRIMMED).unwrap();
    merge_all(&fixture.volume);
    fixture.check(&fixture.volume, &fixture.last);
    fixture.volume.close().unwrap();
    fixture.check(&open(&fixture.dir), &fixture.last);
}

#[test]
fn salvage_proves_zeroes_without_their_data() {
    let fixture = TrimmedVolume::new();
    let epoch = fixture.volume.view(TRIMMED).unwrap().epoch();
    fixture.volume.close().unwrap();
    let data = names_in(&fixture.dir);
    let layer = format!("{:016x}", epoch.0);
    let lost: Vec<_> = data.iter().filter(|name| name.contains(&layer) && name.ends_with(".data")).collect();
    assert_eq!(lost.len(), 1, "{data:?}");
    std::fs::remove_file(fixture.dir.join(lost[0])).unwrap();
    let salvage = Salvage::open(&fixture.dir, &OpenOptions::default()).unwrap();
    let view = salvage.snapshot(TRIMMED).unwrap();
    assert_eq!(view.unproven_bytes(), ZERO_BLOCKS * BLOCK);
    let mut at = 0;
    let mut block = vec![0; 4096];
    for unproven in view.unproven_in(Extent::whole(view.size_bytes())) {
        for offset in (at..unproven.extent.offset_bytes()).step_by(4096) {
            block.fill(0);
            view.read(offset, &mut block).unwrap();
            assert!(block == fixture.trimmed[offset as usize..][..4096], "byte {offset}");
        }
        at = unproven.extent.end().0 * BLOCK;
    }
    assert!(at > (BLOCKS - 4) * BLOCK);
}
