use super::*;
use std::{sync::mpsc, thread};

/// Regression test: a recursive read lock deadlocks with a writer that waits in between.
#[test]
fn statistics_do_not_deadlock_with_a_commit() {
    let root = tempfile::tempdir().unwrap();
    let volume = Volume::create(&root.path().join("v"), VolumeId::from_u64(5), 1 << 20).unwrap();
    let (ended, has_ended) = mpsc::channel();
    let is_over = Arc::new(AtomicBool::new(false));
    let committer = {
        let (volume, is_over, ended) = (volume.clone(), is_over.clone(), ended.clone());
        thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                // As a commit does.
                *volume.committed_snapshots.write() = Vec::new();
            }
            ended.send(()).unwrap();
        })
    };
    let reader = thread::spawn(move || {
        for _ in 0..100_000 {
            assert_eq!(volume.stats().snapshots, 0);
        }
        is_over.store(true, Ordering::Relaxed);
        ended.send(()).unwrap();
    });
    for _ in 0..2 {
        has_ended.recv_timeout(Duration::from_secs(60)).expect("the threads deadlocked");
    }
    for thread in [reader, committer] {
        thread.join().unwrap();
    }
}

/// Does the work while a freeze holds `admin`, as it does while it waits for its disk.
fn during_a_freeze<R: Send + 'static>(
    volume: &Arc<Volume>,
    work: impl FnOnce(&Volume) -> R + Send + 'static,
) -> R {
    let (sender, receiver) = mpsc::channel();
    let freeze = volume.admin.lock();
    let worker = {
        let volume = volume.clone();
        thread::spawn(move || sender.send(work(&volume)).unwrap())
    };
    let result = receiver.recv_timeout(Duration::from_secs(60)).expect("the request waits for the freeze");
    drop(freeze);
    worker.join().unwrap();
    result
}

#[test]
fn block_status_does_not_wait_for_a_freeze() {
    let root = tempfile::tempdir().unwrap();
    let volume = Volume::create(&root.path().join("v"), VolumeId::from_u64(5), 1 << 20).unwrap();
    let snapshot = SnapshotId::from_u64(1);
    volume.freeze(snapshot).unwrap();
    volume.write(8192, &[7; 4096], false).unwrap();
    let (dirty, allocated) = during_a_freeze(&volume, move |volume| {
        let dirty = volume.dirty_since(snapshot, 0, 1 << 20, 10).unwrap();
        (dirty, volume.allocation(0, 1 << 20, 10).unwrap())
    });
    let dirty: Vec<_> = dirty.iter().map(|run| (run.len_bytes, run.dirty)).collect();
    assert_eq!(dirty, [(8192, false), (4096, true), ((1 << 20) - 12288, false)]);
    assert_eq!(allocated.len(), 3);
}

#[test]
fn reads_and_writes_do_not_wait_for_a_freeze() {
    let root = tempfile::tempdir().unwrap();
    let volume = Volume::create(&root.path().join("v"), VolumeId::from_u64(5), 1 << 20).unwrap();
    volume.write(0, &[7; 4096], false).unwrap();
    volume.freeze(SnapshotId::from_u64(1)).unwrap();
    let read = during_a_freeze(&volume, |volume| {
        // With a copy-up.
        volume.write(0, &[8; 100], false).unwrap();
        volume.trim(8192, 4096, false).unwrap();
        let mut read = [0; 4096];
        volume.read(0, &mut read).unwrap();
        read
    });
    assert_eq!((&read[..100], &read[100..]), (&[8; 100][..], &[7; 3996][..]));
}
