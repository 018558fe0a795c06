//! Crashes at each step of a task, and failed database writes.

use super::*;
use blockd_api::lazy::StartInPlace;

#[tokio::test(flavor = "multi_thread")]
async fn backup_survives_a_crash_at_any_step() {
    for step in [
        "backup accepted",
        "backup frozen",
        "backup planned",
        crash_after_commit::COMMITTED,
        "backup stored",
        "backup committed",
    ] {
        let mut host = Host::new().await;
        let (_, volume, mut model) = host.one_backup().await;
        let frozen = model.clone();

        host.die_at(step);
        let task = host.start_backup("data", false).await;
        host.crashed().await;
        if step != "backup accepted" {
            // The snapshot exists: later writes are not in it.
            model.write(&volume, 30 << 20, 3, 1 << 20);
        }
        drop(volume);
        host.die_and_start().await;
        let done = host.done(task).await;
        assert_eq!(done.backup_type, Some(BackupType::Incremental), "{step}");
        let committed = step == "backup committed";
        assert_eq!(done.resumed, u64::from(!committed), "{step}");
        host.assert_tidy();
        let id = done.cloud_snapshot_id.unwrap();
        assert_eq!(host.list().await.len(), 2, "{step}");
        frozen.assert_is(&*host.restore(&id, "copy").await);

        // The next backup is based on it. If its commit was in doubt, it is based on the previous one and
        // includes both changes.
        let in_doubt = [crash_after_commit::COMMITTED, "backup stored"].contains(&step);
        let next = host.backup("data", false).await;
        assert_eq!(next.backup_type, Some(BackupType::Incremental), "{step}");
        assert_eq!(next.dirty_bytes > 1 << 20, in_doubt, "{step}: {}", next.dirty_bytes);
        assert!(next.dirty_bytes <= 2 << 20, "{step}: {}", next.dirty_bytes);
        model.assert_is(&*host.restore(&next.cloud_snapshot_id.unwrap(), "next").await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_place_restore_survives_a_crash_at_any_step() {
    for step in ["in-place restore frozen", "in-place restore written"] {
        let mut host = Host::new().await;
        let (_, volume, mut model) = host.one_backup().await;
        let snap = host.backup("data", false).await.cloud_snapshot_id.unwrap();
        let backed_up = model.clone();
        model.write(&volume, 9 << 20, 5, 1 << 20);
        drop(volume);

        let named = "data".parse().unwrap();
        let labelled = UpdateVolume {
            labels: Some("app=db,restored-by=r1".parse().unwrap()),
            ..UpdateVolume::default()
        };
        host.call_at(UPDATE_VOLUME, &named, &labelled).await;
        host.die_at(step);
        let labels = "restored-by=r2,restored-from=snap".parse().unwrap();
        let request = StartInPlace { discard: true, labels, ..in_place_restore(&snap, "data") };
        let task = host.call(START_IN_PLACE, &request).await.task_id;
        host.die_and_start().await;
        let done = host.done(task).await;
        assert_eq!(done.resumed, 1, "{step}");
        backed_up.assert_is(&host.volume("data"));
        // The labels are stored with the task, and the earlier restore stays known.
        let labels = host.inspect_volume("data").await.labels;
        let wanted = "app=db,restored-before=r1,restored-by=r2,restored-from=snap";
        assert_eq!(labels.to_string(), wanted, "{step}");
        host.assert_tidy();
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hydration_survives_a_crash_before_its_record() {
    let mut host = Host::new().await;
    let (_, volume, model) = host.one_backup().await;
    drop(volume);
    let snap = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    host.die_at("hydration ended");
    let task = host.restore_lazily(&snap, "copy", true).await.task_id.unwrap();
    host.die_and_start().await;
    host.done(task).await;
    // The volume needs neither the cloud snapshot nor the store.
    host.delete_cloudsnap(&delete_of(&snap)).await;
    fs::remove_dir_all(host.store.path()).unwrap();
    model.assert_is(&host.volume("copy"));
}

/// Trigger that makes storing the end of a task fail, as a full disk does.
const NO_END: &str = "CREATE TRIGGER no_end BEFORE INSERT ON tasks WHEN NEW.state IN ('done', 'failed')
    BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";

#[tokio::test(flavor = "multi_thread")]
async fn stored_backup_is_protected_until_it_is_recorded() {
    for restart in [false, true] {
        let mut host = Host::new().await;
        let (base, volume, model) = host.one_backup().await;
        host.sql(NO_END);
        let task = host.start_backup("data", false).await;
        let mut seen = host.call_at(GET_TASK, &task, &WaitTask::default()).await;
        while seen.phase != "done" {
            let wait = WaitTask { wait_millis: Some(10_000), since_version: Some(seen.version) };
            seen = host.call_at(GET_TASK, &task, &wait).await;
        }
        assert_eq!((seen.state.stage, seen.error), (TaskStage::Active, None));
        let made = seen.cloud_snapshot_id.unwrap();
        for id in [&base, &made] {
            host.refused(ErrorCode::CloudsnapInUse, START_DELETE, &delete_of(id)).await;
        }
        drop(volume);
        if restart {
            host.restart().await;
        }
        host.sql("DROP TRIGGER no_end");
        let done = host.done(task).await;
        assert_eq!((done.resumed, done.cloud_snapshot_id.as_ref()), (u64::from(restart), Some(&made)));
        assert_eq!(host.list().await.len(), 2);
        model.assert_is(&*host.restore(&made, "copy").await);
        assert_eq!(host.backup("data", false).await.backup_type, Some(BackupType::Incremental));
        host.assert_tidy();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_task_runs_until_its_result_is_stored() {
    let host = Host::new().await;
    host.create_volume("data").await;
    host.create_credential().await;
    let away = host.hide_store();
    host.sql(NO_END);
    let task = host.start_backup("data", false).await;
    host.refused(ErrorCode::VolumeInUse, START_BACKUP, &backup_of("data")).await;
    host.sql("DROP TRIGGER no_end");
    assert_eq!(host.wait(task).await.state.stage, TaskStage::Failed);
    host.call_at(STOP_TASK, &task, &resume::DISCARD).await;
    host.assert_tidy();
    host.show_store(&away);
}

#[tokio::test(flavor = "multi_thread")]
async fn active_task_row_protects_its_snapshots() {
    let host = Host::new().await;
    host.create_volume("data").await;
    host.create_credential().await;
    let task = host.backup("data", false).await;
    let id = snap_id(task.cloud_snapshot_id.as_ref().unwrap());
    let snapshot = SnapshotId::from_u64(77);
    let store = |state| {
        let find = task.task_id;
        host.engine().db.transaction(move |tx| {
            let mut row = TaskRow::find(tx, find)?.unwrap();
            row.id = Uuid::from_u128(5);
            row.state = state;
            row.snapshot = Some(snapshot);
            row.cloudsnap.snapshot = snapshot;
            row.base = Some(id);
            row.put(tx)
        })
    };
    store(TaskStage::Active).unwrap();
    let delete = StartDelete::of(id);
    host.refused(ErrorCode::CloudsnapInUse, START_DELETE, &delete).await;
    host.refused_at(ErrorCode::VolumeInUse, DELETE_VOLUME, &"data".parse().unwrap(), &Default::default())
        .await;
    host.refused_at(ErrorCode::CredentialInUse, DELETE_CREDENTIAL, &"nas".parse().unwrap(), &()).await;
    store(TaskStage::Failed).unwrap();
    host.delete_cloudsnap(&delete).await;
    host.delete_volume("data").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_database_write_is_rolled_back() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    let name = "data".parse().unwrap();
    host.sql(
        "CREATE TRIGGER not_ready BEFORE UPDATE ON snapshots WHEN NEW.state = 'ready'
         BEGIN SELECT RAISE(ABORT, 'the disk is full'); END;
         CREATE TRIGGER not_deleting BEFORE UPDATE ON volumes WHEN NEW.state = 'deleting'
         BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
    );
    let refused = host.client.call_at(CREATE_SNAPSHOT, &name, &CreateSnapshot::default()).await;
    assert_eq!(api_code(refused), ErrorCode::Internal);
    host.assert_tidy();
    host.refused_at(ErrorCode::Internal, DELETE_VOLUME, &name, &Default::default()).await;
    let entry = host.engine().registry.by_name("data").unwrap();
    assert!(entry.connect().is_ok());
    assert!(!entry.stop_merges.load(std::sync::atomic::Ordering::Relaxed));
    host.sql("DROP TRIGGER not_ready; DROP TRIGGER not_deleting");
    drop((volume, entry));
    host.call_at(DELETE_VOLUME, &name, &Default::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unrecorded_volume_leaves_no_files() {
    let host = Host::new().await;
    host.sql(
        "CREATE TRIGGER not_up BEFORE UPDATE ON volumes WHEN NEW.state = 'up'
         BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
    );
    let request = new_volume("data");
    host.refused(ErrorCode::Internal, CREATE_VOLUME, &request).await;
    assert_eq!(fs::read_dir(host.dir.path().join("data/volumes")).unwrap().count(), 0);
    host.sql("DROP TRIGGER not_up");
    host.call(CREATE_VOLUME, &request).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_whose_deletion_failed_refuses_writes() {
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 5000);
    let name = "data".parse().unwrap();
    host.sql(
        "CREATE TRIGGER no_change BEFORE UPDATE ON volumes BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
    );
    host.refused_at(ErrorCode::Internal, DELETE_VOLUME, &name, &Default::default()).await;
    let seen = host.call_at(GET_VOLUME, &name, &()).await;
    assert!(seen.state_reason.unwrap().contains("restart blockd"));
    assert!(volume.write(0, &[1], false).is_err());
    drop(volume);
    host.sql("DROP TRIGGER no_change");
    // The row is unchanged: the volume exists with all writes.
    host.restart().await;
    model.assert_is(&host.volume("data"));
    host.call_at(DELETE_VOLUME, &name, &Default::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn growth_without_its_row_is_announced_and_retried() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    let sizes = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let announced = Arc::clone(&sizes);
    host.engine().registry.on_resized(Box::new(move |_, size_bytes| announced.lock().push(size_bytes)));
    let name = "data".parse().unwrap();
    let grow = |times| UpdateVolume { size_bytes: Some(SIZE_BYTES * times), ..UpdateVolume::default() };
    host.sql(
        "CREATE TRIGGER no_change BEFORE UPDATE ON volumes BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
    );
    host.refused_at(ErrorCode::Internal, UPDATE_VOLUME, &name, &grow(2)).await;
    assert_eq!(*sizes.lock(), [SIZE_BYTES * 2]);
    host.sql("DROP TRIGGER no_change");
    for times in [2, 3] {
        Model::new().write(&volume, times * BLOCK, times, 10);
        host.call_at(UPDATE_VOLUME, &name, &grow(times)).await;
    }
    assert_eq!(*sizes.lock(), [2, 2, 3].map(|times| SIZE_BYTES * times));
    // Each growth adds a layer and wakes the merge thread.
    host.until_merged(&[&volume]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_survives_a_crash_at_any_step() {
    for step in ["restore accepted", "restore written", "restore committed"] {
        let mut host = Host::new().await;
        let volume = host.create_volume("data").await;
        host.create_credential().await;
        let mut model = Model::new();
        model.write(&volume, 7, 1, 3 << 20);
        let id = host.backup("data", false).await.cloud_snapshot_id.unwrap();
        drop(volume);

        host.die_at(step);
        let started = host.call(START_RESTORE, &restore_of(&id)).await;
        assert_eq!(started.volume_name.as_str(), "data-restored-1");
        host.die_and_start().await;
        host.done(started.task_id).await;
        model.assert_is(&host.volume("data-restored-1"));
        assert_eq!(host.call(LIST_VOLUMES, &ListVolumes::default()).await.items.len(), 2);
        host.assert_tidy();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_survives_a_crash_at_any_step() {
    for step in ["delete accepted", "delete removed objects"] {
        let mut host = Host::new().await;
        let volume = host.create_volume("data").await;
        host.create_credential().await;
        Model::new().write(&volume, 0, 1, 3 << 20);
        let id = host.backup("data", false).await.cloud_snapshot_id.unwrap();
        drop(volume);
        host.die_at(step);
        let task = host.call(START_DELETE, &delete_of(&id)).await.task_id;
        host.die_and_start().await;
        host.done(task).await;
        assert_eq!(host.list().await, vec![]);
        assert_eq!(walk(&host.store.path().join("blockd/data")), Vec::<String>::new(), "{step}");
        assert_eq!(host.backup("data", false).await.backup_type, Some(BackupType::Full));
        host.assert_tidy();
    }
}
