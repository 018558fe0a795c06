//! Bandwidth limits of tasks and credentials.

use super::*;
use blockd_api::{credentials::CredentialLimits, tasks::TaskLimits};

fn limits(bytes_per_s: Option<u64>) -> TaskLimits {
    TaskLimits {
        limit_upload_bytes_per_second: bytes_per_s,
        limit_download_bytes_per_second: bytes_per_s,
        ..TaskLimits::NONE
    }
}

impl Host {
    /// Waits until a backup uploads, which takes hours for a pack.
    async fn waits_with_its_first_pack(&self, task: Uuid) {
        self.until_active(task, |seen| seen.phase == "data").await;
        assert_eq!(self.packs(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credential_limit_update_applies_to_running_tasks() {
    let mut host = Host::new().await;
    let (_, model) = host.fill("data").await;
    host.create_credential().await;
    let nas = "nas".parse().unwrap();
    let slow =
        CredentialLimits { upload: "2KiB@00:00-24:00,1GiB".parse().unwrap(), ..CredentialLimits::default() };
    let too_slow = CredentialLimits { upload: "7".parse().unwrap(), ..CredentialLimits::default() };
    host.refused_at(ErrorCode::InvalidRequest, LIMIT_CREDENTIAL, &nas, &too_slow).await;
    host.call_at(LIMIT_CREDENTIAL, &nas, &slow).await;
    let task = host.start_backup("data", false).await;
    host.waits_with_its_first_pack(task).await;
    host.restart().await;
    let kept = host.call_at(GET_CREDENTIAL, &nas, &()).await;
    assert_eq!(kept.limit_upload_windows.len(), 1);
    assert_eq!(kept.limit_upload_bytes_per_second, Some(1 << 30));
    host.call_at(LIMIT_CREDENTIAL, &nas, &CredentialLimits::default()).await;
    let done = host.done(task).await;
    model.assert_is(&*host.restore(&done.cloud_snapshot_id.unwrap(), "copy").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_start_with_their_own_limits() {
    let host = Host::new().await;
    let (_, model) = host.fill("data").await;
    host.create_credential().await;
    let backup = |bytes| StartBackup { limits: limits(bytes), ..backup_of("data") };
    host.refused(ErrorCode::InvalidRequest, START_BACKUP, &backup(Some(7))).await;
    let task = host.call(START_BACKUP, &backup(Some(2048))).await.items[0].task_id;
    host.waits_with_its_first_pack(task).await;
    host.refused_at(ErrorCode::InvalidRequest, LIMIT_TASK, &task, &limits(Some(7))).await;
    host.call_at(LIMIT_TASK, &task, &limits(None)).await;
    let id = host.done(task).await.cloud_snapshot_id.unwrap();
    host.refused_at(ErrorCode::TaskEnded, LIMIT_TASK, &task, &limits(None)).await;
    let restore = |bytes| StartRestore { limits: limits(bytes), ..restore_as(&id, "copy") };
    host.refused(ErrorCode::InvalidRequest, START_RESTORE, &restore(Some(7))).await;
    let task = host.call(START_RESTORE, &restore(Some(2048))).await.task_id;
    host.until_active(task, |seen| seen.state.stage == TaskStage::Active).await;
    host.call_at(LIMIT_TASK, &task, &limits(None)).await;
    host.done(task).await;
    model.assert_is(&host.volume("copy"));
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_task_hold_and_are_lifted_while_it_runs() {
    let host = Host::new().await;
    let (task, _, model) = host.stopped_backup().await;
    host.refused_at(ErrorCode::InvalidRequest, LIMIT_TASK, &task, &limits(Some(7))).await;
    let packs = host.packs();
    host.call_at(LIMIT_TASK, &task, &limits(Some(2048))).await;
    host.call_at(RESUME_TASK, &task, &()).await;
    host.until_active(task, |seen| seen.phase == "data").await;
    assert_eq!(host.packs(), packs, "the next pack waits for hours");
    host.call_at(LIMIT_TASK, &task, &limits(None)).await;
    let done = host.done(task).await;
    model.assert_is(&*host.restore(&done.cloud_snapshot_id.unwrap(), "copy").await);
    host.refused_at(ErrorCode::TaskEnded, LIMIT_TASK, &task, &limits(None)).await;
}
