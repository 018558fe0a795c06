//! Retention beside damage: what it would delete may be the last backup that can be restored.

use super::{Host, dying, retention_overrides::store_override};
use blockd_api::{
    ClientError, ErrorCode,
    cloudsnaps::{MarkCloudsnap, StartDelete, StartVerify, VerifyDepth},
    credentials::StoreConfig,
    events::ListEvents,
    operations::*,
    schedules::UpdateSchedule,
};
use blockd_catalog::{Proof, RetentionOverride, TaskRow};
use blockd_cloud::ManifestKey;
use blockd_engine::{
    cloud_snapshots::retention_overrides::RecentListings, maintenance::Attempts, schedules::runner::Delays,
};
use blockd_schedule::{KeepReason, Retention, Verdict};
use jiff::{SignedDuration, Timestamp};
use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};
use uuid::Uuid;

pub(super) fn tomorrow() -> Timestamp {
    Timestamp::now() + SignedDuration::from_hours(24)
}

/// Some time after [`tomorrow`].
pub(super) fn later() -> Timestamp {
    Timestamp::now() + SignedDuration::from_hours(25)
}

impl Host {
    /// Makes two backups by a schedule that keeps both; returns their ids, older first, and the schedule's.
    pub(super) async fn two_kept(&self) -> (Vec<String>, uuid::Uuid) {
        self.create_credential().await;
        self.create_volume("v").await;
        let schedule = self.schedule(2).await;
        let mut snaps = Vec::new();
        for round in 0..2u64 {
            self.volume("v").write(round << 20, &[7; 4096], false).unwrap();
            self.call_at(RUN_SCHEDULE, &schedule.uuid, &()).await;
            snaps.push(self.settled().await[0].cloudsnap.unwrap().to_string());
        }
        (snaps, schedule.uuid)
    }

    pub(super) async fn keep(&self, schedule: uuid::Uuid, count: u32) {
        let retain = Some(Retention::max(count).unwrap());
        let update = UpdateSchedule { retain, ..UpdateSchedule::default() };
        self.call_at(UPDATE_SCHEDULE, &schedule, &update).await;
    }

    pub(super) fn stored(&self, snap: &str) -> blockd_cloud::CloudSnapshotId {
        snap.parse().unwrap()
    }

    pub(super) fn manifest_path(&self, snap: &str) -> PathBuf {
        self.object_path(&self.stored(snap).manifest_key())
    }

    /// Makes a backup that expires tomorrow, and writes to the volume after it.
    pub(super) async fn one_dated(&self) -> String {
        self.create_credential().await;
        self.create_volume("v").await.write(0, &[7; 4096], false).unwrap();
        let snap = self.dated(1, tomorrow()).await.remove(0);
        self.volume("v").write(1 << 20, &[8; 4096], false).unwrap();
        snap
    }

    /// Adds a credential of the store by another path to it.
    pub(super) async fn other_credential(&self, path: impl Into<PathBuf>) -> Uuid {
        let mut other = self.credential("other", None);
        other.provider = StoreConfig::Local { path: path.into() };
        self.call(CREATE_CREDENTIAL, &other).await.uuid
    }

    pub(super) fn lose_pack(&self, snap: &str) {
        let delta = self.stored(snap).snapshot;
        fs::remove_file(self.object_path(&format!("{delta}/pack-00000000"))).unwrap();
    }

    pub(super) async fn delete_by_force(&self, snap: &str) -> Uuid {
        let delete = StartDelete { force: true, ..StartDelete::of(snap.parse().unwrap()) };
        self.call(START_DELETE, &delete).await.task
    }

    pub(super) async fn has_event(&self, kind: &str) -> bool {
        let events = self.call(LIST_EVENTS, &ListEvents::default()).await.events;
        events.iter().any(|event| event.kind == kind)
    }

    /// The file of an object, wherever below the store it is.
    pub(super) fn object_path(&self, key: &str) -> PathBuf {
        let files = super::walk(self.store.path());
        PathBuf::from(files.iter().find(|path| path.ends_with(key)).expect("the object is in the store"))
    }
}

/// Flips a bit in the middle.
pub(super) fn damage(path: &PathBuf) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_of_the_newest_backup_stops_retention() {
    let unreadable = |host: &Host, snap: &str| damage(&host.manifest_path(snap));
    let renamed = |host: &Host, snap: &str| {
        let manifest = host.manifest_path(snap);
        fs::rename(&manifest, format!("{}.part", manifest.display())).unwrap();
    };
    type Damage = fn(&Host, &str);
    let damages: [(&str, Damage); 3] =
        [("cannot be read", unreadable), ("missing", Host::lose_pack), (".part", renamed)];
    for (told, damage) in damages {
        let mut host = Host::new().await;
        let (snaps, schedule) = host.two_kept().await;
        damage(&host, &snaps[1]);
        host.keep(schedule, 1).await;
        let event = host.event("retention-stopped").await;
        assert!(event.message.contains(told), "{event:?}");
        let status = host.call(GET_STATUS, &()).await;
        assert!(status.problems.iter().any(|problem| problem.kind == "retention"), "{:?}", status.problems);
        if told == "cannot be read" {
            // By hand, only by force.
            let delete = StartDelete::of(snaps[0].parse().unwrap());
            let task = host.call(START_DELETE, &delete).await.task;
            let error = host.wait(task).await.error.unwrap().message;
            assert!(error.contains("may be the last backup that can be restored"), "{error}");
        }
        assert!(host.manifest_path(&snaps[0]).exists(), "{told}");
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_judged_before_the_clock_was_set_back_is_kept() {
    let mut host = Host::new().await;
    let (snaps, _) = host.two_kept().await;
    let tomorrow = Timestamp::now() + SignedDuration::from_hours(24);
    let expires = MarkCloudsnap {
        snap: snaps[0].parse().unwrap(),
        cred_id: None,
        pinned: None,
        expires: Some(tomorrow),
        never_expires: false,
    };
    host.call(MARK_CLOUDSNAP, &expires).await;
    let later = tomorrow + SignedDuration::from_hours(1);
    // The clock is right again when it is compared with the store's.
    let looks = AtomicUsize::new(0);
    let set_back = || match looks.fetch_add(1, Relaxed) {
        0 => later,
        _ => Timestamp::now(),
    };
    host.engine().schedule_runner.delete_surplus(set_back, &mut Delays::new()).await.unwrap();
    assert_eq!((looks.load(Relaxed), host.engine().tasks.unfinished_tasks().await.unwrap()), (2, vec![]));
    assert!(host.manifest_path(&snaps[0]).exists());
    host.engine().schedule_runner.delete_surplus(|| later, &mut Delays::new()).await.unwrap();
    host.event("delete-done").await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pin_holds_under_another_credential_of_the_repository() {
    let mut host = Host::new().await;
    let credential = host.create_credential().await;
    host.create_volume("v").await.write(0, &[7; 4096], false).unwrap();
    let snap = host.backup("v", false).await.source_volume.unwrap();
    let pin = MarkCloudsnap {
        snap: snap.parse().unwrap(),
        cred_id: Some(blockd_api::CredentialRef::Id(credential)),
        pinned: Some(true),
        expires: None,
        never_expires: false,
    };
    host.call(MARK_CLOUDSNAP, &pin).await;
    let link = host.dir.path().join("link");
    std::os::unix::fs::symlink(host.store.path(), &link).unwrap();
    let other = host.other_credential(link).await;
    let delete = StartDelete::of(snap.parse().unwrap()).under(other);
    match host.client.call(START_DELETE, &delete).await.unwrap_err() {
        ClientError::Api(error) => {
            assert_eq!(error.code, ErrorCode::CloudsnapPinned);
            assert!(error.message.contains("nas"), "it names the credential of the pin: {error:?}");
        }
        error => panic!("{error}"),
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_pack_of_the_newest_backup_stops_expiry() {
    let mut host = Host::new().await;
    let dated = host.one_dated().await;
    let newest = host.backup("v", true).await.source_volume.unwrap();
    host.lose_pack(&newest);
    host.expire_at(later()).await;
    assert_eq!(host.ids().await, [dated, newest]);
    let event = host.event("retention-stopped").await;
    assert!(event.message.contains("missing"), "{event:?}");
    // A newer whole one takes its place.
    host.delete_by_force(&host.ids().await[1]).await;
    let whole = host.backup("v", true).await.source_volume.unwrap();
    host.expire_at(later()).await;
    assert_eq!(host.ids().await, [whole]);
    assert!(host.call(GET_STATUS, &()).await.problems.iter().all(|problem| problem.kind != "retention"));
    host.stop().await;
}

/// The newest backup is unverified, and the last verified one lost objects since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_pack_of_the_last_verified_backup_stops_expiry() {
    let mut host = Host::new().await;
    let dated = host.one_dated().await;
    let verified = host.backup("v", true).await.source_volume.unwrap();
    let snap = Some(verified.parse().unwrap());
    let verify = StartVerify { snap, depth: VerifyDepth::Frames, ..StartVerify::default() };
    host.done(host.call(START_VERIFY, &verify).await.task).await;
    let newest = host.backup("v", true).await.source_volume.unwrap();
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
    let newest = host.backup("v", true).await.source_volume.unwrap();
    let files = super::walk(&host.store.path().join("blockd/keys-copy"));
    damage(&PathBuf::from(&files[0]));
    host.expire_at(later()).await;
    assert_eq!(host.ids().await, [newest]);
    assert!(!host.has_event("retention-stopped").await);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_backup_in_doubt_is_no_last_good_of_expiry() {
    let mut host = Host::new().await;
    let base = host.one_dated().await;
    let (place, away) = (host.manifest_path(&base), host.store.path().join("away"));
    fs::rename(&place, &away).unwrap();
    // Reading its first byte fails, but not because it is gone.
    fs::write(&place, []).unwrap();
    let task = host.start_backup("v", false).await;
    let failed = host.wait(task).await;
    assert!(failed.resumable, "{failed:?}");
    let in_doubt = failed.source_volume.unwrap();
    fs::rename(&away, &place).unwrap();
    host.expire_at(later()).await;
    assert_eq!(host.ids().await, [base.clone(), in_doubt.clone()]);
    for needed in [&base, &in_doubt] {
        let delete = StartDelete::of(needed.parse().unwrap());
        host.refused(ErrorCode::CloudsnapInUse, START_DELETE, &delete).await;
    }
    host.call_at(RESUME_TASK, &task, &()).await;
    assert_eq!(host.done(task).await.source_volume, Some(in_doubt));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_committed_in_doubt_is_no_last_good_of_expiry() {
    let mut host = Host::new().await;
    let dated = host.one_dated().await;
    host.die_at(dying::COMMITTED);
    let task = host.start_backup("v", true).await;
    host.die_and_start().await;
    let in_doubt = host.done(task).await.source_volume.unwrap();
    host.expire_at(later()).await;
    assert_eq!(host.ids().await, [dated, in_doubt.clone()]);
    let newest = host.backup("v", true).await.source_volume.unwrap();
    host.expire_at(later()).await;
    assert_eq!(host.ids().await, [in_doubt, newest]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_listed_manifest_stops_retention() {
    let mut host = Host::new().await;
    let (snaps, schedule) = host.two_kept().await;
    // Its manifest is in the cache from here on.
    assert_eq!(host.ids().await, snaps);
    host.lose_listed_manifest(&snaps[1]).await;
    assert_eq!(host.ids().await, snaps);
    host.keep(schedule, 1).await;
    let event = host.event("retention-stopped").await;
    assert!(event.message.contains(&snaps[1]), "{event:?}");
    assert!(host.manifest_path(&snaps[0]).exists());
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn date_holds_under_another_credential_of_the_repository() {
    let mut host = Host::new().await;
    let (snaps, schedule) = host.two_kept().await;
    let other = host.other_credential(format!("{}/./", host.store.path().display())).await;
    let cloudsnap = host.stored(&snaps[0]);
    store_override(
        host.engine(),
        RetentionOverride { cloudsnap, credential: other, pinned: false, expires: Some(tomorrow()) },
    );
    host.keep(schedule, 1).await;
    let plan = host.call_at(PLAN_RETENTION, &schedule, &()).await.cloudsnaps;
    let of_old = plan.iter().find(|planned| planned.cloudsnap.to_string() == snaps[0]).unwrap();
    assert_eq!(of_old.verdict, Verdict::Keep(vec![KeepReason::NotExpired]));
    host.stop().await;
}

/// The other place may be a copy of the repository: its damage is none of this one's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_a_possible_copy_deletes_nothing() {
    let mut host = Host::new().await;
    let (snaps, schedule) = host.two_kept().await;
    let own = host.engine().repositories.credential_rows().await.unwrap()[0].uuid;
    let link = host.dir.path().join("link");
    std::os::unix::fs::symlink(host.store.path(), &link).unwrap();
    let other = host.other_credential(link).await;
    let prove = |credential, snap: &str, sound| {
        let cloudsnap = host.stored(snap);
        let (verified, depth) = (Timestamp::now(), blockd_cloud::VerifyDepth::Frames);
        let (damaged, digest) = (Default::default(), None);
        let proof = Proof { credential, cloudsnap, verified, depth, sound, damaged, digest };
        host.engine().db.transaction(|tx| proof.put(tx)).unwrap();
    };
    let verdicts = async || {
        let plan = host.call_at(PLAN_RETENTION, &schedule, &()).await.cloudsnaps;
        let of = |snap: &String| plan.iter().find(|planned| planned.cloudsnap.to_string() == *snap).unwrap();
        snaps.iter().map(|snap| of(snap).verdict.clone()).collect::<Vec<_>>()
    };
    prove(own, &snaps[1], true);
    prove(other, &snaps[0], false);
    assert!(!verdicts().await[0].is_delete());
    let credential =
        host.engine().repositories.credential_rows().await.unwrap().into_iter().find(|row| row.uuid == own);
    let next = host
        .engine()
        .maintenance
        .next_to_verify(&credential.unwrap(), later(), &Attempts::new())
        .await
        .unwrap();
    assert_eq!(next, Some(host.stored(&snaps[0])), "it was not verified here");
    prove(own, &snaps[0], true);
    prove(other, &snaps[1], false);
    let found = verdicts().await;
    assert!(found[0].is_kept_as(KeepReason::LastGood), "it may be damaged here, too: {found:?}");
    assert!(found[1].is_kept_as(KeepReason::NoneBetter), "{found:?}");
    prove(own, &snaps[1], true);
    assert!(verdicts().await[1].is_kept_as(KeepReason::LastGood));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn date_set_concurrently_under_another_credential_is_kept() {
    let mut host = Host::new().await;
    let dated = host.one_dated().await;
    host.backup("v", true).await;
    let other = host.other_credential(format!("{}/./", host.store.path().display())).await;
    let said = RetentionOverride {
        cloudsnap: host.stored(&dated),
        credential: other,
        pinned: false,
        expires: Some(later() + SignedDuration::from_hours(24)),
    };
    host.meanwhile("expired judged", move |engine| store_override(engine, said));
    host.expire_at(later()).await;
    assert!(host.engine().host.failpoints.are_over());
    assert!(host.manifest_path(&dated).exists());
    host.stop().await;
}

/// The disk of the store goes away within a pass of retention: its directory is empty then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_unmounted_within_a_pass_expires_no_run() {
    let mut host = Host::new().await;
    let (_, schedule) = host.two_kept().await;
    let (store, away) = (host.store.path().to_owned(), host.store.path().with_extension("away"));
    let (unmounted, (over, is_over)) = (away.clone(), tokio::sync::oneshot::channel());
    host.meanwhile("location proven", move |engine| {
        fs::rename(&store, &unmounted).unwrap();
        fs::create_dir(&store).unwrap();
        engine.host.failpoints.once("surplus checked", move || over.send(()).unwrap());
    });
    host.keep(schedule, 1).await;
    is_over.await.unwrap();
    let runs = host.runs().await;
    assert!(runs.iter().all(|run| run.state == blockd_api::schedules::RunState::Done), "{runs:?}");
    fs::remove_dir_all(host.store.path()).unwrap();
    fs::rename(&away, host.store.path()).unwrap();
    host.stop().await;
}

/// A pass begins a deletion, the power fails before anything is deleted, and what the pass relied on is lost
/// since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletion_of_retention_is_judged_again_after_a_restart() {
    let mut host = Host::new().await;
    let dated = host.one_dated().await;
    let newest = host.backup("v", true).await.source_volume.unwrap();
    host.die_at("delete accepted");
    host.engine().deletions.delete_expired(later, &mut RecentListings::default()).await.unwrap();
    let task = host.engine().db.transaction(TaskRow::unfinished).unwrap().remove(0);
    host.engine().host.stopping.cancelled().await;
    host.lose_pack(&newest);
    host.stop().await;
    host.start().await;
    let error = host.wait(task.id).await.error.expect("it is not done").message;
    assert!(error.contains("evaluates"), "{error}");
    assert_eq!(host.ids().await, [dated, newest]);
    assert!(!host.has_event("delete-done").await);
    host.stop().await;
}
