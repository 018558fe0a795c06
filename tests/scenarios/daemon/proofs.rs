//! Proofs of cloud snapshots: other hosts of a location see the results of verifications.

use super::{drills::drill_of, *};
use blockd_api::{
    cloudsnaps::{CloudsnapStatus, LastProof, VerifyDepth},
    events::ListEvents,
};
use blockd_catalog::ProofRow;
use jiff::{SignedDuration, Timestamp};

impl Host {
    pub(super) async fn verify_snapshot(&self, snap: &str, depth: VerifyDepth) -> Task {
        let cloud_snapshot_id = Some(snap.parse().unwrap());
        self.verify(&StartVerify { cloud_snapshot_id, depth, ..Default::default() }).await
    }

    /// Returns the last proof of the only cloud snapshot.
    async fn last_proof(&self) -> Option<LastProof> {
        let list = self.list().await;
        assert_eq!(list.len(), 1);
        list[0].last_proof.clone()
    }

    fn proof_files(&self) -> Vec<String> {
        walk(&self.store.path().join("blockd/proofs"))
    }

    /// Makes a backup; returns its id.
    async fn backed_up(&self) -> String {
        let volume = self.create_volume("data").await;
        self.create_credential().await;
        Model::new().write(&volume, 0, 1, 1 << 20);
        self.backup("data", true).await.cloud_snapshot_id.unwrap()
    }

    /// Makes a backup and verifies it with a damaged pack; returns its id, the pack, and the intact content.
    async fn backed_up_and_damaged(&self) -> (String, String, Vec<u8>) {
        let snap = self.backed_up().await;
        let pack = self.packs().remove(0);
        let intact = fs::read(&pack).unwrap();
        damage(&pack);
        let task = self.verify_snapshot(&snap, VerifyDepth::Full).await;
        assert_eq!(task.state.stage, TaskStage::Failed);
        (snap, pack, intact)
    }

    /// Returns the number of damaged cloud snapshots in the metrics.
    pub(super) async fn damaged(&self) -> String {
        let text = self.metrics_text().await;
        let name = "blockd_cloudsnaps_damaged{credential=\"nas\"} ";
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned()
    }

    /// Starts another host with the same store.
    async fn other(&self) -> Self {
        let other = Self::with_store(self.store.clone()).await;
        other.create_credential().await;
        other
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = {
            let entry = entry.unwrap();
            (entry.path(), to.join(entry.file_name()))
        };
        match from.is_dir() {
            true => copy_dir(&from, &to),
            false => drop(fs::copy(from, to).unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn proof_is_seen_by_other_and_reinstalled_hosts() {
    let host = Host::new().await;
    let snap = host.backed_up().await;
    assert_eq!(host.proof_files().len(), 0, "a backup is no proof");
    host.verify_snapshot(&snap, VerifyDepth::Quick).await;
    host.verify_snapshot(&snap, VerifyDepth::Full).await;
    assert_eq!(host.proof_files().len(), 2);
    let other = host.other().await;
    let seen = other.last_proof().await.expect("the other host sees the proof");
    assert_eq!((seen.kind, seen.sound), (VerifyDepth::Full, true));
    assert!(seen.proven_at <= host.last_proof().await.unwrap().proven_at);

    // A later one replaces that of its host; its deletion removes all of them.
    other.verify_snapshot(&snap, VerifyDepth::Deep).await;
    assert_eq!(host.last_proof().await.unwrap().kind, VerifyDepth::Deep);
    drop(other);
    let reinstalled = host.other().await;
    assert_eq!(reinstalled.last_proof().await.unwrap().kind, VerifyDepth::Deep);
    host.delete_cloudsnap(&delete_of(&snap)).await;
    assert_eq!(host.proof_files(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_another_host_found_is_reported_once() {
    let host = Host::new().await;
    let (snap, ..) = host.backed_up_and_damaged().await;
    let other = host.other().await;
    for _ in 0..2 {
        let list = other.list().await;
        assert_eq!(list[0].status, CloudsnapStatus::Damaged);
        let events = other.call(LIST_EVENTS, &ListEvents::default()).await.items;
        let found: Vec<_> = events.iter().filter(|event| event.kind == "damage-found").collect();
        assert_eq!(found.len(), 1, "{events:?}");
    }
    assert_eq!((host.damaged().await, other.damaged().await), ("1".into(), "1".into()));
    host.delete_cloudsnap(&delete_of(&snap)).await;
    assert_eq!(other.list().await.len(), 0);
    assert_eq!((host.damaged().await, other.damaged().await), ("0".into(), "0".into()));
}

/// No manifest is cached: only the proof names the cloud snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn damage_of_an_unreadable_backup_ends_with_its_deletion() {
    let host = Host::new().await;
    let (snap, ..) = host.backed_up_and_damaged().await;
    damage(host.manifest(&snap));
    let other = host.other().await;
    assert_eq!(other.call(LIST_CLOUDSNAPS, &ListCloudsnaps::default()).await.damaged.len(), 1);
    assert_eq!(other.damaged().await, "1");
    fs::remove_file(host.manifest(&snap)).unwrap();
    assert_eq!((other.list().await.len(), other.damaged().await), (0, "0".into()));
}

/// Another host finds the cloud snapshot sound: its path to the store may be another one.
#[tokio::test(flavor = "multi_thread")]
async fn own_damage_stays_until_an_own_verification() {
    let host = Host::new().await;
    let (snap, pack, intact) = host.backed_up_and_damaged().await;
    fs::write(&pack, intact).unwrap();
    let other = host.other().await;
    assert!(!other.last_proof().await.unwrap().sound);
    other.verify_snapshot(&snap, VerifyDepth::Deep).await;
    assert!(other.last_proof().await.unwrap().sound, "its own result is later");
    assert!(!host.last_proof().await.unwrap().sound);
    host.verify_snapshot(&snap, VerifyDepth::Full).await;
    assert!(host.last_proof().await.unwrap().sound);
}

#[tokio::test(flavor = "multi_thread")]
async fn recreated_credential_has_the_proofs_of_its_host() {
    let host = Host::new().await;
    let (snap, pack, intact) = host.backed_up_and_damaged().await;
    host.call_at(DELETE_CREDENTIAL, &"nas".parse().unwrap(), &()).await;
    host.create_credential().await;
    let list = host.list().await;
    assert_eq!(list[0].status, CloudsnapStatus::Damaged);
    let proof = list[0].last_proof.clone().unwrap();
    let node = host.call(GET_STATUS, &()).await.node;
    assert_eq!((proof.kind, proof.host, proof.sound), (VerifyDepth::Full, node, false));
    fs::write(&pack, intact).unwrap();
    host.verify_snapshot(&snap, VerifyDepth::Full).await;
    assert!(host.last_proof().await.unwrap().sound, "its next result replaces the imported one");
}

#[tokio::test(flavor = "multi_thread")]
async fn proof_from_the_future_does_not_count() {
    let host = Host::new().await;
    let snap = host.backed_up().await;
    let credential = host.engine().repositories.credential_rows().await.unwrap()[0].uuid;
    let ahead = ProofRow {
        credential,
        cloudsnap: snap_id(&snap),
        verified: Timestamp::now() + SignedDuration::from_hours(24 * 3650),
        depth: blockd_cloud::VerifyDepth::Full,
        sound: true,
        damaged: Default::default(),
        digest: None,
        version: "1.2.3".into(),
        location: host.engine().repositories.location_now(credential).await,
    };
    host.engine().db.transaction(|tx| ahead.put(tx)).unwrap();
    host.engine().proofs.exchange().await.unwrap();
    assert_eq!(host.proof_files().len(), 1);
    let other = host.other().await;
    assert_eq!((host.last_proof().await, other.last_proof().await), (None, None));
    host.verify_snapshot(&snap, VerifyDepth::Full).await;
    assert_eq!(host.proof_files().len(), 1, "the later result replaces it");
    let [own, seen] = [host.last_proof().await.unwrap(), other.last_proof().await.unwrap()];
    assert!(own.proven_at <= Timestamp::now() && seen.proven_at <= Timestamp::now());
}

#[tokio::test(flavor = "multi_thread")]
async fn proof_in_a_copy_of_the_location_does_not_count() {
    let host = Host::new().await;
    let snap = host.backed_up().await;
    host.verify_snapshot(&snap, VerifyDepth::Full).await;
    let copy = tempfile::tempdir().unwrap();
    copy_dir(host.store.path(), copy.path());
    let replica = Host::with_store(Arc::new(copy)).await;
    replica.create_credential().await;
    assert_eq!(replica.last_proof().await, None);
    replica.verify_snapshot(&snap, VerifyDepth::Quick).await;
    assert_eq!(replica.last_proof().await.unwrap().kind, VerifyDepth::Quick);
    assert_eq!(replica.proof_files().len(), 2, "it keeps the proof of the original");
}

#[tokio::test(flavor = "multi_thread")]
async fn altered_proofs_are_ignored_and_one_event() {
    let host = Host::new().await;
    let snap = host.backed_up().await;
    host.verify_snapshot(&snap, VerifyDepth::Full).await;
    let proof = host.proof_files().remove(0);
    damage(&proof);
    // Each writer of the location can make such objects.
    for number in 1..10 {
        let name = format!("{}{}", &proof[..proof.len() - 36], Uuid::from_u128(number));
        fs::copy(&proof, name).unwrap();
    }
    let mut other = host.other().await;
    for events in [0, 1] {
        assert_eq!(other.last_proof().await, None);
        assert_eq!(other.events_of("proof-damaged").await.len(), events, "a list makes none");
        other.engine().proofs.exchange().await.unwrap();
        let [event] = &other.events_of("proof-damaged").await[..] else { panic!("no event, or several") };
        assert!(event.message.starts_with("damaged proofs of other hosts: 10, such as "), "{event:?}");
        assert!(event.message.contains(&snap), "{event:?}");
        other.restart().await;
    }
    assert!(host.last_proof().await.unwrap().sound, "the host keeps its own result");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_proofs_of_this_host_are_published_again() {
    let mut host = Host::new().await;
    let snap = host.backed_up_files().await;
    host.verify_snapshot(&snap, VerifyDepth::Full).await;
    host.done(host.call(START_DRILL, &drill_of(&snap)).await.task_id).await;
    host.done(host.call(START_DRILL, &drill_of(&snap)).await.task_id).await;
    let published = host.proof_files();
    assert_eq!(published.len(), 2, "the second drill replaces the first");
    let exchange = async |host: &Host| host.engine().proofs.exchange().await.unwrap();
    exchange(&host).await;
    assert_eq!(host.events_of("proof-damaged").await.len(), 0);
    for lost in 1..=2 {
        published.iter().take(lost).for_each(|path| fs::remove_file(path).unwrap());
        exchange(&host).await;
        exchange(&host).await;
        assert_eq!(host.proof_files(), published);
        assert_eq!(host.events_of("proof-damaged").await.len(), lost, "one for all that are missing");
    }
    // A daemon reads its own proofs once.
    published.iter().for_each(damage);
    host.restart().await;
    exchange(&host).await;
    exchange(&host).await;
    let again = host.proof_files();
    assert!(again.len() == 2 && again.iter().all(|path| !published.contains(path)), "{again:?}");
    assert_eq!(host.events_of("proof-damaged").await.len(), 3);
    let other = host.other().await;
    assert!(other.last_proof().await.unwrap().sound);
    assert!(other.list().await[0].last_drill.as_ref().unwrap().passed);
    exchange(&host).await;
    assert_eq!((host.proof_files(), host.events_of("proof-damaged").await.len()), (again, 3));
}

/// A disk is replaced by a copy that was made before the proofs: its objects were not read.
#[tokio::test(flavor = "multi_thread")]
async fn proof_is_not_published_to_a_copy_at_its_path() {
    let host = Host::new().await;
    let snap = host.backed_up_files().await;
    let (root, copy) = (host.store.path().join("blockd"), host.store.path().join("copy"));
    copy_dir(&root, &copy);
    host.verify_snapshot(&snap, VerifyDepth::Full).await;
    host.done(host.call(START_DRILL, &drill_of(&snap)).await.task_id).await;
    let published = host.proof_files();
    assert_eq!(published.len(), 2);
    let original = move_away(&root);
    fs::rename(&copy, &root).unwrap();
    for _ in 0..2 {
        host.engine().proofs.exchange().await.unwrap();
        assert_eq!(host.proof_files(), Vec::<String>::new());
    }
    fs::rename(&root, &copy).unwrap();
    fs::rename(original, &root).unwrap();
    host.engine().proofs.exchange().await.unwrap();
    assert_eq!((host.proof_files(), host.events_of("proof-damaged").await.len()), (published, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_proof_of_a_deleted_snapshot_stays_lost() {
    let host = Host::new().await;
    let snap = host.backed_up_files().await;
    host.done(host.call(START_DRILL, &drill_of(&snap)).await.task_id).await;
    host.verify_snapshot(&snap, VerifyDepth::Full).await;
    host.proof_files().iter().for_each(|path| fs::remove_file(path).unwrap());
    host.engine().proofs.exchange().await.unwrap();
    assert_eq!(host.events_of("proof-damaged").await.len(), 1);
    // Another host deletes the cloud snapshot before the next exchange.
    fs::remove_file(host.manifest(&snap)).unwrap();
    for _ in 0..2 {
        host.engine().proofs.exchange().await.unwrap();
        assert_eq!(host.proof_files(), Vec::<String>::new());
    }
    assert_eq!(host.events_of("proof-damaged").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_proof_is_published_later() {
    let host = Host::new().await;
    let snap = host.backed_up().await;
    let folder = host.store.path().join("blockd/proofs");
    fs::write(&folder, "not a directory").unwrap();
    assert_eq!(host.verify_snapshot(&snap, VerifyDepth::Full).await.state.stage, TaskStage::Done);
    assert!(host.last_proof().await.unwrap().sound);
    // The mount point of an unmounted disk accepts all writes.
    let root = host.store.path().join("blockd");
    let away = move_away(&root);
    fs::create_dir(&root).unwrap();
    host.engine().proofs.exchange().await.unwrap();
    assert_eq!(host.proof_files(), Vec::<String>::new());
    fs::remove_dir_all(&root).unwrap();
    fs::rename(away, &root).unwrap();
    fs::remove_file(&folder).unwrap();
    host.engine().proofs.exchange().await.unwrap();
    assert_eq!(host.proof_files().len(), 1);
    let before = fs::metadata(&host.proof_files()[0]).unwrap().modified().unwrap();
    host.engine().proofs.exchange().await.unwrap();
    assert_eq!(fs::metadata(&host.proof_files()[0]).unwrap().modified().unwrap(), before, "once");
    assert!(host.other().await.last_proof().await.unwrap().sound);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_deep_verification_compares_as_many_bytes() {
    let host = Host::new().await;
    let snap = host.backed_up().await;
    for verification in ["first", "second"] {
        let task = host.verify_snapshot(&snap, VerifyDepth::Deep).await;
        assert_eq!(task.findings.unwrap().compared_bytes, 256 * 4096, "{verification}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn altered_local_blocks_leave_the_proof_of_the_store() {
    let host = Host::new().await;
    let snap = host.backed_up().await;
    let volume = host.volume("data");
    let layer = volume.dir().join("layer-0000000000000001.data");
    let mut content = fs::read(&layer).unwrap();
    for block in [5, 6, 200] {
        content[block * 4096] ^= 1;
    }
    fs::write(&layer, content).unwrap();
    let task = host.verify_snapshot(&snap, VerifyDepth::Deep).await;
    let error = task.error.unwrap();
    assert_eq!(error.code, ErrorCode::VolumeFailed, "{error:?}");
    let named = "volume data: 3 blocks do not match their checksums: 2 at offset 20480, 1 at offset 819200";
    assert!(error.message.ends_with(named), "{error:?}");
    assert!(error.hint.unwrap().contains("kernel log"));
    let findings = task.findings.unwrap();
    assert_eq!((findings.damage.len(), findings.compared_bytes), (0, (256 - 3) * 4096));
    let last = host.last_proof().await.unwrap();
    assert_eq!((last.kind, last.sound), (VerifyDepth::Full, true));
    assert_eq!(host.proof_files().len(), 1);

    damage(&host.packs()[0]);
    let error = host.verify_snapshot(&snap, VerifyDepth::Deep).await.error.unwrap();
    assert_eq!(error.code, ErrorCode::CloudsnapDamaged, "{error:?}");
    assert!(error.message.ends_with(named), "{error:?}");
    assert!(!host.last_proof().await.unwrap().sound);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_proof_is_a_problem_and_one_event_until_the_next() {
    let mut host = Host::new().await;
    let snap = host.backed_up().await;
    let days = |days: i64| Timestamp::now() + SignedDuration::from_hours(24 * days);
    let check = async |host: &Host, at, problems: usize, events: usize| {
        host.engine().maintenance.check_proof_ages(at).await.unwrap();
        let found = host.call(GET_STATUS, &()).await.problems;
        let found: Vec<_> = found.into_iter().filter(|problem| problem.kind == "proof").collect();
        assert_eq!(
            (found.len(), host.events_of("proof-too-old").await.len()),
            (problems, events),
            "{found:?}"
        );
        found
    };
    check(&host, days(6), 0, 0).await;
    let never = check(&host, days(8), 1, 1).await.remove(0);
    assert!(never.cause.contains("was verified yet"), "{never:?}");
    assert_eq!(never.action, format!("blockctl cloudsnap verify {snap} --cred-id nas"));
    check(&host, days(9), 1, 1).await;
    host.restart().await;
    check(&host, days(10), 1, 1).await;

    host.verify_snapshot(&snap, VerifyDepth::Quick).await;
    check(&host, days(10), 1, 1).await;
    host.verify_snapshot(&snap, VerifyDepth::Full).await;
    check(&host, days(6), 0, 1).await;
    // The event before is of a clock that was set back since.
    host.sql("UPDATE events SET at = '2126-01-01T00:00:00Z' WHERE kind = 'proof-too-old'");
    let old = check(&host, days(8), 1, 2).await.remove(0);
    assert!(old.cause.contains("was verified since"), "{old:?}");
    // The next backup starts no new age; retention may delete the first.
    host.backup("data", true).await;
    check(&host, days(8), 1, 2).await;
    host.call_at(DELETE_CREDENTIAL, &"nas".parse().unwrap(), &()).await;
    check(&host, days(8), 0, 2).await;
}
