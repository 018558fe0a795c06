//! Damaged, missing, forged and outdated key slots: verification names them, hosts repair them, other hosts
//! open the repository.
use crate::common::{BLOCK, open, requests, run, set};
use blockd_cloud::{
    CancelToken, CloudError, CloudSnapshotId, KnownKeys, NoCache, Progress, Rekey, Repository, SlotFinding,
    SlotRepair, VerifyDepth, VerifyOptions, VerifyReport, rekey, verify,
};
use blockd_store::BlobStore;
use blockd_testkit::cloud::{FAST_KDF, MemoryVolume, spec};
use blockd_testkit::store::{Fault, FaultStore, MemoryStore};
use std::{collections::BTreeMap, sync::Arc};
use zeroize::Zeroizing;

const PREFIXES: [&str; 2] = ["blockd/keys/", "blockd/keys-copy/"];
const MODES: [Option<&str>; 2] = [Some("correct horse"), None];

struct Sample {
    store: Arc<MemoryStore>,
    repo: Repository,
    snapshot: CloudSnapshotId,
    passphrase: Option<&'static str>,
}

async fn sample(passphrase: Option<&'static str>) -> Sample {
    let store = Arc::new(MemoryStore::default());
    let repo = open(store.clone(), passphrase).await.unwrap();
    let live = MemoryVolume::default();
    live.set(1, &[1; BLOCK]);
    let snapshot = run(&repo, spec(1, 1 << 30, set([1]), set([]), None), &live).await.unwrap().manifest.id();
    Sample { store, repo, snapshot, passphrase }
}

impl Sample {
    /// The object of one copy of the only slot.
    fn slot(&self, copy: usize) -> String {
        format!("{}{}", PREFIXES[copy], self.repo.keys()[0].key_id())
    }

    fn slots(&self) -> BTreeMap<String, Vec<u8>> {
        let objects = self.store.objects().into_iter();
        objects
            .filter(|(key, _)| key.starts_with("blockd/keys"))
            .map(|(key, body)| (key, body.to_vec()))
            .collect()
    }

    fn remove_slots(&self) {
        self.slots().keys().for_each(|key| drop(self.store.remove(key)));
    }

    async fn verify(&self, depth: VerifyDepth) -> VerifyReport {
        let options = VerifyOptions { depth, ..VerifyOptions::default() };
        let (progress, cancel) = (Arc::new(Progress::new(requests())), CancelToken::new());
        let ids = [self.snapshot];
        verify(&self.repo, &ids, &options, &|_| None, &NoCache, progress, &cancel).await.unwrap()
    }

    /// A verification names the object, and the host repairs it.
    async fn is_found_and_repaired(&self, key: &str, depth: VerifyDepth, label: &str) {
        let report = self.verify(depth).await;
        assert_eq!((report.findings.len(), report.findings_total), (1, 1), "{label}: {:?}", report.findings);
        assert!(report.findings[0].object == key, "{label}: {:?}", report.findings);
        assert!(report.findings[0].what.ends_with("; repaired"), "{label}: {:?}", report.findings);
        assert!(report.snapshots.iter().all(|snapshot| snapshot.is_sound()), "{label}");
    }

    async fn opens_elsewhere(&self) -> bool {
        let repo = open(self.store.clone(), self.passphrase).await.unwrap();
        repo.manifest(&self.snapshot).await.is_ok() && repo.take_slot_findings().is_empty()
    }
}

fn request(old: &str, new: Option<&str>, known: KnownKeys) -> Rekey {
    Rekey {
        passphrase: Zeroizing::new(old.to_owned()),
        new_passphrase: new.map(|text| Zeroizing::new(text.to_owned())),
        new_data_key: false,
        accept_key: None,
        kdf: FAST_KDF,
        known,
    }
}

fn repaired(findings: &[SlotFinding]) -> Vec<bool> {
    findings.iter().map(SlotFinding::is_repaired).collect()
}

#[tokio::test]
async fn verify_slot_with_any_flipped_bit_repairs_it() {
    for passphrase in MODES {
        let sample = sample(passphrase).await;
        let whole = sample.slots();
        for copy in 0..2 {
            let key = sample.slot(copy);
            for bit in 0..whole[&key].len() * 8 {
                let mut flipped = whole[&key].clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                sample.store.insert(&key, flipped);
                sample.is_found_and_repaired(&key, VerifyDepth::Quick, &format!("{key}, bit {bit}")).await;
                assert_eq!(sample.slots(), whole);
            }
        }
        assert!(sample.opens_elsewhere().await);
    }
}

#[tokio::test]
async fn verify_lost_or_foreign_slot_repairs_it_at_any_depth() {
    for passphrase in MODES {
        let (sample, other) = (sample(passphrase).await, sample(passphrase).await);
        let whole = sample.slots();
        for depth in [VerifyDepth::Quick, VerifyDepth::Full, VerifyDepth::Deep] {
            for copy in 0..2 {
                let key = sample.slot(copy);
                let body = &whole[&key];
                let foreign = other.slots()[&other.slot(copy)].clone();
                let mut renamed = foreign.clone();
                renamed[12..28].copy_from_slice(&body[12..28]);
                let longer = [body.clone(), vec![0; 8]].concat();
                for damaged in [vec![], body[..1].to_vec(), body[..143].to_vec(), longer, foreign, renamed] {
                    sample.store.insert(&key, damaged);
                    sample.is_found_and_repaired(&key, depth, &key).await;
                }
                sample.store.remove(&key);
                sample.is_found_and_repaired(&key, depth, &key).await;
                assert_eq!(sample.slots(), whole);
                assert_eq!(sample.verify(depth).await.findings_total, 0);
            }
        }
        assert!(sample.opens_elsewhere().await);
    }
}

#[tokio::test]
async fn open_with_one_copy_left_repairs_the_other() {
    for passphrase in MODES {
        let sample = sample(passphrase).await;
        let whole = sample.slots();
        for copy in 0..2 {
            sample.store.remove(&sample.slot(copy));
            let repo = open(sample.store.clone(), passphrase).await.unwrap();
            assert_eq!(repaired(&repo.take_slot_findings()), [true]);
            assert_eq!(sample.slots(), whole);
        }
        // The repository of a read-only store opens.
        sample.store.remove(&sample.slot(0));
        let faults = Arc::new(FaultStore::new(sample.store.clone()));
        faults.fail_writes(Fault::BeforeApply);
        let repo = open(faults, passphrase).await.unwrap();
        let findings = repo.take_slot_findings();
        assert!(matches!(findings[0].repair, SlotRepair::Failed(_)), "{findings:?}");
        assert!(repo.manifest(&sample.snapshot).await.is_ok());
    }
}

#[tokio::test]
async fn slot_without_any_copy_is_restored_by_its_host() {
    for passphrase in MODES {
        let sample = sample(passphrase).await;
        let (whole, known) = (sample.slots(), sample.repo.known_keys());
        let known = KnownKeys { slots: KnownKeys::decode_slots(&known.encode_slots()), ..known };
        sample.remove_slots();
        let error = open(sample.store.clone(), passphrase).await.unwrap_err();
        assert!(matches!(error, CloudError::KeySlotsGone { .. }), "{error}");
        // By a verification, by the proof before a backup, and when the host opens the repository.
        assert_eq!(sample.verify(VerifyDepth::Quick).await.findings_total, 2);
        assert_eq!(sample.slots(), whole);
        sample.remove_slots();
        sample.repo.prove_key_slot().await.unwrap();
        assert_eq!(sample.slots(), whole);
        sample.remove_slots();
        let repo = Repository::open_existing(sample.store.clone(), passphrase, &known).await.unwrap();
        assert_eq!(repaired(&repo.take_slot_findings()), [true, true]);
        assert_eq!(sample.slots(), whole);
        assert!(sample.opens_elsewhere().await);
    }
}

/// The mount point of an unmounted disk is an empty directory.
#[tokio::test]
async fn slot_is_not_restored_into_another_store() {
    for passphrase in MODES {
        let sample = sample(passphrase).await;
        let known = sample.repo.known_keys();
        let empty = Arc::new(MemoryStore::default());
        let foreign = Arc::new(MemoryStore::default());
        open(foreign.clone(), passphrase).await.unwrap();
        let kept = foreign.objects();
        for store in [empty.clone(), foreign.clone()] {
            let there = sample.repo.with_store(store);
            let error = there.prove_key_slot().await.unwrap_err();
            assert!(matches!(error, CloudError::KeySlotMissing { .. }), "{error}");
            let found = there.check_key_slots().await.unwrap();
            assert!(found.iter().all(|found| matches!(found.repair, SlotRepair::NotTried(_))), "{found:?}");
        }
        let error = Repository::open_existing(empty.clone(), passphrase, &known).await.unwrap_err();
        assert!(matches!(error, CloudError::KeySlotMissing { .. }), "{error}");
        if let Some(passphrase) = passphrase {
            let error = rekey(empty.clone(), &request(passphrase, Some("new"), known)).await.unwrap_err();
            assert!(matches!(error, CloudError::KeySlotMissing { .. }), "{error}");
        }
        assert_eq!((empty.objects().len(), foreign.objects()), (0, kept));
    }
}

#[tokio::test]
async fn old_slot_put_back_after_rekey_is_replaced() {
    let sample = sample(MODES[0]).await;
    let before = sample.slots();
    let known = sample.repo.known_keys();
    let (repo, _) = rekey(sample.store.clone(), &request("correct horse", Some("new"), known)).await.unwrap();
    let after = sample.slots();
    assert!(
        after.values().all(|slot| before.values().all(|old| old != slot)),
        "no copy of the old slot is left"
    );
    for copies in [vec![0], vec![1], vec![0, 1]] {
        for copy in &copies {
            sample.store.insert(&sample.slot(*copy), before[&sample.slot(*copy)].clone());
        }
        let found = repo.check_key_slots().await.unwrap();
        assert_eq!(repaired(&found), vec![true; copies.len()]);
        assert_eq!(sample.slots(), after);
    }
    // A host that opened the repository before the change takes the new slot for genuine.
    assert_eq!(sample.repo.check_key_slots().await.unwrap(), []);
    assert_eq!(sample.repo.known_keys(), repo.known_keys());
    let error =
        Repository::open_existing(sample.store.clone(), MODES[0], &repo.known_keys()).await.unwrap_err();
    assert!(matches!(error, CloudError::WrongPassphrase { .. }), "{error}");
}

#[tokio::test]
async fn remembered_slot_of_old_passphrase_does_not_open() {
    let sample = sample(MODES[0]).await;
    let known = sample.repo.known_keys();
    let store = sample.store.clone() as Arc<dyn BlobStore>;
    rekey(store.clone(), &request("correct horse", Some("new"), KnownKeys::default())).await.unwrap();
    let error = Repository::open_existing(store.clone(), MODES[0], &known).await.unwrap_err();
    assert!(matches!(error, CloudError::WrongPassphrase { .. }), "{error}");
    let repo = Repository::open_existing(store, Some("new"), &known).await.unwrap();
    assert_eq!((repo.take_slot_findings(), repo.known_keys() != known), (vec![], true));
}

#[tokio::test]
async fn interrupted_passphrase_change_leaves_both_copies() {
    let sample = sample(MODES[0]).await;
    let faults = Arc::new(FaultStore::new(sample.store.clone()));
    let change = request("correct horse", Some("new"), sample.repo.known_keys());
    // Two listings, two reads, and the first of the two writes.
    faults.fail_from(5, Fault::BeforeApply);
    rekey(faults, &change).await.unwrap_err();
    let between = sample.slots();
    assert_ne!(between[&sample.slot(0)], between[&sample.slot(1)]);
    for passphrase in ["correct horse", "new"] {
        let known = sample.repo.known_keys();
        let repo = Repository::open_existing(sample.store.clone(), Some(passphrase), &known).await.unwrap();
        assert_eq!(repaired(&repo.take_slot_findings()), [false], "{passphrase}");
    }
    let found = sample.verify(VerifyDepth::Quick).await.findings;
    assert!(found[0].what.contains("a passphrase change was interrupted"), "{found:?}");
    assert_eq!(sample.slots(), between);
    let (repo, done) = rekey(sample.store.clone(), &change).await.unwrap();
    assert_eq!((done.rewrapped, repo.check_key_slots().await.unwrap()), (1, vec![]));
    let error = open(sample.store.clone(), MODES[0]).await.unwrap_err();
    assert!(matches!(error, CloudError::WrongPassphrase { .. }), "{error}");
}

/// Slots of keys of their own below a store, as a holder of the bucket would add them.
fn add_slots(store: &MemoryStore, count: u8, m_kib: u32, t: u32) {
    let genuine = store.objects().into_iter().find(|(key, _)| key.starts_with(PREFIXES[0])).unwrap().1;
    for number in 0..count {
        let id = uuid::Uuid::from_bytes([number + 1; 16]);
        let mut slot = genuine.to_vec();
        slot[12..28].copy_from_slice(id.as_bytes());
        slot[28..32].copy_from_slice(&m_kib.to_le_bytes());
        slot[32..36].copy_from_slice(&t.to_le_bytes());
        let sum = xxhash_rust::xxh3::xxh3_64(&slot[..136]);
        slot[136..].copy_from_slice(&sum.to_le_bytes());
        PREFIXES.iter().for_each(|prefix| store.insert(&format!("{prefix}{id}"), slot.clone()));
    }
}

#[tokio::test]
async fn costly_foreign_slots_are_not_tried() {
    let one = sample(MODES[0]).await;
    let known = one.repo.known_keys();
    // Each would take 1 GiB and seconds; the test would take minutes.
    add_slots(&one.store, 63, 1 << 20, 16);
    for known in [known, KnownKeys::default()] {
        let repo = Repository::open_existing(one.store.clone(), MODES[0], &known).await.unwrap();
        repo.manifest(&one.snapshot).await.unwrap();
    }
    let wrong = Repository::open_existing(one.store.clone(), Some("wrong"), &KnownKeys::default()).await;
    assert!(matches!(wrong, Err(CloudError::KeySlotsLeftOut { left_out: 63, .. })), "{:?}", wrong.err());
}

#[tokio::test]
async fn surplus_slots_do_not_keep_older_ones_from_opening() {
    let one = sample(MODES[0]).await;
    one.store.set_clock(100);
    add_slots(&one.store, 200, 8, 1);
    for known in [one.repo.known_keys(), KnownKeys::default()] {
        let repo = Repository::open_existing(one.store.clone(), MODES[0], &known).await.unwrap();
        repo.manifest(&one.snapshot).await.unwrap();
        let rotated = Rekey { new_data_key: true, ..request("correct horse", None, known) };
        let refused = rekey(one.store.clone(), &rotated).await;
        assert!(matches!(refused, Err(CloudError::TooManyKeys { found: 202, .. })), "{:?}", refused.err());
    }
}
