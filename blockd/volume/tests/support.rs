//! Set-ups and readers that several tests share.

use crate::sim::disk::{Attached, Disk};
use blockd_extent::SnapshotId;
use blockd_volume::{OpenOptions, Recovery, Volume};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Creates a directory in memory if possible: ext4 writes a file back when another one is renamed over it,
/// and a freeze without disk syncs takes microseconds, which makes races more likely.
pub fn memory_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Attaches a simulated disk to the new directory `disk-0` in memory; also returns its parent.
pub fn memory_disk(seed: u64) -> (tempfile::TempDir, Attached) {
    let root = memory_dir();
    let first = root.path().join("disk-0");
    std::fs::create_dir(&first).unwrap();
    let disk = Disk::attach(&first, seed).unwrap();
    (root, disk)
}

/// Returns a new directory and the path of a volume in it.
pub fn volume_dir() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("v");
    (root, dir)
}

pub fn open(dir: &Path) -> Arc<Volume> {
    Volume::open(dir, &OpenOptions::default()).unwrap()
}

pub fn open_after_power_loss(dir: &Path) -> Arc<Volume> {
    let options = OpenOptions { recovery: Recovery::AfterPowerLoss, ..OpenOptions::default() };
    Volume::open(dir, &options).unwrap()
}

/// Returns the content of a volume.
pub fn content(volume: &Volume) -> Vec<u8> {
    let mut content = vec![0; volume.size_bytes() as usize];
    volume.read(0, &mut content).unwrap();
    content
}

/// Returns the content of a snapshot.
pub fn snapshot_content(volume: &Volume, snapshot: SnapshotId) -> Vec<u8> {
    let view = volume.view(snapshot).unwrap();
    let mut content = vec![0; view.size_bytes() as usize];
    view.read(0, &mut content).unwrap();
    content
}

/// Merges all pairs of layers that can be merged.
pub fn merge_all(volume: &Volume) {
    while volume.merge_next(&|_| true).unwrap() {}
}

/// Returns the paths of the entries of a directory, in ascending order.
pub fn paths_in(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort_unstable();
    paths
}

/// Returns the names of the entries of a directory, in ascending order.
pub fn names_in(dir: &Path) -> Vec<String> {
    let name = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    paths_in(dir).into_iter().map(name).collect()
}
