//! Bandwidth limits of tasks and credentials.

use super::unsuccessful::{KEEP, SLOW_BYTES_PER_S};
use super::*;
use blockd_api::{credentials::CredentialLimits, tasks::TaskLimits};

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
    // It begins without any limit; the first body goes, what follows waits for hours.
    host.call_at(LIMIT_CREDENTIAL, &nas, &slow).await;
    let task = host.start_backup("data", false).await;
    host.until_processed(task, 1).await;
    host.stop().await;
    host.start().await;
    let kept = host.call_at(GET_CREDENTIAL, &nas, &()).await;
    assert_eq!(kept.limit_upload_windows.len(), 1);
    assert_eq!(kept.limit_upload_bytes_per_s, Some(1 << 30));
    host.call_at(LIMIT_CREDENTIAL, &nas, &CredentialLimits::default()).await;
    let done = host.done(task).await;
    model.assert_is(&*host.restore(&done.source_volume.unwrap(), "copy").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_start_with_their_own_limits() {
    let host = Host::new().await;
    let (_, model) = host.fill("data").await;
    host.create_credential().await;
    let limits = |bytes| TaskLimits { limit_upload_bytes_per_s: bytes, limit_download_bytes_per_s: bytes };
    let backup = |bytes| StartBackup { limits: limits(bytes), ..StartBackup::of("data".parse().unwrap()) };
    host.refused(ErrorCode::InvalidRequest, START_BACKUP, &backup(Some(7))).await;
    let task = host.call(START_BACKUP, &backup(Some(2048))).await.task;
    host.until_processed(task, 1).await;
    let refused = host.client.call_at(LIMIT_TASK, &task, &limits(Some(7))).await;
    assert_eq!(api_code(refused), ErrorCode::InvalidRequest);
    host.call_at(LIMIT_TASK, &task, &limits(None)).await;
    let id = host.done(task).await.source_volume.unwrap();
    host.refused_at(ErrorCode::TaskEnded, LIMIT_TASK, &task, &limits(None)).await;
    let restore = |bytes| StartRestore {
        volume: Some("copy".parse().unwrap()),
        limits: limits(bytes),
        ..StartRestore::of(id.parse().unwrap())
    };
    host.refused(ErrorCode::InvalidRequest, START_RESTORE, &restore(Some(7))).await;
    let task = host.call(START_RESTORE, &restore(Some(2048))).await.task;
    host.until_processed(task, 1).await;
    host.call_at(LIMIT_TASK, &task, &limits(None)).await;
    host.done(task).await;
    model.assert_is(&host.volume("copy"));
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_task_hold_and_are_lifted_while_it_runs() {
    let host = Host::new().await;
    let (_, model) = host.fill("data").await;
    host.limited(Some(SLOW_BYTES_PER_S), None).await;
    let task = host.start_backup("data", false).await;
    host.until_processed(task, 1).await;
    host.call_at(STOP_TASK, &task, &KEEP).await;
    host.unlimited();
    let limits = |upload| TaskLimits { limit_upload_bytes_per_s: upload, limit_download_bytes_per_s: None };
    assert_eq!(
        api_code(host.client.call_at(LIMIT_TASK, &task, &limits(Some(7))).await),
        ErrorCode::InvalidRequest
    );
    // The first body goes, what follows waits for hours.
    host.client.call_at(LIMIT_TASK, &task, &limits(Some(2048))).await.unwrap();
    host.client.call_at(RESUME_TASK, &task, &()).await.unwrap();
    loop {
        let seen = host.client.call_at(GET_TASK, &task, &WaitTask::default()).await.unwrap();
        assert!(!seen.state.stage.is_over(), "{seen:?}");
        if seen.phase == "index" || seen.phase == "commit" {
            break;
        }
        let wait = WaitTask { wait_ms: Some(1_000), since_version: Some(seen.version) };
        host.client.call_at(GET_TASK, &task, &wait).await.unwrap();
    }
    host.client.call_at(LIMIT_TASK, &task, &limits(None)).await.unwrap();
    let done = host.done(task).await;
    model.assert_is(&*host.restore(&done.source_volume.unwrap(), "copy").await);
    assert_eq!(api_code(host.client.call_at(LIMIT_TASK, &task, &limits(None)).await), ErrorCode::TaskEnded);
}
