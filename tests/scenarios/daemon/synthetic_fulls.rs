//! Synthetic full backups: they store the change and reference the rest.

use super::{drills::drill_of, *};
use blockd_api::{cloudsnaps::VerifyDepth, operations::START_DRILL};
use blockd_catalog::ActivityRow;

/// Bytes of a second frame in a pack of noise.
const IN_SECOND_FRAME: usize = 64 + (800 << 10);
const CHANGE: usize = 64 << 10;

fn full_backup(reupload: bool) -> StartBackup {
    let options = BackupOptions { full: true, reupload, ..BackupOptions::default() };
    StartBackup { options, ..backup_of("data") }
}

impl Host {
    pub(super) async fn verified(&self, snap: &str, depth: VerifyDepth) -> Task {
        let cloud_snapshot_id = Some(snap.parse().unwrap());
        self.verify(&StartVerify { cloud_snapshot_id, depth, credential: None }).await
    }
}

/// Returns the id of a full backup, which must be listed as one with these bytes of changes.
fn full_id(task: Task, dirty_bytes: usize) -> String {
    assert_eq!((task.backup_type, task.dirty_bytes), (Some(BackupType::Full), dirty_bytes as u64));
    let id = task.cloud_snapshot_id.unwrap();
    assert!(!id.ends_with("-incr"), "{id}");
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn next_full_backup_of_the_cycle_uploads_the_change() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    let credential = host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 16 << 20);
    let mut ids = vec![host.backup("data", false).await.cloud_snapshot_id.unwrap()];
    let mut frozen = jiff::Timestamp::MIN;
    for number in 1..=7 {
        model.write(&volume, number << 20, number, CHANGE);
        // Activities of one hour are merged: that of the last backup is to be seen alone.
        let forget = |tx: &rusqlite::Transaction<'_>| -> Result<_, DbError> {
            Ok(tx.execute("DELETE FROM backup_activity", [])?)
        };
        host.engine().db.transaction(forget).unwrap();
        let task = host.backup("data", false).await;
        if number < 7 {
            assert_eq!(task.backup_type, Some(BackupType::Incremental));
            ids.push(task.cloud_snapshot_id.unwrap());
            continue;
        }
        let id = full_id(task, CHANGE);
        let listed =
            host.list().await.into_iter().find(|one| one.cloud_snapshot_id.to_string() == id).unwrap();
        // Header and tag of two frames and a pack, and an index with the sets of 8 sources.
        let metadata = listed.stored_bytes - CHANGE as u64;
        assert!(metadata < 3 << 10, "{metadata} bytes of metadata");
        assert!(listed.stored_bytes as f64 <= 1.05 * CHANGE as f64, "{listed:?}");
        assert_eq!(listed.referenced_bytes, (16 << 20) - CHANGE as u64);
        frozen = listed.created_at;
        ids.push(id);
    }
    let seen = host.inspect_volume("data").await;
    assert_eq!(seen.last_backups[0].incrementals_since_full, 0);
    // The search for anomalies sees the change since the last backup.
    let of = ActivityRow { volume: seen.volume_id, credential };
    let last = host.engine().db.transaction(|tx| of.history(tx)).unwrap().pop().unwrap();
    assert_eq!(last.point_in_time.as_microsecond(), frozen.as_microsecond());
    assert_eq!((last.is_full(), last.dirty_bytes), (false, CHANGE as u64));

    let synthetic = ids.pop().unwrap();
    for id in &ids {
        host.delete_cloudsnap(&delete_of(id)).await;
    }
    assert_eq!(host.ids().await, [synthetic.as_str()]);
    model.assert_is(&*host.restore(&synthetic, "copy").await);
    for depth in [VerifyDepth::Quick, VerifyDepth::Full, VerifyDepth::Deep] {
        assert_eq!(host.verified(&synthetic, depth).await.state.stage, TaskStage::Done, "{depth:?}");
    }
    host.done(host.call(START_DRILL, &drill_of(&synthetic)).await.task_id).await;
    let lazy = host.restore_lazily(&synthetic, "lazy", false).await;
    let (lazy, kept) = (host.volume(lazy.volume_name.as_str()), model.clone());
    tokio::task::spawn_blocking(move || kept.assert_is(&lazy)).await.unwrap();

    host.delete_volume("lazy").await;

    // The next one is incremental to it, and a new copy needs neither.
    model.write(&volume, 0, 8, CHANGE);
    let next = host.backup("data", false).await;
    assert_eq!((next.backup_type, next.dirty_bytes), (Some(BackupType::Incremental), CHANGE as u64));
    let refused =
        StartBackup { options: BackupOptions { reupload: true, ..Default::default() }, ..backup_of("data") };
    host.refused(ErrorCode::InvalidRequest, START_BACKUP, &refused).await;
    let copy = host.run_backup(&full_backup(true)).await;
    assert!(copy.uploaded_bytes > 16 << 20, "{copy:?}");
    let copy = full_id(copy, 16 << 20);
    for id in [&next.cloud_snapshot_id.unwrap(), &synthetic] {
        host.delete_cloudsnap(&delete_of(id)).await;
    }
    assert_eq!(host.packs().len(), 1);
    model.assert_is(&*host.restore(&copy, "again").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_source_is_found_and_not_referenced_again() {
    let host = Host::new().await;
    let (first, volume, mut model) = host.one_backup().await;
    let pack = host.packs().remove(0);
    let synthetic = full_id(host.run_backup(&full_backup(false)).await, 1 << 20);
    flip_bit(&pack, IN_SECOND_FRAME);
    let task = host.verified(&synthetic, VerifyDepth::Full).await;
    assert_eq!(task.state.stage, TaskStage::Failed);
    let affected = &task.findings.unwrap().damage[0].affects;
    let of = |snap: &str| affected.iter().find(|one| one.cloud_snapshot_id == snap).map(|one| one.lost_bytes);
    assert_eq!((of(&synthetic), of(&first)), (Some(512 << 10), Some(512 << 10)));

    // The next one stores the lost blocks again.
    model.write(&volume, 10 << 20, 5, CHANGE);
    host.sql("DELETE FROM backup_activity");
    let next = host.run_backup(&full_backup(false)).await;
    let next = full_id(next, CHANGE + (512 << 10));
    // The search for anomalies sees the change only.
    let credential = host.engine().repositories.credential_rows().await.unwrap()[0].uuid;
    let of = ActivityRow { volume: host.inspect_volume("data").await.volume_id, credential };
    let activity = host.engine().db.transaction(|tx| of.history(tx)).unwrap();
    assert_eq!(activity.iter().map(|one| one.dirty_bytes).collect::<Vec<_>>(), [CHANGE as u64]);
    assert_eq!(host.verified(&next, VerifyDepth::Deep).await.state.stage, TaskStage::Done);
    model.assert_is(&*host.restore(&next, "copy").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_found_during_a_synthetic_full_is_healed() {
    let host = Host::new().await;
    let (first, _, model) = host.one_backup().await;
    let (mut planned, proceed) = host.pause_at("backup planned");
    let task = host.call(START_BACKUP, &full_backup(false)).await.items[0].task_id;
    planned.recv().await.unwrap();
    flip_bit(&host.packs()[0], IN_SECOND_FRAME);
    assert_eq!(host.verified(&first, VerifyDepth::Full).await.state.stage, TaskStage::Failed);
    proceed.send(()).unwrap();
    let done = host.done(task).await;
    assert!(done.uploaded_bytes >= 512 << 10, "{done:?}");
    let id = done.cloud_snapshot_id.unwrap();
    assert_eq!(host.verified(&id, VerifyDepth::Full).await.state.stage, TaskStage::Done);
    model.assert_is(&*host.restore(&id, "copy").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_the_base_found_during_a_backup_is_healed() {
    let host = Host::new().await;
    let (first, volume, mut model) = host.one_backup().await;
    model.write(&volume, 30 << 20, 3, 1 << 20);
    let packs = host.packs();
    let (mut planned, proceed) = host.pause_at("backup planned");
    let task = host.start_backup("data", false).await;
    planned.recv().await.unwrap();
    flip_bit(&packs[0], IN_SECOND_FRAME);
    assert_eq!(host.verified(&first, VerifyDepth::Full).await.state.stage, TaskStage::Failed);
    proceed.send(()).unwrap();
    let done = host.done(task).await;
    let id = done.cloud_snapshot_id.unwrap();
    assert_eq!(done.backup_type, Some(BackupType::Incremental));
    assert_eq!(host.verified(&id, VerifyDepth::Full).await.state.stage, TaskStage::Done);
    model.assert_is(&*host.restore(&id, "copy").await);
    // The refused upload leaves no pack.
    eventually(async || match host.packs().len() - packs.len() {
        1 => Ok(()),
        more => Err(more),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn synthetic_full_survives_a_crash_at_any_step() {
    for step in ["backup planned", crash_after_commit::COMMITTED, "backup stored"] {
        let mut host = Host::new().await;
        let (_, volume, mut model) = host.one_backup().await;
        let frozen = model.clone();
        host.die_at(step);
        let task = host.call(START_BACKUP, &full_backup(false)).await.items[0].task_id;
        host.crashed().await;
        model.write(&volume, 30 << 20, 3, 1 << 20);
        drop(volume);
        host.die_and_start().await;
        let done = host.done(task).await;
        assert!(done.uploaded_bytes < 2 << 20, "{step}: {done:?}");
        let id = full_id(done, 1 << 20);
        host.assert_tidy();
        frozen.assert_is(&*host.restore(&id, "copy").await);
        let next = host.backup("data", false).await;
        assert_eq!(next.backup_type, Some(BackupType::Incremental), "{step}");
        model.assert_is(&*host.restore(&next.cloud_snapshot_id.unwrap(), "next").await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn synthetic_full_without_its_base_stores_all_data() {
    for is_resumed in [false, true] {
        let mut host = Host::new().await;
        let (base, volume, model) = host.one_backup().await;
        let (manifest, lost) = (host.manifest(&base), host.manifest(&base));
        match is_resumed {
            true => host.die_at(crash_after_commit::COMMITTED),
            false => host.act_at("backup planned", move |_| fs::remove_file(lost).unwrap()),
        }
        let task = host.call(START_BACKUP, &full_backup(false)).await.items[0].task_id;
        if is_resumed {
            host.crashed().await;
            fs::remove_file(&manifest).unwrap();
            drop(volume);
            host.stop().await;
            // Without the host's copy, the base is missed before the commit is repeated.
            let db = rusqlite::Connection::open(host.dir.path().join("data/blockd.db")).unwrap();
            db.execute_batch("DELETE FROM catalog").unwrap();
            drop(db);
            host.start().await;
        }
        let done = host.done(task).await;
        assert_eq!(done.note.as_deref(), Some("a snapshot that the backup needed was deleted or damaged"));
        let id = full_id(done, 3 << 20);
        assert_eq!(host.ids().await, [id.as_str()], "its first commit was taken back");
        model.assert_is(&*host.restore(&id, "copy").await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_index_of_a_hidden_source_stops_no_retention() {
    let mut host = Host::new().await;
    host.credential_and_volume().await;
    let write = |seed| host.volume("v").write(0, &pattern(seed, 1 << 20), false).unwrap();
    let options = BackupOptions { full: true, ..BackupOptions::default() };
    let full = StartBackup { options, ..backup_of("v") };
    write(1);
    let source = host.run_backup(&full).await.cloud_snapshot_id.unwrap();
    let index = walk(host.store.path()).into_iter().find(|path| path.ends_with("/index")).unwrap();
    let fingerprints = host.dir.path().join("data/fingerprints");
    let is_usable =
        || walk(&fingerprints).iter().any(|path| path.rsplit('/').next() == source.rsplit('/').next());
    assert!(is_usable());
    let synthetic = host.run_backup(&full).await.cloud_snapshot_id.unwrap();
    write(2);
    let schedule = host.schedule(2).await;
    let mut kept = Vec::new();
    for round in 1..=2 {
        kept.push(host.write_and_run(&schedule, round).await);
    }
    for id in [&source, &synthetic] {
        host.delete_cloudsnap(&delete_of(id)).await;
    }
    fs::remove_file(&index).expect("the source stays");
    host.keep(schedule.schedule_id, 1).await;
    let deleted = async || if host.manifest(&kept[0]).exists() { Err("retention") } else { Ok(()) };
    eventually(deleted).await;
    assert_eq!(host.events_of("retention-stopped").await.len(), 0);
    assert_eq!(host.ids().await, [kept[1].as_str()]);
    assert!(!is_usable(), "no later backup refers to the lost source");
    host.stop().await;
}
