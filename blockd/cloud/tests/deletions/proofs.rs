//! Proofs of deleted cloud snapshots.
use super::*;
use crate::common::{CLUSTER, proof};
use blockd_cloud::{GarbageOptions, ManifestFilter, ProofKind, collect_garbage, delete_damaged};
use jiff::Timestamp;

async fn proven(repo: &Repository) -> Vec<String> {
    let listed = repo.list_proofs(&ManifestFilter::default()).await.unwrap();
    listed.into_iter().map(|one| one.id.cloudsnap.to_string()).collect()
}

async fn prove(repo: &Repository, manifest: &Manifest, kind: ProofKind) {
    repo.publish_proof(&proof(manifest.id(), kind, 10, CLUSTER)).await.unwrap();
}

#[tokio::test]
async fn deletion_removes_the_proofs_of_its_snapshot_only() {
    for is_damaged in [false, true] {
        let store = Arc::new(MemoryStore::default());
        let repo = with_slot(&store, EncryptionMode::Aes256GcmSiv);
        let (_, first, second) = generations(&repo).await;
        for kind in ProofKind::ALL {
            prove(&repo, &first, kind).await;
        }
        prove(&repo, &second, ProofKind::Full).await;
        match is_damaged {
            false => delete(&repo, &first).await,
            true => drop(delete_damaged(&repo, &first.id(), &[], &NoCache, CHECKED).await.unwrap()),
        }
        assert_eq!(proven(&repo).await, [second.id().to_string()]);
    }
}

/// Each request of a deletion fails once, and a repetition completes it.
#[tokio::test]
async fn repeated_deletion_removes_the_remaining_proofs() {
    let mut is_done = false;
    for operation in 0..100 {
        let store = Arc::new(MemoryStore::default());
        let repo = with_slot(&store, EncryptionMode::Aes256GcmSiv);
        let (_, first, second) = generations(&repo).await;
        prove(&repo, &first, ProofKind::Full).await;
        prove(&repo, &second, ProofKind::Full).await;
        let faults = Arc::new(FaultStore::new(store.clone()));
        faults.fail_at(operation, Fault::BeforeApply);
        let cut_off = repo.with_store(faults);
        is_done = delete_with_manifest(&cut_off, &first, &[], &NoCache, CHECKED).await.is_ok();
        delete(&repo, &first).await;
        assert_eq!(proven(&repo).await, [second.id().to_string()], "request {operation}");
        if is_done {
            break;
        }
    }
    assert!(is_done, "a deletion has fewer requests");
}

/// Another host verifies a snapshot while it is deleted: its proof is garbage, and no proof of a snapshot
/// that exists.
#[tokio::test]
async fn proof_published_during_a_deletion_is_collected_later() {
    let proofs = "blockd/proofs/";
    for moment in [
        Moment { operation: "DELETE", prefix: "blockd/manifests/", suffix: "" },
        Moment { operation: "LIST", prefix: proofs, suffix: "" },
        Moment { operation: "DELETE", prefix: proofs, suffix: "" },
    ] {
        let store = Arc::new(MemoryStore::default());
        store.set_clock(1000);
        let repo = with_slot(&store, EncryptionMode::Aes256GcmSiv);
        let (live, first, second) = generations(&repo).await;
        prove(&repo, &first, ProofKind::Quick).await;
        prove(&repo, &second, ProofKind::Full).await;
        let between = Arc::new(Between::new(&store));
        let (other, verified) = (repo.clone(), first.clone());
        let publishes = async move { prove(&other, &verified, ProofKind::Deep).await };
        *between.after.lock() = Some((moment, Box::pin(publishes)));
        delete(&repo.with_store(between.clone()), &first).await;
        assert!(between.after.lock().is_none(), "the other host did not publish");
        let now = Timestamp::from_second(1000 + 9 * 24 * 3600).unwrap();
        let options = GarbageOptions { now, ..GarbageOptions::default() };
        collect_garbage(&repo, &options, &NoCache).await.unwrap();
        assert_eq!(proven(&repo).await, [second.id().to_string()]);
        live.set(5, &[6; BLOCK]);
        assert_eq!(restored(&repo, &second).await.unwrap(), live.content());
    }
}

/// A collection has listed the proofs when the snapshot is deleted: it may delete all of them, and nothing of
/// the other snapshots.
#[tokio::test]
async fn deletion_during_a_collection_keeps_proofs_of_others() {
    let store = Arc::new(MemoryStore::default());
    store.set_clock(1000);
    let repo = with_slot(&store, EncryptionMode::Aes256GcmSiv);
    let (_, first, second) = generations(&repo).await;
    prove(&repo, &first, ProofKind::Full).await;
    prove(&repo, &second, ProofKind::Full).await;
    let between = Arc::new(Between::new(&store));
    let (other, deleted) = (repo.clone(), first.clone());
    let deletes = on_other_host(move || async move { delete(&other, &deleted).await });
    let listed = Moment { operation: "LIST", prefix: "blockd/proofs/", suffix: "" };
    *between.after.lock() = Some((listed, Box::pin(deletes)));
    let now = Timestamp::from_second(1000 + 9 * 24 * 3600).unwrap();
    let options = GarbageOptions { now, ..GarbageOptions::default() };
    collect_garbage(&repo.with_store(between), &options, &NoCache).await.unwrap();
    assert_eq!(proven(&repo).await, [second.id().to_string()]);
}
