//! Tests of clones: parent and clone are independent, and neither writes to shared layers.

use crate::sim::disk::{Disk, Fault, FaultError, Rng};
use blockd_extent::{SnapshotId, VolumeId};
use blockd_volume::{OpenOptions, Recovery, Volume, VolumeErrorKind};
use std::{path::Path, sync::Arc};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 40;

fn id(number: u64) -> SnapshotId {
    SnapshotId::from_u64(number)
}

fn content(volume: &Volume) -> Vec<u8> {
    let mut content = vec![0; volume.size_bytes() as usize];
    volume.read(0, &mut content).unwrap();
    content
}

fn merge_all(volume: &Volume) {
    while volume.merge_next(&|_| true).unwrap() {}
}

fn reopen(volume: Arc<Volume>) -> Arc<Volume> {
    let dir = volume.dir().to_owned();
    volume.close().unwrap();
    drop(volume);
    Volume::open(&dir, &OpenOptions::default()).unwrap()
}

/// A volume and what it must hold.
struct Side {
    volume: Arc<Volume>,
    model: Vec<u8>,
    snapshots: Vec<(SnapshotId, Vec<u8>)>,
}

impl Side {
    fn check(&self) {
        assert!(content(&self.volume) == self.model, "{} differs", self.volume.id());
        for (id, model) in &self.snapshots {
            let view = self.volume.view(*id).unwrap();
            let mut found = vec![0; model.len()];
            view.read(0, &mut found).unwrap();
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
                let gone = self.snapshots.remove(rng.below(self.snapshots.len() as u64) as usize);
                self.volume.delete_snapshot(gone.0).unwrap();
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
        let mut rng = Rng::new(seed);
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::create(&dir.path().join("0"), VolumeId::from_u64(100), BLOCKS * BLOCK).unwrap();
        let model = content(&volume);
        let mut sides = vec![Side { volume, model, snapshots: vec![] }];
        for number in 1..80 {
            let chosen = rng.below(sides.len() as u64) as usize;
            sides[chosen].step(&mut rng, number);
            if rng.one_in(12) && !sides[chosen].snapshots.is_empty() && sides.len() < 5 {
                let of = &sides[chosen];
                let (snapshot, model) = of.snapshots[rng.below(of.snapshots.len() as u64) as usize].clone();
                let to = dir.path().join(number.to_string());
                let volume = of.volume.clone_to(snapshot, &to, VolumeId::from_u64(number)).unwrap();
                assert_eq!(volume.stats().head_dirty_bytes, 0);
                sides.push(Side { volume, model, snapshots: vec![] });
            }
            if rng.one_in(15) && sides.len() > 1 {
                let gone = sides.remove(rng.below(sides.len() as u64) as usize);
                gone.volume.close().unwrap();
                Volume::delete_files(gone.volume.dir()).unwrap();
            }
            if rng.one_in(9) {
                let side = sides.swap_remove(chosen.min(sides.len() - 1));
                sides.push(Side { volume: reopen(side.volume), ..side });
            }
            sides.iter().for_each(Side::check);
        }
    }
}

/// Returns a volume with two layers, whose lower, smaller one is shared with a clone.
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
    let whole = content(&clone);
    // Little would have to be copied down, into the shared file; so it is copied up.
    parent.write(0, &[2; 4096], false).unwrap();
    parent.freeze(id(2)).unwrap();
    parent.delete_snapshot(id(1)).unwrap();
    let shared = (clone.stats().shared_bytes, clone.stats().allocated_bytes);
    assert_eq!(shared, (10 * BLOCK, 0));
    let expected = content(&parent);
    merge_all(&parent);
    assert_eq!(parent.stats().layers, 2);
    assert!(content(&clone) == whole && content(&parent) == expected);
    let own = (clone.stats().shared_bytes, clone.stats().allocated_bytes);
    assert_eq!(own, (0, 10 * BLOCK), "the parent has released it");

    // Both of a pair are shared: it stays.
    let (parent, clone) = shared_pair(&{
        let other = dir.path().join("other");
        std::fs::create_dir(&other).unwrap();
        other
    });
    parent.write(0, &[3; 4096], false).unwrap();
    parent.freeze(id(2)).unwrap();
    let second = parent.clone_to(id(2), &dir.path().join("second"), VolumeId::from_u64(3)).unwrap();
    parent.delete_snapshot(id(1)).unwrap();
    merge_all(&parent);
    merge_all(&second);
    assert_eq!((parent.stats().layers, second.stats().layers), (3, 3));
    clone.close().unwrap();
    parent.close().unwrap();
    let expected = content_after_reopen(&second, &[clone, parent]);
    assert!(expected[..4096].iter().all(|&byte| byte == 3));
}

/// Deletes the others, and merges what is left.
fn content_after_reopen(volume: &Arc<Volume>, others: &[Arc<Volume>]) -> Vec<u8> {
    let before = content(volume);
    for other in others {
        Volume::delete_files(other.dir()).unwrap();
    }
    merge_all(volume);
    assert_eq!(volume.stats().layers, 3, "the others still have the files open");
    volume.close().unwrap();
    before
}

#[test]
fn reader_of_unlinked_file_sees_no_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (parent, clone) = shared_pair(dir.path());
    parent.write(5 * BLOCK, &[2; 20 * 4096], false).unwrap();
    parent.freeze(id(2)).unwrap();
    let expected = content(&parent);
    // The reader has the shared file open; then the parent merges it away.
    let view = parent.view(id(2)).unwrap();
    parent.delete_snapshot(id(1)).unwrap();
    merge_all(&parent);
    clone.write(0, &[9; 4096], false).unwrap();
    clone.freeze(id(3)).unwrap();
    merge_all(&clone);
    let mut found = vec![0; expected.len()];
    view.read(0, &mut found).unwrap();
    assert!(found == expected, "the clone's merge wrote to what a reader of the parent reads");
    let mine = content(&clone);
    assert!(
        mine[..4096].iter().all(|&byte| byte == 9) && mine[4096..10 * 4096].iter().all(|&byte| byte == 1)
    );
}

#[test]
fn failed_clone_leaves_nothing_and_can_be_retried() {
    let make = |number: Option<(u64, FaultError, bool)>| {
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let first = root.path().join("disk-0");
        std::fs::create_dir(&first).unwrap();
        let disk = Disk::attach(&first, 1).unwrap();
        let parent = Volume::create(&first.join("p"), VolumeId::from_u64(1), BLOCKS * BLOCK).unwrap();
        parent.write(0, &[1; 10 * 4096], false).unwrap();
        parent.freeze(id(1)).unwrap();
        parent.write(0, &[2; 4096], false).unwrap();
        parent.freeze(id(2)).unwrap();
        parent.write(0, &[3; 4096], true).unwrap();
        let before = disk.operations().len() as u64;
        let expected = {
            let view = parent.view(id(2)).unwrap();
            let mut expected = vec![0; (BLOCKS * BLOCK) as usize];
            view.read(0, &mut expected).unwrap();
            expected
        };
        let reads = disk.operations().len() as u64 - before;
        if let Some((number, error, persistent)) = number {
            disk.inject(Fault { persistent, ..Fault::at(number, error) });
        }
        let to = first.join("c");
        let done = parent.clone_to(id(2), &to, VolumeId::from_u64(2));
        disk.mend();
        let calls = disk.operations().len() as u64 - before - reads;
        if let Err(error) = &done {
            assert!(error.to_string().contains("disk-0"), "{error}");
            if to.exists() {
                // A disk that is dead for good leaves what it leaves.
                assert!(number.is_some_and(|fault| fault.2), "{number:?}: there is a clone all the same");
                Volume::delete_files(&to).unwrap();
            }
            drop(parent.clone_to(id(2), &to, VolumeId::from_u64(2)).unwrap());
        }
        drop(done);
        parent.delete_snapshot(id(1)).unwrap();
        merge_all(&parent);
        drop(parent);
        let next = root.path().join("disk-1");
        disk.power_cut(&mut Rng::new(7), &next).unwrap();
        let options = OpenOptions { recovery: Recovery::AfterPowerLoss, ..OpenOptions::default() };
        let clone = Volume::open(&next.join("c"), &options).unwrap();
        assert!(content(&clone) == expected, "{number:?}");
        let names: Vec<_> =
            std::fs::read_dir(&next).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(
            names.iter().all(|name| ["p", "c", "c.restoring"].iter().any(|known| name == known)),
            "{names:?}"
        );
        calls
    };
    let calls = make(None);
    assert!(calls > 15);
    for number in 0..calls {
        for error in [FaultError::Io, FaultError::NoSpace] {
            for persistent in [false, true] {
                make(Some((number, error, persistent)));
            }
        }
    }
}

#[test]
fn unshareable_file_is_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let (parent, _clone) = shared_pair(dir.path());
    let there = dir.path().join("clone");
    assert_eq!(
        parent.clone_to(id(1), &there, VolumeId::from_u64(5)).err().unwrap().kind(),
        VolumeErrorKind::Busy
    );
    let new = dir.path().join("new");
    let none = parent.clone_to(id(9), &new, VolumeId::from_u64(5)).err().unwrap();
    assert_eq!(none.kind(), VolumeErrorKind::NotFound);
    let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else { return };
    let error = match parent.clone_to(id(1), &elsewhere.path().join("c"), VolumeId::from_u64(5)) {
        Err(error) => error,
        // Both are in the same filesystem here.
        Ok(_) => return,
    };
    assert_eq!(error.kind(), VolumeErrorKind::Unsupported);
    assert!(error.to_string().contains("one filesystem"), "{error}");
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[test]
fn stack_of_512_snapshots_reads_and_merges() {
    let dir = tempfile::tempdir().unwrap();
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
            // What has no data is only reported.
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
    // Each next one overwrites the second block of the one before.
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
