//! Retention and damage: it must not delete the last restorable backup.

use super::{retention_overrides::store_override, *};
use blockd_api::{
    cloudsnaps::{MarkCloudsnap, VerifyDepth},
    schedules::{RunState, UpdateSchedule},
};
use blockd_catalog::{HostProof, ProofRow, RetentionOverride};
use blockd_engine::{cloud_snapshots::retention_overrides::RecentListings, schedules::runner::Delays};
use blockd_schedule::{KeepReason, Retention, Verdict};
use jiff::{SignedDuration, Timestamp};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

impl Host {
    /// Makes two backups by a schedule that keeps both; returns their ids, oldest first, and that of the
    /// schedule.
    pub(super) async fn two_kept(&self) -> (Vec<String>, Uuid) {
        self.create_credential().await;
        self.create_volume("v").await;
        let schedule = self.schedule(2).await;
        let mut snaps = Vec::new();
        for round in 0..2 {
            snaps.push(self.write_and_run(&schedule, round).await);
        }
        (snaps, schedule.schedule_id)
    }

    pub(super) async fn keep(&self, schedule: Uuid, count: u32) {
        let retain = Some(Retention::max(count).unwrap());
        let update = UpdateSchedule { retain, ..UpdateSchedule::default() };
        self.call_at(UPDATE_SCHEDULE, &schedule, &update).await;
    }

    /// Makes a backup that expires tomorrow, and writes to the volume after it.
    pub(super) async fn one_dated(&self) -> String {
        self.credential_and_volume().await;
        let snap = self.dated(1, tomorrow()).await.remove(0);
        self.volume("v").write(1 << 20, &[8; 4096], false).unwrap();
        snap
    }

    /// Creates a credential, and a volume with data; returns the id of the credential.
    pub(super) async fn credential_and_volume(&self) -> Uuid {
        let credential = self.create_credential().await;
        self.create_volume("v").await.write(0, &[7; 4096], false).unwrap();
        credential
    }

    /// Creates a credential for the same store by another path.
    async fn alias(&self) -> Uuid {
        self.create_credential_at("other", self.store.path().join(".")).await
    }

    /// Creates a credential for the same store by a symbolic link.
    async fn symlink(&self) -> Uuid {
        let link = self.dir.path().join("link");
        std::os::unix::fs::symlink(self.store.path(), &link).unwrap();
        self.create_credential_at("other", link).await
    }

    pub(super) fn lose_pack(&self, snap: &str) {
        let suffix = format!("{}/pack-00000000", snap_id(snap).snapshot);
        let pack = self.packs().into_iter().find(|path| path.ends_with(&suffix)).unwrap();
        fs::remove_file(pack).unwrap();
    }

    pub(super) async fn delete_by_force(&self, snap: &str) -> Uuid {
        self.call(START_DELETE, &StartDelete { force: true, ..delete_of(snap) }).await.task_id
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_of_the_newest_backup_stops_retention() {
    let unreadable = |host: &Host, snap: &str| damage(host.manifest(snap));
    let renamed = |host: &Host, snap: &str| {
        let manifest = host.manifest(snap);
        fs::rename(&manifest, format!("{}.part", manifest.display())).unwrap();
    };
    type Damage = fn(&Host, &str);
    let damages: [(&str, Damage); 3] =
        [("cannot be read", unreadable), ("missing", Host::lose_pack), (".part", renamed)];
    for (expected, damage) in damages {
        let mut host = Host::new().await;
        let (snaps, schedule) = host.two_kept().await;
        damage(&host, &snaps[1]);
        host.keep(schedule, 1).await;
        let event = host.event("retention-stopped").await;
        assert!(event.message.contains(expected), "{event:?}");
        assert_eq!(event.volume_id, Some(host.inspect_volume("v").await.volume_id));
        let status = host.call(GET_STATUS, &()).await;
        assert!(status.problems.iter().any(|problem| problem.kind == "retention"), "{:?}", status.problems);
        if expected == "cannot be read" {
            // A manual deletion must be forced.
            let task = host.call(START_DELETE, &delete_of(&snaps[0])).await.task_id;
            let error = host.wait(task).await.error.unwrap().message;
            assert!(error.contains("may be the last backup that can be restored"), "{error}");
        }
        assert!(host.manifest(&snaps[0]).exists(), "{expected}");
        host.stop().await;
    }
}

/// Returns a late time at first, and the right one when the clock is compared with that of the store.
pub(super) fn set_back_clock(calls: &AtomicUsize) -> Timestamp {
    if calls.fetch_add(1, Relaxed) == 0 { later() } else { Timestamp::now() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_evaluated_before_the_clock_was_set_back_is_kept() {
    let mut host = Host::new().await;
    let (snaps, _) = host.two_kept().await;
    host.call(MARK_CLOUDSNAP, &MarkCloudsnap { expires_at: Some(tomorrow()), ..mark_of(&snaps[0]) }).await;
    let calls = AtomicUsize::new(0);
    let now = || set_back_clock(&calls);
    host.engine().schedule_runner.delete_surplus(now, &mut Delays::new()).await.unwrap();
    assert_eq!((calls.load(Relaxed), host.engine().tasks.unfinished_tasks().await.unwrap()), (2, vec![]));
    assert!(host.manifest(&snaps[0]).exists());
    host.engine().schedule_runner.delete_surplus(later, &mut Delays::new()).await.unwrap();
    host.event("delete-done").await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pin_holds_under_another_credential_of_the_repository() {
    let mut host = Host::new().await;
    let credential = host.credential_and_volume().await;
    let snap = host.backup("v", false).await.cloud_snapshot_id.unwrap();
    let credential = Some(blockd_api::CredentialRef::Id(credential));
    host.call(MARK_CLOUDSNAP, &MarkCloudsnap { pinned: Some(true), credential, ..mark_of(&snap) }).await;
    let delete = delete_of(&snap).under(host.symlink().await);
    let error = api_error(host.client.call(START_DELETE, &delete).await);
    assert_eq!(error.code, ErrorCode::CloudsnapPinned);
    assert!(error.message.contains("nas"), "the error names the credential of the pin: {error:?}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_pack_of_the_newest_backup_stops_expiry() {
    let mut host = Host::new().await;
    let dated = host.one_dated().await;
    let newest = host.backup("v", true).await.cloud_snapshot_id.unwrap();
    host.lose_pack(&newest);
    host.expire_at(later()).await;
    assert_eq!(host.ids().await, [dated, newest]);
    let event = host.event("retention-stopped").await;
    assert!(event.message.contains("missing"), "{event:?}");
    // With a newer complete backup, the old one expires.
    host.delete_by_force(&host.ids().await[1]).await;
    let complete = host.backup("v", true).await.cloud_snapshot_id.unwrap();
    host.expire_at(later()).await;
    assert_eq!(host.ids().await, [complete]);
    assert!(host.call(GET_STATUS, &()).await.problems.iter().all(|problem| problem.kind != "retention"));
    host.stop().await;
}

/// The newest backup is unverified, and the last verified one has lost objects.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_pack_of_the_last_verified_backup_stops_expiry() {
    let mut host = Host::new().await;
    let dated = host.one_dated().await;
    let verified = host.backup("v", true).await.cloud_snapshot_id.unwrap();
    let snap = Some(verified.parse().unwrap());
    let verify = StartVerify { cloud_snapshot_id: snap, depth: VerifyDepth::Full, ..StartVerify::default() };
    assert_eq!(host.verify(&verify).await.state.stage, TaskStage::Done);
    let newest = host.backup("v", true).await.cloud_snapshot_id.unwrap();
    host.lose_pack(&verified);
    host.expire_at(later()).await;
    assert_eq!(host.ids().await, [dated, verified, newest]);
    let event = host.event("retention-stopped").await;
    assert!(event.message.contains("missing"), "{event:?}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repaired_key_slot_does_not_stop_expiry() {
    let mut host = Host::new().await;
    host.one_dated().await;
    let newest = host.backup("v", true).await.cloud_snapshot_id.unwrap();
    damage(&walk(&host.store.path().join("blockd/keys-copy"))[0]);
    host.expire_at(later()).await;
    assert_eq!(host.ids().await, [newest]);
    assert_eq!(host.events_of("retention-stopped").await, []);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expiry_keeps_the_base_of_a_resumable_doubtful_backup() {
    let mut host = Host::new().await;
    let base = host.one_dated().await;
    let away = host.make_unreadable(&base);
    let task = host.start_backup("v", false).await;
    let failed = host.wait(task).await;
    assert!(failed.resumable, "{failed:?}");
    let in_doubt = failed.cloud_snapshot_id.unwrap();
    fs::rename(&away, host.manifest(&base)).unwrap();
    host.expire_at(later()).await;
    assert_eq!(host.ids().await, [base.clone(), in_doubt.clone()]);
    for needed in [&base, &in_doubt] {
        host.refused(ErrorCode::CloudsnapInUse, START_DELETE, &delete_of(needed)).await;
    }
    host.call_at(RESUME_TASK, &task, &()).await;
    assert_eq!(host.done(task).await.cloud_snapshot_id, Some(in_doubt));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_with_a_doubtful_commit_is_not_the_last_good_one() {
    let mut host = Host::new().await;
    let dated = host.one_dated().await;
    host.die_at(crash_after_commit::COMMITTED);
    let task = host.start_backup("v", true).await;
    host.die_and_start().await;
    let in_doubt = host.done(task).await.cloud_snapshot_id.unwrap();
    host.expire_at(later()).await;
    assert_eq!(host.ids().await, [dated, in_doubt.clone()]);
    let newest = host.backup("v", true).await.cloud_snapshot_id.unwrap();
    host.expire_at(later()).await;
    assert_eq!(host.ids().await, [in_doubt, newest]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_listed_manifest_stops_retention() {
    let mut host = Host::new().await;
    let (snaps, schedule) = host.two_kept().await;
    // This listing caches the manifest.
    assert_eq!(host.ids().await, snaps);
    host.lose_listed_manifest(&snaps[1]).await;
    assert_eq!(host.ids().await, snaps);
    host.keep(schedule, 1).await;
    let event = host.event("retention-stopped").await;
    assert!(event.message.contains(&snaps[1]), "{event:?}");
    assert!(host.manifest(&snaps[0]).exists());
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn date_holds_under_another_credential_of_the_repository() {
    let mut host = Host::new().await;
    let (snaps, schedule) = host.two_kept().await;
    let (cloudsnap, credential) = (snap_id(&snaps[0]), host.alias().await);
    let expires = Some(tomorrow());
    store_override(host.engine(), RetentionOverride { cloudsnap, credential, pinned: false, expires });
    host.keep(schedule, 1).await;
    let plan = host.call_at(PLAN_RETENTION, &schedule, &()).await.items;
    let oldest = plan.iter().find(|planned| planned.cloud_snapshot_id == Some(snap_id(&snaps[0]))).unwrap();
    assert_eq!(oldest.verdict, Verdict::Keep(vec![KeepReason::NotExpired]));
    host.stop().await;
}

/// The other location may be a copy of the repository: its damage says nothing about this one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_a_possible_copy_deletes_nothing() {
    let mut host = Host::new().await;
    let (snaps, schedule) = host.two_kept().await;
    let own = host.engine().repositories.credential_rows().await.unwrap()[0].uuid;
    let other = host.symlink().await;
    let prove = |credential, snap: &str, sound| {
        let cloudsnap = snap_id(snap);
        let (verified, depth) = (Timestamp::now(), blockd_cloud::VerifyDepth::Full);
        let (damaged, digest, version, location) = (Default::default(), None, String::new(), None);
        let proof =
            ProofRow { credential, cloudsnap, verified, depth, sound, damaged, digest, version, location };
        host.engine().db.transaction(|tx| proof.put(tx)).unwrap();
    };
    let verdicts = async || {
        let plan = host.call_at(PLAN_RETENTION, &schedule, &()).await.items;
        let of = |snap: &String| {
            plan.iter().find(|planned| planned.cloud_snapshot_id == Some(snap_id(snap))).unwrap()
        };
        snaps.iter().map(|snap| of(snap).verdict.clone()).collect::<Vec<_>>()
    };
    prove(own, &snaps[1], true);
    prove(other, &snaps[0], false);
    assert!(!verdicts().await[0].is_delete());
    let credential =
        host.engine().repositories.credential_rows().await.unwrap().into_iter().find(|row| row.uuid == own);
    let next = host.next_to_verify(&credential.unwrap()).await;
    assert!(next.contains(&snap_id(&snaps[0])), "not verified with this credential");
    prove(own, &snaps[0], true);
    prove(other, &snaps[1], false);
    let found = verdicts().await;
    assert!(found[0].is_kept_as(KeepReason::LastGood), "the newer one may be damaged here, too: {found:?}");
    assert!(found[1].is_kept_as(KeepReason::NoneBetter), "{found:?}");
    prove(own, &snaps[1], true);
    assert!(verdicts().await[1].is_kept_as(KeepReason::LastGood));
    host.stop().await;
}

/// Each writer of the bucket can forge proofs, and another host may have a defect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proofs_of_another_host_keep_backups_and_delete_none() {
    let mut host = Host::new().await;
    let (snaps, schedule) = host.two_kept().await;
    let credential = host.engine().repositories.credential_rows().await.unwrap().remove(0);
    let proof = |snap: &str, second, sound| HostProof {
        credential: credential.uuid,
        cloudsnap: snap_id(snap),
        host: Uuid::from_u128(1),
        depth: blockd_cloud::VerifyDepth::Full,
        proven: Timestamp::from_second(second).unwrap(),
        verified: Timestamp::now(),
        sound,
        host_name: "db2".into(),
        version: "1.2.3".into(),
    };
    let put = |proof: HostProof| assert!(host.engine().db.transaction(|tx| proof.put(tx)).unwrap());
    let verdicts = async || {
        let plan = host.call_at(PLAN_RETENTION, &schedule, &()).await.items;
        let of = |snap: &String| {
            plan.iter().find(|planned| planned.cloud_snapshot_id == Some(snap_id(snap))).unwrap()
        };
        snaps.iter().map(|snap| of(snap).verdict.clone()).collect::<Vec<_>>()
    };
    put(proof(&snaps[1], 1, true));
    put(proof(&snaps[0], 1, false));
    let found = verdicts().await;
    assert!(!found[0].is_delete() && found[1].is_kept_as(KeepReason::LastVerified), "{found:?}");
    let next = host.next_to_verify(&credential).await;
    assert!(next.contains(&snap_id(&snaps[0])), "this host decides by its own verification");
    put(proof(&snaps[0], 2, true));
    put(proof(&snaps[1], 2, false));
    let found = verdicts().await;
    assert!(found[0].is_kept_as(KeepReason::LastGood) && found[0].is_kept_as(KeepReason::LastVerified));
    assert!(found[1].is_kept_as(KeepReason::NoneBetter), "{found:?}");
    let request = StartVerify { depth: VerifyDepth::Full, ..StartVerify::default() };
    assert_eq!(host.verify(&request).await.state.stage, TaskStage::Done);
    let found = verdicts().await;
    assert!(found[1].is_kept_as(KeepReason::LastVerified) && found[1].is_kept_as(KeepReason::LastGood));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn date_set_concurrently_under_another_credential_is_kept() {
    let mut host = Host::new().await;
    let dated = host.one_dated().await;
    host.backup("v", true).await;
    let (cloudsnap, credential) = (snap_id(&dated), host.alias().await);
    let expires = Some(later() + SignedDuration::from_hours(24));
    let concurrent = RetentionOverride { cloudsnap, credential, pinned: false, expires };
    host.act_at("expired judged", move |engine| store_override(engine, concurrent));
    host.expire_at(later()).await;
    assert!(host.engine().host.failpoints.are_over());
    assert!(host.manifest(&dated).exists());
    host.stop().await;
}

/// The disk of the store is unmounted within a retention pass, which leaves an empty directory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_unmounted_within_a_pass_expires_no_run() {
    let mut host = Host::new().await;
    let (_, schedule) = host.two_kept().await;
    let (store, (over, is_over)) = (host.store.path().to_owned(), tokio::sync::oneshot::channel());
    host.act_at("location proven", move |engine| {
        let away = move_away(&store);
        fs::create_dir(&store).unwrap();
        engine.host.failpoints.once("surplus checked", move || over.send(away).unwrap());
    });
    host.keep(schedule, 1).await;
    let away = is_over.await.unwrap();
    let runs = host.runs().await;
    assert!(runs.iter().all(|run| run.state == RunState::Done), "{runs:?}");
    fs::remove_dir_all(host.store.path()).unwrap();
    host.show_store(&away);
    host.stop().await;
}

/// A pass starts a deletion, the daemon dies before it deletes an object, and the newest backup is damaged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletion_by_retention_is_evaluated_again_after_a_restart() {
    let mut host = Host::new().await;
    let dated = host.one_dated().await;
    let newest = host.backup("v", true).await.cloud_snapshot_id.unwrap();
    host.die_at("delete accepted");
    host.engine().deletions.delete_expired(later, &mut RecentListings::default()).await.unwrap();
    let task = host.engine().db.transaction(TaskRow::unfinished).unwrap().remove(0);
    host.crashed().await;
    host.lose_pack(&newest);
    host.restart().await;
    let error = host.wait(task.id).await.error.expect("the deletion fails").message;
    assert!(error.contains("evaluates"), "{error}");
    assert_eq!(host.ids().await, [dated, newest]);
    assert_eq!(host.events_of("delete-done").await, []);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_retention_is_reported_after_a_failed_insert() {
    let mut host = Host::new().await;
    host.one_dated().await;
    let newest = host.backup("v", true).await.cloud_snapshot_id.unwrap();
    host.lose_pack(&newest);
    host.refuse_events(true).await;
    host.expire_at(later()).await;
    host.refuse_events(false).await;
    for _ in 0..2 {
        host.expire_at(later()).await;
    }
    assert_eq!(host.events_of("retention-stopped").await.len(), 1);
    host.stop().await;
}
