//! Tests of costs in bytes and requests.
use crate::common::{BLOCK, Noise, fixed, restored_with, run, set};
use blockd_cloud::{EncryptionMode, Manifest};
use blockd_extent::{BlockIndex, BlockSet, Extent};
use blockd_testkit::cloud::{MemoryVolume, spec};
use blockd_testkit::store::MemoryStore;
use std::sync::Arc;

const TIB: u64 = 1 << 40;

async fn chain(repo: &blockd_cloud::Repository, live: &MemoryVolume, size: u64, links: u64) -> Manifest {
    let mut last: Option<Manifest> = None;
    for link in 1..=links {
        let next = spec(link, size, set([link]), set([]), last.as_ref());
        last = Some(run(repo, next, live).await.unwrap().manifest);
    }
    last.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn incompressible_incremental_uploads_dirty_bytes_only() {
    // A sparse volume of 16 TiB, with six incrementals below.
    let store = Arc::new(MemoryStore::default());
    let repo = fixed(store.clone(), EncryptionMode::Aes256GcmSiv);
    let live = MemoryVolume::default();
    let mut noise = Noise(9);
    let base = chain(&repo, &live, 16 * TIB, 6).await;
    for (i, count) in [1u64, 31, 33, 1000, 9_000].into_iter().enumerate() {
        let dirty: BlockSet = set((0..count).map(|_| noise.next() % (16 << 28)));
        for block in dirty.blocks() {
            live.set(block.0, &noise.block());
        }
        let dirty_bytes = dirty.len_bytes();
        let done =
            run(&repo, spec(100 + i as u64, 16 * TIB, dirty, set([]), Some(&base)), &live).await.unwrap();
        let most = dirty_bytes * 105 / 100 + (64 << 10);
        assert!(done.requests.bytes_up <= most, "{count} blocks: {} > {most}", done.requests.bytes_up);
        let packs = u64::from(done.manifest.pack_count);
        assert_eq!(done.requests.put, packs + 2, "packs, the index, the manifest");
        assert_eq!(
            (done.requests.list, done.requests.get, done.requests.delete),
            (0, 1, 0),
            "one request of the base"
        );
        assert_eq!(done.manifest.dirty_bytes, dirty_bytes);
        let (_, requests) = restored_with(&repo, &done.manifest).await.unwrap();
        // A root for each of the seven deltas, and each pack once; a page border within a pack costs one
        // more.
        assert!(requests.get <= 7 + 6 + packs + 16 + 7, "{} requests to restore {packs} packs", requests.get);
        assert_eq!(requests.list, 0);
    }
}

/// A refused condition does not put the commit in doubt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_without_conditional_put_gets_no_request_per_pack() {
    let repo = fixed(Arc::new(MemoryStore::refusing_conditions()), EncryptionMode::Aes256GcmSiv);
    let live = MemoryVolume::default();
    live.set(3, &[7; BLOCK]);
    let done = run(&repo, spec(1, TIB, set([3]), set([]), None), &live).await.unwrap();
    assert_eq!(done.requests.get, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zero_blocks_cost_nothing() {
    let store = Arc::new(MemoryStore::default());
    let repo = fixed(store.clone(), EncryptionMode::Aes256GcmSiv);
    let data = BlockSet::from_iter([Extent::new(BlockIndex(7), 20_000)]);
    let done = run(&repo, spec(1, TIB, data, set([]), None), &MemoryVolume::default()).await.unwrap();
    assert_eq!(done.requests.put, 2, "just the index and the manifest");
    assert!(done.requests.bytes_up < 8_000, "{}", done.requests.bytes_up);
    let (content, requests) = restored_with(&repo, &done.manifest).await.unwrap();
    assert!(content.is_empty());
    assert_eq!(requests.get, 1, "just the index");
}

#[tokio::test]
async fn clean_volume_makes_a_snapshot() {
    let repo = fixed(Arc::new(MemoryStore::default()), EncryptionMode::Aes256GcmSiv);
    let live = MemoryVolume::default();
    let base = chain(&repo, &live, 64 * TIB, 1).await;
    let done = run(&repo, spec(9, 64 * TIB, set([]), set([]), Some(&base)), &live).await.unwrap();
    assert_eq!((done.requests.put, done.manifest.pack_count, done.manifest.dirty_bytes), (2, 0, 0));
    assert!(done.requests.bytes_up < 8_000, "{}", done.requests.bytes_up);
    assert!(restored_with(&repo, &done.manifest).await.unwrap().0.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dense_restore_requests_each_pack_once() {
    let repo = fixed(Arc::new(MemoryStore::default()), EncryptionMode::Checksummed);
    let live = MemoryVolume::default();
    for block in 0..30_000 {
        live.set(block, &[(block % 251) as u8 + 1; BLOCK]);
    }
    let data = BlockSet::from_iter([Extent::new(BlockIndex(0), 30_000)]);
    let done = run(&repo, spec(1, TIB, data, set([]), None), &live).await.unwrap();
    let (content, requests) = restored_with(&repo, &done.manifest).await.unwrap();
    assert_eq!(content, live.content());
    assert_eq!(requests.get, 1 + 4, "the index and four packs");
}
