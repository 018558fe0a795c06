//! Changing the passphrase and the data key: stored snapshots stay readable, and interruptions lose nothing.
use crate::common::{BLOCK, open, restored, run, set};
use blockd_cloud::{CloudError, KnownKeys, Rekey, Rekeyed, rekey};
use blockd_store::BlobStore;
use blockd_testkit::cloud::{FAST_KDF, MemoryVolume, spec};
use blockd_testkit::store::{Fault, FaultStore, MemoryStore};
use std::sync::Arc;
use zeroize::Zeroizing;

const SIZE: u64 = 1 << 30;

fn request(old: &str, new: Option<&str>, new_data_key: bool) -> Rekey {
    Rekey {
        passphrase: Zeroizing::new(old.to_owned()),
        new_passphrase: new.map(|text| Zeroizing::new(text.to_owned())),
        new_data_key,
        accept_key: None,
        kdf: FAST_KDF,
        known: KnownKeys::default(),
    }
}

#[tokio::test]
async fn new_passphrase_opens_the_repository_and_the_old_one_fails() {
    let store = Arc::new(MemoryStore::default());
    let repo = open(store.clone(), Some("old")).await.unwrap();
    let live = MemoryVolume::default();
    live.set(1, &[1; BLOCK]);
    let done = run(&repo, spec(1, SIZE, set([1]), set([]), None), &live).await.unwrap().manifest;
    let before = store.objects();
    let (again, rekeyed) = rekey(store.clone(), &request("old", Some("new"), false)).await.unwrap();
    assert_eq!(rekeyed, Rekeyed { rewrapped: 1, foreign: 0, new_data_key: false });
    assert_eq!(again.keys().len(), 1);
    let changed: Vec<_> = store
        .objects()
        .into_iter()
        .filter(|(key, body)| before.get(key) != Some(body))
        .map(|(key, _)| key)
        .collect();
    let both = ["blockd/keys-copy/", "blockd/keys/"];
    assert!(
        changed.len() == 2 && changed.iter().zip(both).all(|(key, prefix)| key.starts_with(prefix)),
        "{changed:?}"
    );
    let error = open(store.clone(), Some("old")).await.unwrap_err();
    assert!(matches!(error, CloudError::WrongPassphrase { .. }), "{error}");
    let reopened = open(store.clone(), Some("new")).await.unwrap();
    let manifest = reopened.manifest(&done.id()).await.unwrap();
    assert_eq!(restored(&reopened, &manifest).await.unwrap(), live.content());
    // Open repositories continue.
    repo.prove_key_slot().await.unwrap();

    let error = rekey(store.clone(), &request("old", Some("newer"), false)).await.unwrap_err();
    assert!(matches!(error, CloudError::WrongPassphrase { slots: 1, .. }), "{error}");
    let error = rekey(store.clone(), &request("new", Some(""), false)).await.unwrap_err();
    assert!(matches!(error, CloudError::InvalidRequest { .. }), "{error}");
    let plain = Arc::new(MemoryStore::default());
    open(plain.clone(), None).await.unwrap();
    let error = rekey(plain, &request("old", None, true)).await.unwrap_err();
    assert!(matches!(error, CloudError::PlainRepository { .. }), "{error}");
}

#[tokio::test]
async fn new_data_key_applies_to_new_backups_of_a_chain() {
    let store = Arc::new(MemoryStore::default());
    let repo = open(store.clone(), Some("p")).await.unwrap();
    let live = MemoryVolume::default();
    live.set(1, &[1; BLOCK]);
    let full = run(&repo, spec(1, SIZE, set([1]), set([]), None), &live).await.unwrap().manifest;
    let (rotated, rekeyed) = rekey(store.clone(), &request("p", None, true)).await.unwrap();
    assert_eq!(rekeyed, Rekeyed { rewrapped: 0, foreign: 0, new_data_key: true });
    assert_eq!(rotated.keys().len(), 2);
    live.set(2, &[2; BLOCK]);
    let tip = run(&rotated, spec(2, SIZE, set([2]), set([]), Some(&full)), &live).await.unwrap().manifest;
    assert_ne!(tip.delta.key_id, full.delta.key_id);
    for repo in [&rotated, &open(store.clone(), Some("p")).await.unwrap()] {
        assert_eq!(repo.keys()[0].key_id(), tip.delta.key_id, "the newest one is used to write");
        let manifest = repo.manifest(&tip.id()).await.unwrap();
        assert_eq!(restored(repo, &manifest).await.unwrap(), live.content());
    }
    // A host that opened it before must open it again.
    let error = repo.manifest(&tip.id()).await.unwrap_err();
    assert!(matches!(error, CloudError::UnknownKey { .. }), "{error}");
}

#[tokio::test]
async fn interrupted_rekey_is_completed_by_the_same_call() {
    for fault in [Fault::BeforeApply, Fault::AfterApply] {
        let mut operation = 0;
        loop {
            let store = Arc::new(MemoryStore::default());
            open(store.clone(), Some("old")).await.unwrap();
            for _ in 0..2 {
                rekey(store.clone(), &request("old", None, true)).await.unwrap();
            }
            let faults = Arc::new(FaultStore::new(store.clone()));
            faults.fail_at(operation, fault);
            let request = request("old", Some("new"), false);
            let outcome = rekey(faults.clone() as Arc<dyn BlobStore>, &request).await;
            if outcome.is_ok() {
                assert!(operation > 6, "it was never interrupted");
                break;
            }
            faults.heal();
            let opens = [
                open(Arc::new(store.fork()), Some("old")).await,
                open(Arc::new(store.fork()), Some("new")).await,
            ];
            assert!(opens.iter().any(Result::is_ok), "{fault:?} at {operation}: neither passphrase opens");
            let (repo, _) = rekey(faults, &request).await.unwrap();
            assert_eq!(repo.keys().len(), 3, "{fault:?} at {operation}");
            assert!(open(store, Some("old")).await.is_err());
            operation += 1;
        }
    }
}
