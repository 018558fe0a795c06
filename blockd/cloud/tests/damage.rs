//! Damage of each kind to each object: reads return an error that names the object, and no wrong data.
use crate::common::{BLOCK, CHECKED, Noise, fixed, open, restored, run, set};
use blockd_cloud::{
    CloudError, CloudSnapshotId, DeleteMode, EncryptionMode, ManifestFilter, ManifestKey, NoCache,
    Repository, delete_snapshot,
};
use blockd_extent::{BlockIndex, BlockSet, Extent};
use blockd_testkit::cloud::{MemoryVolume, spec};
use blockd_testkit::store::MemoryStore;
use bytes::Bytes;
use std::{collections::BTreeMap, sync::Arc};

type Content = BTreeMap<u64, Box<[u8]>>;

struct Sample {
    store: Arc<MemoryStore>,
    passphrase: Option<&'static str>,
    snapshots: Vec<(CloudSnapshotId, Content)>,
}

/// A full backup, and an incremental with a trim on it. With `packs`, the full one has that number of packs.
async fn sample(passphrase: Option<&'static str>, packs: u64) -> Sample {
    let store = Arc::new(MemoryStore::default());
    let repo = open(store.clone(), passphrase).await.unwrap();
    let live = MemoryVolume::default();
    let mut noise = Noise(11);
    let blocks = 40 + (packs - 1) * 8192;
    let data = Extent::new(BlockIndex(3), blocks);
    for block in (data.start.0..data.end().0).step_by(if packs > 1 { 64 } else { 5 }) {
        let content: Vec<u8> = (0..BLOCK).map(|i| (block as usize + i / 512) as u8 + 1).collect();
        live.set(block, &content);
    }
    let size = 100_000 * BLOCK as u64;
    let full = spec(1, size, BlockSet::from_iter([data]), set([]), None);
    let full = run(&repo, full, &live).await.unwrap().manifest;
    let mut snapshots = vec![(full.id(), live.content())];
    live.set(4, &[0xee; BLOCK]);
    live.set(900, &noise.block()[..64].repeat(64));
    live.clear(8);
    let incremental = spec(2, size, set([4, 900]), set([8]), Some(&full));
    let incremental = run(&repo, incremental, &live).await.unwrap().manifest;
    snapshots.push((incremental.id(), live.content()));
    Sample { store, passphrase, snapshots }
}

impl Sample {
    /// Reads all snapshots from a damaged store; compares the content of readable ones, returns the errors.
    async fn errors(&self, damaged: MemoryStore) -> Vec<CloudError> {
        let repo = match open(Arc::new(damaged), self.passphrase).await {
            Ok(repo) => repo,
            Err(error) => return vec![error],
        };
        let mut errors = Vec::new();
        for (id, expected) in &self.snapshots {
            let manifest = match repo.manifest(id).await {
                Ok(manifest) => manifest,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            match restored(&repo, &manifest).await {
                Ok(content) => assert!(content == *expected, "wrong data in {id}"),
                Err(error) => errors.push(error),
            }
        }
        errors
    }

    /// The damage must be found, and the message must name the object.
    async fn must_name(&self, key: &str, damaged: MemoryStore, label: &str) {
        if key.starts_with("blockd/keys") {
            // The other copy opens the repository and repairs this one.
            let found = open(Arc::new(damaged.fork()), self.passphrase).await.unwrap().take_slot_findings();
            assert!(
                found.len() == 1 && found[0].object == key && found[0].is_repaired(),
                "{label}: {found:?}"
            );
            assert_eq!(self.errors(damaged).await.len(), 0, "{label}");
            return;
        }
        let errors = self.errors(damaged).await;
        assert!(!errors.is_empty(), "{label}: not detected");
        for error in &errors {
            assert!(error.to_string().contains(key), "{label}: {error}");
            assert!(!error.is_retryable(), "{label}: {error}");
        }
    }

    async fn with(&self, key: &str, body: impl Into<Bytes>, label: &str) {
        let damaged = self.store.fork();
        damaged.insert(key, body);
        self.must_name(key, damaged, label).await;
    }
}

const MODES: [Option<&str>; 2] = [Some("correct horse"), None];

#[tokio::test]
async fn flipped_bit_in_any_byte_is_detected() {
    for passphrase in MODES {
        let sample = sample(passphrase, 1).await;
        let objects = sample.store.objects();
        assert_eq!(
            objects.len(),
            2 + 2 + 2 * 2,
            "two copies of a slot, and manifest, index and pack of each snapshot"
        );
        for (key, body) in objects {
            for at in 0..body.len() {
                let mut flipped = body.to_vec();
                flipped[at] ^= 1 << (at % 8);
                sample.with(&key, flipped, &format!("{key}, byte {at}")).await;
            }
        }
    }
}

#[tokio::test]
async fn flipped_bits_in_large_packs_are_detected() {
    for passphrase in MODES {
        let sample = sample(passphrase, 3).await;
        for (key, body) in sample.store.objects() {
            for at in (0..body.len()).step_by(body.len() / 40 + 1) {
                let mut flipped = body.to_vec();
                flipped[at] ^= 0x80;
                sample.with(&key, flipped, &format!("{key}, byte {at}")).await;
            }
        }
    }
}

#[tokio::test]
async fn truncated_and_missing_objects() {
    for passphrase in MODES {
        let sample = sample(passphrase, 2).await;
        for (key, body) in sample.store.objects() {
            for len in [0, 1, body.len() / 2, body.len() - 1] {
                sample.with(&key, body.slice(..len), &format!("{key} cut to {len}")).await;
            }
            let damaged = sample.store.fork();
            damaged.remove(&key);
            if key.starts_with("blockd/keys") {
                // The other copy exists.
                assert_eq!(sample.errors(damaged.fork()).await.len(), 0, "{key} missing");
                for key in sample.store.objects().keys().filter(|key| key.starts_with("blockd/keys")) {
                    damaged.remove(key);
                }
                // No new slot is created: it would not open the stored objects.
                let errors = sample.errors(damaged).await;
                assert!(matches!(errors[..], [CloudError::KeySlotsGone { .. }]), "{errors:?}");
            } else if key.starts_with("blockd/manifests/") {
                let errors = sample.errors(damaged).await;
                assert!(matches!(errors[..], [CloudError::SnapshotNotFound { .. }]), "{errors:?}");
            } else {
                sample.must_name(&key, damaged, &format!("{key} missing")).await;
            }
        }
    }
}

#[tokio::test]
async fn swapped_objects() {
    for passphrase in MODES {
        let sample = sample(passphrase, 3).await;
        let objects: Vec<_> =
            sample.store.objects().into_iter().filter(|(key, _)| !key.contains("keys")).collect();
        for (left, (left_key, left_body)) in objects.iter().enumerate() {
            for (right_key, right_body) in &objects[left + 1..] {
                let damaged = sample.store.fork();
                damaged.insert(left_key, right_body.clone());
                damaged.insert(right_key, left_body.clone());
                let errors = sample.errors(damaged).await;
                assert!(!errors.is_empty(), "{left_key} and {right_key}: not detected");
                for error in errors {
                    let text = error.to_string();
                    assert!(text.contains(left_key) || text.contains(right_key), "{text}");
                }
            }
        }
    }
}

#[tokio::test]
async fn frames_that_trade_places_within_a_pack() {
    // Two frames of the same length, which differ in their positions only.
    for mode in [EncryptionMode::Checksummed, EncryptionMode::Aes256GcmSiv] {
        let store = Arc::new(MemoryStore::default());
        let repo = fixed(store.clone(), mode);
        let live = MemoryVolume::default();
        let mut noise = Noise(5);
        (0..256).for_each(|block| live.set(block, &noise.block()));
        let data = BlockSet::from_iter([Extent::new(BlockIndex(0), 256)]);
        let done = run(&repo, spec(1, 1 << 30, data, set([]), None), &live).await.unwrap().manifest;
        let (key, body) = store.objects().into_iter().find(|(key, _)| key.contains("/pack-")).unwrap();
        let frame = 128 * BLOCK + 33;
        assert_eq!(body.len(), 64 + 2 * frame);
        let swapped = [&body[..64], &body[64 + frame..], &body[64..64 + frame]].concat();
        store.insert(&key, swapped);
        let error = restored(&repo, &done).await.unwrap_err();
        assert!(matches!(&error, CloudError::Damaged { offset_bytes: 64, blocks: Some(_), .. }), "{error}");
        assert!(error.to_string().contains("blocks 0..128"), "{error}");
    }
}

#[tokio::test]
async fn objects_of_an_earlier_attempt_with_another_salt() {
    for mode in [EncryptionMode::Checksummed, EncryptionMode::Aes256GcmSiv] {
        let live = MemoryVolume::default();
        live.set(1, &[1; BLOCK]);
        let older = Arc::new(MemoryStore::default());
        run(&fixed(older.clone(), mode), spec(1, 1 << 30, set([1]), set([]), None), &live).await.unwrap();
        live.set(1, &[2; BLOCK]);
        let store = Arc::new(MemoryStore::default());
        let repo = fixed(store.clone(), mode);
        let mut newer = spec(1, 1 << 30, set([1]), set([]), None);
        newer.delta_salt = [77; 32];
        let done = run(&repo, newer, &live).await.unwrap().manifest;
        for (key, body) in older.objects().into_iter().filter(|(key, _)| key.contains("/data/")) {
            let before = store.objects()[&key].clone();
            store.insert(&key, body);
            let error = restored(&repo, &done).await.expect_err(&key);
            assert!(error.to_string().contains(&key), "{error}");
            store.insert(&key, before);
        }
    }
}

#[tokio::test]
async fn damaged_manifest_is_listed_with_its_error_and_deletable() {
    let sample = sample(Some("correct horse"), 1).await;
    let repo = open(sample.store.clone(), sample.passphrase).await.unwrap();
    let (full, incremental) = (sample.snapshots[0].0, sample.snapshots[1].0);
    let mut body = sample.store.objects()[&full.manifest_key()].to_vec();
    body[100] ^= 1;
    sample.store.insert(&full.manifest_key(), body);
    sample.store.insert("blockd/manifests/readme.txt", "?");
    let listed = repo.list_manifests(&ManifestFilter::default(), &NoCache).await.unwrap();
    assert_eq!(listed.len(), 3);
    assert_eq!(listed.iter().filter(|entry| entry.manifest.is_ok()).count(), 1);
    assert!(listed.iter().any(|entry| entry.id == Some(full) && entry.manifest.is_err()));

    // It may be the last one that restores.
    let refused = delete_snapshot(&repo, &incremental, &[], &NoCache, CHECKED).await;
    assert!(matches!(refused, Err(CloudError::SiblingUnreadable { key, .. }) if key == full.manifest_key()));
    assert!(repo.manifest(&incremental).await.is_ok());
    // The deltas of the damaged one are unknown, so no delta of the other one is deleted.
    let report = delete_snapshot(&repo, &incremental, &[], &NoCache, DeleteMode::Forced).await.unwrap();
    assert_eq!(report.deltas_deleted, 0);
    assert!(report.kept_reason.unwrap().contains(&full.manifest_key()));
    let report = delete_snapshot(&repo, &full, &[], &NoCache, CHECKED).await.unwrap();
    assert_eq!(report.deltas_deleted, 1);
}

#[tokio::test]
async fn concurrent_initialisation_creates_one_key() {
    let store = Arc::new(MemoryStore::default());
    let other = Arc::new(MemoryStore::default());
    let (first, second) =
        (open(store.clone(), Some("p")).await.unwrap(), open(other.clone(), Some("p")).await.unwrap());
    let plain = Arc::new(MemoryStore::default());
    open(plain.clone(), None).await.unwrap();
    for (key, body) in other.objects().into_iter().chain(plain.objects()) {
        store.insert(&key, body);
    }
    let live = MemoryVolume::default();
    live.set(1, &[1; BLOCK]);
    let second = second.with_store(store.clone());
    let one = run(&first, spec(1, 1 << 30, set([1]), set([]), None), &live).await.unwrap().manifest;
    let two = run(&second, spec(2, 1 << 30, set([1]), set([]), None), &live).await.unwrap().manifest;
    let error = first.manifest(&two.id()).await.unwrap_err();
    assert!(matches!(error, CloudError::UnknownKey { .. }), "{error}");
    let both = open(store.clone(), Some("p")).await.unwrap();
    assert_eq!(both.keys().len(), 2);
    for manifest in [one, two] {
        let manifest = both.manifest(&manifest.id()).await.unwrap();
        assert_eq!(restored(&both, &manifest).await.unwrap(), live.content());
    }
    // The plain slot opens nothing here, and snapshots under its key are rejected.
    let error = open(store.clone(), None).await.unwrap_err();
    assert!(matches!(error, CloudError::EncryptedRepository { .. }), "{error}");
    let planted = Repository::open(plain, None, &crate::common::options()).await.unwrap().with_store(store);
    let planted = run(&planted, spec(3, 1 << 30, set([1]), set([]), None), &live).await.unwrap().manifest;
    let error = both.manifest(&planted.id()).await.unwrap_err();
    assert!(matches!(error, CloudError::UnknownKey { .. }), "{error}");
}
