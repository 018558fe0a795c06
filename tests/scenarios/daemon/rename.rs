//! Renaming of volumes.

use super::*;
use blockd_api::schedules::RunState;

fn to(name: &str) -> UpdateVolume {
    UpdateVolume { name: Some(name.parse().unwrap()), ..UpdateVolume::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renamed_volume_keeps_its_backups_schedules_and_rule() {
    let mut host = Host::new().await;
    host.create_credential().await;
    let volume = host.create_volume("v").await;
    host.create_volume("taken").await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    host.backup("v", false).await;
    host.take_snapshot("v", &new_snapshot("s")).await;
    let schedule = host.schedule(5).await;
    host.rule("pg", host.logging("true", "true")).await;
    host.assign("pg", Some("v"), None).await;

    let old = "v".parse().unwrap();
    host.refused_at(ErrorCode::VolumeExists, UPDATE_VOLUME, &old, &to("taken")).await;
    let entry = host.engine().registry.by_name("v").unwrap();
    let client = entry.connect().unwrap();
    host.refused_at(ErrorCode::VolumeInUse, UPDATE_VOLUME, &old, &to("w")).await;
    drop(client);
    let renamed = host.call_at(UPDATE_VOLUME, &old, &to("w")).await;
    assert_eq!((renamed.volume_id, renamed.name.as_str()), (entry.id, "w"));
    assert!(renamed.uri.contains("/w?"), "{}", renamed.uri);
    host.refused_at(ErrorCode::VolumeNotFound, GET_VOLUME, &old, &()).await;
    // Holders of the former entry share its state.
    let client = entry.connect().unwrap();
    assert_eq!(host.inspect_volume("w").await.connections, 1);
    drop((client, entry));

    for restarts in [false, true] {
        if restarts {
            host.restart().await;
        }
        let seen = host.inspect_volume("w").await;
        assert_eq!((seen.snapshot_count, seen.rule_name.as_ref().map(|rule| rule.as_str())), (1, Some("pg")));
        model.write(&host.volume("w"), 2 << 20, 2 + u64::from(restarts), 4096);
        let next = host.backup("w", false).await;
        assert_eq!((next.backup_type, next.dirty_bytes), (Some(BackupType::Incremental), 4096));
        assert_eq!(host.list().await.last().unwrap().volume_name, "w");
        model.assert_is(&*host.restore(&next.cloud_snapshot_id.unwrap(), &format!("copy-{restarts}")).await);
        host.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await;
        let runs = host.settled().await;
        assert!(runs.iter().all(|run| run.state == RunState::Done), "{runs:?}");
    }
    // The name is free again.
    host.create_volume("v").await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rename_that_cannot_be_stored_is_undone() {
    let host = Host::new().await;
    let volume = host.create_volume("v").await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    host.sql(
        "CREATE TRIGGER fault BEFORE UPDATE ON volumes BEGIN SELECT RAISE(ABORT, 'disk I/O error'); END",
    );
    let old: VolumeRef = "v".parse().unwrap();
    assert_eq!(api_code(host.client.call_at(UPDATE_VOLUME, &old, &to("w")).await), ErrorCode::Internal);
    host.sql("DROP TRIGGER fault");
    assert!(host.inspect_volume("v").await.uri.contains("/v?"));
    host.refused_at(ErrorCode::VolumeNotFound, GET_VOLUME, &"w".parse().unwrap(), &()).await;
    model.assert_is(&host.volume("v"));
    // Both names are as before: one is taken, the other free.
    host.refused(ErrorCode::VolumeExists, CREATE_VOLUME, &new_volume("v")).await;
    host.create_volume("w").await;
    assert_eq!(host.call_at(UPDATE_VOLUME, &old, &to("u")).await.name.as_str(), "u");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_renames_leave_one_entry() {
    let host = Host::new().await;
    let id = host.create_volume("v").await.id();
    let wanted = VolumeRef::Id(id);
    let admission = host.engine().admission.lock().await;
    let rename = |name| host.engine().volumes.update_volume(&wanted, to(name));
    // The futures are polled in this order: both requests have begun when the lock is released.
    let (first, second, ()) = tokio::join!(rename("a"), rename("b"), async { drop(admission) });
    assert_eq!((first.unwrap().name.as_str(), second.unwrap().name.as_str()), ("a", "b"));
    let all = host.call(LIST_VOLUMES, &ListVolumes::default()).await.items;
    assert_eq!(all.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), ["b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listing_by_name_has_all_volumes_of_that_name() {
    let host = Host::new().await;
    host.create_credential().await;
    host.create_volume("db").await;
    let first = host.backup("db", false).await.cloud_snapshot_id.unwrap();
    host.call_at(UPDATE_VOLUME, &"db".parse().unwrap(), &to("old")).await;
    let of = async |volume: &str, cluster_id| {
        let volume = Some(volume.parse().unwrap());
        let query = ListCloudsnaps { volume, cluster_id, ..ListCloudsnaps::default() };
        let list = host.call(LIST_CLOUDSNAPS, &query).await.list.items;
        list.iter().map(|entry| entry.cloud_snapshot_id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(of("old", None).await, [first.as_str()]);
    assert_eq!(of("db", None).await, [first.as_str()], "no volume has this name now");

    // Another volume gets the name.
    host.create_volume("db").await;
    assert_eq!(of("db", None).await, [first.as_str()]);
    let second = host.backup("db", false).await.cloud_snapshot_id.unwrap();
    assert_eq!(of("db", None).await, [first.as_str(), &second]);
    assert_eq!(of("old", None).await, [first.as_str()]);
    for one in [&first, &second] {
        let id = snap_id(one).volume.to_string();
        assert_eq!(of(&id, None).await, [one.as_str()]);
    }

    // A volume of another host with that name.
    let other = Host::with_store(Arc::clone(&host.store)).await;
    other.create_credential().await;
    other.create_volume("db").await;
    let third = other.backup("db", false).await.cloud_snapshot_id.unwrap();
    for deleted in [false, true] {
        if deleted {
            host.delete_volume("db").await;
        }
        assert_eq!(of("db", None).await, [first.as_str(), &second, &third]);
        assert_eq!(of("db", Some(snap_id(&third).cluster)).await, [third.as_str()]);
        assert_eq!(of("db", Some(snap_id(&first).cluster)).await, [first.as_str(), &second]);
    }
}
