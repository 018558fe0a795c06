//! Clones: parent and clone are independent, and neither writes to shared layers.

use crate::sim::disk::{Fault, FaultError, Rng};
use crate::support::{
    content, memory_dir, memory_disk, merge_all, names_in, open, open_after_power_loss, snapshot_content,
};
use blockd_extent::{SnapshotId, VolumeId};
use blockd_volume::{Volume, VolumeErrorKind};
use std::{path::Path, sync::Arc};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 40;

fn id(number: u64) -> SnapshotId {
    SnapshotId::from_u64(number)
}

fn reopen(volume: Arc<Volume>) -> Arc<Volume> {
    let dir = volume.dir().to_owned();
    volume.close().unwrap();
    drop(volume);
    open(&dir)
}

/// Volume with its expected content.
struct ClonedVolume {
    volume: Arc<Volume>,
    model: Vec<u8>,
    snapshots: Vec<(SnapshotId, Vec<u8>)>,
}

impl ClonedVolume {
    fn check(&self) {
        assert!(content(&self.volume) == self.model, "{} differs", self.volume.id());
        for (id, model) in &self.snapshots {
            let found = snapshot_content(&self.volume, *id);
            assert!(found == *model, "snapshot {id} of {} differs", self.volume.id());
        }
    }

    fn step(&mut self, rng: &mut Rng, number: u64) {
        match rng.below(10) {
            0..=3 => {
                let at = rng.below(self.model.len() as u64 - 9000);
                let data: Vec<u8> = (0..1 + rng.below(9000)).map(|_| rng.next_u64() as u8 | 1).collect();
                self.volume.write(at, &data, false).unwrap();
                self.model[at as usize..][..data.len()].copy_from_slice(&data);
            }
            4 => {
                let at = rng.below(BLOCKS - 8) * BLOCK;
                self.volume.trim(at, 8 * BLOCK, false).unwrap();
                self.model[at as usize..][..8 * 4096].fill(0);
            }
            5 | 6 => {
                self.volume.freeze(id(number)).unwrap();
                self.snapshots.push((id(number), self.model.clone()));
            }
            7 if !self.snapshots.is_empty() => {
                let deleted = self.snapshots.remove(rng.below(self.snapshots.len() as u64) as usize);
                self.volume.delete_snapshot(deleted.0).unwrap();
            }
            8 => merge_all(&self.volume),
            _ => {
                let new = self.model.len() as u64 + BLOCK;
                self.volume.grow(new).unwrap();
                self.model.resize(new as usize, 0);
            }
        }
    }
}

#[test]
fn parents_and_clones_diverge_independently() {
    for seed in 0..40 {
        let mut rng = Rng::fixed(seed);
        let dir = memory_dir();
        let volume = Volume::create(&dir.path().join("0"), VolumeId::from_u64(100), BLOCKS * BLOCK).unwrap();
        let model = content(&volume);
        let mut volumes = vec![ClonedVolume { volume, model, snapshots: vec![] }];
        for number in 1..80 {
            let chosen = rng.below(volumes.len() as u64) as usize;
            volumes[chosen].step(&mut rng, number);
            if rng.one_in(12) && !volumes[chosen].snapshots.is_empty() && volumes.len() < 5 {
                let parent = &volumes[chosen];
                let number_of_snapshot = rng.below(parent.snapshots.len() as u64) as usize;
                let (snapshot, model) = parent.snapshots[number_of_snapshot].clone();
                let to = dir.path().join(number.to_string());
                let volume = parent.volume.clone_to(snapshot, &to, VolumeId::from_u64(number)).unwrap();
                assert_eq!(volume.stats().head_dirty_bytes, 0);
                volumes.push(ClonedVolume { volume, model, snapshots: vec![] });
            }
            if rng.one_in(15) && volumes.len() > 1 {
                let deleted = volumes.remove(rng.below(volumes.len() as u64) as usize);
                deleted.volume.close().unwrap();
                Volume::delete_files(deleted.volume.dir()).unwrap();
            }
            if rng.one_in(9) {
                let closed = volumes.swap_remove(chosen.min(volumes.len() - 1));
                volumes.push(ClonedVolume { volume: reopen(closed.volume), ..closed });
            }
            volumes.iter().for_each(ClonedVolume::check);
        }
    }
}

/// Creates a volume whose frozen layer is shared with a clone; returns both.
fn shared_pair(dir: &Path) -> (Arc<Volume>, Arc<Volume>) {
    let parent = Volume::create(&dir.join("parent"), VolumeId::from_u64(1), BLOCKS * BLOCK).unwrap();
    parent.write(0, &[1; 10 * 4096], false).unwrap();
    parent.freeze(id(1)).unwrap();
    let clone = parent.clone_to(id(1), &dir.join("clone"), VolumeId::from_u64(2)).unwrap();
    (parent, clone)
}

#[test]
fn merge_writes_only_unshared_files() {
    let dir = tempfile::tempdir().unwrap();
    let (parent, clone) = shared_pair(dir.path());
    let of_clone = content(&clone);
    // Merging down would copy less, but writes the shared file; so the merge goes up.
    parent.write(0, &[2; 4096], false).unwrap();
    parent.freeze(id(2)).unwrap();
    parent.delete_snapshot(id(1)).unwrap();
    let shared = (clone.stats().shared_bytes, clone.stats().allocated_bytes);
    assert_eq!(shared, (10 * BLOCK, 0));
    let expected = content(&parent);
    merge_all(&parent);
    assert_eq!(parent.stats().layers, 2);
    assert!(content(&clone) == of_clone && content(&parent) == expected);
    let own = (clone.stats().shared_bytes, clone.stats().allocated_bytes);
    assert_eq!(own, (0, 10 * BLOCK), "the parent released the shared layer");
}

#[test]
fn merge_skips_pair_of_shared_layers() {
    let dir = tempfile::tempdir().unwrap();
    let (parent, clone) = shared_pair(dir.path());
    parent.write(0, &[3; 4096], false).unwrap();
    parent.freeze(id(2)).unwrap();
    let second = parent.clone_to(id(2), &dir.path().join("second"), VolumeId::from_u64(3)).unwrap();
    parent.delete_snapshot(id(1)).unwrap();
    merge_all(&parent);
    merge_all(&second);
    assert_eq!((parent.stats().layers, second.stats().layers), (3, 3));
    clone.close().unwrap();
    parent.close().unwrap();
    for other in [&clone, &parent] {
        Volume::delete_files(other.dir()).unwrap();
    }
    merge_all(&second);
    assert_eq!(second.stats().layers, 3, "the other volumes still have the files open");
    assert!(content(&second)[..4096].iter().all(|&byte| byte == 3));
}

#[test]
fn reader_of_unlinked_file_sees_no_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (parent, clone) = shared_pair(dir.path());
    parent.write(5 * BLOCK, &[2; 20 * 4096], false).unwrap();
    parent.freeze(id(2)).unwrap();
    let expected = content(&parent);
    // The view keeps the shared file open while the parent's merge removes it.
    let view = parent.view(id(2)).unwrap();
    parent.delete_snapshot(id(1)).unwrap();
    merge_all(&parent);
    clone.write(0, &[9; 4096], false).unwrap();
    clone.freeze(id(3)).unwrap();
    merge_all(&clone);
    let mut found = vec![0; expected.len()];
    view.read(0, &mut found).unwrap();
    assert!(found == expected, "a merge of the clone wrote to a file that a view of the parent reads");
    let of_clone = content(&clone);
    assert!(of_clone[..4096].iter().all(|&byte| byte == 9));
    assert!(of_clone[4096..10 * 4096].iter().all(|&byte| byte == 1));
}

#[test]
fn failed_clone_leaves_nothing_and_can_be_retried() {
    let clone_with = |fault: Option<(u64, FaultError, bool)>| {
        let (root, disk) = memory_disk(1);
        let first = root.path().join("disk-0");
        let parent = Volume::create(&first.join("p"), VolumeId::from_u64(1), BLOCKS * BLOCK).unwrap();
        parent.write(0, &[1; 10 * 4096], false).unwrap();
        parent.freeze(id(1)).unwrap();
        parent.write(0, &[2; 4096], false).unwrap();
        parent.freeze(id(2)).unwrap();
        parent.write(0, &[3; 4096], true).unwrap();
        let before = disk.operations().len() as u64;
        let expected = snapshot_content(&parent, id(2));
        let reads = disk.operations().len() as u64 - before;
        if let Some((number, error, persistent)) = fault {
            disk.inject(Fault { persistent, ..Fault::at(number, error) });
        }
        let to = first.join("c");
        let done = parent.clone_to(id(2), &to, VolumeId::from_u64(2));
        disk.clear_faults();
        let calls = disk.operations().len() as u64 - before - reads;
        if let Err(error) = &done {
            assert!(error.to_string().contains("disk-0"), "{error}");
            if to.exists() {
                // The removal of files fails, too, on a persistently failing disk.
                assert!(fault.is_some_and(|fault| fault.2), "{fault:?}: a failed call left a clone");
                Volume::delete_files(&to).unwrap();
            }
            drop(parent.clone_to(id(2), &to, VolumeId::from_u64(2)).unwrap());
        }
        drop(done);
        parent.delete_snapshot(id(1)).unwrap();
        merge_all(&parent);
        drop(parent);
        let next = root.path().join("disk-1");
        disk.power_cut(&mut Rng::fixed(7), &next).unwrap();
        assert!(content(&open_after_power_loss(&next.join("c"))) == expected, "{fault:?}");
        let names = names_in(&next);
        assert!(names.iter().all(|name| ["p", "c", "c.restoring"].contains(&&**name)), "{names:?}");
        calls
    };
    let calls = clone_with(None);
    assert!(calls > 15);
    for number in 0..calls {
        for error in [FaultError::Io, FaultError::NoSpace] {
            for persistent in [false, true] {
                clone_with(Some((number, error, persistent)));
            }
        }
    }
}

#[test]
fn clone_to_invalid_target_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (parent, _clone) = shared_pair(dir.path());
    let clone_to = |snapshot, dir: &Path| parent.clone_to(id(snapshot), dir, VolumeId::from_u64(5)).err();
    let error = clone_to(1, &dir.path().join("clone")).unwrap();
    assert_eq!(error.kind(), VolumeErrorKind::Busy);
    let error = clone_to(9, &dir.path().join("new")).unwrap();
    assert_eq!(error.kind(), VolumeErrorKind::NotFound);
    let Ok(other_filesystem) = tempfile::tempdir_in("/dev/shm") else { return };
    // It is the same filesystem on some hosts.
    let Some(error) = clone_to(1, &other_filesystem.path().join("c")) else { return };
    assert_eq!(error.kind(), VolumeErrorKind::Unsupported);
    assert!(error.to_string().contains("one filesystem"), "{error}");
    assert!(names_in(other_filesystem.path()).is_empty());
}

#[test]
fn stack_of_512_snapshots_reads_and_merges() {
    let dir = memory_dir();
    let volume = Volume::create(&dir.path().join("v"), VolumeId::from_u64(1), 1024 * BLOCK).unwrap();
    let fill = |number: u64| number as u8 | 1;
    for number in 0..512 {
        volume.write(number * BLOCK, &[fill(number); 8192], false).unwrap();
        volume.freeze(id(number + 1)).unwrap();
    }
    let volume = reopen(volume);
    assert_eq!((volume.stats().snapshots, volume.stats().layers), (512, 513));
    let check = |read: &dyn Fn(u64, &mut [u8]), upto: u64| {
        for number in [0, upto / 2, upto] {
            let mut found = [0; 4096];
            read(number * BLOCK, &mut found);
            assert_eq!(found, [fill(number); 4096], "block {number} at {upto}");
            // A read of zeroes may leave the buffer unchanged.
            found.fill(0);
            read((upto + 2) * BLOCK, &mut found);
            assert_eq!(found, [0; 4096]);
        }
    };
    for number in (0..512).step_by(37).chain([511]) {
        let view = volume.view(id(number + 1)).unwrap();
        let read = |at, buf: &mut [u8]| {
            view.read(at, buf).unwrap();
        };
        check(&read, number);
    }
    let space = volume.snapshot_space();
    assert_eq!(space.len(), 512);
    // Each snapshot overwrites the second block of the previous one.
    assert!(space[..511].iter().all(|space| space.exclusive_bytes == BLOCK));
    for number in 0..512 {
        volume.delete_snapshot(id(number + 1)).unwrap();
    }
    merge_all(&volume);
    assert_eq!(volume.stats().layers, 2, "one layer and the head");
    check(&|at, buf| volume.read(at, buf).unwrap(), 511);
    assert_eq!(
        volume.difference(id(1), None).err().map(|error| error.kind()),
        Some(VolumeErrorKind::NotFound)
    );
}
