//! Reading a lazy volume in order: how much is on its way while a store takes its time.

use blockd_extent::{BlockSet, Extent, VolumeId};
use blockd_volume::{Access, FetchReply, LazySource, SourceError, Urgency, Volume};
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 2048 * MIB;
/// Outstanding data of a client: eight requests of 1 MiB.
const DEPTH_BYTES: u64 = 8 * MIB;
/// Data in flight of a restore with defaults: four packs.
const RESTORE_BYTES: u64 = 4 * 32 * MIB;
/// Maximum memory of lazy reads if all data arrives at once.
const MAX_HELD_BYTES: u64 = 160 * MIB;

/// Fake store that answers on request.
#[derive(Default)]
struct Slow {
    held: Mutex<Vec<(Extent, FetchReply)>>,
}

impl LazySource for Slow {
    fn fetch(&self, extent: Extent, _: Urgency, reply: FetchReply) {
        self.held.lock().push((extent, reply));
    }

    fn data_blocks(&self, extent: Extent) -> Result<BlockSet, SourceError> {
        Ok(BlockSet::from_iter([extent]))
    }
}

/// Each time the store has taken its time, it answers everything that it was asked for by then.
#[test]
fn reading_in_order_waits_hardly_more_often_than_a_restore() {
    let root = tempfile::tempdir().unwrap();
    let source = Arc::new(Slow::default());
    let dir = root.path().join("v");
    let volume = Volume::create_lazy(&dir, VolumeId::from_u64(5), SIZE_BYTES, source.clone()).unwrap();
    let come = Arc::new(AtomicU64::new(0));
    let (mut asked, mut waits, mut most_held) = (0, 0, 0);
    let mut buf = vec![0; MIB as usize];
    while come.load(Relaxed) < SIZE_BYTES {
        while asked < SIZE_BYTES && asked - come.load(Relaxed) < DEPTH_BYTES {
            let counted = come.clone();
            let then = Box::new(move |result: Result<(), blockd_volume::VolumeError>| {
                result.unwrap();
                counted.fetch_add(MIB, Relaxed);
            });
            if let Some(then) = volume.on_fetched(Access::Read, asked, MIB, then) {
                // As a server does when nothing has to be waited for.
                volume.read(asked, &mut buf).unwrap();
                then(Ok(()));
            }
            asked += MIB;
        }
        let held = std::mem::take(&mut *source.held.lock());
        if held.is_empty() {
            continue;
        }
        waits += 1;
        most_held = most_held.max(held.iter().map(|(extent, _)| extent.len_bytes()).sum());
        for (extent, reply) in held {
            // Zeroes: they take no room on the disk.
            reply.complete(Ok(vec![0; extent.len_bytes() as usize]));
        }
    }
    let of_restore = SIZE_BYTES / RESTORE_BYTES;
    println!("{waits} waits, a restore {of_restore}; {} MiB on their way at most", most_held / MIB);
    assert!(waits * 8 <= of_restore * 10, "{waits} waits where a restore has {of_restore}");
    assert!(most_held <= MAX_HELD_BYTES, "{most_held} bytes on their way");
}
