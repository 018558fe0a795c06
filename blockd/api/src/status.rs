//! What the daemon says of itself.

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
