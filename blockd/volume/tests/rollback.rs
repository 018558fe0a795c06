//! Rollbacks interrupted at each call by an error, a process crash or a power cut: the volume has its old
//! or its new state, and no unreferenced files.

use crate::sim::disk::{Attached, Fault, FaultError, Rng};
use crate::support::{
    content, memory_disk, merge_all, names_in, open, open_after_power_loss, snapshot_content,
};
use blockd_extent::{Epoch, SnapshotId, VolumeId};
use blockd_volume::{RolledBack, Volume, VolumeError, VolumeErrorKind};
use std::{cell::Cell, path::PathBuf, sync::Arc};

const BLOCK: u64 = 4096;
const POINT: SnapshotId = SnapshotId::from_u64(1);
const BEFORE: SnapshotId = SnapshotId::from_u64(2);

/// Volume with two snapshots and an unfrozen write, on a simulated disk.
struct RollbackFixture {
    root: tempfile::TempDir,
    disk: Attached,
    volume: Option<Arc<Volume>>,
    point_epoch: Epoch,
    at_point: Vec<u8>,
    before: Vec<u8>,
}

impl RollbackFixture {
    fn new(seed: u64) -> Self {
        let (root, disk) = memory_disk(seed);
        let volume =
            Volume::create(&root.path().join("disk-0/v"), VolumeId::from_u64(9), 24 * BLOCK).unwrap();
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
        // A write that no snapshot has.
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

    /// Cuts the power and opens the volume on the surviving data.
    fn open_after_cut(&self, seed: u64) -> Arc<Volume> {
        self.disk.power_cut(&mut Rng::fixed(seed), &self.root.path().join("disk-1")).unwrap();
        open_after_power_loss(&self.dir(1))
    }

    fn roll_back(&self) -> Result<RolledBack, VolumeError> {
        self.volume.as_ref().unwrap().roll_back(POINT, &|| true)
    }

    /// Returns true if the volume was rolled back; otherwise it must have the previous state.
    fn is_rolled_back(&self, volume: &Volume) -> bool {
        let found = content(volume);
        assert!(found == self.before || found == self.at_point, "neither the old nor the new state");
        found == self.at_point
    }

    /// Checks the state, the files, the next interval and a merge of all layers.
    fn check(&self, volume: &Volume, must_be_rolled_back: bool) {
        assert!(self.is_rolled_back(volume) || !must_be_rolled_back, "an answered rollback was lost");
        let found = snapshot_content(volume, POINT);
        assert!(found == self.at_point[..found.len()], "the snapshot changed");
        assert_eq!(volume.snapshots().len(), 2);
        let files = names_in(volume.dir());
        let count = |end: &str| files.iter().filter(|name| name.ends_with(end)).count() as u64;
        assert_eq!(count(".data"), volume.stats().layers, "{files:?}");
        assert_eq!((count(".map"), count(".log")), (1, 1), "{files:?}");
        assert!(count(".set") + 1 >= count(".data"), "{files:?}");
        // The next interval has the same blocks in the old and the new state.
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
        merge_all(volume);
        assert!(content(volume) == now && volume.stats().layers == 2);
    }
}

#[test]
fn rollback_restores_changes_and_copies_only_data() {
    let fixture = RollbackFixture::new(1);
    let volume = fixture.volume.as_ref().unwrap();
    let done = fixture.roll_back().unwrap();
    assert_eq!((done.changed_blocks, done.copied_blocks), (6, 4));
    assert!(fixture.is_rolled_back(volume));
    assert_eq!(volume.stats().head_dirty_bytes, 0);
    let again = fixture.roll_back().unwrap();
    assert_eq!(again.changed_blocks, 6, "restored blocks count as changed");
    fixture.check(volume, true);
    let error = volume.roll_back(SnapshotId::from_u64(77), &|| true).unwrap_err();
    assert_eq!(error.kind(), VolumeErrorKind::NotFound);
}

#[test]
fn rollback_with_writes_or_stop_changes_nothing() {
    let fixture = RollbackFixture::new(2);
    let volume = fixture.volume.as_ref().unwrap();
    let error = volume.roll_back(POINT, &|| false).unwrap_err();
    assert_eq!(error.kind(), VolumeErrorKind::Busy, "{error}");
    assert!(!fixture.is_rolled_back(volume));
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
    let mut expected = fixture.before.clone();
    expected[..10].fill(8);
    assert!(content(volume) == expected);
    let is_head_map = |name: &&String| name.starts_with("layer-") && name.ends_with(".map");
    assert_eq!(names_in(volume.dir()).iter().filter(is_head_map).count(), 1);
    volume.freeze(SnapshotId::from_u64(50)).unwrap();
    fixture.roll_back().unwrap();
    assert!(fixture.is_rolled_back(volume));
}

/// Event after a failed call.
#[derive(Clone, Copy, Debug)]
enum Event {
    Retry,
    Kill,
    CutPower,
}

/// Returns the numbers of the calls of a rollback without faults.
fn calls_of_rollback() -> std::ops::Range<u64> {
    let fixture = RollbackFixture::new(3);
    let first = fixture.disk.operations().len() as u64;
    fixture.roll_back().unwrap();
    first..fixture.disk.operations().len() as u64
}

fn fail_each_call(error: FaultError, persistent: bool) {
    let calls = calls_of_rollback();
    let calls = calls.end - calls.start;
    assert!(calls > 20);
    for number in 0..calls {
        for event in [Event::Retry, Event::Kill, Event::CutPower] {
            eprintln!("call {number} of {calls}, {error:?}, persistent: {persistent}, then {event:?}");
            let mut fixture = RollbackFixture::new(number);
            fixture.disk.inject(Fault { persistent, ..Fault::at(number, error) });
            let done = fixture.roll_back();
            fixture.disk.clear_faults();
            let volume = fixture.volume.take().unwrap();
            if let Err(error) = &done {
                assert!(
                    error.to_string().contains("disk-0") || error.kind() == VolumeErrorKind::Failed,
                    "{error}"
                );
            }
            let has_failed = volume.failure().is_some();
            if matches!(event, Event::Retry) && !has_failed {
                assert_eq!(fixture.is_rolled_back(&volume), done.is_ok(), "{done:?}");
                if done.is_err() {
                    volume.roll_back(POINT, &|| true).unwrap();
                }
                // The next start removes files whose removal failed.
                volume.close().unwrap();
                drop(volume);
                fixture.check(&open(&fixture.dir(0)), true);
                continue;
            }
            drop(volume);
            let volume = match event {
                Event::CutPower => fixture.open_after_cut(number),
                Event::Retry | Event::Kill => open(&fixture.dir(0)),
            };
            fixture.check(&volume, done.is_ok());
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
    let calls = calls_of_rollback();
    for number in calls.start..=calls.end {
        for seed in 0..3 {
            let mut fixture = RollbackFixture::new(seed);
            fixture.disk.cut_power_before(number);
            let done = fixture.roll_back();
            drop(fixture.volume.take());
            let mut must_be_rolled_back = done.is_ok();
            if seed == 0 {
                // The process crashes first, and the next one flushes the content of the page cache.
                fixture.disk.restart_process();
                let volume = open(&fixture.dir(0));
                must_be_rolled_back |= fixture.is_rolled_back(&volume);
                volume.flush().unwrap();
            }
            fixture.check(&fixture.open_after_cut(number * 7 + seed), must_be_rolled_back);
        }
    }
}
