//! Queries of the dirty set during writes, freezes, deletions and merges: a reply has every block written
//! before the query and only written blocks.

use crate::support::merge_all;
use blockd_extent::{BLOCK_SIZE_BYTES, SnapshotId, VolumeId};
use blockd_volume::{Volume, VolumeErrorKind};
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    thread,
};

const BLOCKS: u64 = 4096;
/// Maximum number of blocks written per snapshot.
const BLOCKS_PER_ROUND: u64 = 256;
const BASE: SnapshotId = SnapshotId::from_u64(1);

/// Dirty set of sequential writes since a snapshot.
#[derive(Debug, PartialEq, Eq)]
struct Dirty {
    /// Number of dirty blocks before the first clean one.
    contiguous: u64,
    /// Block after the last dirty one.
    end: u64,
}

fn dirty(volume: &Volume, snapshot: SnapshotId) -> Result<Dirty, VolumeErrorKind> {
    let runs = volume
        .dirty_since(snapshot, 0, BLOCKS * BLOCK_SIZE_BYTES, BLOCKS as usize)
        .map_err(|error| error.kind())?;
    let (mut at, mut found) = (0, Dirty { contiguous: 0, end: 0 });
    for run in runs {
        let end = at + run.len_bytes / BLOCK_SIZE_BYTES;
        if run.dirty && found.contiguous == at {
            found.contiguous = end;
        }
        if run.dirty {
            found.end = end;
        }
        at = end;
    }
    Ok(found)
}

/// Sets a flag when a thread ends, also by a panic.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
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
    let (started, written, rounds) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let (writer_ended, maintenance_ended) = (AtomicBool::new(false), AtomicBool::new(false));
    let queries = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let _ended = SetOnDrop(&writer_ended);
            for block in 0..BLOCKS {
                while rounds.load(SeqCst) < block / BLOCKS_PER_ROUND && !maintenance_ended.load(SeqCst) {
                    thread::yield_now();
                }
                started.store(block + 1, SeqCst);
                volume.write(block * BLOCK_SIZE_BYTES, &[7; BLOCK_SIZE_BYTES as usize], false).unwrap();
                written.store(block + 1, SeqCst);
            }
        });
        let maintenance = scope.spawn(|| {
            let _ended = SetOnDrop(&maintenance_ended);
            for number in 2.. {
                let snapshot = SnapshotId::from_u64(number);
                volume.freeze(snapshot).unwrap();
                volume.delete_snapshot(snapshot).unwrap();
                assert_eq!(dirty(&volume, snapshot), Err(VolumeErrorKind::NotFound));
                merge_all(&volume);
                rounds.fetch_add(1, SeqCst);
                if writer_ended.load(SeqCst) {
                    return;
                }
            }
        });
        let mut queries = 0;
        while !maintenance.is_finished() {
            let before = written.load(SeqCst);
            let found = dirty(&volume, BASE).unwrap();
            let after = started.load(SeqCst);
            // A reply may have any block written during the query.
            assert!(
                before <= found.contiguous && found.end <= after,
                "{found:?}, expected {before} to {after} blocks"
            );
            queries += 1;
        }
        writer.join().unwrap();
        maintenance.join().unwrap();
        queries
    });
    assert!(queries > 0);
    assert_eq!(dirty(&volume, BASE), Ok(Dirty { contiguous: BLOCKS, end: BLOCKS }));
}
