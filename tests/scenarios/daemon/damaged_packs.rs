//! Damaged packs: found by verifications, skipped by restores, healed by the next backup.

use super::*;
use blockd_api::{
    CredentialRef,
    browse::{FilePath, ListFiles},
    cloudsnaps::{CloudsnapStatus, VerifyDepth},
    events::Severity,
    operations::LIST_FILES,
};

/// Offset in a pack of a byte of its second frame, which holds bytes 512 KiB to 1 MiB of the volume.
const IN_SECOND_FRAME: usize = 64 + (800 << 10);

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_listed_skipped_and_healed() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    let full = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    let verify = async |snap: Option<&str>, depth| {
        let snap = snap.map(|snap| snap.parse().unwrap());
        host.verify(&StartVerify { cloud_snapshot_id: snap, depth, credential: None }).await
    };
    for depth in [VerifyDepth::Quick, VerifyDepth::Full, VerifyDepth::Deep] {
        let task = verify(Some(&full), depth).await;
        assert_eq!(task.state.to_string(), "Verify-Done", "{task:?}");
        assert_eq!(task.volume_name, Some("data".parse().unwrap()), "a list of tasks shows it");
        let findings = task.findings.unwrap();
        assert_eq!((findings.snapshots, findings.damage_total, findings.objects), (1, 0, 2));
        let compared = if depth == VerifyDepth::Deep { 1 << 20 } else { 0 };
        assert_eq!(findings.compared_bytes, compared, "{depth:?}");
        assert!(host.list().await[0].last_proof.as_ref().unwrap().sound);
    }
    host.assert_tidy();

    flip_bit(host.packs().remove(0), IN_SECOND_FRAME);
    assert_eq!(verify(None, VerifyDepth::Quick).await.state.stage, TaskStage::Done);
    let task = verify(None, VerifyDepth::Full).await;
    assert_eq!(task.state.to_string(), "Verify-Failed");
    assert_eq!(task.error.as_ref().unwrap().code, ErrorCode::CloudsnapDamaged);
    let findings = task.findings.unwrap();
    assert_eq!(findings.damaged_snapshots, std::slice::from_ref(&full));
    let lost = &findings.damage[0].affects[0];
    assert!(findings.damage[0].object.ends_with("/pack-00000000") && lost.cloud_snapshot_id == full);
    let (offset, len) = (lost.ranges[0].offset_bytes as usize, lost.ranges[0].len_bytes as usize);
    assert_eq!((lost.ranges.len(), offset, len), (1, 512 << 10, 512 << 10));
    assert!(!host.list().await[0].last_proof.as_ref().unwrap().sound);
    for (status, count) in [(CloudsnapStatus::Damaged, 1), (CloudsnapStatus::Done, 0)] {
        let query = ListCloudsnaps { status: Some(status), ..ListCloudsnaps::default() };
        let found = host.call(LIST_CLOUDSNAPS, &query).await.list.items;
        assert!(found.len() == count && found.iter().all(|one| one.status == status), "{found:?}");
    }
    // A quick verification does not reset the result.
    assert_eq!(verify(Some(&full), VerifyDepth::Quick).await.state.stage, TaskStage::Done);
    assert!(!host.list().await[0].last_proof.as_ref().unwrap().sound);

    let mut request = restore_as(&full, "past");
    let refused = host.wait(host.call(START_RESTORE, &request).await.task_id).await;
    assert_eq!((refused.state.stage, refused.resumable), (TaskStage::Failed, false));
    request.skip_damaged = true;
    let past = host.done(host.call(START_RESTORE, &request).await.task_id).await;
    assert_eq!(past.findings.unwrap().damage[0].affects[0].lost_bytes, 512 << 10);
    let mut without = model.clone();
    without.0[offset..offset + len].fill(0);
    without.assert_is(&host.volume("past"));

    // The next backup includes the lost blocks and is complete.
    model.write(&volume, 10 << 20, 5, 4096);
    let next = host.backup("data", false).await;
    assert_eq!((next.backup_type, next.dirty_bytes), (Some(BackupType::Incremental), (512 << 10) + 4096));
    let next = next.cloud_snapshot_id.unwrap();
    model.assert_is(&*host.restore(&next, "healed").await);
    let task = verify(Some(&next), VerifyDepth::Deep).await;
    assert_eq!(task.state.stage, TaskStage::Done, "{task:?}");
    host.assert_tidy();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_only_others_have_is_an_event() {
    let host = Host::new().await;
    let (full, volume, mut model) = host.one_backup().await;
    let pack = host.packs().remove(0);
    model.write(&volume, 0, 3, 3 << 20);
    let next = host.backup("data", false).await;
    assert_eq!(next.backup_type, Some(BackupType::Incremental));
    flip_bit(&pack, IN_SECOND_FRAME);
    let request = StartVerify {
        cloud_snapshot_id: next.cloud_snapshot_id.as_ref().map(|id| id.parse().unwrap()),
        ..StartVerify::default()
    };
    for _ in 0..2 {
        let task = host.verify(&request).await;
        assert_eq!(task.state.stage, TaskStage::Done, "{task:?}");
        let findings = task.findings.unwrap();
        assert_eq!((findings.damaged_snapshots, findings.damage_total), (Vec::new(), 1));
        assert_eq!(findings.damage[0].affects[0].cloud_snapshot_id, full);
    }
    let found = host.events_of("damage-found").await;
    assert_eq!(found.len(), 1, "known damage is no news: {found:?}");
    assert_eq!((found[0].severity, found[0].cloud_snapshot_id.as_ref()), (Severity::Error, Some(&full)));
    assert!(found[0].message.contains(&full) && found[0].message.contains("/pack-"), "{found:?}");
    let of = (found[0].volume_name.as_ref().map(|name| name.as_str()), found[0].volume_id);
    assert_eq!(of, (Some("data"), Some(host.inspect_volume("data").await.volume_id)));
    // Damage that grows is news.
    fs::remove_file(&pack).unwrap();
    assert_eq!(host.verify(&request).await.state.stage, TaskStage::Done);
    assert_eq!(host.events_of("damage-found").await.len(), 2);
    let listed = host.list().await;
    let sound: Vec<_> = listed.into_iter().map(|one| one.last_proof.unwrap().sound).collect();
    assert_eq!(sound, [false, true]);
}

/// Another credential of the same repository found the damage, after a verification without findings.
#[tokio::test(flavor = "multi_thread")]
async fn damage_found_with_another_credential_is_healed() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    let own = CredentialRef::Id(host.create_credential().await);
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    let full = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    let other = CredentialRef::Id(host.create_credential_at("other", host.store.path().join(".")).await);
    let verify = async |credential: &CredentialRef| {
        let (cloud_snapshot_id, credential) = (Some(full.parse().unwrap()), Some(credential.clone()));
        host.verify(&StartVerify { cloud_snapshot_id, depth: VerifyDepth::Full, credential })
            .await
            .state
            .stage
    };
    assert_eq!(verify(&own).await, TaskStage::Done);
    flip_bit(host.packs().remove(0), IN_SECOND_FRAME);
    assert_eq!(verify(&other).await, TaskStage::Failed);
    model.write(&volume, 10 << 20, 5, 4096);
    let next = host.run_backup(&StartBackup { credentials: vec![own], ..backup_of("data") }).await;
    assert_eq!((next.backup_type, next.dirty_bytes), (Some(BackupType::Incremental), (512 << 10) + 4096));
}

/// Damage that names no block is damage of all blocks.
#[tokio::test(flavor = "multi_thread")]
async fn total_loss_of_the_base_is_stored_again() {
    let host = Host::new().await;
    let (first, volume, mut model) = host.one_backup().await;
    host.verified(&first, VerifyDepth::Full).await;
    host.sql("UPDATE proofs SET sound = 0, damaged = NULL");
    let lost = host.packs();
    model.write(&volume, 30 << 20, 5, 4096);
    let next = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    lost.iter().for_each(|pack| std::fs::remove_file(pack).unwrap());
    model.assert_is(&*host.restore(&next, "copy").await);
}

/// A store that refuses a read is no damage; a missing object is.
#[tokio::test(flavor = "multi_thread")]
async fn files_tell_store_failures_from_damage() {
    let host = Host::new().await;
    let (snap, ..) = host.one_backup().await;
    let pack = PathBuf::from(host.packs().remove(0));
    let query = ListFiles {
        cloud_snapshot_id: snap.parse().unwrap(),
        path: FilePath::root(),
        entries: true,
        xattrs: false,
        credential: None,
    };
    let away = move_away(&pack);
    host.refused(ErrorCode::CloudsnapDamaged, LIST_FILES, &query).await;
    std::os::unix::fs::symlink(&pack, &pack).unwrap();
    let error = api_error(host.client.call(LIST_FILES, &query).await);
    assert_eq!(error.code, ErrorCode::InvalidRequest, "{error:?}");
    fs::remove_file(&pack).unwrap();
    fs::rename(away, &pack).unwrap();
    host.refused(ErrorCode::NoFiles, LIST_FILES, &query).await;
}
