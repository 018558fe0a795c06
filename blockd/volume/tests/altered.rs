//! Volume with layers whose files the tests alter.

use crate::support::paths_in;
use blockd_extent::{SnapshotId, VolumeId};
use blockd_volume::Volume;
use std::{os::unix::fs::FileExt, path::Path, sync::Arc};

pub const ID: VolumeId = VolumeId::from_u64(7);
pub const BLOCKS: u64 = 64;

pub fn snapshot(number: u64) -> SnapshotId {
    SnapshotId::from_u64(number)
}

pub fn write(volume: &Volume, block: u64, byte: u8) {
    volume.write(block * 4096, &[byte; 4096], false).unwrap();
}

/// Flips a bit of a block in each data file that has one of these bytes there; returns the number of files.
pub fn flip(dir: &Path, block: u64, byte: u8) -> usize {
    let is_data = |path: &std::path::PathBuf| path.extension().is_some_and(|end| end == "data");
    let files = paths_in(dir).into_iter().filter(is_data);
    files
        .filter(|path| {
            let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
            let mut found = [0];
            let is_there = file.read_at(&mut found, block * 4096 + 99).unwrap() == 1 && found == [byte];
            is_there && file.write_at(&[byte ^ 8], block * 4096 + 99).unwrap() == 1
        })
        .count()
}

/// A volume with snapshots 1 to 3, each with blocks of its own and some of the one below.
pub fn create(dir: &Path) -> Arc<Volume> {
    let volume = Volume::create(dir, ID, BLOCKS * 4096).unwrap();
    for number in 1..4u8 {
        for block in u64::from(number) * 4..u64::from(number) * 4 + 8 {
            write(&volume, block, number * 16);
        }
        volume.freeze(snapshot(number.into())).unwrap();
    }
    volume
}
