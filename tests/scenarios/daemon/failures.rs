//! Failures that are reported, resources in use, and restarts.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_reported_and_leave_no_files() {
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    let backup = StartBackup::of("data".parse().unwrap());
    host.refused(ErrorCode::CredentialRequired, START_BACKUP, &backup).await;
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    let id = host.backup("data", false).await.source_volume.unwrap();

    // A damaged pack fails the restore, which leaves no volume.
    let pack = walk(host.store.path()).into_iter().find(|path| path.contains("/pack-")).unwrap();
    let good = std::fs::read(&pack).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&pack, &bad).unwrap();
    let request =
        StartRestore { volume: Some("copy".parse().unwrap()), ..StartRestore::of(id.parse().unwrap()) };
    let failed = host.wait(host.call(START_RESTORE, &request).await.task).await;
    assert_eq!(failed.state.to_string(), "Restore-Failed");
    let error = failed.error.unwrap();
    assert!(error.code == ErrorCode::CloudsnapDamaged && error.message.contains("pack-"), "{error:?}");
    assert!(host.engine().registry.by_name("copy").is_none());
    host.assert_tidy();
    std::fs::write(&pack, &good).unwrap();

    // A store that is gone fails the backup; the volume and the chain are as before.
    let away = host.store.path().with_extension("away");
    std::fs::rename(host.store.path(), &away).unwrap();
    let failed = host.wait(host.start_backup("data", false).await).await;
    assert_eq!(failed.state.to_string(), "Backup-Failed");
    assert!(failed.error.unwrap().message.contains(host.store.path().to_str().unwrap()));
    host.assert_tidy();
    std::fs::rename(&away, host.store.path()).unwrap();
    assert_eq!(host.list().await.len(), 1);
    assert_eq!(host.backup("data", false).await.backup_type, Some(BackupType::Incremental));

    // The base is gone from the store: the next one is full.
    let tip = host.backup("data", false).await.source_volume.unwrap();
    std::fs::remove_file(host.store.path().join("blockd/manifests").join(&tip)).unwrap();
    let full = host.backup("data", false).await;
    assert_eq!(full.backup_type, Some(BackupType::Full));
    model.assert_is(&*host.restore(&full.source_volume.unwrap(), "copy").await);
    drop(volume);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_names_sizes_and_ids_are_refused() {
    let mut host = Host::new().await;
    host.create_volume("data").await;
    host.create_credential().await;
    let taken = CreateVolume {
        name: "data".parse().unwrap(),
        size_bytes: 1 << 20,
        labels: Default::default(),
        group: None,
    };
    host.refused(ErrorCode::VolumeExists, CREATE_VOLUME, &taken).await;
    let odd = CreateVolume {
        name: "odd".parse().unwrap(),
        size_bytes: 4097,
        labels: Default::default(),
        group: None,
    };
    host.refused(ErrorCode::InvalidRequest, CREATE_VOLUME, &odd).await;
    assert!(host.engine().registry.by_name("odd").is_none());
    let zero = CreateVolume {
        name: "zero".parse().unwrap(),
        size_bytes: 0,
        labels: Default::default(),
        group: None,
    };
    host.refused(ErrorCode::InvalidRequest, CREATE_VOLUME, &zero).await;
    host.refused_at(ErrorCode::VolumeNotFound, GET_VOLUME, &"none".parse().unwrap(), &()).await;
    let unknown = format!("{}/1-2", Uuid::nil());
    let request = StartRestore::of(unknown.parse().unwrap());
    host.refused(ErrorCode::CloudsnapNotFound, START_RESTORE, &request).await;
    host.refused_at(ErrorCode::TaskNotFound, GET_TASK, &Uuid::nil(), &WaitTask::default()).await;
    let missing = CreateCredential {
        name: "missing".parse().unwrap(),
        provider: StoreConfig::Local { path: "/nonexistent/store".into() },
        connection: Connection::default(),
        encryption_passphrase: None,
    };
    host.refused(ErrorCode::BucketMissing, CREATE_CREDENTIAL, &missing).await;
    let needless = host.credential("needless", Some("a passphrase"));
    let refused = host.client.call(CREATE_CREDENTIAL, &needless).await;
    assert_eq!(api_code(refused), ErrorCode::RepositoryNotEncrypted);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_in_use_are_not_deleted() {
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    let id = host.backup("data", false).await.source_volume.unwrap();

    let entry = host.engine().registry.by_name("data").unwrap();
    let (_, attachment) = entry.attach().unwrap();
    host.refused_at(ErrorCode::VolumeInUse, DELETE_VOLUME, &"data".parse().unwrap(), &Default::default())
        .await;
    drop(attachment);

    // A task that is paused at a step counts as running.
    host.die_at("backup planned");
    let task = host.start_backup("data", false).await;
    host.engine().host.stopping.cancelled().await;
    let again = StartBackup::of("data".parse().unwrap());
    let engine = Arc::clone(host.engine());
    let code = |error: blockd_engine::error::ServiceError| error.to_api().code;
    assert_eq!(code(engine.backups.start_backup(&again).await.unwrap_err()), ErrorCode::VolumeInUse);
    assert_eq!(
        code(engine.volumes.delete_volume(&"data".parse().unwrap(), true).await.unwrap_err()),
        ErrorCode::VolumeInUse
    );
    assert_eq!(
        code(engine.credentials.delete_credential(&"nas".parse().unwrap()).await.unwrap_err()),
        ErrorCode::CredentialInUse
    );
    let delete = StartDelete::of(id.parse().unwrap());
    assert_eq!(code(engine.deletions.start_delete(&delete).await.unwrap_err()), ErrorCode::CloudsnapInUse);
    drop((engine, entry, volume));
    host.die_and_start().await;
    host.done(task).await;

    // Now all of it may be deleted; stored backups stay.
    host.call_at(DELETE_VOLUME, &"data".parse().unwrap(), &Default::default()).await;
    assert_eq!(std::fs::read_dir(host.dir.path().join("data/volumes")).unwrap().count(), 0);
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
    let by_name = CreateSnapshot { name: Some("monday".parse().unwrap()), ..Default::default() };
    let first = host.call_at(CREATE_SNAPSHOT, &"data".parse().unwrap(), &by_name).await;
    assert_eq!(first.dirty_bytes, 3 * BLOCK);
    host.refused_at(ErrorCode::SnapshotExists, CREATE_SNAPSHOT, &"data".parse().unwrap(), &by_name).await;
    let second = host.call_at(CREATE_SNAPSHOT, &"data".parse().unwrap(), &CreateSnapshot::default()).await;
    let list = host.call(LIST_SNAPSHOTS, &ListSnapshots::default()).await.snapshots;
    assert_eq!(as_made(list), [first, second.clone()]);
    host.call_at(DELETE_SNAPSHOT, &"data@monday".parse().unwrap(), &Default::default()).await;
    host.call_at(DELETE_SNAPSHOT, &second.id.to_string().parse().unwrap(), &Default::default()).await;
    host.refused_at(
        ErrorCode::SnapshotNotFound,
        DELETE_SNAPSHOT,
        &"data@monday".parse().unwrap(),
        &Default::default(),
    )
    .await;
    let seen = host.call_at(GET_VOLUME, &"data".parse().unwrap(), &()).await;
    assert_eq!(seen.snapshot_count, 0);
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
    std::fs::rename(&dir, dir.with_extension("hidden")).unwrap();
    host.start().await;
    model.assert_is(&host.volume("good"));
    assert!(matches!(host.engine().registry.by_name("bad").unwrap().view().state, EntryState::Failed(_)));
    let seen = host.call_at(GET_VOLUME, &"bad".parse().unwrap(), &()).await;
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
    std::fs::write(host.dir.path().join("data/secret.key"), [3; 32]).unwrap();
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
    host.stop().await;
    host.start().await;
    let query = ListTasks { name: Some(task.name.to_string()[..8].to_owned()) };
    let tasks = host.call(LIST_TASKS, &query).await.tasks;
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
    let full = host.backup("data", false).await.source_volume.unwrap();
    // Dirtied before the growth and after the backup: the incremental must carry it as well.
    model.write(&volume, 5 << 20, 3, 10_000);

    let sizes = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let told = Arc::clone(&sizes);
    let listener =
        move |entry: &blockd_engine::volumes::registry::VolumeEntry, size| told.lock().push((entry.id, size));
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
    let grown = task.source_volume.unwrap();
    model.assert_is(&*host.restore(&grown, "grown").await);
    before.assert_is(&*host.restore(&full, "before").await);

    // The row is behind the volume if the daemon dies between the two.
    drop(volume);
    host.sql(&format!("UPDATE volumes SET size_bytes = {SIZE_BYTES}, read_only = 1 WHERE name = 'data'"));
    host.stop().await;
    host.start().await;
    let seen = host.call_at(GET_VOLUME, &name, &()).await;
    assert_eq!((seen.size_bytes, seen.read_only, seen.state_reason), (GROWN_BYTES, true, None));
    model.assert_is(&host.volume("data"));
    let seen = host.call_at(UPDATE_VOLUME, &name, &update(None, Some(false))).await;
    assert!(!seen.read_only);
    model.write(&host.volume("data"), GROWN_BYTES - 2 * BLOCK, 6, BLOCK as usize);
    let task = host.backup("data", false).await;
    assert_eq!(task.backup_type, Some(BackupType::Incremental));
    model.assert_is(&*host.restore(&task.source_volume.unwrap(), "again").await);
    host.assert_tidy();
}
