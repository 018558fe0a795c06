use super::*;
use std::{sync::mpsc, thread};

/// Taking a read lock recursively deadlocks with a writer that waits in between.
#[test]
fn statistics_do_not_wait_for_themselves() {
    let root = tempfile::tempdir().unwrap();
    let volume = Volume::create(&root.path().join("v"), VolumeId::from_u64(5), 1 << 20).unwrap();
    let (ended, has_ended) = mpsc::channel();
    let is_over = Arc::new(AtomicBool::new(false));
    let committing = {
        let (volume, is_over, ended) = (volume.clone(), is_over.clone(), ended.clone());
        thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                // As a commit does.
                *volume.kept.write() = Vec::new();
            }
            ended.send(()).unwrap();
        })
    };
    let asking = thread::spawn(move || {
        for _ in 0..100_000 {
            assert_eq!(volume.stats().snapshots, 0);
        }
        is_over.store(true, Ordering::Relaxed);
        ended.send(()).unwrap();
    });
    for _ in 0..2 {
        has_ended.recv_timeout(Duration::from_secs(60)).expect("the threads wait for each other");
    }
    for thread in [asking, committing] {
        thread.join().unwrap();
    }
}

/// A freeze holds `admin` while it waits for its disk.
#[test]
fn block_status_does_not_wait_for_a_freeze() {
    let root = tempfile::tempdir().unwrap();
    let volume = Volume::create(&root.path().join("v"), VolumeId::from_u64(5), 1 << 20).unwrap();
    let snapshot = SnapshotId::from_u64(1);
    volume.freeze(snapshot).unwrap();
    volume.write(8192, &[7; 4096], false).unwrap();
    let (answers, answer) = mpsc::channel();
    let freeze = volume.admin.lock();
    let asking = {
        let volume = volume.clone();
        thread::spawn(move || {
            let dirty = volume.dirty_since(snapshot, 0, 1 << 20, 10).unwrap();
            let allocated = volume.allocation(0, 1 << 20, 10).unwrap();
            answers.send((dirty, allocated.len())).unwrap();
        })
    };
    let (dirty, allocated_runs) = answer.recv_timeout(Duration::from_secs(60)).expect("it waits");
    drop(freeze);
    asking.join().unwrap();
    let dirty: Vec<_> = dirty.iter().map(|run| (run.len_bytes, run.dirty)).collect();
    assert_eq!(dirty, [(8192, false), (4096, true), ((1 << 20) - 12288, false)]);
    assert_eq!(allocated_runs, 3);
}
