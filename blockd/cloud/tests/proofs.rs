//! Proofs of cloud snapshots: publication, listing, replacement and damage.
use crate::common::{fixed, options, proof, with_slot};
use blockd_cloud::{
    CloudError, CloudSnapshotId, EncryptionMode, ListedProof, ManifestFilter, Proof, ProofId, ProofKind,
    Rekey, Repository, rekey,
};
use blockd_extent::BlockSet;
use blockd_testkit::cloud::{data_key, spec};
use blockd_testkit::store::{Fault, FaultStore, MemoryStore};
use jiff::Timestamp;
use std::sync::Arc;
use uuid::Uuid;
use zeroize::Zeroizing;

const MODES: [EncryptionMode; 2] = [EncryptionMode::Checksummed, EncryptionMode::Aes256GcmSiv];
const HOST: Uuid = Uuid::from_u128(0xa);
const OTHER_HOST: Uuid = Uuid::from_u128(0xb);

fn id(snapshot: u64) -> CloudSnapshotId {
    spec(snapshot, 1 << 20, BlockSet::new(), BlockSet::new(), None).id()
}

async fn listed(repo: &Repository) -> Vec<ListedProof> {
    repo.list_proofs(&ManifestFilter::default()).await.unwrap()
}

async fn ids(repo: &Repository) -> Vec<ProofId> {
    listed(repo).await.into_iter().map(|one| one.id).collect()
}

/// Returns the readable proofs, and the errors of the others.
async fn read(repo: &Repository) -> (Vec<Proof>, Vec<CloudError>) {
    let (mut proofs, mut errors) = (Vec::new(), Vec::new());
    for (_, proof) in repo.read_proofs(listed(repo).await).await {
        match proof {
            Ok(proof) => proofs.push(proof),
            Err(error) => errors.push(error),
        }
    }
    (proofs, errors)
}

/// A proof of damage.
fn damage(snapshot: u64, second: i64) -> Proof {
    Proof { sound: false, ..proof(id(snapshot), ProofKind::Deep, second, OTHER_HOST) }
}

#[tokio::test]
async fn published_proofs_are_read_by_other_hosts() {
    for mode in MODES {
        let store = Arc::new(MemoryStore::default());
        let repo = fixed(store.clone(), mode);
        store.set_clock(1000);
        let published = [
            proof(id(1), ProofKind::Quick, 900, HOST),
            proof(id(1), ProofKind::Full, 5000, HOST),
            damage(2, 950),
            proof(id(2), ProofKind::Drill, 990, HOST),
        ];
        for one in &published {
            assert_eq!(repo.publish_proof(one).await.unwrap(), one.id());
        }
        store.insert("blockd/proofs/readme.txt", "?");
        store.insert(&format!("blockd/proofs/{}/notes.txt", id(1)), "?");

        let other = fixed(store.clone(), mode);
        assert_eq!(read(&other).await.0, published);
        let stored: Vec<_> = listed(&other).await.into_iter().map(|one| one.stored).collect();
        assert_eq!(stored, [Some(Timestamp::from_second(1000).unwrap()); 4]);
        let of = |snapshot| ManifestFilter { volume: Some(id(snapshot).volume), ..ManifestFilter::default() };
        assert_eq!(other.list_proofs(&of(1)).await.unwrap().len(), 4);
        let none = ManifestFilter { cluster: Some(Uuid::nil()), ..ManifestFilter::default() };
        assert_eq!(other.list_proofs(&none).await.unwrap(), []);
    }
}

#[tokio::test]
async fn repeated_publication_stores_one_proof() {
    for (store, is_conditional) in
        [(MemoryStore::default(), true), (MemoryStore::refusing_conditions(), false)]
    {
        let store = Arc::new(store);
        let repo = fixed(store.clone(), EncryptionMode::Aes256GcmSiv);
        let one = proof(id(1), ProofKind::Full, 10, HOST);
        let faults = Arc::new(FaultStore::new(store.clone()));
        faults.fail_from(0, Fault::AfterApply);
        repo.with_store(faults).publish_proof(&one).await.unwrap_err();
        // Its host was renamed meanwhile.
        let renamed = Proof { host_name: "db2".into(), ..one.clone() };
        repo.publish_proof(&renamed).await.unwrap();
        let stored = if is_conditional { one } else { renamed };
        assert_eq!(
            read(&repo).await.0,
            [stored],
            "a proof is never overwritten where the store can refuse it"
        );
    }
}

#[tokio::test]
async fn later_proof_replaces_own_ones_of_its_kind_only() {
    let repo = fixed(Arc::new(MemoryStore::default()), EncryptionMode::Aes256GcmSiv);
    let kept = [
        proof(id(1), ProofKind::Quick, 10, HOST),
        proof(id(1), ProofKind::Full, 10, OTHER_HOST),
        proof(id(1), ProofKind::Full, 50, HOST),
        proof(id(2), ProofKind::Full, 10, HOST),
    ];
    let replaced = proof(id(1), ProofKind::Full, 20, HOST);
    for one in kept.iter().chain([&replaced]) {
        repo.publish_proof(one).await.unwrap();
    }
    // A result that was published late replaces no later one.
    let later = proof(id(1), ProofKind::Full, 30, HOST);
    repo.publish_proof(&later).await.unwrap();
    let mut expected: Vec<ProofId> = kept.iter().chain([&later]).map(Proof::id).collect();
    expected.sort_by_key(ProofId::key);
    assert_eq!(ids(&repo).await, expected);
}

#[tokio::test]
async fn proof_replaces_own_ones_of_a_clock_that_was_ahead() {
    let repo = fixed(Arc::new(MemoryStore::default()), EncryptionMode::Aes256GcmSiv);
    let now_s = Timestamp::now().as_second();
    let [ahead, other] = [HOST, OTHER_HOST].map(|host| proof(id(1), ProofKind::Full, 2 * now_s, host));
    let corrected = proof(id(1), ProofKind::Full, now_s, HOST);
    for one in [&ahead, &other, &corrected] {
        repo.publish_proof(one).await.unwrap();
    }
    assert_eq!(ids(&repo).await, [corrected.id(), other.id()]);
}

#[tokio::test]
async fn proof_is_stored_where_nothing_can_be_deleted() {
    let store = Arc::new(MemoryStore::default());
    let repo = fixed(store.clone(), EncryptionMode::Aes256GcmSiv);
    let [earlier, later] = [10, 20].map(|second| proof(id(1), ProofKind::Full, second, HOST));
    repo.publish_proof(&earlier).await.unwrap();
    let locked = Arc::new(FaultStore::new(store.clone()));
    // The first operation stores the proof.
    locked.fail_from(1, Fault::Unauthorized);
    repo.with_store(locked).publish_proof(&later).await.unwrap();
    assert_eq!(ids(&repo).await, [earlier.id(), later.id()]);
}

#[tokio::test]
async fn flipped_bit_in_any_byte_of_a_proof_is_detected() {
    for mode in MODES {
        let store = Arc::new(MemoryStore::default());
        let repo = fixed(store.clone(), mode);
        let (intact, altered) = (proof(id(1), ProofKind::Full, 10, HOST), damage(1, 20));
        repo.publish_proof(&intact).await.unwrap();
        repo.publish_proof(&altered).await.unwrap();
        let key = altered.id().key();
        let body = store.objects()[&key].to_vec();
        let ignored = async |damaged: Vec<u8>| {
            store.insert(&key, damaged);
            let (proofs, errors) = read(&repo).await;
            assert_eq!(proofs, std::slice::from_ref(&intact), "the other one stays readable");
            let [error @ CloudError::ProofIgnored(_)] = &errors[..] else { panic!("{errors:?}") };
            assert!(error.to_string().contains("ignored") && error.to_string().contains(&key), "{error}");
            assert!(!error.is_retryable(), "{error}");
        };
        for bit in 0..body.len() * 8 {
            let mut flipped = body.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            ignored(flipped).await;
        }
        for len in [0, 1, body.len() / 2, body.len() - 1] {
            ignored(body[..len].to_vec()).await;
        }
        ignored([&body[..], &[0]].concat()).await;
        ignored(vec![0; (1 << 16) + 1]).await;
        ignored(store.objects()[&intact.id().key()].to_vec()).await;
        store.insert(&key, body);
        assert_eq!(read(&repo).await.0, [intact, altered]);
    }
}

#[tokio::test]
async fn proof_moved_to_another_name_is_ignored() {
    for mode in MODES {
        let store = Arc::new(MemoryStore::default());
        let repo = fixed(store.clone(), mode);
        let one = proof(id(1), ProofKind::Quick, 10, HOST);
        repo.publish_proof(&one).await.unwrap();
        let body = store.remove(&one.id().key()).unwrap();
        let names = [
            ProofId { cloudsnap: id(2), ..one.id() },
            ProofId { proven_unix_ms: 10_001, ..one.id() },
            ProofId { kind: ProofKind::Deep, ..one.id() },
            ProofId { host: OTHER_HOST, ..one.id() },
        ];
        names.iter().for_each(|name| store.insert(&name.key(), body.clone()));
        let (proofs, errors) = read(&repo).await;
        assert_eq!((proofs.len(), errors.len()), (0, names.len()), "{errors:?}");
    }
}

#[tokio::test]
async fn proof_under_an_unknown_key_is_ignored() {
    let store = Arc::new(MemoryStore::default());
    let repo = fixed(store.clone(), EncryptionMode::Aes256GcmSiv);
    let key = data_key(0x77, EncryptionMode::Aes256GcmSiv, [1; 32]);
    let foreign = Repository::from_saved_keys(store.clone(), vec![key], &Default::default()).unwrap();
    let one = proof(id(1), ProofKind::Full, 10, HOST);
    foreign.publish_proof(&one).await.unwrap();
    let (_, errors) = read(&repo).await;
    let [CloudError::ProofIgnored(cause)] = &errors[..] else { panic!("{errors:?}") };
    assert!(matches!(**cause, CloudError::UnknownKey { .. }), "{cause}");
}

#[tokio::test]
async fn outage_while_proofs_are_read_is_retryable() {
    let store = Arc::new(MemoryStore::default());
    let repo = with_slot(&store, EncryptionMode::Aes256GcmSiv);
    repo.publish_proof(&proof(id(1), ProofKind::Full, 10, HOST)).await.unwrap();
    let all = listed(&repo).await;
    let faults = Arc::new(FaultStore::new(store.clone()));
    faults.fail_all(Fault::BeforeApply);
    let read = repo.with_store(faults).read_proofs(all.clone()).await;
    assert!(matches!(&read[..], [(_, Err(error))] if error.is_retryable()), "{read:?}");
    store.remove(&all[0].id.key());
    assert!(repo.read_proofs(all).await.is_empty(), "deleted since the listing");
}

#[tokio::test]
async fn proofs_with_invalid_texts_or_drills_are_refused() {
    let store = Arc::new(MemoryStore::default());
    let repo = fixed(store.clone(), EncryptionMode::Aes256GcmSiv);
    let sound = proof(id(1), ProofKind::Full, 10, HOST);
    let long = "x".repeat(256);
    let drill = proof(id(1), ProofKind::Drill, 10, HOST);
    let invalid = [
        Proof { host_name: long, ..sound.clone() },
        Proof { version: "1\n2".into(), ..sound.clone() },
        Proof { sound: false, ..drill.clone() },
        Proof { drill: None, ..drill.clone() },
        Proof { drill: drill.drill, ..sound },
    ];
    for one in invalid {
        let error = repo.publish_proof(&one).await.unwrap_err();
        assert!(matches!(error, CloudError::InvalidRequest { .. }), "{error}");
    }
    assert!(store.objects().is_empty());
}

#[tokio::test]
async fn host_with_an_outdated_write_key_publishes_nothing() {
    let store = Arc::new(MemoryStore::default());
    let old = Repository::open(store.clone(), Some("correct horse"), &options()).await.unwrap();
    let request = Rekey {
        passphrase: Zeroizing::new("correct horse".to_owned()),
        kdf: options().kdf,
        known: old.known_keys(),
        new_data_key: true,
        ..Rekey::default()
    };
    let (new, _) = rekey(store.clone(), &request).await.unwrap();
    let one = proof(id(1), ProofKind::Full, 10, HOST);
    new.publish_proof(&one).await.unwrap();
    let behind =
        Repository::open_existing(store.clone(), Some("correct horse"), &old.known_keys()).await.unwrap();
    let error = behind.publish_proof(&Proof { proven: Timestamp::now(), ..one.clone() }).await.unwrap_err();
    assert!(matches!(error, CloudError::WriteKeyNotNewest { .. }), "{error}");
    assert_eq!(read(&behind).await.0, [one], "it reads with both keys");
}
