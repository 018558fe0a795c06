//! Tasks that are stopped or fail and are resumed or abandoned; garbage collection.

use super::*;
use blockd_api::{
    cloudsnaps::{CloudsnapStatus, CollectGarbage, VerifyDepth},
    tasks::{StopTask, TaskLimits},
    volumes::VolumeState,
};
use jiff::{SignedDuration, Timestamp};
use std::os::unix::fs::PermissionsExt;

/// Limits with which a pack or read takes one or two seconds.
pub(super) const SLOW: TaskLimits = TaskLimits {
    limit_upload_bytes_per_second: Some(16 << 20),
    limit_download_bytes_per_second: Some(16 << 20),
    ..TaskLimits::NONE
};

const KEEP: StopTask = StopTask { discard: false };
pub(super) const DISCARD: StopTask = StopTask { discard: true };

impl Host {
    /// Creates a volume with enough data for several packs.
    pub(super) async fn fill(&self, name: &str) -> (Arc<Volume>, Model) {
        let volume = self.create_volume(name).await;
        let mut model = Model::new();
        model.write(&volume, 0, 1, SIZE_BYTES as usize);
        (volume, model)
    }

    /// Waits until a condition holds on a task, which must not end before.
    pub(super) async fn until_active(&self, task: Uuid, condition: impl Fn(&Task) -> bool) {
        let mut wait = WaitTask::default();
        loop {
            let seen = self.call_at(GET_TASK, &task, &wait).await;
            assert!(!seen.state.stage.is_over(), "{seen:?}");
            if condition(&seen) {
                return;
            }
            wait = WaitTask { wait_millis: Some(1_000), since_version: Some(seen.version) };
        }
    }

    /// Waits until a task has processed data.
    pub(super) async fn until_processed(&self, task: Uuid) {
        self.until_active(task, |seen| seen.processed_bytes > 0).await;
    }

    /// Starts a backup with time between its packs.
    pub(super) async fn start_slow_backup(&self, full: bool) -> Uuid {
        let options = BackupOptions { full, reupload: full, ..Default::default() };
        let request = StartBackup { limits: SLOW, options, ..backup_of("data") };
        self.call(START_BACKUP, &request).await.items[0].task_id
    }

    /// Waits until a slow task has processed data, stops it and removes its limits.
    pub(super) async fn stop_in_progress(&self, task: Uuid) -> Task {
        self.until_processed(task).await;
        let stopped = self.call_at(STOP_TASK, &task, &KEEP).await;
        assert!(stopped.resumable && stopped.state.stage == TaskStage::Stopped, "{stopped:?}");
        self.call_at(LIMIT_TASK, &task, &TaskLimits::default()).await;
        stopped
    }

    /// Stops a backup after its first pack.
    pub(super) async fn stopped_backup(&self) -> (Uuid, Arc<Volume>, Model) {
        let (volume, model) = self.fill("data").await;
        self.create_credential().await;
        let task = self.start_slow_backup(false).await;
        self.stop_in_progress(task).await;
        (task, volume, model)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_that_does_not_start_discards_none() {
    let host = Host::new().await;
    let (task, volume, _) = host.stopped_backup().await;
    drop(volume);
    host.sql(
        "CREATE TRIGGER fault BEFORE INSERT ON tasks WHEN NEW.state = 'pending' BEGIN SELECT RAISE(ABORT, 'disk I/O error'); END",
    );
    host.client.call(START_BACKUP, &backup_of("data")).await.unwrap_err();
    host.sql("DROP TRIGGER fault");
    host.call_at(RESUME_TASK, &task, &()).await;
    host.done(task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_backup_resumes_with_the_stored_packs() {
    for restart in [false, true] {
        let mut host = Host::new().await;
        let (task, volume, mut model) = host.stopped_backup().await;
        assert!(!host.packs().is_empty() && walk(&host.store.path().join("blockd/manifests")).is_empty());
        let listed = async |status| {
            let query = ListCloudsnaps { status: Some(status), ..ListCloudsnaps::default() };
            host.call(LIST_CLOUDSNAPS, &query).await.list.items.len()
        };
        assert_eq!((listed(CloudsnapStatus::Stopped).await, listed(CloudsnapStatus::Failed).await), (1, 0));
        // A repeated stop succeeds; later writes are not in the backup.
        let stopped = host.call_at(STOP_TASK, &task, &KEEP).await;
        assert_eq!((stopped.state.to_string().as_str(), stopped.resumable), ("Backup-Stopped", true));
        let frozen = model.clone();
        model.write(&volume, 5000, 9, 100_000);
        drop(volume);
        if restart {
            host.restart().await;
        }
        let resumed = host.call_at(RESUME_TASK, &task, &()).await;
        assert_eq!(resumed.state.to_string(), "Backup-Pending");
        let done = host.done(task).await;
        assert_eq!(done.resumed, 1);
        // Only packs in flight are uploaded again.
        assert!(done.uploaded_bytes < SIZE_BYTES + (34 << 20), "{}", done.uploaded_bytes);
        frozen.assert_is(&*host.restore(&done.cloud_snapshot_id.unwrap(), "copy").await);
        assert_eq!(host.backup("data", false).await.backup_type, Some(BackupType::Incremental));
        host.assert_tidy();
        host.refused_at(ErrorCode::TaskEnded, RESUME_TASK, &task, &()).await;
        host.refused_at(ErrorCode::TaskEnded, STOP_TASK, &task, &KEEP).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned_backup_leaves_no_objects() {
    let host = Host::new().await;
    let (task, volume, model) = host.stopped_backup().await;
    assert_eq!(volume.snapshots().len(), 1);
    assert!(!host.packs().is_empty());
    assert!(!host.call_at(STOP_TASK, &task, &DISCARD).await.resumable);
    host.assert_tidy();
    // Its objects are deleted in the background.
    eventually(async || {
        let packs = host.packs();
        if packs.is_empty() { Ok(()) } else { Err(packs) }
    })
    .await;

    let task = host.start_slow_backup(false).await;
    host.stop_in_progress(task).await;
    assert_eq!(volume.snapshots().len(), 1);
    let done = host.backup("data", false).await;
    host.refused_at(ErrorCode::TaskEnded, RESUME_TASK, &task, &()).await;
    host.assert_tidy();
    model.assert_is(&*host.restore(&done.cloud_snapshot_id.unwrap(), "copy").await);

    // A task that is not resumed for a week is abandoned.
    let task = host.start_slow_backup(true).await;
    host.stop_in_progress(task).await;
    let (runner, week) = (&host.engine().runner, SignedDuration::from_hours(7 * 24));
    runner.abandon_expired(Timestamp::now() + week - SignedDuration::from_hours(1)).await.unwrap();
    assert_eq!(host.engine().tasks.resumable_tasks().await.unwrap().len(), 1);
    runner.abandon_expired(Timestamp::now() + week + SignedDuration::from_secs(2)).await.unwrap();
    host.assert_tidy();
    // A volume with a resumable task can be deleted.
    let task = host.start_slow_backup(true).await;
    host.stop_in_progress(task).await;
    drop(volume);
    host.delete_volume("data").await;
    assert_eq!(host.engine().tasks.resumable_tasks().await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_of_a_volume_stops_its_hydration() {
    let host = Host::new().await;
    let (_, volume, _) = host.one_backup().await;
    drop(volume);
    let snap = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    // The hydration cannot fetch anything before the deletion.
    let (engine, cancel) = (host.engine(), CancelToken::new());
    let mut slots = Vec::new();
    for _ in 0..engine.host.settings.task_concurrency {
        slots.push(engine.tasks.slot(&cancel).await.unwrap());
    }
    let task = host.restore_lazily(&snap, "copy", true).await.task_id.unwrap();
    host.delete_volume("copy").await;
    drop(slots);
    let stopped = host.wait(task).await;
    assert_eq!((stopped.state.to_string().as_str(), stopped.resumable), ("Restore-Stopped", false));
    assert!(host.events_of("restore-failed").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_restore_fetches_the_remainder_only() {
    for restart in [false, true] {
        let mut host = Host::new().await;
        let (volume, model) = host.fill("data").await;
        host.create_credential().await;
        let id = host.backup("data", false).await.cloud_snapshot_id.unwrap();
        drop(volume);
        let request = StartRestore { limits: SLOW, ..restore_as(&id, "copy") };
        let task = host.call(START_RESTORE, &request).await.task_id;
        let stopped = host.stop_in_progress(task).await;
        assert_eq!(stopped.state.to_string(), "Restore-Stopped");
        assert!(stopped.processed_bytes < SIZE_BYTES);
        if restart {
            host.restart().await;
        }
        let volume = host.inspect_volume("copy").await;
        let way = format!(
            "stopped: `blockctl cloudsnap resume --name {task}` resumes it, `blockctl cloudsnap stop --name {task} --discard` abandons it"
        );
        assert_eq!((volume.state, volume.state_reason), (VolumeState::Restoring, Some(way)));
        let refused = host.client.call_at(DELETE_VOLUME, &"copy".parse().unwrap(), &Default::default()).await;
        let refused = api_error(refused);
        let discard = format!("`blockctl cloudsnap stop --name {task} --discard` abandons it");
        assert!(refused.code == ErrorCode::VolumeInUse && refused.message.contains(&discard), "{refused:?}");
        host.call_at(RESUME_TASK, &task, &()).await;
        let done = host.done(task).await;
        // Only data in flight at the stop is fetched twice.
        assert!(done.downloaded_bytes < 2 * SIZE_BYTES, "{}", done.downloaded_bytes);
        let fetched = done.downloaded_bytes - stopped.downloaded_bytes;
        assert!(fetched <= SIZE_BYTES - stopped.processed_bytes + (4 << 20), "{fetched}, {stopped:?}");
        model.assert_is(&host.volume("copy"));
        host.assert_tidy();

        // An abandoned restore leaves no volume.
        let task = host.call(START_RESTORE, &restore_as(&id, "third")).await.task_id;
        let stopped = host.client.call_at(STOP_TASK, &task, &DISCARD).await;
        if let Ok(stopped) = stopped
            && stopped.state.stage == TaskStage::Stopped
        {
            assert!(host.engine().registry.by_name("third").is_none());
        }
        host.assert_tidy();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn full_store_keeps_uploaded_packs() {
    let host = Host::new().await;
    let (task, _, model) = host.stopped_backup().await;
    // The store refuses all further PUTs.
    let data = host.store.path().join("blockd/data");
    let dirs: Vec<_> = walk(&data).iter().map(|path| Path::new(path).parent().unwrap().to_owned()).collect();
    let set_mode = |mode| {
        for dir in &dirs {
            fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        // Permissions do not restrict root: a file replaces the directory of the packs.
        move_away(&data);
        fs::write(&data, "no directory").unwrap();
    } else {
        set_mode(0o500);
    }
    host.call_at(RESUME_TASK, &task, &()).await;
    let failed = host.wait(task).await;
    assert_eq!((failed.state.to_string().as_str(), failed.resumable), ("Backup-Failed", true), "{failed:?}");
    assert!(failed.error.is_some());
    if is_root {
        fs::remove_file(&data).unwrap();
        fs::rename(data.with_extension("away"), &data).unwrap();
    } else {
        set_mode(0o700);
    }
    host.call_at(RESUME_TASK, &task, &()).await;
    let done = host.done(task).await;
    assert_eq!(done.error, None);
    model.assert_is(&*host.restore(&done.cloud_snapshot_id.unwrap(), "copy").await);
    host.assert_tidy();
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_verification_finds_untracked_writes() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    Model::new().write(&volume, 0, 1, 1 << 20);
    let id = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    // As if tracking had missed this write: no dirty set includes it.
    Model::new().write(&volume, 5 * BLOCK, 7, 2 * BLOCK as usize);
    let epoch = host.take_snapshot("data", &CreateSnapshot::default()).await.epoch;
    let set_epoch = |epoch| host.sql(&format!("UPDATE chains SET epoch = {epoch}"));
    let before: i64 = host
        .engine()
        .db
        .transaction::<_, DbError>(|tx| Ok(tx.query_row("SELECT epoch FROM chains", [], |row| row.get(0))?))
        .unwrap();
    set_epoch(i64::try_from(epoch.0).unwrap());
    let request = StartVerify {
        cloud_snapshot_id: Some(id.parse().unwrap()),
        depth: VerifyDepth::Deep,
        credential: None,
    };
    let task = host.verify(&request).await;
    assert_eq!(task.state.stage, TaskStage::Failed, "{task:?}");
    let damage = task.findings.unwrap().damage;
    assert!(damage[0].cause.contains("2 blocks differ"), "{damage:?}");
    assert_eq!(damage[0].affects[0].ranges[0].offset_bytes, 5 * BLOCK);
    set_epoch(before);

    // Blocks that changed since are not compared.
    let task = host.verify(&request).await;
    assert_eq!(task.state.stage, TaskStage::Done, "{task:?}");
    assert_eq!(task.findings.unwrap().compared_bytes, (1 << 20) - 2 * BLOCK);
    let digest = host
        .engine()
        .db
        .transaction::<_, DbError>(|tx| Ok(tx.execute("UPDATE proofs SET digest = zeroblob(32)", [])?));
    assert_eq!(digest.unwrap(), 1);
    let task = host.verify(&request).await;
    assert_eq!(task.state.stage, TaskStage::Failed);
    assert!(task.findings.unwrap().damage[0].cause.contains("differs from that of an earlier verification"));
}

#[tokio::test(flavor = "multi_thread")]
async fn old_unreferenced_garbage_is_collected() {
    let host = Host::new().await;
    let (_, volume, model) = host.stopped_backup().await;
    let packs = host.packs().len();
    let credential = host.engine().repositories.credential(None).await.unwrap();
    let later = Timestamp::now() + SignedDuration::from_hours(9 * 24);
    // Objects of a resumable task are not garbage.
    let report = host.engine().maintenance.collect_garbage_of(&credential, false, || later).await.unwrap();
    assert_eq!((report.garbage.len(), host.packs().len()), (0, packs));
    host.sql("DELETE FROM tasks");
    let dry = host.call(COLLECT_GARBAGE, &CollectGarbage { dry_run: true, ..Default::default() }).await;
    assert_eq!((dry.garbage.len(), dry.in_grace_period.len(), dry.objects_deleted), (0, 1, 0));
    assert_eq!(dry.in_grace_period[0].objects, packs as u64);
    assert_eq!(
        (dry.credential_id, dry.credential_name.as_str()),
        (credential.uuid, credential.name.as_str())
    );
    let report = host.engine().maintenance.collect_garbage_of(&credential, true, || later).await.unwrap();
    assert_eq!((report.garbage.len(), report.objects_deleted, host.packs().len()), (1, 0, packs));
    let id = host.backup("data", true).await.cloud_snapshot_id.unwrap();
    // A failure of the database after the deletion: a backup that another host deleted cannot be forgotten.
    let deleted = host.backup("data", true).await.cloud_snapshot_id.unwrap();
    fs::remove_file(host.manifest(&deleted)).unwrap();
    host.sql(
        "CREATE TRIGGER fault BEFORE DELETE ON catalog BEGIN SELECT RAISE(ABORT, 'disk I/O error'); END",
    );
    // The age is determined after the comparison of clocks, which stores a probe object.
    let probes = host.store.path().join("blockd/probe");
    let _ = fs::remove_dir_all(&probes);
    let after_the_check = || {
        assert!(probes.is_dir(), "the clocks were not compared yet");
        later
    };
    let report =
        host.engine().maintenance.collect_garbage_of(&credential, false, after_the_check).await.unwrap();
    assert_eq!(report.objects_deleted, packs as u64);
    host.sql("DROP TRIGGER fault");
    model.assert_is(&*host.restore(&id, "copy").await);
    drop(volume);
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_to_several_locations_shares_one_snapshot() {
    let mut host = Host::new().await;
    let (volume, mut model) = host.fill("data").await;
    host.create_credential().await;
    let second = tempfile::tempdir().unwrap();
    host.create_credential_at("offsite", second.path()).await;
    let both = backup_to("data", &["nas", "offsite"]);
    host.refused(ErrorCode::InvalidRequest, START_BACKUP, &backup_to("data", &["nas", "nas"])).await;
    let started = host.call(START_BACKUP, &both).await;
    assert_eq!(started.items.len(), 2);
    let (one, two) = (host.done(started.items[0].task_id).await, host.done(started.items[1].task_id).await);
    assert_ne!(one.cloud_snapshot_id, two.cloud_snapshot_id);
    host.assert_tidy();
    for (task, name) in [(&one, "one"), (&two, "two")] {
        let credential = task.credential_id.map(blockd_api::CredentialRef::Id);
        let request =
            StartRestore { credential, ..restore_as(task.cloud_snapshot_id.as_ref().unwrap(), name) };
        model.assert_is(&*host.run_restore(&request).await);
    }

    // One location fails: its task keeps the snapshot and resumes later.
    model.write(&volume, 1 << 20, 5, 9 << 20);
    let frozen = model.clone();
    let data = second.path().join("blockd/data");
    move_away(&data);
    fs::write(&data, "no directory").unwrap();
    let started = host.call(START_BACKUP, &both).await;
    assert_eq!(host.done(started.items[0].task_id).await.backup_type, Some(BackupType::Incremental));
    let failed = host.wait(started.items[1].task_id).await;
    assert_eq!((failed.state.stage, failed.resumable), (TaskStage::Failed, true), "{failed:?}");
    assert_eq!(volume.snapshots().len(), 1, "the failed task keeps the snapshot");
    model.write(&volume, 30 << 20, 6, 1 << 20);
    fs::remove_file(&data).unwrap();
    fs::rename(data.with_extension("away"), &data).unwrap();
    drop(volume);
    host.restart().await;
    host.call_at(RESUME_TASK, &started.items[1].task_id, &()).await;
    let done = host.done(started.items[1].task_id).await;
    host.assert_tidy();
    let credential = Some("offsite".parse().unwrap());
    let request = StartRestore { credential, ..restore_as(&done.cloud_snapshot_id.unwrap(), "again") };
    frozen.assert_is(&*host.run_restore(&request).await);
    // Both chains continue.
    let started = host.call(START_BACKUP, &both).await;
    for task in [started.items[0].task_id, started.items[1].task_id] {
        let done = host.done(task).await;
        assert_eq!((done.backup_type, done.dirty_bytes), (Some(BackupType::Incremental), 1 << 20));
    }
    host.assert_tidy();
}
