//! What the daemon says of itself.

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
    /// Under which this daemon's cloud snapshots stand in a store.
    pub cluster_id: Uuid,
    /// Name of the host.
    pub node: String,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where NBD is served, as URIs without an export.
    pub nbd: Vec<String>,
    /// Where this API is served over TCP, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<String>,
    /// Seconds since the daemon was ready.
    pub uptime_seconds: u64,
    /// How many there are of each.
    pub counts: Counts,
    /// Where events are told to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub webhooks: Vec<WebhookStatus>,
    /// Why a changed configuration does not hold, if the last reload failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload_failed: Option<ReloadFailure>,
    /// The room on the filesystem of the data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_space: Option<DataSpace>,
    /// What keeps it from its work now, as far as it notices by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// A reload of the configuration that changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReloadFailure {
    /// When it was tried.
    pub at: Timestamp,
    /// Why it failed, in one line.
    pub error: String,
}

/// The room on a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataSpace {
    /// All of it.
    pub total_bytes: u64,
    /// What the daemon can still write.
    pub free_bytes: u64,
}

/// Something that keeps the daemon from its work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// What it is, in a word: `data-directory`, `clock`, `discarded-writes`, `retention`, `garbage`,
    /// `schedules`, `metrics`, `control-socket`, `control-address` or `credential`.
    pub kind: String,
    /// It in words.
    pub what: String,
    /// What to do about it.
    pub todo: String,
    /// Since when it is known.
    pub since: Timestamp,
}

/// Status of a webhook. Its address may contain a secret: only the origin is shown. Counters and times start
/// with the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookStatus {
    /// Its name.
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
    pub last_delivered: Option<Timestamp>,
    /// Time at which an event was last counted as undelivered.
    pub last_undelivered: Option<Timestamp>,
    /// Time since which every attempt has failed; `None` if the last one succeeded.
    pub failing_since: Option<Timestamp>,
    /// Error of the last attempt, if it failed.
    pub error: Option<String>,
}

/// How many resources a daemon has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Volumes in any state.
    pub volumes: u64,
    /// Volumes that could not be opened, or failed.
    pub volumes_failed: u64,
    /// Snapshots that people made.
    pub snapshots: u64,
    /// Credentials.
    pub credentials: u64,
    /// Tasks that are pending or active.
    pub tasks_active: u64,
    /// NBD connections.
    pub connections: u64,
}
