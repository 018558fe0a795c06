//! Requests in flight of backups and restores: they follow the latency of the store, within their bounds.
use crate::common::{BLOCK, Noise, fixed, run_as};
use blockd_cloud::{
    CancelToken, EncryptionMode, Manifest, MemoryJournal, Progress, Repository, RestoreOptions,
    RestoreRequest, UploadOptions, backup, restore,
};
use blockd_extent::{BlockIndex, BlockSet, Extent};
use blockd_store::{
    BlobStore, Middleware, Operation, Request, RequestCounts, Response, RetryPolicy, StoreFuture, task_store,
};
use blockd_testkit::cloud::{MemoryVolume, spec};
use blockd_testkit::store::MemoryStore;
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};

const PACK_BLOCKS: u64 = 8192;
const FRAME_BLOCKS: usize = 128;

/// Requests for packs and their bodies.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
struct InFlight {
    requests: u64,
    sent_bytes: u64,
}

/// Store whose requests for packs take a time, which is the test's paused time.
#[derive(Default)]
struct SlowStore {
    inner: Arc<MemoryStore>,
    latency: Duration,
    now: Mutex<InFlight>,
    peak: Mutex<InFlight>,
}

impl SlowStore {
    /// Returns the maximum since the last call.
    fn take_peak(&self) -> InFlight {
        std::mem::take(&mut self.peak.lock())
    }

    fn begin(&self, request: &Request<'_>) {
        let (mut now, mut peak) = (self.now.lock(), self.peak.lock());
        now.requests += 1;
        now.sent_bytes += request.sent_bytes;
        peak.requests = peak.requests.max(now.requests);
        peak.sent_bytes = peak.sent_bytes.max(now.sent_bytes);
    }

    fn end(&self, request: &Request<'_>) {
        let mut now = self.now.lock();
        now.requests -= 1;
        now.sent_bytes -= request.sent_bytes;
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
        let is_slow = matches!(request.operation, Operation::Put | Operation::GetRange);
        if !is_slow || !request.key.contains("/pack-") {
            return ask(self.inner.clone());
        }
        Box::pin(async move {
            self.begin(&request);
            tokio::time::sleep(self.latency).await;
            let answer = ask(self.inner.clone()).await;
            self.end(&request);
            answer
        })
    }
}

/// Memory of two packs, with little more.
const TWO_PACKS_BYTES: usize = 65 << 20;

/// Returns a volume of incompressible packs.
fn noise(packs: u64) -> MemoryVolume {
    let live = MemoryVolume::default();
    let mut noise = Noise(7);
    for block in 0..packs * PACK_BLOCKS {
        let words = (0..BLOCK / 8).flat_map(|_| noise.next().to_le_bytes());
        live.set(block, &words.collect::<Vec<u8>>());
    }
    live
}

async fn backed_up(repo: &Repository, packs: u64, live: &MemoryVolume, options: &UploadOptions) -> Manifest {
    let data = Extent::new(BlockIndex(0), packs * PACK_BLOCKS);
    let spec = spec(1, data.len_bytes(), BlockSet::from_iter([data]), BlockSet::new(), None);
    let (reader, journal) = (Arc::new(live.fork()), Arc::new(MemoryJournal::default()));
    run_as(repo, spec, reader, journal, options, &CancelToken::new()).await.unwrap().manifest
}

async fn restored(repo: &Repository, manifest: &Manifest, download_concurrency: usize) -> MemoryVolume {
    let (target, cancel) = (Arc::new(MemoryVolume::default()), CancelToken::new());
    let options = RestoreOptions { download_concurrency, ..RestoreOptions::default() };
    let progress = Arc::new(Progress::new(Arc::default()));
    let request = RestoreRequest::default();
    restore(repo, manifest, target.clone(), &request, &options, progress, &cancel).await.unwrap();
    target.fork()
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_rise_with_the_latency() {
    const PACKS: u64 = 20;
    let live = MemoryVolume::default();
    // A block in each frame, so that packs are short.
    (0..PACKS * PACK_BLOCKS)
        .step_by(FRAME_BLOCKS)
        .for_each(|block| live.set(block, &[block as u8 | 1; BLOCK]));
    let peak = async |latency, concurrency: usize| {
        let store = Arc::new(SlowStore { latency, ..SlowStore::default() });
        let repo = fixed(store.clone(), EncryptionMode::Aes256GcmSiv);
        let options = UploadOptions { upload_concurrency: concurrency, ..UploadOptions::default() };
        let manifest = backed_up(&repo, PACKS, &live, &options).await;
        let up = store.take_peak().requests;
        assert_eq!(restored(&repo, &manifest, concurrency).await.content(), live.content());
        (up, store.take_peak().requests)
    };
    let (up, down) = peak(Duration::from_secs(1), 32).await;
    assert!((6..=32).contains(&up) && (6..=32).contains(&down), "{up} uploads, {down} downloads");
    assert_eq!(peak(Duration::from_secs(1), 5).await, (5, 5), "the bound");
    let (up, down) = peak(Duration::ZERO, 32).await;
    assert!(up <= 4 && down <= 4, "{up} uploads, {down} downloads without latency");
}

#[tokio::test]
async fn exhausted_budget_ends_the_assembly_of_packs() {
    const PACKS: u64 = 6;
    let live = noise(PACKS);
    let data = Extent::new(BlockIndex(0), PACKS * PACK_BLOCKS);
    let spec = spec(1, data.len_bytes(), BlockSet::from_iter([data]), BlockSet::new(), None);
    let (store, requests) = task_store(Arc::new(MemoryStore::default()), RetryPolicy::default());
    let repo = fixed(store, EncryptionMode::Aes256GcmSiv);
    // Those of the commit are reserved.
    let check = |counts: &RequestCounts| (counts.total() > 2).then(|| "more than 2 requests".to_owned());
    requests.set_budget(RequestCounts::default(), Arc::new(check));
    let reader = Arc::new(live);
    let options = UploadOptions { memory_bytes: TWO_PACKS_BYTES, ..UploadOptions::default() };
    let (journal, cancel) = (Arc::new(MemoryJournal::default()), CancelToken::new());
    let progress = Arc::new(Progress::new(requests));
    let made = backup(&repo, Arc::new(spec), reader.clone(), journal, &options, progress, &cancel).await;
    assert!(made.unwrap_err().to_string().contains("budget"));
    // Two have the memory, and the third one that of the first one, which is refused.
    let packs = reader.blocks_read().len_blocks() / PACK_BLOCKS;
    assert!(packs <= 3, "{packs} packs were read");
}

#[tokio::test(start_paused = true)]
async fn packs_in_flight_stay_within_their_memory() {
    const PACKS: u64 = 4;
    let live = noise(PACKS);
    let store = Arc::new(SlowStore { latency: Duration::from_secs(1), ..SlowStore::default() });
    let repo = fixed(store.clone(), EncryptionMode::Aes256GcmSiv);
    let options = UploadOptions { memory_bytes: TWO_PACKS_BYTES, ..UploadOptions::default() };
    backed_up(&repo, PACKS, &live, &options).await;
    let peak = store.take_peak();
    assert_eq!(peak.requests, 2, "{peak:?}");
    assert!(peak.sent_bytes <= TWO_PACKS_BYTES as u64, "{peak:?}");
}
