//! Tests of two daemons with the same volume id and store: each listed snapshot is correct.
use crate::common::{BLOCK, fixed, restored};
use blockd_cloud::{
    BackupSpec, CancelToken, CloudError, EncryptionMode, Manifest, ManifestFilter, MemoryJournal, NoCache,
    Progress, Repository, UploadOptions, backup,
};
use blockd_extent::{BlockIndex, BlockSet, Extent};
use blockd_store::{BlobStore, Requests};
use blockd_testkit::cloud::{MemoryVolume, spec};
use blockd_testkit::store::MemoryStore;
use std::sync::Arc;

const SIZE: u64 = 40_000 * BLOCK as u64;

/// Blocks that do not compress, so that the packs of two volumes have equal lengths and different bytes.
fn volume(seed: u64) -> (MemoryVolume, BlockSet) {
    let live = MemoryVolume::default();
    let mut state = seed;
    let data = Extent::new(BlockIndex(0), 8192 * 3);
    for block in (0..data.len_blocks).filter(|block| block % 16 == 0) {
        let words = (0..BLOCK / 8).flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        live.set(block, &words.collect::<Vec<u8>>());
    }
    (live, BlockSet::from_iter([data]))
}

async fn run(
    repo: &Repository,
    spec: BackupSpec,
    live: &MemoryVolume,
    write_once: bool,
) -> Result<Manifest, CloudError> {
    let progress = Arc::new(Progress::new(Arc::new(Requests::default())));
    let options = UploadOptions { write_once, ..UploadOptions::default() };
    let (journal, cancel) = (Arc::new(MemoryJournal::default()), CancelToken::new());
    backup(repo, Arc::new(spec), Arc::new(live.fork()), journal, &options, progress, &cancel).await
}

async fn check_listed(repo: &Repository, volumes: &[&MemoryVolume]) -> usize {
    let listed = repo.list_manifests(&ManifestFilter::default(), &NoCache).await.unwrap();
    for entry in &listed {
        let content = restored(repo, entry.manifest.as_ref().unwrap()).await.unwrap();
        assert!(volumes.iter().any(|volume| volume.content() == content), "{} is a mixture", entry.key);
    }
    listed.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_backups_restore_on_every_store() {
    for store in
        [MemoryStore::default(), MemoryStore::ignoring_conditions(), MemoryStore::refusing_conditions()]
    {
        let repo = fixed(Arc::new(store), EncryptionMode::Aes256GcmSiv);
        let ((left, data), (right, _)) = (volume(1), volume(2));
        // The same cluster and volume; each task chose a different snapshot id.
        let both = futures::join!(
            run(&repo, spec(7, SIZE, data.clone(), BlockSet::new(), None), &left, false),
            run(&repo, spec(8, SIZE, data.clone(), BlockSet::new(), None), &right, false),
        );
        let (first, second) = (both.0.unwrap(), both.1.unwrap());
        assert_eq!(restored(&repo, &first).await.unwrap(), left.content());
        assert_eq!(restored(&repo, &second).await.unwrap(), right.content());
        assert_eq!(check_listed(&repo, &[&left, &right]).await, 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_runs_of_a_task_never_mix() {
    let ((left, data), (right, _)) = (volume(1), volume(2));
    let (mut won, mut refused) = (0, 0);
    for round in 0..12u32 {
        let store: Arc<dyn BlobStore> = Arc::new(MemoryStore::default());
        let repo = fixed(store, EncryptionMode::Aes256GcmSiv);
        // The same id, salt and keys: a daemon and its copy, whose frozen points differ.
        let task = || spec(7, SIZE, data.clone(), BlockSet::new(), None);
        let slow = async {
            for _ in 0..round {
                tokio::task::yield_now().await;
            }
            run(&repo, task(), &right, true).await
        };
        let (first, second) = futures::join!(run(&repo, task(), &left, true), slow);
        for result in [&first, &second] {
            match result {
                Ok(_) => won += 1,
                Err(error) => {
                    assert!(matches!(error, CloudError::Conflict { .. }), "{error}");
                    refused += 1;
                }
            }
        }
        let listed = check_listed(&repo, &[&left, &right]).await;
        assert_eq!(listed, usize::from(first.is_ok() || second.is_ok()));
        assert!(first.is_err() || second.is_err(), "both claim to have stored the same snapshot");
    }
    assert!(refused > 0, "{won} won, {refused} were refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_runs_with_equal_content_succeed() {
    let repo = fixed(Arc::new(MemoryStore::default()), EncryptionMode::Aes256GcmSiv);
    let (live, data) = volume(3);
    let task = || spec(7, SIZE, data.clone(), BlockSet::new(), None);
    let (first, second) = futures::join!(run(&repo, task(), &live, true), run(&repo, task(), &live, true));
    assert_eq!(first.unwrap().delta, second.unwrap().delta);
    assert_eq!(check_listed(&repo, &[&live]).await, 1);
}
