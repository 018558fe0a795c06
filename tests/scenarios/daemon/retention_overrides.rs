//! Pins, and dates on which cloud snapshots expire.

use super::Host;
use blockd_api::{
    ErrorCode, MAX_WAIT_MS,
    cloudsnaps::{BackupOptions, CloudSnapshotId, CloudsnapMark, MarkCloudsnap, StartBackup, StartDelete},
    events::ListEvents,
    operations::*,
    schedules::RunState,
    tasks::{TaskOwner, TaskStage},
};
use blockd_catalog::{DbError, DeleteTask, RestoreTask, RetentionOverride, TaskRow, TaskSpec};
use blockd_cloud::ManifestKey;
use blockd_engine::{cloud_snapshots::retention_overrides::RecentListings, engine::Engine};
use blockd_schedule::{KeepReason, Verdict};
use jiff::{SignedDuration, Timestamp};
use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};
use uuid::Uuid;

/// Timeout of short operations.
const TIMEOUT: Duration = Duration::from_secs(120);

fn mark(snap: &str) -> MarkCloudsnap {
    MarkCloudsnap {
        snap: snap.parse().unwrap(),
        cred_id: None,
        pinned: None,
        expires: None,
        never_expires: false,
    }
}

fn stored_id(snap: &str) -> blockd_cloud::CloudSnapshotId {
    snap.parse().unwrap()
}

/// A task of a cloud snapshot, as the database has it.
fn task(spec: TaskSpec, state: TaskStage, snap: &str, credential: Uuid) -> TaskRow {
    TaskRow { state, ..TaskRow::new(spec, credential, stored_id(snap), TaskOwner::Daemon) }
}

/// Stores a mark as of now.
pub(super) fn store_override(engine: &Engine, mark: RetentionOverride) {
    engine.db.transaction(|tx| mark.put(tx)).unwrap();
}

impl Host {
    /// Waits until so many were deleted since the database was made.
    async fn until_deleted(&self, count: usize) {
        let (mut since, mut deleted) = (0, 0);
        let looking = async {
            while deleted < count {
                let query = ListEvents { since: Some(since), max: None, wait_ms: Some(MAX_WAIT_MS) };
                for event in self.call(LIST_EVENTS, &query).await.events {
                    since = event.id;
                    deleted += usize::from(event.kind == "delete-done");
                }
            }
        };
        tokio::time::timeout(TIMEOUT, looking).await.expect("what is not kept is not deleted");
    }

    fn mark_of(&self, id: &blockd_cloud::CloudSnapshotId, credential: Uuid) -> Option<RetentionOverride> {
        self.engine().db.transaction(|tx| RetentionOverride::find(tx, id, credential)).unwrap()
    }

    /// Backups that expire at a time.
    pub(super) async fn dated(&self, count: usize, expires: Timestamp) -> Vec<String> {
        let mut snaps = Vec::new();
        for _ in 0..count {
            let request = StartBackup {
                options: BackupOptions { expires: Some(expires), ..Default::default() },
                ..StartBackup::of("v".parse().unwrap())
            };
            let task = self.call(START_BACKUP, &request).await.task;
            snaps.push(self.done(task).await.source_volume.unwrap());
        }
        snaps
    }

    async fn pin(&self, snap: &str, pinned: bool) -> CloudsnapMark {
        self.call(MARK_CLOUDSNAP, &MarkCloudsnap { pinned: Some(pinned), ..mark(snap) }).await
    }

    pub(super) async fn ids(&self) -> Vec<String> {
        self.list().await.iter().map(|entry| entry.id.to_string()).collect()
    }

    /// Runs the expiry of a time, and waits for the deletions.
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
    let credential = host.create_credential().await;
    host.create_volume("v").await.write(0, &[7; 4096], false).unwrap();
    let snap = host.backup("v", false).await.source_volume.unwrap();
    let pinned = host.pin(&snap, true).await;
    assert_eq!((pinned.id.to_string(), pinned.pinned, pinned.expires), (snap.clone(), true, None));
    host.stop().await;
    host.start().await;
    let listed = host.list().await;
    assert_eq!((listed[0].metadata.pinned.as_deref(), &listed[0].metadata.expires), (Some("true"), &None));
    let delete = StartDelete::of(snap.parse().unwrap());
    host.refused(ErrorCode::CloudsnapPinned, START_DELETE, &delete).await;

    // A date beside it changes nothing while it is there.
    let tomorrow = Timestamp::now() + SignedDuration::from_hours(24);
    let dated = MarkCloudsnap { expires: Some(tomorrow), ..mark(&snap) };
    let dated = host.call(MARK_CLOUDSNAP, &dated).await;
    assert_eq!((dated.pinned, dated.expires), (true, Some(tomorrow)));
    host.backup("v", false).await;
    host.expire_at(tomorrow + SignedDuration::from_hours(1)).await;
    assert_eq!(host.ids().await.len(), 2);
    let never = MarkCloudsnap { never_expires: true, pinned: Some(true), ..mark(&snap) };
    assert_eq!(host.call(MARK_CLOUDSNAP, &never).await.expires, None);

    for wrong in [
        mark(&snap),
        MarkCloudsnap { expires: Some(Timestamp::now()), ..mark(&snap) },
        MarkCloudsnap { expires: Some(tomorrow), never_expires: true, ..mark(&snap) },
    ] {
        host.refused(ErrorCode::InvalidRequest, MARK_CLOUDSNAP, &wrong).await;
    }
    let nothing: CloudSnapshotId =
        CloudSnapshotId { snapshot: "7".parse().unwrap(), ..snap.parse().unwrap() };
    let unknown = MarkCloudsnap { pinned: Some(true), ..mark(&nothing.to_string()) };
    host.refused(ErrorCode::CloudsnapNotFound, MARK_CLOUDSNAP, &unknown).await;

    let by_force = StartDelete { force: true, ..delete.clone() };
    host.done(host.call(START_DELETE, &by_force).await.task).await;
    assert_eq!(host.mark_of(&stored_id(&snap), credential), None, "the mark goes with what it was for");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedules_respect_pins_and_dates() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    let schedule = host.schedule(1).await;
    let mut snaps = Vec::new();
    for round in 0..3u64 {
        host.volume("v").write(round << 20, &[7; 4096], false).unwrap();
        host.call_at(RUN_SCHEDULE, &schedule.uuid, &()).await;
        let runs = host.settled().await;
        snaps.push(runs[0].cloudsnap.unwrap().to_string());
        if round == 0 {
            host.pin(&snaps[0], true).await;
        }
    }
    // The second one goes, the first one stays.
    host.until_deleted(1).await;
    assert_eq!(host.runs().await.iter().filter(|run| run.state == RunState::Expired).count(), 1);
    assert_eq!(host.ids().await, [snaps[0].clone(), snaps[2].clone()]);
    let plan = host.call_at(PLAN_RETENTION, &schedule.uuid, &()).await.cloudsnaps;
    assert_eq!(plan[1].verdict, Verdict::Keep(vec![KeepReason::Pinned]));
    host.expire_at(Timestamp::now() + SignedDuration::from_hours(9000)).await;
    assert_eq!(host.ids().await.len(), 2);

    // Without the pin it goes as well.
    host.pin(&snaps[0], false).await;
    host.until_deleted(2).await;
    assert_eq!(host.ids().await, [snaps[2].clone()]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manual_backup_expires_unless_it_is_the_last_good_one() {
    let mut host = Host::new().await;
    let credential = host.create_credential().await;
    host.create_volume("v").await.write(0, &[7; 4096], false).unwrap();
    let tomorrow = Timestamp::now() + SignedDuration::from_hours(24);
    let later = tomorrow + SignedDuration::from_hours(1);
    let snaps = host.dated(2, tomorrow).await;
    let listed = host.list().await;
    assert!(listed.iter().all(|entry| entry.metadata.expires.is_some()), "{listed:?}");
    host.expire_at(tomorrow - SignedDuration::from_secs(1)).await;
    assert_eq!(host.ids().await, snaps);
    // The clock is set back before it is compared with the store's.
    let looks = AtomicUsize::new(0);
    let set_back = || match looks.fetch_add(1, Relaxed) {
        0 => later,
        _ => Timestamp::now(),
    };
    host.engine().deletions.delete_expired(set_back, &mut RecentListings::default()).await.unwrap();
    assert_eq!((looks.load(Relaxed), host.engine().tasks.unfinished_tasks().await.unwrap()), (2, vec![]));
    assert_eq!(host.ids().await, snaps);
    host.expire_at(later).await;
    assert_eq!(host.ids().await, snaps[1..], "the newest good one stays");
    host.expire_at(later).await;
    assert_eq!(host.ids().await, snaps[1..]);

    // A newer one takes its place.
    let newer = host.backup("v", false).await.source_volume.unwrap();
    host.expire_at(later).await;
    assert_eq!(host.ids().await, [newer.as_str()]);

    // Another host deletes one with a date here: the date is removed.
    let dated = MarkCloudsnap { expires: Some(tomorrow), ..mark(&newer) };
    host.call(MARK_CLOUDSNAP, &dated).await;
    let id = stored_id(&newer);
    std::fs::remove_file(host.store.path().join(id.manifest_key())).unwrap();
    host.expire_at(later).await;
    assert_eq!(host.mark_of(&id, credential), None);
    let past = StartBackup {
        options: BackupOptions { expires: Some(Timestamp::now()), ..Default::default() },
        ..StartBackup::of("v".parse().unwrap())
    };
    host.refused(ErrorCode::InvalidRequest, START_BACKUP, &past).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pin_during_a_listing_is_kept() {
    let mut host = Host::new().await;
    let credential = host.create_credential().await;
    host.create_volume("v").await.write(0, &[7; 4096], false).unwrap();
    let tomorrow = Timestamp::now() + SignedDuration::from_hours(24);
    let later = tomorrow + SignedDuration::from_hours(1);
    let snaps = host.dated(2, tomorrow).await;
    let cloudsnap = stored_id(&snaps[0]);
    let first = RetentionOverride { cloudsnap, credential, pinned: false, expires: Some(tomorrow) };
    for said in [
        RetentionOverride { expires: Some(later + SignedDuration::from_hours(1)), ..first },
        RetentionOverride { expires: None, ..first },
        RetentionOverride { pinned: true, ..first },
    ] {
        store_override(host.engine(), first);
        host.meanwhile("expired judged", move |engine| store_override(engine, said));
        host.expire_at(later).await;
        assert!(host.engine().host.failpoints.are_over());
        assert_eq!(host.ids().await, snaps, "{said:?}");
    }
    store_override(host.engine(), first);
    host.expire_at(later).await;
    assert_eq!(host.ids().await, snaps[1..], "otherwise it goes");

    // A deletion ends between the look at the store and the mark.
    let last = stored_id(&snaps[1]);
    let manifest = host.store.path().join(last.manifest_key());
    host.meanwhile("override requested", move |_| std::fs::remove_file(manifest).unwrap());
    let pinned = MarkCloudsnap { pinned: Some(true), ..mark(&snaps[1]) };
    host.refused(ErrorCode::CloudsnapNotFound, MARK_CLOUDSNAP, &pinned).await;
    assert!(!host.mark_of(&last, credential).unwrap().pinned);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_pinned_during_retention_is_kept() {
    let mut host = Host::new().await;
    let credential = host.create_credential().await;
    host.create_volume("v").await;
    let schedule = host.schedule(1).await;
    let mut snaps: Vec<String> = Vec::new();
    for round in 0..3u64 {
        host.volume("v").write(round << 20, &[7; 4096], false).unwrap();
        if round == 1 {
            let pin = RetentionOverride {
                cloudsnap: stored_id(&snaps[0]),
                credential,
                pinned: true,
                expires: None,
            };
            host.meanwhile("surplus judged", move |engine| store_override(engine, pin));
        }
        host.call_at(RUN_SCHEDULE, &schedule.uuid, &()).await;
        snaps.push(host.settled().await[0].cloudsnap.unwrap().to_string());
    }
    host.until_deleted(1).await;
    assert!(host.engine().host.failpoints.are_over());
    assert_eq!(host.ids().await, [snaps[0].clone(), snaps[2].clone()]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_deletion_blocks_no_other() {
    let mut host = Host::new().await;
    let credential = host.create_credential().await;
    host.create_volume("v").await.write(0, &[7; 4096], false).unwrap();
    let tomorrow = Timestamp::now() + SignedDuration::from_hours(24);
    let snaps = host.dated(4, tomorrow).await;
    // The older ones come into use when it is decided already that they go.
    let restore = TaskSpec::Restore(RestoreTask::NewVolume { skip_damaged: false });
    let restores = [0, 1].map(|one| task(restore.clone(), TaskStage::Active, &snaps[one], credential));
    host.meanwhile("expired judged", move |engine| {
        let put = |tx: &rusqlite::Transaction<'_>| restores.iter().try_for_each(|row| row.put(tx));
        engine.db.transaction::<_, DbError>(put).unwrap();
    });
    let now = tomorrow + SignedDuration::from_hours(1);
    host.engine().deletions.delete_expired(|| now, &mut RecentListings::default()).await.unwrap();
    host.until_deleted(1).await;
    assert_eq!(host.ids().await, [&snaps[..2], &snaps[3..]].concat());
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumed_deletion_spares_snapshots_pinned_or_used_since() {
    let mut host = Host::new().await;
    let credential = host.create_credential().await;
    host.create_volume("v").await.write(0, &[7; 4096], false).unwrap();
    let snap = host.backup("v", false).await.source_volume.unwrap();
    let stopped = |force, by_retention| {
        let spec = TaskSpec::Delete(DeleteTask { force, by_retention, ..DeleteTask::default() });
        let mut row = task(spec, TaskStage::Stopped, &snap, credential);
        row.detail.resumable = true;
        host.engine().db.transaction(|tx| row.put(tx)).unwrap();
        row.id
    };
    let (asked, forced) = (stopped(false, false), stopped(true, false));
    let judged = stopped(false, true);
    host.call_at(RESUME_TASK, &judged, &()).await;
    assert_eq!(
        host.wait(judged).await.error.unwrap().code,
        ErrorCode::TaskStopped,
        "retention evaluates it again"
    );
    host.pin(&snap, true).await;
    host.refused_at(ErrorCode::CloudsnapPinned, RESUME_TASK, &asked, &()).await;
    host.restore_lazily(&snap, "clone", false).await;
    host.refused_at(ErrorCode::CloudsnapInUse, RESUME_TASK, &forced, &()).await;
    assert_eq!(host.ids().await, [snap.as_str()]);
    host.call_at(DELETE_VOLUME, &"clone".parse().unwrap(), &Default::default()).await;
    host.call_at(RESUME_TASK, &forced, &()).await;
    host.done(forced).await;
    assert_eq!(host.ids().await, [""; 0]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pin_of_a_running_backup_is_kept() {
    let mut host = Host::new().await;
    let credential = host.create_credential().await;
    host.create_volume("v").await.write(0, &[7; 4096], false).unwrap();
    let tomorrow = Timestamp::now() + SignedDuration::from_hours(24);
    for expires in [None, Some(tomorrow)] {
        host.meanwhile("backup stored", move |engine| {
            let tasks = engine.db.transaction(TaskRow::unfinished).unwrap();
            let cloudsnap = tasks[0].cloudsnap;
            store_override(engine, RetentionOverride { cloudsnap, credential, pinned: true, expires: None });
        });
        let request = StartBackup {
            options: BackupOptions { expires, ..Default::default() },
            ..StartBackup::of("v".parse().unwrap())
        };
        let task = host.call(START_BACKUP, &request).await.task;
        let snap = host.done(task).await.source_volume.unwrap();
        let mark = host.mark_of(&stored_id(&snap), credential).unwrap();
        assert_eq!((mark.pinned, mark.expires), (true, expires));
    }
    host.stop().await;
}
