//! Reported failures, resources in use, and restarts.

use super::{resume::DISCARD, *};
use blockd_api::{
    Labels, RESTORED_FROM, SnapshotRef,
    cloudsnaps::VerifyDepth,
    lazy::StartInPlace,
    snapshots::{DiffSnapshots, RestoreSnapshot},
    tasks::StartScrub,
    volumes::CloneVolume,
};
use blockd_engine::volumes::registry::VolumeEntry;

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_reported_and_leave_no_files() {
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.refused(ErrorCode::CredentialRequired, START_BACKUP, &backup_of("data")).await;
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    let id = host.backup("data", false).await.cloud_snapshot_id.unwrap();

    // A restore from a damaged pack fails and leaves no volume.
    let pack = host.packs().remove(0);
    let good = fs::read(&pack).unwrap();
    damage(&pack);
    let failed = host.wait(host.call(START_RESTORE, &restore_as(&id, "copy")).await.task_id).await;
    assert_eq!(failed.state.to_string(), "Restore-Failed");
    let error = failed.error.unwrap();
    assert!(error.code == ErrorCode::CloudsnapDamaged && error.message.contains("pack-"), "{error:?}");
    assert!(host.engine().registry.by_name("copy").is_none());
    host.assert_tidy();
    fs::write(&pack, &good).unwrap();

    // A backup to a missing store fails and keeps its point in time; the chain is as before.
    let frozen = model.clone();
    let away = host.hide_store();
    let task = host.start_backup("data", false).await;
    let failed = host.wait(task).await;
    assert_eq!((failed.state.to_string().as_str(), failed.resumable), ("Backup-Failed", true));
    assert!(failed.error.unwrap().message.contains(host.store.path().to_str().unwrap()));
    assert_eq!(volume.snapshots().len(), 1);
    model.write(&volume, 9 << 20, 3, 1 << 20);
    host.show_store(&away);
    assert_eq!(host.list().await.len(), 1);
    host.call_at(RESUME_TASK, &task, &()).await;
    let resumed = host.done(task).await;
    host.assert_tidy();
    frozen.assert_is(&*host.restore(&resumed.cloud_snapshot_id.unwrap(), "resumed").await);
    let next = host.backup("data", false).await;
    assert_eq!((next.backup_type, next.dirty_bytes), (Some(BackupType::Incremental), 1 << 20));

    // Without the manifest of the base, the next backup is full.
    let tip = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    fs::remove_file(host.manifest(&tip)).unwrap();
    let full = host.backup("data", false).await;
    assert_eq!(full.backup_type, Some(BackupType::Full));
    model.assert_is(&*host.restore(&full.cloud_snapshot_id.unwrap(), "copy").await);
    drop(volume);
    host.stop().await;
}

/// A full backup reads a block again that the disk has altered since the last backup.
#[tokio::test(flavor = "multi_thread")]
async fn altered_block_is_not_uploaded() {
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    let first = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    let layer = volume.dir().join("layer-0000000000000001.data");
    let content = fs::read(&layer).unwrap();
    let mut altered = content.clone();
    altered[5 * 4096] ^= 1;
    fs::write(&layer, altered).unwrap();
    let deep = StartVerify {
        cloud_snapshot_id: Some(first.parse().unwrap()),
        depth: VerifyDepth::Deep,
        ..Default::default()
    };
    for task in [host.start_backup("data", true).await, host.call(START_VERIFY, &deep).await.task_id] {
        let error = host.wait(task).await.error.unwrap();
        assert_eq!(error.code, ErrorCode::VolumeFailed, "{error:?}");
        assert!(error.message.contains("does not match its checksum"), "{error:?}");
        let hint = error.hint.as_ref().unwrap();
        assert!(hint.contains("volume scrub") && hint.contains("--repair"), "{error:?}");
    }
    assert_eq!(host.list().await.len(), 1);
    fs::write(&layer, content).unwrap();
    let second = host.backup("data", true).await.cloud_snapshot_id.unwrap();
    model.assert_is(&*host.restore(&second, "copy").await);
    drop(volume);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_names_sizes_and_ids_are_refused() {
    let mut host = Host::new().await;
    host.create_volume("data").await;
    host.create_credential().await;
    host.refused(ErrorCode::VolumeExists, CREATE_VOLUME, &new_volume("data")).await;
    for size_bytes in [4097, 0] {
        let invalid = CreateVolume { size_bytes, ..new_volume("invalid") };
        host.refused(ErrorCode::InvalidRequest, CREATE_VOLUME, &invalid).await;
        assert!(host.engine().registry.by_name("invalid").is_none());
    }
    host.refused_at(ErrorCode::VolumeNotFound, GET_VOLUME, &"none".parse().unwrap(), &()).await;
    let unknown = restore_of(&format!("{}/1-2", Uuid::nil()));
    host.refused(ErrorCode::CloudsnapNotFound, START_RESTORE, &unknown).await;
    host.refused_at(ErrorCode::TaskNotFound, GET_TASK, &Uuid::nil(), &WaitTask::default()).await;
    let provider = StoreConfig::Local { path: "/nonexistent/store".into() };
    let missing = CreateCredential { provider, ..host.credential("missing", None) };
    host.refused(ErrorCode::BucketMissing, CREATE_CREDENTIAL, &missing).await;
    let needless = host.credential("needless", Some("a passphrase"));
    host.refused(ErrorCode::RepositoryNotEncrypted, CREATE_CREDENTIAL, &needless).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_in_use_are_not_deleted() {
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    let id = host.backup("data", false).await.cloud_snapshot_id.unwrap();

    let entry = host.engine().registry.by_name("data").unwrap();
    let (_, client) = entry.connect().unwrap();
    host.refused_at(ErrorCode::VolumeInUse, DELETE_VOLUME, &"data".parse().unwrap(), &Default::default())
        .await;
    drop(client);

    // A task that a crash interrupted counts as running.
    host.die_at("backup planned");
    let task = host.start_backup("data", false).await;
    host.crashed().await;
    let engine = Arc::clone(host.engine());
    let code = |error: blockd_engine::error::ServiceError| error.to_api().code;
    assert_eq!(
        code(engine.backups.start_backup(&backup_of("data")).await.unwrap_err()),
        ErrorCode::VolumeInUse
    );
    assert_eq!(
        code(engine.volumes.delete_volume(&"data".parse().unwrap(), true).await.unwrap_err()),
        ErrorCode::VolumeInUse
    );
    assert_eq!(
        code(engine.credentials.delete_credential(&"nas".parse().unwrap()).await.unwrap_err()),
        ErrorCode::CredentialInUse
    );
    let deleted = engine.deletions.start_delete(&delete_of(&id)).await;
    assert_eq!(code(deleted.unwrap_err()), ErrorCode::CloudsnapInUse);
    drop((engine, entry, volume));
    host.die_and_start().await;
    host.done(task).await;

    // After the task, volume and credential can be deleted; cloud snapshots stay.
    host.delete_volume("data").await;
    assert_eq!(fs::read_dir(host.dir.path().join("data/volumes")).unwrap().count(), 0);
    assert_eq!(host.list().await.len(), 2);
    host.call_at(DELETE_CREDENTIAL, &"nas".parse().unwrap(), &()).await;
    host.create_credential().await;
    model.assert_is(&*host.restore(&id, "data").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_listed_and_deleted_by_name_and_id() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    Model::new().write(&volume, 0, 1, 10_000);
    let by_name = new_snapshot("monday");
    let first = host.take_snapshot("data", &by_name).await;
    assert_eq!(first.dirty_bytes, 3 * BLOCK);
    host.refused_at(ErrorCode::SnapshotExists, CREATE_SNAPSHOT, &"data".parse().unwrap(), &by_name).await;
    let second = host.take_snapshot("data", &CreateSnapshot::default()).await;
    let list = host.call(LIST_SNAPSHOTS, &ListSnapshots::default()).await.items;
    assert_eq!(as_made(list), [first, second.clone()]);
    host.delete_snapshot("data@monday").await;
    host.delete_snapshot(&second.snapshot_id.to_string()).await;
    let deleted = "data@monday".parse().unwrap();
    host.refused_at(ErrorCode::SnapshotNotFound, DELETE_SNAPSHOT, &deleted, &Default::default()).await;
    assert_eq!(host.inspect_volume("data").await.snapshot_count, 0);
    host.assert_tidy();
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_volume_does_not_block_the_others() {
    let mut host = Host::new().await;
    let good = host.create_volume("good").await;
    let bad = host.create_volume("bad").await;
    let mut model = Model::new();
    model.write(&good, 0, 1, 5000);
    let dir = host.engine().host.data_dir.volume_dir(bad.id());
    drop((good, bad));
    host.stop().await;
    fs::rename(&dir, dir.with_extension("hidden")).unwrap();
    host.start().await;
    model.assert_is(&host.volume("good"));
    assert!(matches!(host.engine().registry.by_name("bad").unwrap().view().state, EntryState::Failed(_)));
    let seen = host.inspect_volume("bad").await;
    assert!(seen.state_reason.unwrap().contains(dir.to_str().unwrap()));
    assert_eq!(host.call(GET_STATUS, &()).await.counts.volumes_failed, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_key_invalidates_credentials_only() {
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    host.backup("data", false).await;
    drop(volume);
    host.stop().await;
    fs::write(host.dir.path().join("data/secret.key"), [3; 32]).unwrap();
    host.start().await;
    host.volume("data").write(0, &[1], false).unwrap();
    let failed = host.wait(host.start_backup("data", false).await).await;
    let error = failed.error.unwrap();
    assert!(error.code == ErrorCode::SecretUnavailable && error.message.contains("nas"), "{error:?}");
    host.refused(ErrorCode::SecretUnavailable, LIST_CLOUDSNAPS, &ListCloudsnaps::default()).await;
    host.call_at(DELETE_CREDENTIAL, &"nas".parse().unwrap(), &()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn second_daemon_is_refused_and_tasks_survive_a_restart() {
    let mut host = Host::new().await;
    let error = Daemon::start(config(host.dir.path()), false).await.unwrap_err().to_string();
    assert!(error.contains("in use by another blockd"), "{error}");
    host.create_volume("data").await;
    host.create_credential().await;
    let task = host.backup("data", true).await;
    host.restart().await;
    let query = ListTasks { id_prefix: Some(task.task_id.to_string()[..8].to_owned()) };
    let tasks = host.call(LIST_TASKS, &query).await.items;
    assert_eq!(tasks, [task]);
}

#[tokio::test(flavor = "multi_thread")]
async fn grown_volume_is_backed_up_incrementally_and_restored() {
    const GROWN_BYTES: u64 = SIZE_BYTES + (9 << 20) + BLOCK;
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 3 << 20);
    model.write(&volume, SIZE_BYTES - BLOCK, 2, BLOCK as usize);
    let before = model.clone();
    let full = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    // Dirtied after the backup and before the growth: the next incremental backup must include it.
    model.write(&volume, 5 << 20, 3, 10_000);

    let sizes = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let announced = Arc::clone(&sizes);
    let listener = move |entry: &VolumeEntry, size| announced.lock().push((entry.id, size));
    host.engine().registry.on_resized(Box::new(listener));
    let update = |size_bytes, read_only| UpdateVolume { size_bytes, read_only, ..Default::default() };
    let name = "data".parse().unwrap();
    let seen = host.call_at(UPDATE_VOLUME, &name, &update(Some(GROWN_BYTES), None)).await;
    assert_eq!((seen.size_bytes, sizes.lock().clone()), (GROWN_BYTES, vec![(volume.id(), GROWN_BYTES)]));
    for wrong in [Some(SIZE_BYTES), Some(GROWN_BYTES + 1), Some(0), Some(u64::MAX), None] {
        let refused = host.client.call_at(UPDATE_VOLUME, &name, &update(wrong, None)).await;
        assert_eq!(api_code(refused), ErrorCode::InvalidRequest, "{wrong:?}");
    }
    model.0.resize(GROWN_BYTES as usize, 0);
    model.assert_is(&volume);
    model.write(&volume, SIZE_BYTES - 100, 4, 5000);
    model.write(&volume, GROWN_BYTES - BLOCK, 5, BLOCK as usize);
    let task = host.backup("data", false).await;
    assert_eq!(task.backup_type, Some(BackupType::Incremental));
    let grown = task.cloud_snapshot_id.unwrap();
    model.assert_is(&*host.restore(&grown, "grown").await);
    before.assert_is(&*host.restore(&full, "before").await);

    // The row has the old size if the daemon dies after the volume has grown.
    drop(volume);
    host.sql(&format!("UPDATE volumes SET size_bytes = {SIZE_BYTES}, read_only = 1 WHERE name = 'data'"));
    host.restart().await;
    let seen = host.inspect_volume("data").await;
    assert_eq!((seen.size_bytes, seen.read_only, seen.state_reason), (GROWN_BYTES, true, None));
    model.assert_is(&host.volume("data"));
    let seen = host.call_at(UPDATE_VOLUME, &name, &update(None, Some(false))).await;
    assert!(!seen.read_only);
    model.write(&host.volume("data"), GROWN_BYTES - 2 * BLOCK, 6, BLOCK as usize);
    let task = host.backup("data", false).await;
    assert_eq!(task.backup_type, Some(BackupType::Incremental));
    model.assert_is(&*host.restore(&task.cloud_snapshot_id.unwrap(), "again").await);
    host.assert_tidy();
}

#[tokio::test(flavor = "multi_thread")]
async fn label_of_the_origin_follows_the_content() {
    let mut host = Host::new().await;
    let (snap, volume, model) = host.one_backup().await;
    let data = "data".parse().unwrap();
    host.take_snapshot("data", &new_snapshot("before")).await;
    let origin = || async { host.inspect_volume("data").await.labels.as_map().get(RESTORED_FROM).cloned() };

    // A restore that fails has not restored anything.
    let mut packs = host.packs();
    let good = packs.drain(..).map(|pack| (fs::read(&pack).unwrap(), pack)).collect::<Vec<_>>();
    good.iter().for_each(|(_, pack)| damage(pack));
    let mut changed = model.clone();
    changed.write(&volume, 0, 9, 1 << 20);
    let request =
        StartInPlace { labels: "restored-from=first".parse().unwrap(), ..in_place_restore(&snap, "data") };
    let failed = host.wait(host.call(START_IN_PLACE, &request).await.task_id).await;
    assert_eq!((failed.state.stage, origin().await), (TaskStage::Failed, None));
    good.iter().for_each(|(bytes, pack)| fs::write(pack, bytes).unwrap());
    host.call_at(RESUME_TASK, &failed.task_id, &()).await;
    host.done(failed.task_id).await;
    assert_eq!(origin().await.as_deref(), Some("first"));

    // Neither another volume nor another content has it.
    let second = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    host.restore(&second, "copy").await;
    let labels = host.inspect_volume("copy").await.labels;
    assert!(!labels.as_map().contains_key(RESTORED_FROM), "{labels}");
    let back = RestoreSnapshot { snapshot: "data@before".parse().unwrap(), discard: true };
    // A rollback is done even if the database fails after it.
    host.sql("CREATE TRIGGER fault BEFORE UPDATE OF labels ON volumes BEGIN SELECT RAISE(ABORT, 'disk I/O error'); END");
    changed.write(&volume, 0, 7, 1 << 20);
    host.call_at(RESTORE_SNAPSHOT, &data, &back).await;
    model.assert_is(&volume);
    assert_eq!(origin().await.as_deref(), Some("first"));
    host.sql("DROP TRIGGER fault");
    host.call_at(RESTORE_SNAPSHOT, &data, &back).await;
    assert_eq!(origin().await, None);
    model.assert_is(&volume);
    drop(volume);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discarded_restore_leaves_no_label_of_its_object() {
    let mut host = Host::new().await;
    let (snap, volume, mut model) = host.one_backup().await;
    let labels = || async { host.inspect_volume("data").await.labels.without(&["app", "tier"]).to_string() };
    let request =
        |labels: &str| StartInPlace { labels: labels.parse().unwrap(), ..in_place_restore(&snap, "data") };
    let first = "restored-by=rr,restored-from=first";
    host.done(host.call(START_IN_PLACE, &request(first)).await.task_id).await;
    assert_eq!(labels().await, first);
    model.write(&volume, 0, 9, 1 << 20);
    host.packs().iter().for_each(damage);

    // Without an object or with another one, that of the earlier content stays known.
    let other = "restored-by=other,restored-from=second";
    for (was, asked, left) in [
        (first, "", "restored-by=rr"),
        (first, other, "restored-before=rr"),
        ("restored-before=aa,restored-by=rr", other, "restored-before=rr:aa"),
        (first, "restored-by=rr,restored-from=second", ""),
    ] {
        let labels_before = Some(was.parse().unwrap());
        let update = UpdateVolume { labels: labels_before, ..UpdateVolume::default() };
        host.call_at(UPDATE_VOLUME, &"data".parse().unwrap(), &update).await;
        let failed = host.wait(host.call(START_IN_PLACE, &request(asked)).await.task_id).await;
        assert_eq!((failed.state.stage, labels().await.as_str()), (TaskStage::Failed, left), "{asked}");
        assert_eq!(failed.labels, Some(asked.parse().unwrap()));
        host.call_at(STOP_TASK, &failed.task_id, &DISCARD).await;
        assert_eq!(labels().await, left, "{asked}");
    }
    drop(volume);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_without_room_for_its_labels_is_not_done() {
    let mut host = Host::new().await;
    let (snap, volume, _) = host.one_backup().await;
    let data = "data".parse().unwrap();
    let good = host.packs().into_iter().map(|pack| (fs::read(&pack).unwrap(), pack)).collect::<Vec<_>>();
    good.iter().for_each(|(_, pack)| damage(pack));
    let asked = "restored-by=rr,restored-from=first";
    let request = StartInPlace { labels: asked.parse().unwrap(), ..in_place_restore(&snap, "data") };
    let failed = host.wait(host.call(START_IN_PLACE, &request).await.task_id).await;
    assert_eq!(failed.state.stage, TaskStage::Failed);
    good.iter().for_each(|(bytes, pack)| fs::write(pack, bytes).unwrap());

    let resumed = async |labels: String| {
        let labels = Some(labels.parse().unwrap());
        host.call_at(UPDATE_VOLUME, &data, &UpdateVolume { labels, ..UpdateVolume::default() }).await;
        host.call_at(RESUME_TASK, &failed.task_id, &()).await;
        host.wait(failed.task_id).await
    };
    let full = (0..64).map(|index| format!("label-{index}=x")).collect::<Vec<_>>().join(",");
    let error = resumed(full).await.error.unwrap();
    let words = "setting the labels of the restore failed on volume data: 66 labels are too many";
    assert!(error.message.starts_with(words), "{error:?}");
    let done = resumed("app=db".to_owned()).await;
    assert_eq!(done.state.stage, TaskStage::Done);
    assert_eq!(host.inspect_volume("data").await.labels.to_string(), format!("app=db,{asked}"));
    drop(volume);
    host.stop().await;
}

/// A bit of a block set is flipped.
#[tokio::test(flavor = "multi_thread")]
async fn requests_for_a_failed_volume_have_listed_errors() {
    let mut host = Host::new().await;
    let (snap, volume, _) = host.one_backup().await;
    host.take_snapshot("data", &new_snapshot("before")).await;
    let dir = volume.dir().to_owned();
    drop(volume);
    host.stop().await;
    for set in walk(&dir).into_iter().filter(|path| path.ends_with(".set")) {
        damage(set);
    }
    host.start().await;
    assert!(host.inspect_volume("data").await.state_reason.is_some());
    let (name, client) = ("data".parse().unwrap(), &host.client);
    let before: SnapshotRef = "data@before".parse().unwrap();
    let clone =
        CloneVolume { name: "copy".parse().unwrap(), snapshot: before.clone(), labels: Labels::default() };
    let back = RestoreSnapshot { snapshot: before.clone(), discard: true };
    let diff = DiffSnapshots { from: before.clone(), to: None, offset_bytes: None };
    let grow = UpdateVolume { size_bytes: Some(2 * SIZE_BYTES), ..Default::default() };
    let scrub = StartScrub { volume: Some("data".parse().unwrap()), ..Default::default() };
    // An error that the table does not list is an internal one.
    for error in [
        api_error(client.call_at(CHECK_VOLUME, &name, &()).await),
        api_error(client.call_at(CLONE_VOLUME, &name, &clone).await),
        api_error(client.call_at(CREATE_SNAPSHOT, &name, &new_snapshot("x")).await),
        api_error(client.call_at(DIFF_SNAPSHOTS, &name, &diff).await),
        api_error(client.call_at(RESTORE_SNAPSHOT, &name, &back).await),
        api_error(client.call_at(UPDATE_VOLUME, &name, &grow).await),
        api_error(client.call(START_BACKUP, &backup_of("data")).await),
        api_error(client.call(START_IN_PLACE, &in_place_restore(&snap, "data")).await),
        api_error(client.call(START_SCRUB, &scrub).await),
    ] {
        assert_eq!(error.code, ErrorCode::VolumeFailed, "{error:?}");
    }
}
