//! Activity counters of volumes and tasks; rates are differences of two samples.

use crate::{VolumeId, VolumeName, tasks::Task};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Reply to `GET /v1/activity`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Activity {
    /// Id of the daemon's run; all counters start at 0 with a new run.
    pub daemon_run_id: Uuid,
    /// Time of the sample on the monotonic clock, in microseconds.
    pub monotonic_micros: u64,
    /// Volumes by name.
    pub volumes: Vec<VolumeActivity>,
    /// Active tasks, newest first.
    pub tasks: Vec<Task>,
}

/// Activity of a volume since it was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeActivity {
    /// Id.
    pub volume_id: VolumeId,
    /// Name.
    pub name: VolumeName,
    /// True if the volume is open and serves requests.
    pub up: bool,
    /// NBD connections.
    pub connections: u64,
    /// Bytes dirtied since the last freeze or growth, in whole blocks; 0 if the volume is not open.
    pub dirty_bytes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written, without trimmed and zeroed ones.
    pub written_bytes: u64,
    /// Read requests of NBD clients.
    pub read: OperationActivity,
    /// Write requests.
    pub write: OperationActivity,
    /// Flush requests.
    pub flush: OperationActivity,
    /// Trim and zero requests.
    pub discard: OperationActivity,
}

/// Requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OperationActivity {
    /// Number of completed requests.
    pub requests: u64,
    /// Total latency of these, in microseconds.
    pub latency_micros: u64,
    /// Requests that the volume is executing; not those that wait for a thread or for remote data.
    pub in_flight: u64,
}
