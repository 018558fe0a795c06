//! Tasks that are stopped, fail in the middle, and are taken up again or given up; and what is done about
//! damage.

use super::*;
use blockd_api::{
    CredentialRef,
    cloudsnaps::{BackupOptions, CollectGarbage, StartVerify, VerifyDepth},
    tasks::StopTask,
};
use jiff::{SignedDuration, Timestamp};
use std::os::unix::fs::PermissionsExt;

impl Host {
    /// Writes so much that a backup has several packs.
    pub(super) async fn fill(&self, name: &str) -> (Arc<Volume>, Model) {
        let volume = self.create_volume(name).await;
        let mut model = Model::new();
        model.write(&volume, 0, 1, SIZE_BYTES as usize);
        (volume, model)
    }

    /// Waits for a task to have this much behind it.
    pub(super) async fn until_processed(&self, task: Uuid, bytes: u64) {
        loop {
            let seen = self.call_at(GET_TASK, &task, &WaitTask::default()).await;
            assert!(!seen.state.stage.is_over(), "{seen:?}");
            if seen.bytes_processed >= bytes {
                return;
            }
            let wait = WaitTask { wait_ms: Some(1_000), since_version: Some(seen.version) };
            self.call_at(GET_TASK, &task, &wait).await;
        }
    }

    /// From now on a second moves no more than this.
    pub(super) async fn limited(&self, up: Option<u64>, down: Option<u64>) {
        let mut request = self.credential("nas", None);
        request.connection.limit_upload_bytes_per_s = up;
        request.connection.limit_download_bytes_per_s = down;
        self.call(CREATE_CREDENTIAL, &request).await;
    }

    /// From now on nothing is limited any more; takes effect for tasks that begin later.
    pub(super) fn unlimited(&self) {
        self.sql(
            "UPDATE credentials SET store = json_remove(store,
             '$.connection.limitUploadBytesPerS', '$.connection.limitDownloadBytesPerS')",
        );
        self.engine().repositories.forget_all();
    }

    pub(super) fn packs(&self) -> usize {
        walk(self.store.path()).iter().filter(|path| path.contains("/pack-")).count()
    }
}

/// So slow that a task is stopped long before it is done, and so fast that one that goes on at this rate is
/// done soon.
pub const SLOW_BYTES_PER_S: u64 = 8 << 20;

pub const KEEP: StopTask = StopTask { discard: false };
const DISCARD: StopTask = StopTask { discard: true };

#[tokio::test(flavor = "multi_thread")]
async fn stopped_backup_resumes_with_the_stored_packs() {
    for restart in [false, true] {
        let mut host = Host::new().await;
        let (volume, mut model) = host.fill("data").await;
        host.limited(Some(SLOW_BYTES_PER_S), None).await;
        let task = host.start_backup("data", false).await;
        host.until_processed(task, 1).await;
        let stopped = host.call_at(STOP_TASK, &task, &KEEP).await;
        assert_eq!((stopped.state.to_string().as_str(), stopped.resumable), ("Backup-Stopped", true));
        let packs = host.packs();
        assert!(packs >= 1 && walk(&host.store.path().join("blockd/manifests")).is_empty());
        // Stopping it again is no error; what is written now is not in it.
        assert!(host.call_at(STOP_TASK, &task, &KEEP).await.resumable);
        let frozen = model.clone();
        model.write(&volume, 5000, 9, 100_000);
        drop(volume);
        if restart {
            host.stop().await;
            host.start().await;
        }
        host.unlimited();
        let resumed = host.call_at(RESUME_TASK, &task, &()).await;
        assert_eq!(resumed.state.to_string(), "Backup-Pending");
        let done = host.done(task).await;
        assert_eq!(done.resumed, 1);
        // What was in flight is sent again, what was there is not.
        assert!(done.bytes_uploaded < SIZE_BYTES + (34 << 20), "{}", done.bytes_uploaded);
        frozen.assert_is(&*host.restore(&done.source_volume.unwrap(), "copy").await);
        assert_eq!(host.backup("data", false).await.backup_type, Some(BackupType::Incremental));
        host.assert_tidy();
        host.refused_at(ErrorCode::TaskEnded, RESUME_TASK, &task, &()).await;
        host.refused_at(ErrorCode::TaskEnded, STOP_TASK, &task, &KEEP).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned_backup_leaves_no_objects() {
    let host = Host::new().await;
    let (volume, model) = host.fill("data").await;
    host.limited(Some(SLOW_BYTES_PER_S), None).await;
    let stopped = async || {
        let task = host.start_backup("data", false).await;
        host.until_processed(task, 1).await;
        assert!(host.call_at(STOP_TASK, &task, &KEEP).await.resumable);
        assert_eq!(volume.snapshots().len(), 1);
        task
    };
    let task = stopped().await;
    assert!(host.packs() > 0);
    let given_up = host.call_at(STOP_TASK, &task, &DISCARD).await;
    assert!(!given_up.resumable);
    host.assert_tidy();
    // Its objects are deleted too: no other run can commit it.
    while host.packs() > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }

    let task = stopped().await;
    host.unlimited();
    let done = host.backup("data", false).await;
    host.refused_at(ErrorCode::TaskEnded, RESUME_TASK, &task, &()).await;
    host.assert_tidy();
    model.assert_is(&*host.restore(&done.source_volume.unwrap(), "copy").await);

    // A task that is not resumed for a week is abandoned.
    host.call_at(DELETE_CREDENTIAL, &"nas".parse().unwrap(), &()).await;
    host.limited(Some(SLOW_BYTES_PER_S), None).await;
    let request = StartBackup {
        options: BackupOptions { full: true, ..Default::default() },
        ..StartBackup::of("data".parse().unwrap())
    };
    let task = host.call(START_BACKUP, &request).await.task;
    host.until_processed(task, 1).await;
    host.call_at(STOP_TASK, &task, &KEEP).await;
    let week = SignedDuration::from_hours(7 * 24);
    host.engine()
        .runner
        .abandon_expired(Timestamp::now() + week - SignedDuration::from_hours(1))
        .await
        .unwrap();
    assert_eq!(host.engine().tasks.resumable_tasks().await.unwrap().len(), 1);
    host.engine()
        .runner
        .abandon_expired(Timestamp::now() + week + SignedDuration::from_secs(2))
        .await
        .unwrap();
    host.assert_tidy();
    // A volume and a credential can go although tasks were kept that used them.
    let task = host.call(START_BACKUP, &request).await.task;
    host.until_processed(task, 1).await;
    host.call_at(STOP_TASK, &task, &KEEP).await;
    drop(volume);
    host.call_at(DELETE_VOLUME, &"data".parse().unwrap(), &Default::default()).await;
    assert_eq!(host.engine().tasks.resumable_tasks().await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_restore_fetches_the_remainder_only() {
    for restart in [false, true] {
        let mut host = Host::new().await;
        let (volume, model) = host.fill("data").await;
        host.limited(None, Some(SLOW_BYTES_PER_S)).await;
        let id = host.backup("data", false).await.source_volume.unwrap();
        drop(volume);
        let request =
            StartRestore { volume: Some("copy".parse().unwrap()), ..StartRestore::of(id.parse().unwrap()) };
        let task = host.call(START_RESTORE, &request).await.task;
        host.until_processed(task, 1).await;
        let stopped = host.call_at(STOP_TASK, &task, &KEEP).await;
        assert!(stopped.resumable && stopped.state.to_string() == "Restore-Stopped");
        assert!(stopped.bytes_processed < SIZE_BYTES);
        if restart {
            host.stop().await;
            host.start().await;
        }
        host.unlimited();
        host.call_at(RESUME_TASK, &task, &()).await;
        let done = host.done(task).await;
        // What was in flight when it was stopped is fetched twice, what was in place is not.
        assert!(done.bytes_downloaded < 2 * SIZE_BYTES, "{}", done.bytes_downloaded);
        let fetched = done.bytes_downloaded - stopped.bytes_downloaded;
        assert!(fetched <= SIZE_BYTES - stopped.bytes_processed + (4 << 20), "{fetched}, {stopped:?}");
        model.assert_is(&host.volume("copy"));
        host.assert_tidy();

        // Given up, it leaves no volume.
        let request = StartRestore { volume: Some("third".parse().unwrap()), ..request };
        let task = host.call(START_RESTORE, &request).await.task;
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
    let (_, model) = host.fill("data").await;
    host.limited(Some(SLOW_BYTES_PER_S), None).await;
    let task = host.start_backup("data", false).await;
    host.until_processed(task, 1).await;
    assert!(host.call_at(STOP_TASK, &task, &KEEP).await.resumable);
    host.unlimited();
    // Nothing can be put there any more.
    let data = host.store.path().join("blockd/data");
    let dirs: Vec<_> = walk(&data).iter().map(|path| Path::new(path).parent().unwrap().to_owned()).collect();
    let set_mode = |mode| {
        for dir in &dirs {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        // Root may write anywhere: a file stands where the next packs would go.
        std::fs::rename(&data, data.with_extension("away")).unwrap();
        std::fs::write(&data, "in the way").unwrap();
    } else {
        set_mode(0o500);
    }
    host.call_at(RESUME_TASK, &task, &()).await;
    let failed = host.wait(task).await;
    assert_eq!((failed.state.to_string().as_str(), failed.resumable), ("Backup-Failed", true), "{failed:?}");
    assert!(failed.error.is_some());
    if is_root {
        std::fs::remove_file(&data).unwrap();
        std::fs::rename(data.with_extension("away"), &data).unwrap();
    } else {
        set_mode(0o700);
    }
    host.call_at(RESUME_TASK, &task, &()).await;
    let done = host.done(task).await;
    assert_eq!(done.error, None);
    model.assert_is(&*host.restore(&done.source_volume.unwrap(), "copy").await);
    host.assert_tidy();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_shown_restored_past_and_healed() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    let full = host.backup("data", false).await.source_volume.unwrap();
    let verify = async |snap: Option<&str>, depth| {
        let snap = snap.map(|snap| snap.parse().unwrap());
        let request = StartVerify { snap, depth, cred_id: None };
        host.wait(host.call(START_VERIFY, &request).await.task).await
    };
    for depth in [VerifyDepth::Quick, VerifyDepth::Frames, VerifyDepth::Deep] {
        let task = verify(Some(&full), depth).await;
        assert_eq!(task.state.to_string(), "Verify-Done", "{task:?}");
        let findings = task.findings.unwrap();
        assert_eq!((findings.snapshots, findings.damage_total, findings.objects), (1, 0, 2));
        let compared = if depth == VerifyDepth::Deep { 1 << 20 } else { 0 };
        assert_eq!(findings.compared_bytes, compared, "{depth:?}");
        let metadata = &host.list().await[0].metadata;
        assert_eq!(metadata.verify_result.as_deref(), Some("Sound"));
        assert!(metadata.verified.is_some() && metadata.verify_depth.is_some());
    }
    host.assert_tidy();

    // Bytes 128 KiB to 256 KiB are in the second frame.
    let pack = walk(host.store.path()).into_iter().find(|path| path.contains("/pack-")).unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[64 + (200 << 10)] ^= 1;
    std::fs::write(&pack, &bytes).unwrap();
    assert_eq!(verify(None, VerifyDepth::Quick).await.state.stage, TaskStage::Done);
    let task = verify(None, VerifyDepth::Frames).await;
    assert_eq!(task.state.to_string(), "Verify-Failed");
    assert_eq!(task.error.as_ref().unwrap().code, ErrorCode::CloudsnapDamaged);
    let findings = task.findings.unwrap();
    assert_eq!(findings.damaged_snapshots, std::slice::from_ref(&full));
    let lost = &findings.damage[0].affects[0];
    assert!(findings.damage[0].object.ends_with("/pack-00000000") && lost.cloudsnap == full);
    let (offset, len) = (lost.ranges[0].offset_bytes as usize, lost.ranges[0].len_bytes as usize);
    assert_eq!((lost.ranges.len(), offset, len), (1, 128 << 10, 128 << 10));
    assert_eq!(host.list().await[0].metadata.verify_result.as_deref(), Some("Damaged"));
    // A look at the listing does not make it sound again.
    assert_eq!(verify(Some(&full), VerifyDepth::Quick).await.state.stage, TaskStage::Done);
    assert_eq!(host.list().await[0].metadata.verify_result.as_deref(), Some("Damaged"));

    let mut request =
        StartRestore { volume: Some("past".parse().unwrap()), ..StartRestore::of(full.parse().unwrap()) };
    let refused = host.wait(host.call(START_RESTORE, &request).await.task).await;
    assert_eq!((refused.state.stage, refused.resumable), (TaskStage::Failed, false));
    request.skip_damaged = true;
    let past = host.done(host.call(START_RESTORE, &request).await.task).await;
    assert_eq!(past.findings.unwrap().damage[0].affects[0].lost_bytes, 128 << 10);
    let mut without = model.clone();
    without.0[offset..offset + len].fill(0);
    without.assert_is(&host.volume("past"));

    // The next backup carries what was lost, and is whole.
    model.write(&volume, 10 << 20, 5, 4096);
    let next = host.backup("data", false).await;
    assert_eq!((next.backup_type, next.bytes_dirty), (Some(BackupType::Incremental), (128 << 10) + 4096));
    let next = next.source_volume.unwrap();
    model.assert_is(&*host.restore(&next, "healed").await);
    let task = verify(Some(&next), VerifyDepth::Deep).await;
    assert_eq!(task.state.stage, TaskStage::Done, "{task:?}");
    // The damaged frame is still there, and costs the older one what it did.
    let task = verify(Some(&next), VerifyDepth::Frames).await;
    assert_eq!(task.findings.unwrap().damaged_snapshots, Vec::<String>::new());
    host.assert_tidy();
}

/// A verification with another credential of the repository found the damage, after a sound one.
#[tokio::test(flavor = "multi_thread")]
async fn damage_found_with_another_credential_is_healed() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    let own = CredentialRef::Id(host.create_credential().await);
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    let full = host.backup("data", false).await.source_volume.unwrap();
    let mut other = host.credential("other", None);
    other.provider = StoreConfig::Local { path: host.store.path().join(".") };
    let other = CredentialRef::Id(host.call(CREATE_CREDENTIAL, &other).await.uuid);
    let verify = async |cred_id: &CredentialRef| {
        let (snap, cred_id) = (Some(full.parse().unwrap()), Some(cred_id.clone()));
        let request = StartVerify { snap, depth: VerifyDepth::Frames, cred_id };
        host.wait(host.call(START_VERIFY, &request).await.task).await.state.stage
    };
    assert_eq!(verify(&own).await, TaskStage::Done);
    let pack = walk(host.store.path()).into_iter().find(|path| path.contains("/pack-")).unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[64 + (200 << 10)] ^= 1;
    std::fs::write(&pack, &bytes).unwrap();
    assert_eq!(verify(&other).await, TaskStage::Failed);
    model.write(&volume, 10 << 20, 5, 4096);
    let backup = StartBackup { cred_id: Some(own), ..StartBackup::of("data".parse().unwrap()) };
    let next = host.done(host.call(START_BACKUP, &backup).await.task).await;
    assert_eq!((next.backup_type, next.bytes_dirty), (Some(BackupType::Incremental), (128 << 10) + 4096));
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_is_not_the_volumes_is_found() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    Model::new().write(&volume, 0, 1, 1 << 20);
    let id = host.backup("data", false).await.source_volume.unwrap();
    // As if the tracking had missed this write: it is in no set of changed blocks.
    Model::new().write(&volume, 5 * BLOCK, 7, 2 * BLOCK as usize);
    let taken =
        host.client.call_at(CREATE_SNAPSHOT, &"data".parse().unwrap(), &CreateSnapshot::default()).await;
    let epoch = taken.unwrap().epoch;
    let tell = |epoch| host.sql(&format!("UPDATE chains SET epoch = {epoch}"));
    let before: i64 = host
        .engine()
        .db
        .transaction::<_, DbError>(|tx| Ok(tx.query_row("SELECT epoch FROM chains", [], |row| row.get(0))?))
        .unwrap();
    tell(i64::try_from(epoch.0).unwrap());
    let request = StartVerify { snap: Some(id.parse().unwrap()), depth: VerifyDepth::Deep, cred_id: None };
    let task = host.wait(host.call(START_VERIFY, &request).await.task).await;
    assert_eq!(task.state.stage, TaskStage::Failed, "{task:?}");
    let damage = task.findings.unwrap().damage;
    assert!(damage[0].what.contains("2 blocks differ"), "{damage:?}");
    assert_eq!(damage[0].affects[0].ranges[0].offset_bytes, 5 * BLOCK);
    tell(before);

    // What has changed is not compared; what was recorded is.
    let request = StartVerify { snap: Some(id.parse().unwrap()), depth: VerifyDepth::Deep, cred_id: None };
    let task = host.done(host.call(START_VERIFY, &request).await.task).await;
    assert_eq!(task.findings.unwrap().compared_bytes, (1 << 20) - 2 * BLOCK);
    let digest = host
        .engine()
        .db
        .transaction::<_, DbError>(|tx| Ok(tx.execute("UPDATE proofs SET digest = zeroblob(32)", [])?));
    assert_eq!(digest.unwrap(), 1);
    let task = host.wait(host.call(START_VERIFY, &request).await.task).await;
    assert_eq!(task.state.stage, TaskStage::Failed);
    assert!(task.findings.unwrap().damage[0].what.contains("differs from that of an earlier verification"));
}

#[tokio::test(flavor = "multi_thread")]
async fn old_unreferenced_garbage_is_collected() {
    let host = Host::new().await;
    let (volume, model) = host.fill("data").await;
    host.limited(Some(SLOW_BYTES_PER_S), None).await;
    let task = host.start_backup("data", false).await;
    host.until_processed(task, 1).await;
    host.call_at(STOP_TASK, &task, &KEEP).await;
    let packs = host.packs();
    let credential = host.engine().repositories.credential(None).await.unwrap();
    let later = Timestamp::now() + SignedDuration::from_hours(9 * 24);
    // It can be taken up again.
    let report = host.engine().maintenance.collect_garbage_of(&credential, false, || later).await.unwrap();
    assert_eq!((report.garbage.len(), host.packs()), (0, packs));
    // It is unknown now.
    host.sql("DELETE FROM tasks");
    let dry = host.call(COLLECT_GARBAGE, &CollectGarbage { dry_run: true, cred_id: None }).await;
    assert_eq!((dry.garbage.len(), dry.young.len(), dry.objects_deleted), (0, 1, 0));
    assert_eq!(dry.young[0].objects, packs as u64);
    let report = host.engine().maintenance.collect_garbage_of(&credential, true, || later).await.unwrap();
    assert_eq!((report.garbage.len(), report.objects_deleted, host.packs()), (1, 0, packs));
    host.unlimited();
    let id = host.backup("data", true).await.source_volume.unwrap();
    // The age is judged by the time after the clocks were compared, which stores a probe object.
    let probes = host.store.path().join("blockd/probe");
    let _ = std::fs::remove_dir_all(&probes);
    let after_the_check = || {
        assert!(probes.is_dir(), "the clocks were not compared yet");
        later
    };
    let report =
        host.engine().maintenance.collect_garbage_of(&credential, false, after_the_check).await.unwrap();
    assert_eq!(report.objects_deleted, packs as u64);
    model.assert_is(&*host.restore(&id, "copy").await);
    drop(volume);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_places_get_one_point_and_each_ends_by_itself() {
    let mut host = Host::new().await;
    let (volume, mut model) = host.fill("data").await;
    host.create_credential().await;
    let second = tempfile::tempdir().unwrap();
    let offsite = CreateCredential {
        name: "offsite".parse().unwrap(),
        provider: StoreConfig::Local { path: second.path().to_owned() },
        ..host.credential("offsite", None)
    };
    host.call(CREATE_CREDENTIAL, &offsite).await;
    let request = |names: &[&str]| StartBackup {
        cred_id: Some(names[0].parse().unwrap()),
        also: names[1..].iter().map(|name| name.parse().unwrap()).collect(),
        ..StartBackup::of("data".parse().unwrap())
    };
    let both = request(&["nas", "offsite"]);
    host.refused(ErrorCode::InvalidRequest, START_BACKUP, &request(&["nas", "nas"])).await;
    let started = host.call(START_BACKUP, &both).await;
    assert_eq!(started.also.len(), 1);
    let (one, two) = (host.done(started.task).await, host.done(started.also[0]).await);
    assert_ne!(one.source_volume, two.source_volume);
    host.assert_tidy();
    for (task, name) in [(&one, "one"), (&two, "two")] {
        let request = StartRestore {
            volume: Some(name.parse().unwrap()),
            cred_id: Some(task.credential.to_string().parse().unwrap()),
            ..StartRestore::of(task.source_volume.clone().unwrap().parse().unwrap())
        };
        host.done(host.call(START_RESTORE, &request).await.task).await;
        model.assert_is(&host.volume(name));
    }

    // One of the two places is gone: the other one has the point, and the failed one goes on with it later.
    model.write(&volume, 1 << 20, 5, 9 << 20);
    let frozen = model.clone();
    let data = second.path().join("blockd/data");
    std::fs::rename(&data, data.with_extension("away")).unwrap();
    std::fs::write(&data, "in the way").unwrap();
    let started = host.call(START_BACKUP, &both).await;
    assert_eq!(host.done(started.task).await.backup_type, Some(BackupType::Incremental));
    let failed = host.wait(started.also[0]).await;
    assert_eq!((failed.state.stage, failed.resumable), (TaskStage::Failed, true), "{failed:?}");
    assert_eq!(volume.snapshots().len(), 1, "it reads the point still");
    model.write(&volume, 30 << 20, 6, 1 << 20);
    std::fs::remove_file(&data).unwrap();
    std::fs::rename(data.with_extension("away"), &data).unwrap();
    drop(volume);
    host.stop().await;
    host.start().await;
    host.call_at(RESUME_TASK, &started.also[0], &()).await;
    let done = host.done(started.also[0]).await;
    host.assert_tidy();
    let request = StartRestore {
        volume: Some("again".parse().unwrap()),
        cred_id: Some("offsite".parse().unwrap()),
        ..StartRestore::of(done.source_volume.unwrap().parse().unwrap())
    };
    host.done(host.call(START_RESTORE, &request).await.task).await;
    frozen.assert_is(&host.volume("again"));
    // The chains go on, each from where it is.
    let started = host.call(START_BACKUP, &both).await;
    for task in [started.task, started.also[0]] {
        let done = host.done(task).await;
        assert_eq!((done.backup_type, done.bytes_dirty), (Some(BackupType::Incremental), 1 << 20));
    }
    host.assert_tidy();
}
