//! Checks of the options of requests that start tasks.

use crate::error::ServiceError;
use blockd_api::{ErrorCode, tasks::TaskLimits};
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

/// Refuses limits below which small requests would take minutes.
pub fn check_limits(limits: TaskLimits) -> Result<(), ServiceError> {
    const MIN_BYTES_PER_S: u64 = 1 << 10;
    let given = [limits.limit_upload_bytes_per_second, limits.limit_download_bytes_per_second];
    if given.into_iter().flatten().any(|limit| limit < MIN_BYTES_PER_S) {
        let message = "the bandwidth limit is too low: give at least 1 KiB per second";
        return Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
    }
    Ok(())
}
