//! Checks of the options of requests that start tasks.

use crate::error::ServiceError;
use blockd_api::{ErrorCode, costs::Money, tasks::TaskLimits};
use blockd_catalog::{RestoreTask, TaskRow, TaskSpec};
use jiff::Timestamp;

/// Refuses an expiry date in the past, which would delete the backup at once.
pub fn refuse_past(expires: Option<Timestamp>) -> Result<(), ServiceError> {
    match expires {
        Some(expires) if expires <= Timestamp::now() => {
            let message = format!("the expiry date {expires} is past: give a future date");
            Err(ServiceError::refused(ErrorCode::InvalidRequest, message))
        }
        _ => Ok(()),
    }
}

/// Refuses bandwidth limits below which small requests would take minutes, and negative costs.
pub fn check_limits(limits: TaskLimits) -> Result<(), ServiceError> {
    const MIN_BYTES_PER_S: u64 = 1 << 10;
    let given = [limits.limit_upload_bytes_per_second, limits.limit_download_bytes_per_second];
    if given.into_iter().flatten().any(|limit| limit < MIN_BYTES_PER_S) {
        let message = "the bandwidth limit is too low: give at least 1 KiB per second";
        return Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
    }
    if limits.max_cost.is_some_and(|max| max < Money::default()) {
        let message = "the limit of the cost is negative: give at least 0";
        return Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
    }
    Ok(())
}

/// Refuses a maximum for a task whose requests are not counted against one.
pub fn refuse_budget_of(row: &TaskRow, limits: &TaskLimits) -> Result<(), ServiceError> {
    let is_counted = match &row.spec {
        TaskSpec::Backup(_) | TaskSpec::Verify(_) | TaskSpec::Drill(_) | TaskSpec::Repair(_) => true,
        TaskSpec::Restore(RestoreTask::NewVolume { .. } | RestoreTask::InPlace(_)) => true,
        TaskSpec::Restore(RestoreTask::LazyVolume) | TaskSpec::Delete(_) | TaskSpec::Scrub(_) => false,
    };
    let bandwidth = TaskLimits { max_requests: None, max_egress_bytes: None, max_cost: None, ..*limits };
    match is_counted || bandwidth == *limits {
        true => Ok(()),
        false => {
            let message =
                format!("{} task {} has no limits of requests, egress and cost", row.kind(), row.id);
            Err(ServiceError::refused(ErrorCode::InvalidRequest, message))
        }
    }
}
