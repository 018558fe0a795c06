//! Random reads through the caches: content, number of requests, shared fetches, and damage.
use crate::common::{BLOCK, Noise, fixed, open, run, set};
use blockd_cloud::{
    CacheOptions, CloudError, EncryptionMode, Manifest, Repository, SnapshotCache, SnapshotReader,
};
use blockd_extent::{BlockIndex, BlockSet, BlockSource, Extent};
use blockd_store::StoreErrorKind;
use blockd_testkit::cloud::{MemoryVolume, Tebibyte, spec};
use blockd_testkit::store::{Fault, FaultStore, MemoryStore};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

const PASSPHRASE: Option<&str> = Some("correct horse");
const BLOCKS: u64 = 20_000;

struct Bed {
    memory: Arc<MemoryStore>,
    store: Arc<FaultStore>,
    repo: Repository,
    /// Oldest first, each with its content.
    snapshots: Vec<(Manifest, Vec<u8>)>,
}

fn image(content: &BTreeMap<u64, Box<[u8]>>) -> Vec<u8> {
    let mut image = vec![0; BLOCKS as usize * BLOCK];
    for (block, bytes) in content {
        image[*block as usize * BLOCK..][..BLOCK].copy_from_slice(bytes);
    }
    image
}

/// A full backup of 10,000 blocks in two stretches, and incrementals on it.
async fn bed() -> Bed {
    let memory = Arc::new(MemoryStore::default());
    let store = Arc::new(FaultStore::new(memory.clone()));
    let repo = open(store.clone(), PASSPHRASE).await.unwrap();
    let live = MemoryVolume::default();
    let mut noise = Noise(5);
    let data: BlockSet =
        [Extent::new(BlockIndex(3), 6000), Extent::new(BlockIndex(12_000), 4000)].into_iter().collect();
    for block in data.blocks() {
        // Some blocks are zero although they were written, some compress and some do not.
        if block.0 % 7 != 0 {
            let bytes = if block.0 % 3 == 0 { noise.block() } else { vec![block.0 as u8 | 1; BLOCK] };
            live.set(block.0, &bytes);
        }
    }
    let size = BLOCKS * BLOCK as u64;
    let mut snapshots = Vec::new();
    let full = run(&repo, spec(1, size, data, set([]), None), &live).await.unwrap().manifest;
    snapshots.push((full.clone(), image(&live.content())));
    let mut base = full;
    for number in 2..6u64 {
        let changed: Vec<u64> = (0..200).map(|_| noise.next() % BLOCKS).collect();
        changed.iter().for_each(|block| live.set(*block, &noise.block()));
        let gone = noise.next() % BLOCKS;
        live.clear(gone);
        let mut data = set(changed);
        data.remove(BlockIndex(gone));
        base = run(&repo, spec(number, size, data, set([gone]), Some(&base)), &live).await.unwrap().manifest;
        snapshots.push((base.clone(), image(&live.content())));
    }
    Bed { memory, store, repo, snapshots }
}

fn cache(dir: Option<&Path>) -> SnapshotCache {
    SnapshotCache::open(CacheOptions { dir: dir.map(Path::to_owned), ..CacheOptions::default() }).unwrap()
}

/// Reads through the caches.
async fn read(snapshot: &SnapshotReader, extent: Extent) -> Result<Vec<u8>, Arc<CloudError>> {
    let snapshot = snapshot.clone();
    let read = tokio::task::spawn_blocking(move || {
        let mut buf = vec![0xee; extent.len_bytes() as usize];
        snapshot.read_extents(&[extent], &mut buf).map(|()| buf)
    });
    let cause = |error: std::io::Error| error.into_inner().unwrap().downcast().map(|cause| *cause).unwrap();
    read.await.unwrap().map_err(cause)
}

/// Returns a cache with a timeout for its store that a busy machine can meet.
fn impatient() -> SnapshotCache {
    let stall_timeout = Duration::from_secs(6);
    SnapshotCache::open(CacheOptions { stall_timeout, ..CacheOptions::default() }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_match_the_model_with_and_without_a_disk_cache() {
    let bed = bed().await;
    let dir = tempfile::tempdir().unwrap();
    for dir in [None, Some(dir.path()), Some(dir.path())] {
        let cache = cache(dir);
        for (manifest, expected) in &bed.snapshots {
            let snapshot = cache.snapshot(&bed.repo, manifest).await.unwrap();
            assert_eq!(snapshot.size_bytes(), expected.len() as u64);
            let expected = expected.clone();
            tokio::task::spawn_blocking(move || {
                let mut noise = Noise(17);
                for _ in 0..300 {
                    let at = noise.next() as usize % expected.len();
                    let len = (noise.next() as usize % 300_000).min(expected.len() - at);
                    let mut buf = vec![0xee; len];
                    snapshot.read_at(at as u64, &mut buf).unwrap();
                    assert!(buf == expected[at..at + len], "{len} bytes at {at}");
                    assert!(snapshot.try_read_at(at as u64, &mut buf).unwrap(), "it is in memory now");
                    assert!(buf == expected[at..at + len], "{len} bytes at {at} of memory");
                }
                // Sequential, so that it triggers readahead.
                for (at, expected) in expected.chunks(128 << 10).enumerate() {
                    let mut buf = vec![0xee; expected.len()];
                    snapshot.read_at((at * (128 << 10)) as u64, &mut buf).unwrap();
                    assert!(buf == expected);
                }
                // In an extent with data.
                let mut from = 0;
                while from < expected.len() {
                    let range = snapshot.range_at(from as u64).unwrap();
                    let end = range.end_bytes as usize;
                    assert!(end > from);
                    assert!(range.is_data || expected[from..end].iter().all(|byte| *byte == 0));
                    from = end;
                }
                assert!(snapshot.read_at(expected.len() as u64 - 1, &mut [0; 2]).is_err());
                assert!(snapshot.read_at(u64::MAX, &mut [0; 2]).is_err());
            })
            .await
            .unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_share_a_reader_and_skip_holes() {
    let bed = bed().await;
    let cache = cache(None);
    let (manifest, expected) = bed.snapshots.last().unwrap();
    let snapshot = cache.snapshot(&bed.repo, manifest).await.unwrap();
    let plain = SnapshotReader::open(&bed.repo, manifest).await.unwrap();
    for (start, len) in [(0, 100), (5990, 20), (11_990, 300), (19_990, 50)] {
        let extent = Extent::new(BlockIndex(start), len);
        let mut wanted = expected[start as usize * BLOCK..].to_vec();
        wanted.resize(len as usize * BLOCK, 0);
        assert!(read(&snapshot, extent).await.unwrap() == wanted);
        assert!(snapshot.read_blocks(extent).await.unwrap() == wanted);
        assert_eq!(snapshot.data_blocks(extent).await.unwrap(), plain.data_blocks(extent).await.unwrap());
    }
    let whole = Extent::new(BlockIndex(0), BLOCKS);
    assert_eq!(snapshot.data_blocks(whole).await.unwrap(), plain.data_blocks(whole).await.unwrap());
    assert!(snapshot.read_blocks(Extent::new(BlockIndex(0), 9000)).await.is_err(), "too much at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_readers_fetch_a_frame_once() {
    let bed = bed().await;
    let cache = cache(None);
    let (manifest, expected) = &bed.snapshots[0];
    let snapshot = cache.snapshot(&bed.repo, manifest).await.unwrap();
    let extent = Extent::new(BlockIndex(3), 1280);
    let reads = (0..20).map(|_| read(&snapshot, extent));
    for read in futures::future::join_all(reads).await {
        assert!(read.unwrap() == expected[3 * BLOCK..1283 * BLOCK]);
    }
    assert_eq!(cache.counters().frames_fetched, 10);
    assert!(cache.counters().frame_requests <= 2);
    // Another snapshot of the same chain shares the frames.
    let other = cache.snapshot(&bed.repo, &bed.snapshots[1].0).await.unwrap();
    let again = read(&other, extent).await.unwrap();
    assert!(again == bed.snapshots[1].1[3 * BLOCK..1283 * BLOCK]);
    let full = cache.counters().frames_fetched;
    assert!(full < 20, "{full} frames were fetched: those of the full backup came again");
}

#[tokio::test(flavor = "multi_thread")]
async fn announced_ranges_are_read_without_requests() {
    let bed = bed().await;
    let options = CacheOptions { readahead_bytes: 0, ..CacheOptions::default() };
    let cache = SnapshotCache::open(options).unwrap();
    let (manifest, expected) = bed.snapshots.last().unwrap();
    let snapshot = cache.snapshot(&bed.repo, manifest).await.unwrap();
    let extents: Vec<_> = (0..40).map(|nth| Extent::new(BlockIndex(nth * 450), 2)).collect();
    let ranges: Vec<_> =
        extents.iter().map(|one| one.offset_bytes()..one.offset_bytes() + one.len_bytes()).collect();
    snapshot.will_need(&ranges);
    let until = Instant::now() + Duration::from_secs(120);
    let is_missing = |one: &Extent| snapshot.fetch_missing(one.offset_bytes(), 2 * BLOCK).is_some();
    while extents.iter().any(is_missing) {
        assert!(Instant::now() < until, "the ranges are not fetched");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before = cache.counters();
    for extent in &extents {
        let at = extent.offset_bytes() as usize;
        assert!(read(&snapshot, *extent).await.unwrap() == expected[at..at + 2 * BLOCK]);
    }
    assert_eq!(cache.counters().frame_requests, before.frame_requests);
}

/// Runs `work` in a runtime that ends before this returns, with its background work: frames are written to
/// disk after the reply to the reader.
fn in_own_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(work)
}

#[test]
fn disk_cache_survives_a_restart_and_refetches_damage() {
    let bed = in_own_runtime(bed());
    let dir = tempfile::tempdir().unwrap();
    let (manifest, expected) = &bed.snapshots[4];
    let wanted = &expected[..1600 * BLOCK];
    let counters_of_a_read = || {
        in_own_runtime(async {
            let cache = cache(Some(dir.path()));
            let snapshot = cache.snapshot(&bed.repo, manifest).await.unwrap();
            assert!(read(&snapshot, Extent::new(BlockIndex(0), 1600)).await.unwrap() == *wanted);
            cache.counters()
        })
    };
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        let counters = counters_of_a_read();
        if counters.frames_from_disk > 10 && counters.frames_fetched == 0 {
            break;
        }
        assert!(Instant::now() < until, "the frames are not written to disk");
    }
    // The store fails, and all frames come from disk.
    bed.store.fail_all(Fault::BeforeApply);
    let counters = counters_of_a_read();
    assert!(counters.frames_fetched == 0 && counters.frames_from_disk > 10, "{counters:?}");
    // No file contains plain text.
    for file in files(dir.path()) {
        let bytes = std::fs::read(file).unwrap();
        assert!(!bytes.windows(64).any(|window| window.iter().all(|byte| *byte == window[0] && *byte != 0)));
    }
    bed.store.heal();
    for file in files(dir.path()) {
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&file, bytes).unwrap();
    }
    let counters = counters_of_a_read();
    let all_fetched = counters.frames_fetched > 10 && counters.frames_from_disk == 0;
    assert!(all_fetched && counters.damaged_pieces > 10, "{counters:?}");
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let Ok(shards) = std::fs::read_dir(dir) else { return Vec::new() };
    let of = |shard: std::fs::DirEntry| std::fs::read_dir(shard.path()).into_iter().flatten();
    let all = shards.flatten().flat_map(of).flatten().map(|file| file.path());
    all.filter(|path| path.extension().is_none()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_frame_fails_its_range_only() {
    let bed = bed().await;
    let (manifest, expected) = &bed.snapshots[0];
    let (key, pack) =
        bed.memory.objects().into_iter().find(|(key, _)| key.ends_with("pack-00000000")).unwrap();
    let mut damaged = pack.to_vec();
    let at = damaged.len() / 2;
    damaged[at] ^= 1;
    bed.memory.insert(&key, damaged);
    let cache = cache(None);
    let snapshot = cache.snapshot(&bed.repo, manifest).await.unwrap();
    let mut failed = Vec::new();
    for start in (3..6003).step_by(128) {
        let len = 128.min(6003 - start);
        match read(&snapshot, Extent::new(BlockIndex(start), len)).await {
            Ok(read) => {
                assert!(read == expected[start as usize * BLOCK..(start + len) as usize * BLOCK]);
            }
            Err(error) => {
                assert!(
                    matches!(&*error, CloudError::Damaged { key: named, .. } if *named == key),
                    "{error}"
                );
                failed.push(start);
            }
        }
    }
    assert_eq!(failed.len(), 1, "{failed:?}");

    // A truncated pack loses the frames behind the cut.
    bed.memory.insert(&key, pack.slice(..pack.len() / 2));
    let cache = self::cache(None);
    let snapshot = cache.snapshot(&bed.repo, manifest).await.unwrap();
    let whole = read(&snapshot, Extent::new(BlockIndex(3), 6000)).await;
    assert!(matches!(&*whole.unwrap_err(), CloudError::Damaged { .. }));
    assert!(read(&snapshot, Extent::new(BlockIndex(3), 64)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn outage_fails_reads_in_bounded_time_until_the_store_returns() {
    let bed = bed().await;
    let (manifest, expected) = &bed.snapshots[0];
    let patient = cache(None).snapshot(&bed.repo, manifest).await.unwrap();
    let snapshot = impatient().snapshot(&bed.repo, manifest).await.unwrap();
    let extent = Extent::new(BlockIndex(13_000), 100);
    for fault in [Fault::Hang, Fault::BeforeApply] {
        bed.store.fail_all(fault);
        let started = Instant::now();
        let error = read(&snapshot, extent).await.unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(60));
        let CloudError::Store(error) = &*error else { panic!("{error}") };
        assert!(matches!(error.kind, StoreErrorKind::Timeout | StoreErrorKind::Unreachable));
        if fault == Fault::Hang {
            let started = Instant::now();
            assert!(impatient().snapshot(&bed.repo, manifest).await.is_err());
            assert!(started.elapsed() < Duration::from_secs(60));
        }
    }
    bed.store.heal();
    for snapshot in [patient, snapshot] {
        let found = read(&snapshot, extent).await.unwrap();
        assert!(found == expected[13_000 * BLOCK..13_100 * BLOCK]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn read_survives_a_fetch_started_during_an_outage() {
    let bed = bed().await;
    let (manifest, expected) = &bed.snapshots[0];
    let cache = impatient();
    let snapshot = cache.snapshot(&bed.repo, manifest).await.unwrap();
    // Loads the index into memory.
    snapshot.data_blocks(Extent::whole(snapshot.size_bytes())).await.unwrap();
    bed.store.fail_all(Fault::Hang);
    let extent = Extent::new(BlockIndex(13_000), 100);
    let before = cache.counters().frame_requests;
    let early = {
        let snapshot = snapshot.clone();
        tokio::spawn(async move { read(&snapshot, extent).await.map(drop) })
    };
    while cache.counters().frame_requests == before {
        tokio::task::yield_now().await;
    }
    bed.store.heal();
    let late = read(&snapshot, extent).await.unwrap();
    assert!(late == expected[13_000 * BLOCK..13_100 * BLOCK]);
    // This read waited for the fetch, or was in time.
    let _ = early.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn first_byte_takes_three_round_trips_after_the_manifest() {
    let bed = bed().await;
    let cache = cache(None);
    let (manifest, _) = bed.snapshots.last().unwrap();
    let before = bed.store.operations();
    let snapshot = cache.snapshot(&bed.repo, manifest).await.unwrap();
    assert_eq!(bed.store.operations() - before, 5, "one for each delta, concurrently");
    read(&snapshot, Extent::new(BlockIndex(100), 1)).await.unwrap();
    assert!(bed.store.operations() - before <= 6, "small indexes are fetched whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_index_pages_are_fetched_into_memory() {
    let store = Arc::new(FaultStore::new(Arc::new(MemoryStore::default())));
    let repo = fixed(store.clone(), EncryptionMode::Checksummed);
    // Its index is too long to be kept whole.
    let manifest = Tebibyte::put(&repo).await.unwrap();
    let snapshot = cache(None).snapshot(&repo, &manifest).await.unwrap();
    let (at, len) = (700 << 30, 1 << 20);
    assert_eq!(snapshot.try_range_at(at).unwrap(), None);
    store.fail_all(Fault::BeforeApply);
    assert!(snapshot.fetch_missing_index(at, len).unwrap().await.is_err());
    store.heal();
    snapshot.fetch_missing_index(at, len).unwrap().await.unwrap();
    store.fail_all(Fault::Hang);
    let range = snapshot.try_range_at(at).unwrap().expect("its page is in memory");
    assert!(range.is_data && range.end_bytes >= at + len as u64);
    assert!(snapshot.fetch_missing_index(at, len).is_none());
    assert!(snapshot.fetch_missing_index(Tebibyte::SIZE_BYTES, 1).is_none(), "beyond the end");
    // Of a long range only the first pages are loaded.
    store.heal();
    snapshot.fetch_missing_index(0, Tebibyte::SIZE_BYTES as usize).unwrap().await.unwrap();
    assert!(snapshot.try_range_at(0).unwrap().is_some());
    assert_eq!(snapshot.try_range_at(Tebibyte::SIZE_BYTES - 1).unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_frames_are_fetched_into_memory() {
    let bed = bed().await;
    let (manifest, expected) = bed.snapshots.last().unwrap();
    let snapshot = cache(None).snapshot(&bed.repo, manifest).await.unwrap();
    let len = 300_000;
    let at = 50 << 20;
    bed.store.fail_all(Fault::BeforeApply);
    assert!(snapshot.fetch_missing(at, len).unwrap().await.is_err());
    bed.store.heal();
    snapshot.fetch_missing(at, len).unwrap().await.unwrap();
    let mut buf = vec![0xee; len];
    assert!(snapshot.try_read_at(at, &mut buf).unwrap(), "it is in memory");
    assert!(buf == expected[at as usize..][..len]);
    assert!(snapshot.fetch_missing(at, len).is_none());
}
