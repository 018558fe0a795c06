//! In-place restores that are discarded half done.

use super::{
    resume::{DISCARD, SLOW},
    *,
};
use blockd_api::{SnapshotRef, lazy::StartInPlace};

/// Returns a volume with a stopped in-place restore that has written, and its content before.
async fn half_restored(host: &Host, discard: bool) -> (Uuid, Model) {
    let (volume, mut model) = host.fill("data").await;
    host.create_credential().await;
    let snap = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    model.write(&volume, 0, 9, SIZE_BYTES as usize);
    drop(volume);
    let request = StartInPlace { limits: SLOW, discard, ..in_place_restore(&snap, "data") };
    let task = host.call(START_IN_PLACE, &request).await.task_id;
    host.stop_in_progress(task).await;
    let mut found = [0; 4096];
    host.volume("data").read(0, &mut found).unwrap();
    assert_eq!(found, *pattern(1, 4096), "nothing was restored");
    (task, model)
}

#[tokio::test(flavor = "multi_thread")]
async fn discarded_in_place_restore_is_undone() {
    for discard in [false, true] {
        let host = Host::new().await;
        let (task, model) = half_restored(&host, discard).await;
        let kept = host.call(LIST_SNAPSHOTS, &ListSnapshots::default()).await.items;
        let kept = SnapshotRef::Id(kept[0].snapshot_id);
        let error = host.engine().snapshots.delete_snapshot(&kept, true).await.unwrap_err();
        assert_eq!(error.to_api().code, ErrorCode::SnapshotInUse);

        host.call_at(STOP_TASK, &task, &DISCARD).await;
        model.assert_is(&host.volume("data"));
        host.refused_at(ErrorCode::TaskEnded, RESUME_TASK, &task, &()).await;
        // Clients are served, and the volume is backed up.
        let again = host.backup("data", false).await.cloud_snapshot_id.unwrap();
        model.assert_is(&*host.restore(&again, "copy").await);
        let left = host.call(LIST_SNAPSHOTS, &ListSnapshots::default()).await.items;
        assert_eq!(left.len(), usize::from(!discard));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_place_restore_stays_fenced_until_it_is_undone() {
    let mut host = Host::new().await;
    let (task, model) = half_restored(&host, false).await;
    host.die_at("in-place restore undone");
    let _ = host.client.call_at(STOP_TASK, &task, &DISCARD).await;
    host.die_and_start().await;
    host.refused(ErrorCode::VolumeInUse, START_BACKUP, &backup_of("data")).await;
    host.call_at(STOP_TASK, &task, &DISCARD).await;
    model.assert_is(&host.volume("data"));
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_resumed_after_its_undo_restores_all_blocks() {
    let mut host = Host::new().await;
    let (task, _) = half_restored(&host, false).await;
    // As after a flush in the middle of the volume.
    host.sql("UPDATE tasks SET detail = json_set(detail, '$.restored_below', 1000)");
    host.die_at("in-place restore undone");
    let _ = host.client.call_at(STOP_TASK, &task, &DISCARD).await;
    host.die_and_start().await;
    host.call_at(RESUME_TASK, &task, &()).await;
    host.done(task).await;
    let mut found = [0; 4096];
    host.volume("data").read(0, &mut found).unwrap();
    assert_eq!(found, *pattern(1, 4096));
}
