//! The data key of new backups: hidden, forged and foreign keys are not chosen, and restores continue.
use crate::common::{BLOCK, open, put_slot, restored, run, set};
use blockd_cloud::{CloudError, CloudSnapshotId, KnownKeys, Manifest, Rekey, Repository, rekey};
use blockd_testkit::cloud::{FAST_KDF, MemoryVolume, spec};
use blockd_testkit::store::MemoryStore;
use std::sync::Arc;
use uuid::Uuid;
use zeroize::Zeroizing;

const PREFIXES: [&str; 2] = ["blockd/keys/", "blockd/keys-copy/"];
const PASSPHRASE: &str = "correct horse";

fn request(known: KnownKeys) -> Rekey {
    let passphrase = Zeroizing::new(PASSPHRASE.to_owned());
    Rekey { passphrase, kdf: FAST_KDF, known, ..Rekey::default() }
}

async fn new_data_key(store: &Arc<MemoryStore>, known: KnownKeys) -> Repository {
    let request = Rekey { new_data_key: true, ..request(known) };
    rekey(store.clone(), &request).await.unwrap().0
}

async fn backup(repo: &Repository, snapshot: u64) -> Manifest {
    let live = MemoryVolume::default();
    live.set(snapshot, &[1; BLOCK]);
    let spec = spec(snapshot, 1 << 30, set([snapshot]), set([]), None);
    run(repo, spec, &live).await.unwrap().manifest
}

/// Returns the error of a backup that stores no objects.
async fn refused(repo: &Repository, store: &MemoryStore) -> CloudError {
    let before = store.objects();
    let spec = spec(99, 1 << 30, set([1]), set([]), None);
    let Err(error) = run(repo, spec, &MemoryVolume::default()).await else { panic!("a backup was made") };
    assert_eq!(store.objects(), before, "nothing was stored");
    error
}

fn first_key(repo: &Repository) -> Uuid {
    repo.keys()[0].key_id()
}

/// A repository with a second data key, and a backup under each.
async fn sample() -> (Arc<MemoryStore>, Repository, [CloudSnapshotId; 2]) {
    let store = Arc::new(MemoryStore::default());
    let old = open(store.clone(), Some(PASSPHRASE)).await.unwrap();
    let first = backup(&old, 1).await.id();
    let new = new_data_key(&store, old.known_keys()).await;
    assert_ne!(first_key(&new), first_key(&old));
    let second = backup(&new, 2).await.id();
    (store, new, [first, second])
}

async fn reopened(store: &Arc<MemoryStore>, known: &KnownKeys) -> Repository {
    Repository::open_existing(store.clone(), Some(PASSPHRASE), known).await.unwrap()
}

#[tokio::test]
async fn write_key_missing_or_damaged_refuses_writes_only() {
    for is_deleted in [true, false] {
        let (store, repo, [first, _]) = sample().await;
        let pinned = first_key(&repo);
        for prefix in PREFIXES {
            let key = format!("{prefix}{pinned}");
            let mut body = store.remove(&key).unwrap().to_vec();
            body[40] ^= 1;
            if !is_deleted {
                store.insert(&key, body);
            }
        }
        // The host does not remember the slot, so it cannot restore it.
        let known = KnownKeys { slots: Vec::new(), ..repo.known_keys() };
        let repo = reopened(&store, &known).await;
        let error = refused(&repo, &store).await;
        let CloudError::WriteKeyMissing { write_key, newest, .. } = error else { panic!("{error}") };
        assert_eq!((write_key, newest), (pinned, first_key(&repo)));
        let manifest = repo.manifest(&first).await.unwrap();
        restored(&repo, &manifest).await.unwrap();
        assert_eq!(repo.known_keys().write_key, known.write_key, "the key stays pinned");
        // Both remedies.
        let accept = Rekey { accept_key: Some(newest), ..request(repo.known_keys()) };
        let fork = Arc::new(store.fork());
        backup(&rekey(fork, &accept).await.unwrap().0, 3).await;
        backup(&new_data_key(&store, repo.known_keys()).await, 3).await;
    }
}

#[tokio::test]
async fn write_key_that_the_host_remembers_is_put_back() {
    let (store, repo, [_, second]) = sample().await;
    let known = repo.known_keys();
    PREFIXES.iter().for_each(|prefix| drop(store.remove(&format!("{prefix}{}", first_key(&repo)))));
    let again = reopened(&store, &known).await;
    assert_eq!((first_key(&again), again.take_slot_findings().len()), (first_key(&repo), 2));
    backup(&again, 3).await;
    let other = open(store, Some(PASSPHRASE)).await.unwrap();
    assert!(first_key(&other) == first_key(&repo) && other.manifest(&second).await.is_ok());
}

#[tokio::test]
async fn foreign_slot_does_not_become_the_write_key() {
    let (store, repo, [first, second]) = sample().await;
    let known = repo.known_keys();
    // Keys of other repositories with the same passphrase: one older than the keys of this repository is used
    // for reads only.
    put_slot(&store, "older");
    let again = reopened(&store, &known).await;
    assert_eq!((first_key(&again), again.keys().len()), (first_key(&repo), 3));
    again.check_writable().unwrap();
    let planted = put_slot(&store, "newer");
    let again = reopened(&store, &known).await;
    assert_eq!(first_key(&again), first_key(&repo));
    let error = refused(&again, &store).await;
    let CloudError::WriteKeyNotNewest { write_key, newest, .. } = error else { panic!("{error}") };
    assert_eq!((write_key, newest), (first_key(&repo), planted));
    for id in [first, second] {
        let manifest = again.manifest(&id).await.unwrap();
        restored(&again, &manifest).await.unwrap();
    }
    // It stays refused although the hosts remember the slot now.
    let known = again.known_keys();
    assert!(reopened(&store, &known).await.check_writable().is_err());
    let saved = Repository::from_saved_keys(store.clone(), again.keys().to_vec(), &known).unwrap();
    assert!(saved.check_writable().is_err());
    let own = new_data_key(&store, known).await;
    assert!(first_key(&own) != planted);
    backup(&own, 3).await;
}

#[tokio::test]
async fn key_of_another_host_is_written_under_once_accepted() {
    let (store, repo, _) = sample().await;
    let other = new_data_key(&store, KnownKeys::default()).await;
    let snapshot = backup(&other, 7).await.id();
    let again = reopened(&store, &repo.known_keys()).await;
    again.manifest(&snapshot).await.unwrap();
    assert!(matches!(refused(&again, &store).await, CloudError::WriteKeyNotNewest { .. }));
    let known = again.known_keys();
    let wrong = Rekey { accept_key: Some(first_key(&repo)), ..request(known.clone()) };
    let error = rekey(store.clone(), &wrong).await.unwrap_err();
    assert!(error.to_string().contains(&first_key(&other).to_string()), "{error}");
    // Without an acceptance the key is used for reads only.
    let (looked, _) = rekey(store.clone(), &request(known.clone())).await.unwrap();
    assert!(looked.check_writable().is_err());
    let accept = Rekey { accept_key: Some(first_key(&other)), ..request(known) };
    let (accepted, _) = rekey(store.clone(), &accept).await.unwrap();
    assert_eq!(first_key(&accepted), first_key(&other));
    backup(&accepted, 8).await;
    backup(&reopened(&store, &accepted.known_keys()).await, 9).await;
}
