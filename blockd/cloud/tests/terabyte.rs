//! First byte of a full terabyte: its index has the maximum length, and the read needs little of it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test panics")]

mod common;

use blockd_cloud::{CacheOptions, EncryptionMode, SnapshotCache, SnapshotReader};
use blockd_extent::{BlockIndex, BlockSource, Extent};
use blockd_store::{BlobStore, Middleware, Operation, Request, Response, StoreFuture};
use blockd_testkit::cloud::Tebibyte;
use blockd_testkit::store::MemoryStore;
use common::{BLOCK, fixed};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Latency of each request, in the test's paused time.
const DELAY: Duration = Duration::from_secs(1);

/// Store with latency that counts requests.
struct SlowStore {
    inner: Arc<MemoryStore>,
    is_slow: AtomicBool,
    requests: AtomicU64,
    received_bytes: AtomicU64,
}

impl SlowStore {
    fn new() -> Self {
        Self {
            inner: Arc::default(),
            is_slow: false.into(),
            requests: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
        }
    }

    fn reset(&self) {
        self.requests.store(0, Relaxed);
        self.received_bytes.store(0, Relaxed);
    }

    /// Checks the first read since the last reset.
    fn check_first_byte(&self, block: BlockIndex, read: &[u8]) {
        assert!(read == Tebibyte::content(block), "block {block}");
        assert_eq!(self.requests.load(Relaxed), 4, "block {block}");
        let received = self.received_bytes.load(Relaxed);
        assert!(received < 1 << 20, "{received} bytes for block {block}");
    }
}

impl Middleware for SlowStore {
    fn describe(&self) -> &str {
        "slow"
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        request: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            if matches!(request.operation, Operation::Get | Operation::GetRange) {
                self.requests.fetch_add(1, Relaxed);
                if self.is_slow.load(Relaxed) {
                    tokio::time::sleep(DELAY).await;
                }
            }
            let answer = ask(self.inner.clone()).await?;
            self.received_bytes.fetch_add(answer.received_bytes(), Relaxed);
            Ok(answer)
        })
    }
}

/// Returns the peak memory of this process since the last reset.
fn most_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// The only test of this program, because it measures the memory of the process.
#[tokio::test(flavor = "current_thread")]
async fn first_byte_of_a_terabyte_takes_four_requests() {
    let store = Arc::new(SlowStore::new());
    let repo = fixed(store.clone(), EncryptionMode::Aes256GcmSiv);
    let id = {
        let manifest = Tebibyte::put(&repo).await.unwrap();
        let index = &manifest.delta.index;
        assert!(index.len_bytes > 8 << 20, "the index of a full TiB has {} bytes", index.len_bytes);
        manifest.id()
    };
    let dir = tempfile::tempdir().unwrap();
    store.is_slow.store(true, Relaxed);
    // From here on only the delays of the store advance the time.
    tokio::time::pause();
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (before, mut slowest) = (most_memory_bytes(), Duration::ZERO);
    for block in Tebibyte::places() {
        store.reset();
        let (began, real) = (tokio::time::Instant::now(), Instant::now());
        let manifest = repo.manifest(&id).await.unwrap();
        let reader = SnapshotReader::open(&repo, &manifest).await.unwrap();
        let read = reader.read_blocks(Extent::new(block, 1)).await.unwrap();
        slowest = slowest.max(real.elapsed());
        // The manifest, the root, a page and a frame: one after the other.
        assert_eq!(began.elapsed().as_secs(), 4, "block {block}");
        store.check_first_byte(block, &read);
    }
    store.is_slow.store(false, Relaxed);
    tokio::time::resume();
    for (block, on_disk) in Tebibyte::places().flat_map(|block| [(block, false), (block, true)]) {
        store.reset();
        let manifest = repo.manifest(&id).await.unwrap();
        let dir = on_disk.then(|| dir.path().join(block.to_string()));
        let cache = SnapshotCache::open(CacheOptions { dir, ..CacheOptions::default() }).unwrap();
        let reader = cache.snapshot(&repo, &manifest).await.unwrap();
        let read = tokio::task::spawn_blocking(move || {
            let mut buf = vec![0; BLOCK];
            reader.read_at(block.0 * BLOCK as u64, &mut buf).map(|()| buf)
        });
        let read = read.await.unwrap().unwrap();
        store.check_first_byte(block, &read);
    }
    let first = most_memory_bytes();
    println!("the first byte took at most {slowest:?} besides the store");

    // All of the index, page by page.
    let manifest = repo.manifest(&id).await.unwrap();
    let whole = Extent::whole(Tebibyte::SIZE_BYTES);
    let reader = SnapshotReader::open(&repo, &manifest).await.unwrap();
    assert_eq!(reader.data_blocks(whole).await.unwrap().len_blocks(), whole.len_blocks);
    let cache = SnapshotCache::open(CacheOptions::default()).unwrap();
    let snapshot = cache.snapshot(&repo, &manifest).await.unwrap();
    assert_eq!(snapshot.data_blocks(whole).await.unwrap().len_blocks(), whole.len_blocks);
    let most = most_memory_bytes();
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "{} MiB with the store, {} for first bytes, {} for all of the index",
        mib(before),
        mib(first),
        mib(most)
    );
    // Includes the store and the memory that the backup has not returned.
    assert!(first < 192 << 20 && most < 256 << 20, "{before} {first} {most}");
}
