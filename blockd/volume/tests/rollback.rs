//! A rollback that is cut off at every single call, by an error, the death of the process, or a power cut:
//! the volume is as it was before or rolled back, nothing in between, and nothing is left lying about.

use crate::sim::disk::{Attached, Disk, Fault, FaultError, Rng};
use blockd_extent::{Epoch, SnapshotId, VolumeId};
use blockd_volume::{OpenOptions, Recovery, RolledBack, Volume, VolumeError, VolumeErrorKind};
use std::{
    cell::Cell,
    path::{Path, PathBuf},
    sync::Arc,
};

const BLOCK: u64 = 4096;
const POINT: SnapshotId = SnapshotId::from_u64(1);
const BEFORE: SnapshotId = SnapshotId::from_u64(2);

/// Volume with a history on a simulated disk.
struct Bed {
    root: tempfile::TempDir,
    disk: Attached,
    volume: Option<Arc<Volume>>,
    point_epoch: Epoch,
    at_point: Vec<u8>,
    before: Vec<u8>,
}

fn content(volume: &Volume) -> Vec<u8> {
    let mut content = vec![0; volume.size_bytes() as usize];
    volume.read(0, &mut content).unwrap();
    content
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

impl Bed {
    fn new(seed: u64) -> Self {
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let first = root.path().join("disk-0");
        std::fs::create_dir(&first).unwrap();
        let disk = Disk::attach(&first, seed).unwrap();
        let volume = Volume::create(&first.join("v"), VolumeId::from_u64(9), 24 * BLOCK).unwrap();
        volume.write(0, &[1; 5 * 4096], false).unwrap();
        volume.write(10 * BLOCK, &[2; 4 * 4096], false).unwrap();
        let point_epoch = volume.freeze(POINT).unwrap().epoch;
        let mut at_point = content(&volume);
        volume.write(BLOCK, &[3; 4096], false).unwrap();
        volume.trim(10 * BLOCK, 2 * BLOCK, false).unwrap();
        volume.write(20 * BLOCK, &[4; 4096], false).unwrap();
        volume.grow(30 * BLOCK).unwrap();
        volume.write(28 * BLOCK, &[5; 4096], false).unwrap();
        volume.freeze(BEFORE).unwrap();
        // In no snapshot.
        volume.write(3 * BLOCK + 100, &[6; 50], false).unwrap();
        volume.flush().unwrap();
        at_point.resize(30 * 4096, 0);
        let before = content(&volume);
        assert!(at_point != before);
        Self { root, disk, volume: Some(volume), point_epoch, at_point, before }
    }

    fn dir(&self, number: u32) -> PathBuf {
        self.root.path().join(format!("disk-{number}")).join("v")
    }

    fn roll_back(&self) -> Result<RolledBack, VolumeError> {
        self.volume.as_ref().unwrap().roll_back(POINT, &|| true)
    }

    /// Returns true if the volume was rolled back; otherwise it must have the previous state.
    fn is_back(&self, volume: &Volume) -> bool {
        let found = content(volume);
        assert!(found == self.before || found == self.at_point, "it is neither as before nor rolled back");
        found == self.at_point
    }

    fn check_sound(&self, volume: &Volume, must_be_back: bool) {
        let is_back = self.is_back(volume);
        assert!(is_back || !must_be_back, "a rollback that was answered is gone");
        let view = volume.view(POINT).unwrap();
        let mut found = vec![0; view.size_bytes() as usize];
        view.read(0, &mut found).unwrap();
        assert!(found == self.at_point[..found.len()], "the snapshot has changed");
        drop(view);
        assert_eq!(volume.snapshots().len(), 2);
        let files = names(volume.dir());
        let count = |end: &str| files.iter().filter(|name| name.ends_with(end)).count() as u64;
        assert_eq!(count(".data"), volume.stats().layers, "{files:?}");
        assert_eq!((count(".map"), count(".log")), (1, 1), "{files:?}");
        assert!(count(".set") + 1 >= count(".data"), "{files:?}");
        // All that went back is in the next incremental, and all that did not.
        volume.write(7 * BLOCK, &[9; 4096], false).unwrap();
        let last = volume.freeze(SnapshotId::from_u64(3)).unwrap().epoch;
        let changes = volume.changes(Some(self.point_epoch), last).unwrap();
        let mut changed = changes.data.clone();
        changed.union_with(&changes.zero);
        let expected: Vec<u64> = vec![1, 3, 7, 10, 11, 20, 28];
        assert_eq!(changed.blocks().map(|block| block.0).collect::<Vec<_>>(), expected);
        let now = content(volume);
        for block in changes.zero.blocks() {
            assert!(now[block.0 as usize * 4096..][..4096].iter().all(|&byte| byte == 0));
        }
        for snapshot in [POINT, BEFORE, SnapshotId::from_u64(3)] {
            volume.delete_snapshot(snapshot).unwrap();
        }
        while volume.merge_next(&|_| true).unwrap() {}
        assert!(content(volume) == now && volume.stats().layers == 2);
    }
}

#[test]
fn rollback_restores_changes_and_copies_only_data() {
    let bed = Bed::new(1);
    let volume = bed.volume.as_ref().unwrap();
    let done = bed.roll_back().unwrap();
    assert_eq!((done.changed_blocks, done.copied_blocks), (6, 4));
    assert!(bed.is_back(volume));
    assert_eq!(volume.stats().head_dirty_bytes, 0);
    let again = bed.roll_back().unwrap();
    assert_eq!(again.changed_blocks, 6, "blocks that went back changed since, too");
    bed.check_sound(volume, true);
    let error = volume.roll_back(SnapshotId::from_u64(77), &|| true).unwrap_err();
    assert_eq!(error.kind(), VolumeErrorKind::NotFound);
}

#[test]
fn rollback_with_writes_or_stop_changes_nothing() {
    let bed = Bed::new(2);
    let volume = bed.volume.as_ref().unwrap();
    let error = volume.roll_back(POINT, &|| false).unwrap_err();
    assert_eq!(error.kind(), VolumeErrorKind::Busy, "{error}");
    assert!(!bed.is_back(volume));
    let written = Cell::new(false);
    let write_once = || {
        if !written.replace(true) {
            volume.write(0, &[8; 10], false).unwrap();
            let busy = volume.freeze(SnapshotId::from_u64(50)).unwrap_err();
            assert_eq!(busy.kind(), VolumeErrorKind::Busy, "{busy}");
        }
        true
    };
    let error = volume.roll_back(POINT, &write_once).unwrap_err();
    assert!(error.to_string().contains("a write occurred"), "{error}");
    let mut expected = bed.before.clone();
    expected[..10].fill(8);
    assert!(content(volume) == expected);
    let is_head_map = |name: &&String| name.starts_with("layer-") && name.ends_with(".map");
    assert_eq!(names(volume.dir()).iter().filter(is_head_map).count(), 1);
    volume.freeze(SnapshotId::from_u64(50)).unwrap();
    bed.roll_back().unwrap();
    assert!(bed.is_back(volume));
}

/// End of a volume after a failed call.
#[derive(Clone, Copy, Debug)]
enum End {
    GoOn,
    Kill,
    CutPower,
}

fn fail_each_call(error: FaultError, persistent: bool) {
    let calm = Bed::new(3);
    let first = calm.disk.operations().len() as u64;
    calm.roll_back().unwrap();
    let end = calm.disk.operations().len() as u64;
    assert!(end - first > 20);
    for number in 0..end - first {
        for how in [End::GoOn, End::Kill, End::CutPower] {
            eprintln!("call {number} of {}, {error:?}, persistent: {persistent}, then {how:?}", end - first);
            let mut bed = Bed::new(number);
            bed.disk.inject(Fault { persistent, ..Fault::at(number, error) });
            let done = bed.roll_back();
            bed.disk.mend();
            let volume = bed.volume.take().unwrap();
            if let Err(error) = &done {
                assert!(
                    error.to_string().contains("disk-0") || error.kind() == VolumeErrorKind::Failed,
                    "{error}"
                );
            }
            let has_failed = volume.failure().is_some();
            if matches!(how, End::GoOn) && !has_failed {
                assert_eq!(bed.is_back(&volume), done.is_ok(), "{done:?}");
                if done.is_err() {
                    volume.roll_back(POINT, &|| true).unwrap();
                }
                // What could not be removed is removed at the next start.
                volume.close().unwrap();
                drop(volume);
                let volume = Volume::open(&bed.dir(0), &OpenOptions::default()).unwrap();
                bed.check_sound(&volume, true);
                continue;
            }
            drop(volume);
            let (dir, recovery) = match how {
                End::CutPower => {
                    let next = bed.root.path().join("disk-1");
                    bed.disk.power_cut(&mut Rng::new(number), &next).unwrap();
                    (bed.dir(1), Recovery::AfterPowerLoss)
                }
                _ => (bed.dir(0), Recovery::Auto),
            };
            let volume = Volume::open(&dir, &OpenOptions { recovery, ..OpenOptions::default() }).unwrap();
            bed.check_sound(&volume, done.is_ok());
        }
    }
}

#[test]
fn call_failing_once_leaves_old_or_new_state() {
    fail_each_call(FaultError::Io, false);
}

#[test]
fn disk_failing_persistently_leaves_old_or_new_state() {
    fail_each_call(FaultError::Io, true);
}

#[test]
fn full_disk_leaves_old_or_new_state() {
    fail_each_call(FaultError::NoSpace, false);
    fail_each_call(FaultError::NoSpace, true);
}

#[test]
fn power_cut_at_any_call_leaves_old_or_new_state() {
    let calm = Bed::new(4);
    let first = calm.disk.operations().len() as u64;
    calm.roll_back().unwrap();
    let end = calm.disk.operations().len() as u64;
    for number in first..=end {
        for seed in 0..3 {
            let mut bed = Bed::new(seed);
            bed.disk.cut_power_before(number);
            let done = bed.roll_back();
            drop(bed.volume.take());
            let mut must_be_back = done.is_ok();
            if seed == 0 {
                // The process dies first, and the next one flushes what it finds in the page cache.
                bed.disk.go_on_without_the_process();
                let volume = Volume::open(&bed.dir(0), &OpenOptions::default()).unwrap();
                must_be_back |= bed.is_back(&volume);
                volume.flush().unwrap();
            }
            let next = bed.root.path().join("disk-1");
            bed.disk.power_cut(&mut Rng::new(number * 7 + seed), &next).unwrap();
            let after = OpenOptions { recovery: Recovery::AfterPowerLoss, ..OpenOptions::default() };
            let volume = Volume::open(&bed.dir(1), &after).unwrap();
            bed.check_sound(&volume, must_be_back);
        }
    }
}
