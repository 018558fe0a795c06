//! Sequential reads of a lazy volume: bytes in flight with a slow store.

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
/// Maximum memory of lazy reads, if all replies arrive together.
const MAX_HELD_BYTES: u64 = 160 * MIB;

/// Fake store that holds its requests.
#[derive(Default)]
struct SlowSource {
    held: Mutex<Vec<(Extent, FetchReply)>>,
}

impl LazySource for SlowSource {
    fn fetch(&self, extent: Extent, _: Urgency, reply: FetchReply) {
        self.held.lock().push((extent, reply));
    }

    fn data_blocks(&self, extent: Extent) -> Result<BlockSet, SourceError> {
        Ok(BlockSet::from_iter([extent]))
    }
}

/// In each round the store replies to all requests that it has received.
#[test]
fn sequential_reads_need_few_more_rounds_than_a_restore() {
    let root = tempfile::tempdir().unwrap();
    let source = Arc::new(SlowSource::default());
    let dir = root.path().join("v");
    let volume = Volume::create_lazy(&dir, VolumeId::from_u64(5), SIZE_BYTES, source.clone()).unwrap();
    let arrived = Arc::new(AtomicU64::new(0));
    let (mut requested, mut rounds, mut max_held) = (0, 0, 0);
    let mut buf = vec![0; MIB as usize];
    while arrived.load(Relaxed) < SIZE_BYTES {
        while requested < SIZE_BYTES && requested - arrived.load(Relaxed) < DEPTH_BYTES {
            let counted = arrived.clone();
            let then = Box::new(move |result: Result<(), blockd_volume::VolumeError>| {
                result.unwrap();
                counted.fetch_add(MIB, Relaxed);
            });
            if let Some(then) = volume.prefetch_async(Access::Read, requested, MIB, then) {
                // The blocks are present: the server reads them at once.
                volume.read(requested, &mut buf).unwrap();
                then(Ok(()));
            }
            requested += MIB;
        }
        let held = std::mem::take(&mut *source.held.lock());
        if held.is_empty() {
            continue;
        }
        rounds += 1;
        max_held = max_held.max(held.iter().map(|(extent, _)| extent.len_bytes()).sum());
        for (extent, reply) in held {
            // Zeroes take no disk space.
            reply.complete(Ok(vec![0; extent.len_bytes() as usize]));
        }
    }
    let of_restore = SIZE_BYTES / RESTORE_BYTES;
    println!("{rounds} rounds, a restore {of_restore}; at most {} MiB in flight", max_held / MIB);
    assert!(rounds * 8 <= of_restore * 10, "{rounds} rounds, a restore {of_restore}");
    assert!(max_held <= MAX_HELD_BYTES, "{max_held} bytes in flight");
}
