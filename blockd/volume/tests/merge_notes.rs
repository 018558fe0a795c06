//! The note of one merge does not outlive the beginning of another one, which may write over blocks that the
//! note speaks of.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod sim;

use blockd_extent::{BLOCK_SIZE_BYTES, SnapshotId, VolumeId};
use blockd_volume::{OpenOptions, Volume, VolumeErrorKind};
use sim::disk::{Disk, Fault, FaultError, OpKind};
use std::{cell::Cell, sync::Arc};

const BLOCKS: u64 = 64;

fn write(volume: &Volume, blocks: impl Iterator<Item = u64>, round: u8) {
    for block in blocks {
        volume.write(block * BLOCK_SIZE_BYTES, &[round; BLOCK_SIZE_BYTES as usize], false).unwrap();
    }
}

/// Merges until so many blocks were copied, writing down after each how far it is.
fn merge(volume: &Volume, at_most_blocks: u64) -> Result<(u64, bool), VolumeErrorKind> {
    let copied = Cell::new(0);
    let go_on = |bytes: u64| {
        let blocks = bytes / BLOCK_SIZE_BYTES;
        let goes_on = copied.get() + blocks <= at_most_blocks;
        copied.set(copied.get() + if goes_on { blocks } else { 0 });
        goes_on
    };
    let done = volume.merge_next_noting(&go_on, BLOCK_SIZE_BYTES).map_err(|error| error.kind())?;
    Ok((copied.get(), done))
}

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
    assert_eq!(merge(&volume, 5), Ok((5, false)));
    let note = dir.join("volume.merge");
    assert!(note.exists());
    let unreadable =
        Fault { kinds: vec![OpKind::Read], path_contains: ".data".into(), ..Fault::every(FaultError::Io) };
    disk.inject(unreadable);
    assert_eq!(merge(&volume, u64::MAX), Err(VolumeErrorKind::Io));
    disk.mend();
    assert!(note.exists());
    // Now another pair comes first: the third layer and the second one.
    volume.delete_snapshot(id(2)).unwrap();
    assert_eq!(merge(&volume, 0), Ok((0, false)));
    assert!(!note.exists(), "the note of a dropped merge");

    drop(volume);
    let volume: Arc<Volume> = Volume::open(&dir, &OpenOptions::default()).unwrap();
    while merge(&volume, u64::MAX).unwrap().1 {}
    let mut found = vec![0; (BLOCKS * BLOCK_SIZE_BYTES) as usize];
    volume.read(0, &mut found).unwrap();
    for (block, content) in found.chunks(BLOCK_SIZE_BYTES as usize).enumerate() {
        let expected = [2, 1, 3, 1][block % 4];
        assert!(content.iter().all(|byte| *byte == expected), "block {block}");
    }
}
