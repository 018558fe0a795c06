//! Estimates beside the requests that were made, and tasks that end at their budget.
use crate::common::{BLOCK, Noise, fixed, restored_with, run, set};
use blockd_cloud::{
    BackupJournal, BackupSpec, CancelToken, CloudError, EncryptionMode, Manifest, MemoryJournal, Progress,
    Repository, RestoreOptions, RestoreRequest, SnapshotReader, UploadOptions, backup, estimate_backup,
    estimate_read, restore,
};
use blockd_extent::{BlockIndex, BlockSet, Extent};
use blockd_store::{RequestCounts, Requests, RetryPolicy, StoreErrorKind, task_store};
use blockd_testkit::{
    cloud::{MemoryVolume, spec},
    store::MemoryStore,
};
use std::sync::Arc;

const SIZE: u64 = 1 << 30;

/// Content of three kinds in stretches: noise, text that compresses, and zeroes.
fn volume(blocks: u64) -> (MemoryVolume, BlockSet) {
    let (live, mut noise) = (MemoryVolume::default(), Noise(5));
    for block in 0..blocks {
        match block / 700 % 3 {
            0 => live.set(block, &noise.block()),
            1 => {
                let words = (0..BLOCK / 8).flat_map(|at| (noise.next() % 512 + at as u64 % 7).to_le_bytes());
                live.set(block, &words.collect::<Vec<u8>>());
            }
            _ => {}
        }
    }
    (live, BlockSet::from_iter([Extent::new(BlockIndex(0), blocks)]))
}

fn assert_within(percent: u64, estimated: RequestCounts, made: RequestCounts) {
    let of = |counts: RequestCounts| [counts.put, counts.get, counts.list, counts.delete, counts.multipart];
    assert_eq!(of(estimated), of(made));
    for (estimated, made) in [(estimated.bytes_up, made.bytes_up), (estimated.bytes_down, made.bytes_down)] {
        assert!(estimated.abs_diff(made) * 100 <= made * percent, "{estimated} bytes of {made}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_estimates_are_within_5_percent() {
    let store = Arc::new(MemoryStore::default());
    let repo = fixed(store.clone(), EncryptionMode::Aes256GcmSiv);
    let mut base: Option<Manifest> = None;
    // The first one is larger than the sample; the last one has only a block.
    for (id, blocks) in [(1, 30_000), (2, 3_000), (3, 1)] {
        let (live, data) = volume(blocks);
        let next = spec(id, SIZE, data, set([40_000]), base.as_ref());
        let before = store.objects().len();
        let reader = Arc::new(live.fork());
        let options = UploadOptions::default();
        let estimated = estimate_backup(&repo, Arc::new(next.clone()), reader, &options).await.unwrap();
        assert_eq!(store.objects().len(), before, "an estimate stores nothing");
        assert!(estimated.uncertainty_percent <= 5 && estimated.deleted.is_none());
        let made = run(&repo, next, &live).await.unwrap();
        assert_within(5, estimated.requests, made.requests);
        base = Some(made.manifest);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn estimates_of_scattered_content_are_within_5_percent() {
    let mut noise = Noise(7);
    // A block of noise every 10 MiB in zeroes that were written: packs are objects because of a single block.
    let (zeroes, blocks) = (MemoryVolume::default(), 200_000);
    (0..blocks).step_by(2_560).for_each(|block| zeroes.set(block + noise.next() % 2_560, &noise.block()));
    // Zeroes that were written, and 1 MiB of noise in them, which no sampled frame has.
    let lone = MemoryVolume::default();
    (100_100..100_356).for_each(|block| lone.set(block, &noise.block()));
    // Every tenth frame cannot be compressed.
    let mixed = MemoryVolume::default();
    for frame in 0..300 {
        let is_noise = noise.next().is_multiple_of(10);
        for block in frame * 128..(frame + 1) * 128 {
            mixed.set(block, &if is_noise { noise.block() } else { vec![(block % 7) as u8 + 1; BLOCK] });
        }
    }
    for (live, blocks) in [(zeroes, blocks), (lone, blocks), (mixed, 300 * 128)] {
        let repo = fixed(Arc::new(MemoryStore::default()), EncryptionMode::Aes256GcmSiv);
        let data = BlockSet::from_iter([Extent::new(BlockIndex(0), blocks)]);
        let next = spec(1, SIZE, data, set([]), None);
        let (reader, options) = (Arc::new(live.fork()), UploadOptions::default());
        let estimated = estimate_backup(&repo, Arc::new(next.clone()), reader, &options).await.unwrap();
        assert!(estimated.uncertainty_percent <= 5);
        assert_within(5, estimated.requests, run(&repo, next, &live).await.unwrap().requests);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_estimates_are_exact() {
    let repo = fixed(Arc::new(MemoryStore::default()), EncryptionMode::Aes256GcmSiv);
    let (live, data) = volume(20_000);
    let full = run(&repo, spec(1, SIZE, data, set([]), None), &live).await.unwrap().manifest;
    let scattered: BlockSet = set((0..300).map(|at| at * 61));
    let newest = run(&repo, spec(2, SIZE, scattered, set([9]), Some(&full)), &live).await.unwrap().manifest;
    for manifest in [full, newest] {
        let (store, requests) = task_store(repo.store().clone(), RetryPolicy::default());
        let reader = SnapshotReader::open(&repo.with_store(store), &manifest).await.unwrap();
        let planned = estimate_read(&reader, [Extent::whole(SIZE)]).await.unwrap();
        let (_, made) = restored_with(&repo, &manifest).await.unwrap();
        assert_within(0, requests.snapshot().plus(planned), made);
        // Parts of a volume, each with requests of its own.
        let parts = || (0..5).map(|at| Extent::new(BlockIndex(at * 3_000), 1_024));
        let planned = estimate_read(&reader, parts()).await.unwrap();
        let before = requests.snapshot();
        for part in parts() {
            reader.read_blocks(part).await.unwrap();
        }
        assert_within(0, before.plus(planned), requests.snapshot());
    }
}

/// Returns the store of a task with a maximum number of requests, and its counters.
fn limited(repo: &Repository, max_requests: u64) -> (Repository, Arc<Requests>) {
    let (store, requests) = task_store(repo.store().clone(), RetryPolicy::default());
    let check = move |counts: &RequestCounts| {
        (counts.total() > max_requests).then(|| format!("more than {max_requests} requests"))
    };
    requests.set_budget(RequestCounts::default(), Arc::new(check));
    (repo.with_store(store), requests)
}

fn is_budget(error: &CloudError) -> bool {
    matches!(error, CloudError::Store(error) if error.kind == StoreErrorKind::BudgetExhausted)
}

async fn run_limited(
    repo: &Repository,
    spec: &BackupSpec,
    live: &MemoryVolume,
    journal: &Arc<MemoryJournal>,
    max_requests: u64,
) -> (Result<Manifest, CloudError>, u64) {
    let (repo, requests) = limited(repo, max_requests);
    let made = run_counted(&repo, spec, live, journal, &requests).await;
    (made, requests.snapshot().total())
}

async fn run_counted(
    repo: &Repository,
    spec: &BackupSpec,
    live: &MemoryVolume,
    journal: &Arc<MemoryJournal>,
    requests: &Arc<Requests>,
) -> Result<Manifest, CloudError> {
    let progress = Arc::new(Progress::new(requests.clone()));
    let (spec, reader) = (Arc::new(spec.clone()), Arc::new(live.fork()));
    let (options, cancel) = (UploadOptions::default(), CancelToken::new());
    let made = backup(repo, spec, reader, journal.clone(), &options, progress.clone(), &cancel).await;
    assert!(!progress.was_in_doubt() || made.is_ok());
    made
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumed_backup_that_cannot_commit_spends_nothing() {
    let (live, data) = volume(24_000);
    let repo = fixed(Arc::new(MemoryStore::default()), EncryptionMode::Aes256GcmSiv);
    let (next, journal) = (spec(1, SIZE, data, set([]), None), Arc::new(MemoryJournal::default()));
    // Two requests are reserved for the commit.
    let (made, spent) = run_limited(&repo, &next, &live, &journal, 4).await;
    assert!(is_budget(&made.unwrap_err()));
    assert_eq!((spent, journal.completed()), (2, vec![0, 1]), "the packs in flight are recorded");
    // Two checks of recorded packs, the index and the manifest, and the checks after the commit.
    let least = 2 + 2 + 1 + 2;
    // And the third pack with its check.
    let needed = least + 2;
    for max_requests in [1, 2, least - 1, least] {
        let (made, spent) = run_limited(&repo, &next, &live, &journal, max_requests).await;
        let error = made.unwrap_err();
        assert!(is_budget(&error) && spent == 0, "{spent} of {max_requests} requests: {error}");
        assert!(
            error.to_string().contains(&format!("the task needs about {needed} requests in all")),
            "{error}"
        );
    }
    // The third pack is stored only with a request for its check.
    assert_eq!(run_limited(&repo, &next, &live, &journal, needed).await.1, needed);
    assert_eq!(journal.completed().len(), 3);
    assert!(journal.may_be_committed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budget_holds_after_the_first_backup_of_a_task() {
    let (live, data) = volume(8_000);
    let repo = fixed(Arc::new(MemoryStore::default()), EncryptionMode::Aes256GcmSiv);
    let of = |id| (spec(id, SIZE, data.clone(), set([]), None), Arc::new(MemoryJournal::default()));
    let (repo, requests) = limited(&repo, 3 + 1);
    let (first, journal) = of(1);
    run_counted(&repo, &first, &live, &journal, &requests).await.unwrap();
    let (second, journal) = of(2);
    assert!(is_budget(&run_counted(&repo, &second, &live, &journal, &requests).await.unwrap_err()));
    assert_eq!(requests.snapshot().total(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_ends_at_each_budget_and_resumes() {
    let (live, data) = volume(24_000);
    let clean = fixed(Arc::new(MemoryStore::default()), EncryptionMode::Aes256GcmSiv);
    let base = run(&clean, spec(1, SIZE, set([1]), set([]), None), &live).await.unwrap().manifest;
    let next = spec(2, SIZE, data, set([]), Some(&base));
    let needed = run(&clean, next.clone(), &live).await.unwrap().requests.total();
    assert_eq!(needed, 3 + 2 + 1, "packs, the index, the manifest, and the check of the base");
    for max_requests in 0..=needed {
        let store = Arc::new(MemoryStore::default());
        let repo = fixed(store.clone(), EncryptionMode::Aes256GcmSiv);
        run(&repo, spec(1, SIZE, set([1]), set([]), None), &live).await.unwrap();
        let journal = Arc::new(MemoryJournal::default());
        let manifests = || store.objects().keys().filter(|key| key.starts_with("blockd/manifests/")).count();
        let (made, spent) = run_limited(&repo, &next, &live, &journal, max_requests).await;
        assert!(spent <= max_requests, "{spent} of {max_requests}");
        let manifest = match made {
            Ok(manifest) => {
                assert_eq!((max_requests, spent), (needed, needed));
                manifest
            }
            Err(error) => {
                assert!(is_budget(&error), "{error}");
                assert!(max_requests < needed, "{needed} requests are enough");
                assert_eq!(manifests(), 1, "no commit begins that does not fit");
                // The packs of the first run are not sent again.
                run_limited(&repo, &next, &live, &journal, 1_000).await.0.unwrap()
            }
        };
        assert_eq!(manifests(), 2);
        assert!(restored_with(&repo, &manifest).await.unwrap().0 == live.content());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restore_ends_at_each_budget() {
    let repo = fixed(Arc::new(MemoryStore::default()), EncryptionMode::Aes256GcmSiv);
    let (live, data) = volume(24_000);
    let manifest = run(&repo, spec(1, SIZE, data, set([]), None), &live).await.unwrap().manifest;
    let needed = restored_with(&repo, &manifest).await.unwrap().1;
    for max_requests in 0..=needed.get {
        let (repo, requests) = limited(&repo, max_requests);
        let target = Arc::new(MemoryVolume::default());
        let progress = Arc::new(Progress::new(requests.clone()));
        let (options, cancel) = (RestoreOptions::default(), CancelToken::new());
        let request = RestoreRequest::default();
        let done = restore(&repo, &manifest, target, &request, &options, progress, &cancel).await;
        assert!(requests.snapshot().total() <= max_requests);
        assert_eq!(done.is_ok(), max_requests == needed.get);
        assert!(done.err().is_none_or(|error| is_budget(&error)));
    }
}

/// A budget of bytes counts requests that were sent and not answered yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn egress_stays_within_its_budget() {
    let repo = fixed(Arc::new(MemoryStore::default()), EncryptionMode::Aes256GcmSiv);
    let (live, data) = volume(24_000);
    let manifest = run(&repo, spec(1, SIZE, data, set([]), None), &live).await.unwrap().manifest;
    let needed = restored_with(&repo, &manifest).await.unwrap().1.bytes_down;
    for percent in [1, 50, 99, 100] {
        let max_bytes = needed * percent / 100;
        let (store, requests) = task_store(repo.store().clone(), RetryPolicy::default());
        let check = move |counts: &RequestCounts| (counts.bytes_down > max_bytes).then(String::new);
        requests.set_budget(RequestCounts::default(), Arc::new(check));
        let (repo, target) = (repo.with_store(store), Arc::new(MemoryVolume::default()));
        let progress = Arc::new(Progress::new(requests.clone()));
        let (options, cancel) = (RestoreOptions::default(), CancelToken::new());
        let request = RestoreRequest::default();
        let done = restore(&repo, &manifest, target, &request, &options, progress, &cancel).await;
        assert!(requests.snapshot().bytes_down <= max_bytes);
        assert_eq!(done.is_ok(), percent == 100);
    }
}
