//! Bandwidth limits of tasks and credentials.

use blockd_api::{
    ByteSize, CredentialRef, DailyLimit, NO_LIMIT,
    costs::Money,
    credentials::{Credential, CredentialLimits},
    tasks::{Task, TaskLimits},
};
use clap::Args;
use std::str::FromStr;

/// Help of `credentials limit`.
pub const CREDENTIALS_LIMIT_HELP: &str = "\
The limits apply at once, also to running tasks; omitted limits stay, and `none` removes one. A \
limit can be for a time of day; the first matching one wins, and one without a time applies \
otherwise.

Examples:
  blockctl credentials limit nas --limit-upload 20MiB
  blockctl credentials limit nas --limit-upload 20MiB@08:00-18:00,100MiB --limit-time-zone Europe/Berlin
  blockctl credentials limit nas --limit-upload none --limit-download none";

/// Initial bandwidth limits of a task.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct TaskLimitArgs {
    /// Upload limit in bytes per second, such as 10MiB
    #[arg(long, value_name = "SIZE")]
    pub limit_upload: Option<ByteSize>,
    /// Download limit in bytes per second
    #[arg(long, value_name = "SIZE")]
    pub limit_download: Option<ByteSize>,
    /// Budget.
    #[command(flatten)]
    pub budget: BudgetArgs,
}

impl TaskLimitArgs {
    /// Returns the limits for the API.
    pub fn limits(&self) -> TaskLimits {
        TaskLimits {
            limit_upload_bytes_per_second: self.limit_upload.map(ByteSize::as_bytes),
            limit_download_bytes_per_second: self.limit_download.map(ByteSize::as_bytes),
            ..self.budget.limits()
        }
    }
}

/// Budget of a task. A task that reaches it ends and can be resumed with a higher one.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct BudgetArgs {
    /// End the task before it exceeds this number of requests
    #[arg(long, value_name = "N")]
    pub max_requests: Option<u64>,
    /// End the task before it receives more, such as 10GiB
    #[arg(long, value_name = "SIZE")]
    pub max_egress: Option<ByteSize>,
    /// End the task before requests and egress cost more, such as 0.50
    #[arg(long, value_name = "AMOUNT", value_parser = parse_amount)]
    pub max_cost: Option<Money>,
}

/// Parses an amount that is not negative.
fn parse_amount(text: &str) -> Result<Money, String> {
    match text.parse::<Money>() {
        Ok(amount) if amount >= Money::default() => Ok(amount),
        Ok(amount) => Err(format!("{amount} is negative")),
        Err(error) => Err(error.to_string()),
    }
}

impl BudgetArgs {
    /// Returns the budget as limits without bandwidth.
    pub fn limits(&self) -> TaskLimits {
        TaskLimits {
            max_requests: self.max_requests,
            max_egress_bytes: self.max_egress.map(ByteSize::as_bytes),
            max_cost: self.max_cost,
            ..TaskLimits::NONE
        }
    }

    /// Returns the changed limits of a task, `None` if no option is given; omitted ones keep their value.
    pub fn changed(&self, now: TaskLimits) -> Option<TaskLimits> {
        let given = self.limits();
        (given != TaskLimits::NONE).then(|| TaskLimits {
            max_requests: given.max_requests.or(now.max_requests),
            max_egress_bytes: given.max_egress_bytes.or(now.max_egress_bytes),
            max_cost: given.max_cost.or(now.max_cost),
            ..now
        })
    }
}

/// Returns the seconds until the bytes that an active task has transferred are within its own limits: an
/// object is sent at once, and the next one waits.
pub fn limit_wait_seconds(task: &Task) -> f64 {
    let limits = &task.limits;
    let seconds = |bytes: u64, limit: Option<u64>| match limit {
        Some(rate @ 1..) => bytes as f64 / rate as f64 - task.elapsed_seconds,
        _ => 0.0,
    };
    let upload = seconds(task.uploaded_bytes, limits.limit_upload_bytes_per_second);
    upload.max(seconds(task.downloaded_bytes, limits.limit_download_bytes_per_second)).max(0.0)
}

/// Limit of a task, or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskLimit<T = ByteSize>(Option<T>);

impl<T: FromStr> FromStr for TaskLimit<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(if text.eq_ignore_ascii_case(NO_LIMIT) { None } else { Some(text.parse()?) }))
    }
}

/// Changed limits of a task.
#[derive(Clone, Copy, Debug, Args)]
pub struct ChangedLimitArgs {
    /// Upload limit in bytes per second, or none
    #[arg(
        long,
        value_name = "SIZE",
        required_unless_present_any = ["limit_download", "max_requests", "max_egress", "max_cost"]
    )]
    pub limit_upload: Option<TaskLimit>,
    /// Download limit in bytes per second, or none
    #[arg(long, value_name = "SIZE")]
    pub limit_download: Option<TaskLimit>,
    /// Maximum number of requests, or none
    #[arg(long, value_name = "N")]
    pub max_requests: Option<TaskLimit<u64>>,
    /// Maximum of bytes received, or none
    #[arg(long, value_name = "SIZE")]
    pub max_egress: Option<TaskLimit>,
    /// Maximum cost of requests and egress, or none
    #[arg(long, value_name = "AMOUNT")]
    pub max_cost: Option<TaskLimit<Money>>,
}

impl ChangedLimitArgs {
    /// Returns the limits for the API; omitted ones keep their value.
    pub fn limits(self, now: TaskLimits) -> TaskLimits {
        let bytes = |limit: Option<TaskLimit>, now| {
            limit.map_or(now, |TaskLimit(limit)| limit.map(ByteSize::as_bytes))
        };
        TaskLimits {
            limit_upload_bytes_per_second: bytes(self.limit_upload, now.limit_upload_bytes_per_second),
            limit_download_bytes_per_second: bytes(self.limit_download, now.limit_download_bytes_per_second),
            max_requests: self.max_requests.map_or(now.max_requests, |TaskLimit(limit)| limit),
            max_egress_bytes: bytes(self.max_egress, now.max_egress_bytes),
            max_cost: self.max_cost.map_or(now.max_cost, |TaskLimit(limit)| limit),
        }
    }
}

/// `credentials limit`
#[derive(Debug, Args)]
pub struct CredentialLimitArgs {
    /// Name or UUID of the credential
    #[arg(value_name = "CREDENTIALS")]
    pub credential: CredentialRef,
    /// Upload limit of all tasks in bytes per second: 20MiB, 20MiB@08:00-18:00,100MiB or none
    #[arg(long, value_name = "LIMIT", required_unless_present_any = ["limit_download", "limit_time_zone"])]
    pub limit_upload: Option<DailyLimit>,
    /// Download limit of all tasks in bytes per second
    #[arg(long, value_name = "LIMIT")]
    pub limit_download: Option<DailyLimit>,
    /// Time zone of the times [default: UTC]
    #[arg(long, value_name = "ZONE")]
    pub limit_time_zone: Option<String>,
}

/// Returns the current limits of a credential for uploads and downloads.
pub fn limits_of(one: &Credential) -> [DailyLimit; 2] {
    [
        (one.limit_upload_bytes_per_second, &one.limit_upload_windows),
        (one.limit_download_bytes_per_second, &one.limit_download_windows),
    ]
    .map(|(otherwise_bytes_per_s, windows)| DailyLimit { otherwise_bytes_per_s, windows: windows.clone() })
}

/// Returns the limits for the API; missing ones keep their value.
pub fn changed_limits(
    now: &Credential,
    upload: Option<DailyLimit>,
    download: Option<DailyLimit>,
    time_zone: Option<String>,
) -> CredentialLimits {
    let [old_upload, old_download] = limits_of(now);
    CredentialLimits {
        upload: upload.unwrap_or(old_upload),
        download: download.unwrap_or(old_download),
        time_zone: time_zone.or_else(|| now.limit_time_zone.clone()),
    }
}
