//! Pins and expiry dates of cloud snapshots.

use super::{retention::set_back_clock, *};
use blockd_api::{
    cloudsnaps::{CloudSnapshotId, CloudsnapMark, MarkCloudsnap},
    schedules::{RunState, Schedule},
    tasks::TaskOwner,
};
use blockd_catalog::{DeleteTask, RestoreTask, RetentionOverride, TaskSpec};
use blockd_engine::cloud_snapshots::retention_overrides::RecentListings;
use blockd_schedule::{KeepReason, Verdict};
use jiff::{SignedDuration, Timestamp};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Returns the row of a task of a cloud snapshot.
fn task(spec: TaskSpec, state: TaskStage, snap: &str, credential: Uuid) -> TaskRow {
    TaskRow { state, ..TaskRow::new(spec, credential, snap_id(snap), TaskOwner::Daemon) }
}

/// Stores a pin or expiry date.
pub(super) fn store_override(engine: &Engine, mark: RetentionOverride) {
    engine.db.transaction(|tx| mark.put(tx)).unwrap();
}

/// Returns a backup request with an expiry date.
fn expiring(expires: Option<Timestamp>) -> StartBackup {
    StartBackup { options: BackupOptions { expires_at: expires, ..Default::default() }, ..backup_of("v") }
}

impl Host {
    /// Waits for a number of deletions since the database was created.
    pub(super) async fn until_deleted(&self, count: usize) {
        self.nth_event("delete-done", count).await;
    }

    /// Writes to the volume `v` and runs a schedule; returns the id of the cloud snapshot.
    pub(super) async fn write_and_run(&self, schedule: &Schedule, round: u64) -> String {
        self.volume("v").write(round << 20, &[7; 4096], false).unwrap();
        self.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await;
        self.settled().await[0].cloud_snapshot_id.unwrap().to_string()
    }

    fn override_of(&self, id: &blockd_cloud::CloudSnapshotId, credential: Uuid) -> Option<RetentionOverride> {
        self.engine().db.transaction(|tx| RetentionOverride::find(tx, id, credential)).unwrap()
    }

    /// Makes backups that expire at a given time.
    pub(super) async fn dated(&self, count: usize, expires: Timestamp) -> Vec<String> {
        let mut snaps = Vec::new();
        for _ in 0..count {
            snaps.push(self.run_backup(&expiring(Some(expires))).await.cloud_snapshot_id.unwrap());
        }
        snaps
    }

    async fn pin(&self, snap: &str, pinned: bool) -> CloudsnapMark {
        self.call(MARK_CLOUDSNAP, &MarkCloudsnap { pinned: Some(pinned), ..mark_of(snap) }).await
    }

    /// Runs the expiry at a given time, and waits for the deletions.
    pub(super) async fn expire_at(&self, now: Timestamp) {
        self.engine().deletions.delete_expired(|| now, &mut RecentListings::default()).await.unwrap();
        for task in self.engine().tasks.unfinished_tasks().await.unwrap() {
            self.done(task.id).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pinned_backup_is_deleted_by_force_only() {
    let mut host = Host::new().await;
    let credential = host.credential_and_volume().await;
    let snap = host.backup("v", false).await.cloud_snapshot_id.unwrap();
    let pinned = host.pin(&snap, true).await;
    assert_eq!(
        (pinned.cloud_snapshot_id.to_string(), pinned.pinned, pinned.expires_at),
        (snap.clone(), true, None)
    );
    host.restart().await;
    let listed = host.list().await;
    assert_eq!((listed[0].pinned, listed[0].expires_at), (true, None));
    let delete = delete_of(&snap);
    host.refused(ErrorCode::CloudsnapPinned, START_DELETE, &delete).await;

    // An expiry date has no effect on a pinned backup.
    let tomorrow = tomorrow();
    let dated = MarkCloudsnap { expires_at: Some(tomorrow), ..mark_of(&snap) };
    let dated = host.call(MARK_CLOUDSNAP, &dated).await;
    assert_eq!((dated.pinned, dated.expires_at), (true, Some(tomorrow)));
    host.backup("v", false).await;
    host.expire_at(later()).await;
    assert_eq!(host.ids().await.len(), 2);
    let never = MarkCloudsnap { never_expires: true, pinned: Some(true), ..mark_of(&snap) };
    assert_eq!(host.call(MARK_CLOUDSNAP, &never).await.expires_at, None);

    for wrong in [
        mark_of(&snap),
        MarkCloudsnap { expires_at: Some(Timestamp::now()), ..mark_of(&snap) },
        MarkCloudsnap { expires_at: Some(tomorrow), never_expires: true, ..mark_of(&snap) },
    ] {
        host.refused(ErrorCode::InvalidRequest, MARK_CLOUDSNAP, &wrong).await;
    }
    let unknown = CloudSnapshotId { snapshot: "7".parse().unwrap(), ..snap_id(&snap) };
    let unknown = MarkCloudsnap { cloud_snapshot_id: unknown, pinned: Some(true), ..mark_of(&snap) };
    host.refused(ErrorCode::CloudsnapNotFound, MARK_CLOUDSNAP, &unknown).await;

    host.done(host.delete_by_force(&snap).await).await;
    assert_eq!(host.override_of(&snap_id(&snap), credential), None, "the pin is deleted as well");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_of_schedules_keeps_pinned_backups() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    let schedule = host.schedule(1).await;
    let mut snaps = Vec::new();
    for round in 0..3 {
        snaps.push(host.write_and_run(&schedule, round).await);
        if round == 0 {
            host.pin(&snaps[0], true).await;
        }
    }
    // The second backup is deleted, the pinned first one is kept.
    host.until_deleted(1).await;
    assert_eq!(host.runs().await.iter().filter(|run| run.state == RunState::Expired).count(), 1);
    assert_eq!(host.ids().await, [snaps[0].clone(), snaps[2].clone()]);
    let plan = host.call_at(PLAN_RETENTION, &schedule.schedule_id, &()).await.items;
    assert_eq!(plan[1].verdict, Verdict::Keep(vec![KeepReason::Pinned]));
    host.expire_at(Timestamp::now() + SignedDuration::from_hours(9000)).await;
    assert_eq!(host.ids().await.len(), 2);

    // Without the pin it is deleted as well.
    host.pin(&snaps[0], false).await;
    host.until_deleted(2).await;
    assert_eq!(host.ids().await, [snaps[2].clone()]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn date_of_another_hosts_backup_is_set_by_force_only() {
    let (host, other) = (Host::new().await, Host::new().await);
    host.credential_and_volume().await;
    let mut snaps = Vec::new();
    for _ in 0..2 {
        snaps.push(host.backup("v", false).await.cloud_snapshot_id.unwrap());
    }
    other.create_credential_at("nas", host.store.path()).await;
    let mut dated = MarkCloudsnap { expires_at: Some(tomorrow()), ..mark_of(&snaps[0]) };
    other.refused(ErrorCode::CloudsnapOfOtherHost, MARK_CLOUDSNAP, &dated).await;
    other.expire_at(later()).await;
    assert_eq!(host.ids().await, snaps);

    // What keeps it needs no force.
    assert!(other.pin(&snaps[0], true).await.pinned && !other.pin(&snaps[0], false).await.pinned);
    let never = MarkCloudsnap { never_expires: true, ..mark_of(&snaps[0]) };
    assert_eq!(other.call(MARK_CLOUDSNAP, &never).await.expires_at, None);
    dated.force = true;
    assert_eq!(other.call(MARK_CLOUDSNAP, &dated).await.expires_at, dated.expires_at);
    other.expire_at(later()).await;
    assert_eq!(host.ids().await, snaps[1..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manual_backup_expires_unless_it_is_the_last_good_one() {
    let mut host = Host::new().await;
    let credential = host.credential_and_volume().await;
    let (tomorrow, later) = (tomorrow(), later());
    let snaps = host.dated(2, tomorrow).await;
    let listed = host.list().await;
    assert!(listed.iter().all(|entry| entry.expires_at.is_some()), "{listed:?}");
    host.expire_at(tomorrow - SignedDuration::from_secs(1)).await;
    assert_eq!(host.ids().await, snaps);
    let calls = AtomicUsize::new(0);
    let now = || set_back_clock(&calls);
    host.engine().deletions.delete_expired(now, &mut RecentListings::default()).await.unwrap();
    assert_eq!((calls.load(Relaxed), host.engine().tasks.unfinished_tasks().await.unwrap()), (2, vec![]));
    assert_eq!(host.ids().await, snaps);
    host.expire_at(later).await;
    assert_eq!(host.ids().await, snaps[1..], "the newest good one is kept");
    host.expire_at(later).await;
    assert_eq!(host.ids().await, snaps[1..]);

    // With a newer backup, the old one expires.
    let newer = host.backup("v", false).await.cloud_snapshot_id.unwrap();
    host.expire_at(later).await;
    assert_eq!(host.ids().await, [newer.as_str()]);

    // Another host deletes one with a date here: the date is removed.
    let dated = MarkCloudsnap { expires_at: Some(tomorrow), ..mark_of(&newer) };
    host.call(MARK_CLOUDSNAP, &dated).await;
    let id = snap_id(&newer);
    fs::remove_file(host.manifest(&newer)).unwrap();
    host.expire_at(later).await;
    assert_eq!(host.override_of(&id, credential), None);
    host.refused(ErrorCode::InvalidRequest, START_BACKUP, &expiring(Some(Timestamp::now()))).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pin_during_a_listing_is_kept() {
    let mut host = Host::new().await;
    let credential = host.credential_and_volume().await;
    let (tomorrow, later) = (tomorrow(), later());
    let snaps = host.dated(2, tomorrow).await;
    let cloudsnap = snap_id(&snaps[0]);
    let first = RetentionOverride { cloudsnap, credential, pinned: false, expires: Some(tomorrow) };
    for concurrent in [
        RetentionOverride { expires: Some(later + SignedDuration::from_hours(1)), ..first },
        RetentionOverride { expires: None, ..first },
        RetentionOverride { pinned: true, ..first },
    ] {
        store_override(host.engine(), first);
        host.act_at("expired judged", move |engine| store_override(engine, concurrent));
        host.expire_at(later).await;
        assert!(host.engine().host.failpoints.are_over());
        assert_eq!(host.ids().await, snaps, "{concurrent:?}");
    }
    store_override(host.engine(), first);
    host.expire_at(later).await;
    assert_eq!(host.ids().await, snaps[1..], "without a concurrent change it expires");

    // A deletion ends after the check of the store and before the pin is stored.
    let last = snap_id(&snaps[1]);
    let manifest = host.manifest(&snaps[1]);
    host.act_at("override requested", move |_| fs::remove_file(manifest).unwrap());
    let pinned = MarkCloudsnap { pinned: Some(true), ..mark_of(&snaps[1]) };
    host.refused(ErrorCode::CloudsnapNotFound, MARK_CLOUDSNAP, &pinned).await;
    assert!(!host.override_of(&last, credential).unwrap().pinned);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_pinned_during_retention_is_kept() {
    let mut host = Host::new().await;
    let credential = host.create_credential().await;
    host.create_volume("v").await;
    let schedule = host.schedule(1).await;
    let mut snaps: Vec<String> = Vec::new();
    for round in 0..3 {
        if round == 1 {
            let pin =
                RetentionOverride { cloudsnap: snap_id(&snaps[0]), credential, pinned: true, expires: None };
            host.act_at("surplus judged", move |engine| store_override(engine, pin));
        }
        snaps.push(host.write_and_run(&schedule, round).await);
    }
    host.until_deleted(1).await;
    assert!(host.engine().host.failpoints.are_over());
    assert_eq!(host.ids().await, [snaps[0].clone(), snaps[2].clone()]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_deletion_does_not_block_others() {
    let mut host = Host::new().await;
    let credential = host.credential_and_volume().await;
    let snaps = host.dated(4, tomorrow()).await;
    // Restores of the two oldest start after the decision to delete them.
    let restore = TaskSpec::Restore(RestoreTask::NewVolume { skip_damaged: false });
    let restores = [0, 1].map(|one| task(restore.clone(), TaskStage::Active, &snaps[one], credential));
    host.act_at("expired judged", move |engine| {
        let put = |tx: &rusqlite::Transaction<'_>| restores.iter().try_for_each(|row| row.put(tx));
        engine.db.transaction::<_, DbError>(put).unwrap();
    });
    host.engine().deletions.delete_expired(later, &mut RecentListings::default()).await.unwrap();
    host.until_deleted(1).await;
    assert_eq!(host.ids().await, [&snaps[..2], &snaps[3..]].concat());
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumed_deletion_spares_snapshots_pinned_or_used_since() {
    let mut host = Host::new().await;
    let credential = host.credential_and_volume().await;
    let snap = host.backup("v", false).await.cloud_snapshot_id.unwrap();
    let stopped = |force, by_retention| {
        let spec = TaskSpec::Delete(DeleteTask { force, by_retention, ..DeleteTask::default() });
        let mut row = task(spec, TaskStage::Stopped, &snap, credential);
        row.detail.resumable = true;
        host.engine().db.transaction(|tx| row.put(tx)).unwrap();
        row.id
    };
    let (manual, forced) = (stopped(false, false), stopped(true, false));
    let by_retention = stopped(false, true);
    host.call_at(RESUME_TASK, &by_retention, &()).await;
    let error = host.wait(by_retention).await.error.unwrap();
    assert_eq!(error.code, ErrorCode::TaskStopped, "retention evaluates it again");
    host.pin(&snap, true).await;
    host.refused_at(ErrorCode::CloudsnapPinned, RESUME_TASK, &manual, &()).await;
    host.restore_lazily(&snap, "clone", false).await;
    host.refused_at(ErrorCode::CloudsnapInUse, RESUME_TASK, &forced, &()).await;
    assert_eq!(host.ids().await, [snap.as_str()]);
    host.delete_volume("clone").await;
    host.call_at(RESUME_TASK, &forced, &()).await;
    host.done(forced).await;
    assert_eq!(host.ids().await, [""; 0]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pin_of_a_running_backup_is_kept() {
    let mut host = Host::new().await;
    let credential = host.credential_and_volume().await;
    for expires in [None, Some(tomorrow())] {
        host.act_at("backup stored", move |engine| {
            let tasks = engine.db.transaction(TaskRow::unfinished).unwrap();
            let cloudsnap = tasks[0].cloudsnap;
            store_override(engine, RetentionOverride { cloudsnap, credential, pinned: true, expires: None });
        });
        let snap = host.run_backup(&expiring(expires)).await.cloud_snapshot_id.unwrap();
        let mark = host.override_of(&snap_id(&snap), credential).unwrap();
        assert_eq!((mark.pinned, mark.expires), (true, expires));
    }
    host.stop().await;
}
