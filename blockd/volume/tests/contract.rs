//! Single guarantees of a volume.

use crate::support::{open, paths_in};
use blockd_extent::{Epoch, SnapshotId, VolumeId};
use blockd_volume::{Allocation, OpenOptions, Volume, VolumeErrorKind};
use std::path::Path;

const SIZE_BYTES: u64 = 3 << 20;

#[test]
fn sixteen_tebibyte_volume_uses_memory_for_data_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let volume = Volume::create(&path, VolumeId::from_u64(1), 16 << 40).unwrap();
    volume.write((16 << 40) - 4096, &[7; 4096], false).unwrap();
    volume.write(5 << 40, &[8; 4097], false).unwrap();
    // `mkfs` discards the whole device first.
    volume.trim(0, 16 << 40, false).unwrap();
    volume.write(9 << 40, &[9; 100], true).unwrap();
    let first = volume.freeze(SnapshotId::from_u64(1)).unwrap();
    let full = volume.changes(None, first.epoch).unwrap();
    assert_eq!(full.data.len_blocks(), 1);
    volume.write(0, &[1; 8192], false).unwrap();
    let second = volume.freeze(SnapshotId::from_u64(2)).unwrap();
    assert_eq!(volume.changes(Some(first.epoch), second.epoch).unwrap().data.len_blocks(), 2);
    let stats = volume.stats();
    // The tables of the head's two bitmaps have 16 bytes for each 128 MiB.
    assert!(stats.tracking_bytes < (4 << 20) + (1 << 20), "{stats:?}");
    assert!(stats.allocated_bytes < 1 << 20, "{stats:?}");
    let mut tail = [0; 4096];
    volume.read((16 << 40) - 4096, &mut tail).unwrap();
    assert_eq!(tail, [0; 4096]);
}

#[test]
fn invalid_request_is_refused_without_effect() {
    let dir = tempfile::tempdir().unwrap();
    for size in [0, 1, 4095, (64 << 40) + 4096, u64::MAX] {
        let error = Volume::create(&dir.path().join("bad"), VolumeId::from_u64(1), size).err().unwrap();
        assert_eq!(error.kind(), VolumeErrorKind::InvalidInput, "{size}");
        assert!(!dir.path().join("bad").exists());
    }
    let volume = Volume::create(&dir.path().join("v"), VolumeId::from_u64(1), 8192).unwrap();
    for (offset, len) in [(8192, 1), (u64::MAX, 1), (1 << 63, 4096), (4096, 4097)] {
        assert_eq!(
            volume.write(offset, &vec![1; len], false).unwrap_err().kind(),
            VolumeErrorKind::InvalidInput
        );
        assert_eq!(volume.read(offset, &mut vec![1; len]).unwrap_err().kind(), VolumeErrorKind::InvalidInput);
        assert_eq!(volume.trim(offset, len as u64, false).unwrap_err().kind(), VolumeErrorKind::InvalidInput);
    }
    volume.freeze(SnapshotId::from_u64(5)).unwrap();
    assert_eq!(volume.freeze(SnapshotId::from_u64(5)).err().unwrap().kind(), VolumeErrorKind::Busy);
    assert_eq!(
        volume.delete_snapshot(SnapshotId::from_u64(6)).unwrap_err().kind(),
        VolumeErrorKind::NotFound
    );
    let view = volume.view(SnapshotId::from_u64(5)).unwrap();
    assert_eq!(volume.delete_snapshot(SnapshotId::from_u64(5)).unwrap_err().kind(), VolumeErrorKind::Busy);
    drop(view);
    volume.delete_snapshot(SnapshotId::from_u64(5)).unwrap();
    assert_eq!(volume.changes(Some(Epoch(0)), Epoch(9)).unwrap_err().kind(), VolumeErrorKind::IntervalsGone);
}

#[test]
fn missing_or_altered_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let volume = Volume::create(&path, VolumeId::from_u64(3), SIZE_BYTES).unwrap();
    volume.write(0, &[1; 4096], true).unwrap();
    volume.freeze(SnapshotId::from_u64(1)).unwrap();
    volume.close().unwrap();
    drop(volume);
    let files = paths_in(&path);
    assert_eq!(files.len(), 6, "{files:?}");
    for file in files {
        if file.extension().is_some_and(|extension| extension == "map") {
            continue;
        }
        let content = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_open_names(&path, &file);
        // Half of a log without records is a header and zeroes: a valid log.
        let is_log = file.extension().is_some_and(|extension| extension == "log");
        let half = if is_log { 20 } else { content.len() / 2 };
        std::fs::write(&file, &content[..half]).unwrap();
        assert_open_names(&path, &file);
        std::fs::write(&file, &content).unwrap();
        open(&path);
    }
}

/// Checks that the open fails with an error that names the file.
fn assert_open_names(dir: &Path, file: &Path) {
    let message = Volume::open(dir, &OpenOptions::default()).err().unwrap().to_string();
    assert!(message.contains(&*file.to_string_lossy()), "{message}");
}

#[test]
fn preallocated_space_is_distinct_from_holes() {
    let dir = tempfile::tempdir().unwrap();
    let volume = Volume::create(&dir.path().join("v"), VolumeId::from_u64(1), 8 * 4096).unwrap();
    let allocation = || -> Vec<(u64, Allocation)> {
        let runs = volume.allocation(0, 8 * 4096, 9).unwrap();
        runs.into_iter().map(|run| (run.len_bytes, run.allocation)).collect()
    };
    volume.write_zeroes(4096, 3 * 4096, true, false).unwrap();
    let expected = [(4096, Allocation::Hole), (3 * 4096, Allocation::Zero), (4 * 4096, Allocation::Hole)];
    assert_eq!(allocation(), expected);
    volume.write(4096, &[1; 4096], false).unwrap();
    volume.trim(4096, 2 * 4096, false).unwrap();
    let expected = [(3 * 4096, Allocation::Hole), (4096, Allocation::Zero), (4 * 4096, Allocation::Hole)];
    assert_eq!(allocation(), expected);
    volume.freeze(SnapshotId::from_u64(1)).unwrap();
    assert_eq!(allocation(), [(8 * 4096, Allocation::Hole)]);
}
