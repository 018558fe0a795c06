//! Status of the daemon.

use crate::anomalies::BackupAnomaly;
use crate::cloudsnaps::{CloudSnapshotId, VerifyDepth};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use uuid::Uuid;

/// Reply to `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Id of the data directory, which its cloud snapshots have; a copy has the same.
    pub cluster_id: Uuid,
    /// Name of the host.
    pub node: String,
    /// Data directory.
    pub data_dir: PathBuf,
    /// NBD listeners, as URIs without an export.
    pub nbd: Vec<String>,
    /// TCP address of this API, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<String>,
    /// Seconds since the daemon was ready.
    pub uptime_seconds: u64,
    /// Rights of the daemon's process.
    pub rights: DaemonRights,
    /// Resource counts.
    pub counts: Counts,
    /// Webhooks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub webhooks: Vec<WebhookStatus>,
    /// Failure of the last reload, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reload_failure: Option<ReloadFailure>,
    /// Space on the filesystem of the data directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_space: Option<DataSpace>,
    /// Space of each backup location, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locations: Vec<LocationSpace>,
    /// Cloud snapshots that are known to be damaged, by location, without a request to the store.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged_cloudsnaps: Vec<KnownDamage>,
    /// Anomalies without an acknowledgement, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub anomalies: Vec<BackupAnomaly>,
    /// Plan of the background verification, computed each hour; none if it is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationPlan>,
    /// Current problems noticed by the daemon.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// Rights of the daemon's process, which it may lack without root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DaemonRights {
    /// Attaches volumes as `/dev/nbdX` (`CAP_SYS_ADMIN`).
    pub kernel_devices: bool,
    /// Opens `/dev/fuse`, to mount snapshots.
    pub fuse_mounts: bool,
    /// Uses memory reserves for writeback of its own devices (`CAP_SYS_RESOURCE`).
    pub io_priority: bool,
}

/// Failed reload of the configuration; it changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReloadFailure {
    /// Time of the attempt.
    pub failed_at: Timestamp,
    /// Cause, in one line.
    pub cause: String,
}

/// Space on a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataSpace {
    /// Total.
    pub total_bytes: u64,
    /// Available to the daemon.
    pub free_bytes: u64,
}

/// Space of a backup location as the daemon knows it without a request to the store: backups and deletions of
/// this host, and those of other hosts at the last listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocationSpace {
    /// Credential.
    pub credential_id: Uuid,
    /// Name.
    pub credential_name: String,
    /// Number of cloud snapshots.
    pub cloud_snapshot_count: u64,
    /// Bytes that the cloud snapshots need in the store, without orphaned objects.
    pub stored_bytes: u64,
    /// Last complete listing; `None` before the first one.
    pub listed_at: Option<Timestamp>,
}

/// Cloud snapshot whose last proof is damage. It is listed until a verification that is at least as deep
/// finds it sound, or until it is deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KnownDamage {
    /// The cloud snapshot.
    pub cloud_snapshot_id: CloudSnapshotId,
    /// Name of its volume, or the last one that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_name: Option<String>,
    /// Credential of the location.
    pub credential_id: Uuid,
    /// Name.
    pub credential_name: String,
    /// Time of the last verification that found it.
    pub found_at: Timestamp,
    /// Kind of that verification.
    pub kind: VerifyDepth,
    /// Name of its host, or the id of the host's installation.
    pub host: String,
    /// Next action.
    pub action: String,
}

/// Plan of the background verification: the time for reading all known cloud snapshots once. New backups are
/// read first, and can double it. Without a budget of bytes, it is off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VerificationPlan {
    /// Number of cloud snapshots.
    pub cloud_snapshot_count: u64,
    /// Number of packs.
    pub pack_count: u64,
    /// Bytes to read.
    pub read_bytes: u64,
    /// Number of requests.
    pub request_count: u64,
    /// Time for all of them, in days.
    pub period_days: u64,
    /// Budget of bytes (`verify_bytes_per_day`).
    pub bytes_per_day: u64,
    /// Budget of requests (`verify_requests_per_day`).
    pub requests_per_day: u64,
    /// Maximum age of a proof (`proof_max_age_days`); 0: any.
    pub proof_max_age_days: u32,
    /// Budget of bytes that reads everything within this age, if the budget does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needed_bytes_per_day: Option<u64>,
    /// Budget of requests for the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needed_requests_per_day: Option<u64>,
}

/// Problem of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Kind: `data-directory`, `clock`, `discarded-writes`, `retention`, `garbage`, `schedules`, `metrics`,
    /// `control-socket`, `control-address`, `credential`, `location`, `key-slot`,
    /// `backing-snapshot`, `lease`, `proof`, `probe`, `drill` or `volume-damage`.
    pub kind: String,
    /// Message.
    pub cause: String,
    /// Next action.
    pub action: String,
    /// Time of detection.
    pub detected_at: Timestamp,
}

/// Status of a webhook. Its address may contain a secret: only the origin is shown. Counters and times start
/// with the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookStatus {
    /// Name.
    pub name: String,
    /// Scheme, host and port of its address.
    pub origin: String,
    /// Events that wait for delivery.
    pub waiting: u64,
    /// Events that the receiver accepted.
    pub delivered: u64,
    /// Events that the receiver rejected for good, or that expired before their delivery.
    pub undelivered: u64,
    /// Time of the last accepted event.
    pub last_delivered_at: Option<Timestamp>,
    /// Time at which an event was last counted as undelivered.
    pub last_undelivered_at: Option<Timestamp>,
    /// Time since which every attempt has failed; `None` if the last one succeeded.
    pub first_failed_at: Option<Timestamp>,
    /// Error of the last attempt, if it failed.
    pub error: Option<String>,
}

/// Resource counts of a daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Volumes in any state.
    pub volumes: u64,
    /// Failed volumes.
    pub volumes_failed: u64,
    /// Local snapshots.
    pub snapshots: u64,
    /// Credentials.
    pub credentials: u64,
    /// Pending and active tasks.
    pub tasks_active: u64,
    /// NBD connections.
    pub connections: u64,
}
