//! Asking what was dirtied, while snapshots come and go and their layers are merged: nothing that was written
//! before the question is missing from the answer, and nothing is in it that was not written at all.

use blockd_extent::{BLOCK_SIZE_BYTES, SnapshotId, VolumeId};
use blockd_volume::{Volume, VolumeErrorKind};
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    thread,
};

const BLOCKS: u64 = 4096;
/// So many blocks are written for each snapshot that comes and goes, at most.
const BLOCKS_A_ROUND: u64 = 256;
const BASE: SnapshotId = SnapshotId::from_u64(1);

/// Dirty set since a snapshot, for sequential writes.
#[derive(Debug, PartialEq, Eq)]
struct Dirty {
    /// So many of the first blocks, without a gap.
    unbroken: u64,
    /// The first block behind all that are dirty.
    end: u64,
}

fn dirty(volume: &Volume, snapshot: SnapshotId) -> Result<Dirty, VolumeErrorKind> {
    let runs = volume
        .dirty_since(snapshot, 0, BLOCKS * BLOCK_SIZE_BYTES, BLOCKS as usize)
        .map_err(|error| error.kind())?;
    let (mut at, mut found) = (0, Dirty { unbroken: 0, end: 0 });
    for run in runs {
        let end = at + run.len_bytes / BLOCK_SIZE_BYTES;
        if run.dirty && found.unbroken == at {
            found.unbroken = end;
        }
        if run.dirty {
            found.end = end;
        }
        at = end;
    }
    Ok(found)
}

/// Says that a thread has come to its end, however it has.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn dirty_query_includes_all_earlier_writes() {
    let root = tempfile::tempdir().unwrap();
    let volume =
        Volume::create(&root.path().join("v"), VolumeId::from_u64(5), BLOCKS * BLOCK_SIZE_BYTES).unwrap();
    volume.freeze(BASE).unwrap();
    let (begun, written, rounds) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let (writer_over, upkeep_over) = (AtomicBool::new(false), AtomicBool::new(false));
    let asked = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let _over = Over(&writer_over);
            for block in 0..BLOCKS {
                while rounds.load(SeqCst) < block / BLOCKS_A_ROUND && !upkeep_over.load(SeqCst) {
                    thread::yield_now();
                }
                begun.store(block + 1, SeqCst);
                volume.write(block * BLOCK_SIZE_BYTES, &[7; BLOCK_SIZE_BYTES as usize], false).unwrap();
                written.store(block + 1, SeqCst);
            }
        });
        let upkeep = scope.spawn(|| {
            let _over = Over(&upkeep_over);
            for number in 2.. {
                let snapshot = SnapshotId::from_u64(number);
                volume.freeze(snapshot).unwrap();
                volume.delete_snapshot(snapshot).unwrap();
                assert_eq!(dirty(&volume, snapshot), Err(VolumeErrorKind::NotFound));
                while volume.merge_next(&|_| true).unwrap() {}
                rounds.fetch_add(1, SeqCst);
                if writer_over.load(SeqCst) {
                    return;
                }
            }
        });
        let mut asked = 0;
        while !upkeep.is_finished() {
            let before = written.load(SeqCst);
            let found = dirty(&volume, BASE).unwrap();
            let after = begun.load(SeqCst);
            // The answer is not of one moment: of what is written while it is made, anything may be in it.
            assert!(
                before <= found.unbroken && found.end <= after,
                "{found:?} of {before} to {after} blocks"
            );
            asked += 1;
        }
        writer.join().unwrap();
        upkeep.join().unwrap();
        asked
    });
    assert!(asked > 0);
    assert_eq!(dirty(&volume, BASE), Ok(Dirty { unbroken: BLOCKS, end: BLOCKS }));
}
