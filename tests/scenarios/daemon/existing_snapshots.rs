//! Backups of existing local snapshots, and local snapshots that stay after a backup.

use super::{resume::SLOW, *};
use blockd_api::{
    cloudsnaps::StartGroupBackup,
    quiesce::{HookOptions, Quiesce},
    snapshots::CreateGroupSnapshot,
};
use blockd_catalog::Chain;

/// Returns a request for a backup of `data@NAME`.
fn backup_of_snapshot(name: &str) -> StartBackup {
    StartBackup { snapshot: Some(format!("data@{name}").parse().unwrap()), ..backup_of("data") }
}

impl Host {
    fn tip(&self) -> String {
        let chains = self.engine().db.transaction(|tx| Chain::all(tx, None)).unwrap();
        assert_eq!(chains.len(), 1);
        chains[0].cloudsnap.to_string()
    }

    async fn local_names(&self) -> Vec<String> {
        let list = self.call(LIST_SNAPSHOTS, &ListSnapshots::default()).await.items;
        list.iter().map(|snapshot| snapshot.name.to_string()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_older_than_the_chain_is_backed_up_beside_it() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    host.take_snapshot("data", &new_snapshot("old")).await;
    let old = model.clone();
    model.write(&volume, 1 << 20, 2, 1 << 20);
    let tip = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    model.write(&volume, 2 << 20, 3, 8192);

    let past = host.run_backup(&backup_of_snapshot("old")).await;
    assert_eq!(past.backup_type, Some(BackupType::Full));
    old.assert_is(&*host.restore(&past.cloud_snapshot_id.unwrap(), "then").await);
    assert_eq!(host.tip(), tip, "the chain has the later point in time");
    let live = host.backup("data", false).await;
    assert_eq!((live.backup_type, live.dirty_bytes), (Some(BackupType::Incremental), 8192));
    model.assert_is(&*host.restore(&live.cloud_snapshot_id.unwrap(), "now").await);

    // A snapshot after the last backup continues the chain, and so does the next backup of the volume.
    model.write(&volume, 3 << 20, 4, 4096);
    host.take_snapshot("data", &new_snapshot("new")).await;
    let new = model.clone();
    model.write(&volume, 4 << 20, 5, 4096);
    let done = host.run_backup(&backup_of_snapshot("new")).await;
    assert_eq!((done.backup_type, done.dirty_bytes), (Some(BackupType::Incremental), 4096));
    new.assert_is(&*host.restore(&done.cloud_snapshot_id.unwrap(), "new").await);
    let live = host.backup("data", false).await;
    assert_eq!((live.backup_type, live.dirty_bytes), (Some(BackupType::Incremental), 4096));
    model.assert_is(&*host.restore(&live.cloud_snapshot_id.unwrap(), "last").await);
    assert_eq!(host.local_names().await, ["old", "new"], "snapshots of users stay");
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_backup_outlives_a_backup_of_an_older_snapshot() {
    let host = Host::new().await;
    let (volume, old) = host.fill("data").await;
    host.create_credential().await;
    host.take_snapshot("data", &new_snapshot("old")).await;
    let mut kept = old.clone();
    kept.write(&volume, 1 << 20, 2, 1 << 20);
    let task = host.start_slow_backup(false).await;
    host.stop_in_progress(task).await;
    let mut new = kept.clone();
    new.write(&volume, 2 << 20, 3, 8192);
    host.take_snapshot("data", &new_snapshot("new")).await;

    let past = host.run_backup(&backup_of_snapshot("old")).await;
    old.assert_is(&*host.restore(&past.cloud_snapshot_id.unwrap(), "then").await);
    host.call_at(RESUME_TASK, &task, &()).await;
    let tip = host.done(task).await.cloud_snapshot_id.unwrap();
    kept.assert_is(&*host.restore(&tip, "kept").await);
    assert_eq!(host.tip(), tip, "the chain has the later point in time");

    // A later one discards it.
    host.take_snapshot("data", &new_snapshot("stopped")).await;
    let options = BackupOptions { full: true, reupload: true, ..BackupOptions::default() };
    let request = StartBackup { limits: SLOW, options, ..backup_of_snapshot("stopped") };
    let task = host.call(START_BACKUP, &request).await.items[0].task_id;
    host.stop_in_progress(task).await;
    host.take_snapshot("data", &new_snapshot("last")).await;
    let last = host.run_backup(&backup_of_snapshot("last")).await;
    host.refused_at(ErrorCode::TaskEnded, RESUME_TASK, &task, &()).await;
    new.assert_is(&*host.restore(&last.cloud_snapshot_id.unwrap(), "last").await);
}

/// Random writes, snapshots, and backups of the volume and of any snapshot: each backup has the bytes of its
/// point in time.
#[tokio::test(flavor = "multi_thread")]
async fn backups_in_any_order_have_the_bytes_of_their_point() {
    for seed in 1..=3_u64 {
        let host = Host::new().await;
        let volume = host.create_volume("data").await;
        host.create_credential().await;
        let (mut model, mut points, mut stored) = (Model::new(), Vec::new(), Vec::new());
        let mut state = seed;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for step in 0..30_u64 {
            match random(5) {
                0 => model.trim(&volume, random(64) * BLOCK, (1 + random(4)) * BLOCK),
                1 | 2 => model.write(&volume, random(64 * BLOCK), step, 1 + random(9000) as usize),
                3 => {
                    let name = format!("s{step}");
                    host.take_snapshot("data", &new_snapshot(&name)).await;
                    points.push((name, model.clone()));
                }
                _ if points.is_empty() || random(2) == 0 => {
                    stored.push((host.backup("data", false).await.cloud_snapshot_id.unwrap(), model.clone()));
                }
                _ => {
                    let (name, then) = &points[random(points.len() as u64) as usize];
                    let done = host.run_backup(&backup_of_snapshot(name)).await;
                    stored.push((done.cloud_snapshot_id.unwrap(), then.clone()));
                }
            }
        }
        stored.push((host.backup("data", false).await.cloud_snapshot_id.unwrap(), model.clone()));
        for (nth, (id, then)) in stored.iter().enumerate() {
            then.assert_is(&*host.restore(id, &format!("copy{nth}")).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_of_a_snapshot_survives_a_crash_and_needs_it() {
    let mut host = Host::new().await;
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&*host.create_volume("data").await, 0, 1, 1 << 20);
    host.take_snapshot("data", &new_snapshot("s")).await;
    for step in ["backup accepted", "backup frozen", "backup planned", "backup stored"] {
        host.die_at(step);
        let task = host.call(START_BACKUP, &backup_of_snapshot("s")).await.items[0].task_id;
        host.die_and_start().await;
        let done = host.done(task).await;
        model.assert_is(&*host.restore(&done.cloud_snapshot_id.unwrap(), &step.replace(' ', "-")).await);
        Model::new().write(&host.volume("data"), 8 << 20, 7, 4096);
    }
    assert_eq!(host.local_names().await, ["s"]);

    // Another snapshot in its place would have another content.
    host.die_at("backup accepted");
    let task = host.call(START_BACKUP, &backup_of_snapshot("s")).await.items[0].task_id;
    host.crashed().await;
    host.sql("DELETE FROM snapshots");
    host.restart().await;
    let error = host.wait(task).await.error.unwrap();
    assert_eq!(error.code, ErrorCode::SnapshotNotFound, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn group_snapshot_is_backed_up_as_one() {
    let host = Host::new().await;
    host.create_credential().await;
    host.grouped_volumes().await;
    let group = Some("shop".parse().unwrap());
    let taken = host.call(CREATE_GROUP_SNAPSHOT, &CreateGroupSnapshot { group, ..Default::default() }).await;
    Model::new().write(&host.volume("a"), 0, 1, 4096);
    let of = |group: &str| StartGroupBackup {
        snapshot_group: Some(group.parse().unwrap()),
        ..StartGroupBackup::default()
    };
    let id = taken.group.group_id.to_string();
    let request = of(&id[..8]);
    let started = host.call(START_GROUP_BACKUP, &request).await;
    assert_eq!(host.all_done(&started).await.len(), 3);
    let times: Vec<_> = host.list().await.iter().map(|entry| entry.created_at).collect();
    assert_eq!(times, [taken.created_at; 3]);
    assert_eq!(host.local_names().await.len(), 3);

    for group in [&id, taken.name.as_str()] {
        host.all_done(&host.call(START_GROUP_BACKUP, &of(group)).await).await;
    }
    host.refused(ErrorCode::SnapshotNotFound, START_GROUP_BACKUP, &of("tuesday")).await;

    let both = StartGroupBackup { group: Some("shop".parse().unwrap()), ..request.clone() };
    host.refused(ErrorCode::InvalidRequest, START_GROUP_BACKUP, &both).await;
    host.delete_snapshot(&taken.list.items[0].snapshot_id.to_string()).await;
    host.refused(ErrorCode::SnapshotNotFound, START_GROUP_BACKUP, &request).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_snapshot_is_the_frozen_point_of_its_backup() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_volume("other").await;
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    let options = BackupOptions { name: Some("before-upgrade".parse().unwrap()), ..Default::default() };
    let request = StartBackup { keep_local: true, options, ..backup_of("data") };
    host.run_backup(&request).await;
    let entry = host.list().await.remove(0);
    let kept = host.call(LIST_SNAPSHOTS, &ListSnapshots::default()).await.items;
    assert_eq!((kept.len(), kept[0].name.as_str()), (1, "before-upgrade"));
    assert_eq!((kept[0].created_at, entry.name.as_deref()), (entry.created_at, Some("before-upgrade")));
    host.refused(ErrorCode::SnapshotExists, START_BACKUP, &request).await;
    host.run_backup(&StartBackup { options: BackupOptions::default(), ..request.clone() }).await;
    assert_eq!(host.local_names().await.len(), 2);

    let existing = backup_of_snapshot("before-upgrade");
    let quiesce = Quiesce { freeze_fs: true, ..Quiesce::default() };
    let hooks = HookOptions { quiesce, ..HookOptions::default() };
    for refused in [
        StartBackup { keep_local: true, ..existing.clone() },
        StartBackup { volume: "other".parse().unwrap(), ..existing.clone() },
        StartBackup { hooks, ..existing },
    ] {
        host.refused(ErrorCode::InvalidRequest, START_BACKUP, &refused).await;
    }
    host.refused(ErrorCode::SnapshotNotFound, START_BACKUP, &backup_of_snapshot("none")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn backing_snapshot_of_a_lazy_volume_begins_a_cycle() {
    let mut host = Host::new().await;
    let (mut last, volume, model) = host.one_backup().await;
    // The last of the cycle of seven.
    for _ in 1..7 {
        last = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    }
    drop(volume);
    host.restore_lazily(&last, "copy", false).await;
    for _ in 1..7 {
        let done = host.backup("copy", false).await;
        assert_eq!(done.backup_type, Some(BackupType::Incremental));
        last = done.cloud_snapshot_id.unwrap();
    }
    assert_eq!(host.backup("copy", false).await.backup_type, Some(BackupType::Full));
    model.assert_is(&*host.restore(&last, "restored").await);
    host.stop().await;
}
