//! What volumes and tasks do at this moment: counters, to be asked for twice and compared.

use crate::{Client, ClientError, VolumeId, VolumeName, client::CALL_TIMEOUT, paths, tasks::Task};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Reply to `GET /v1/activity`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Activity {
    /// The run of the daemon: all counters begin anew with another one.
    pub run: Uuid,
    /// When this was, in microseconds of a clock that nobody sets.
    pub at_micros: u64,
    /// The volumes, by name.
    pub volumes: Vec<VolumeActivity>,
    /// The tasks that have not ended, newest first.
    pub tasks: Vec<Task>,
}

/// What was done with a volume since it was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeActivity {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: VolumeName,
    /// Whether it is open and takes requests.
    pub up: bool,
    /// NBD connections to it.
    pub connections: u64,
    /// What was written since it was last frozen, in whole blocks; 0 if it is not open.
    pub dirty_bytes: u64,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Bytes that were written, trimmed and zeroed ones not counted.
    pub written_bytes: u64,
    /// Requests of NBD clients that read.
    pub read: OperationActivity,
    /// Those that write.
    pub write: OperationActivity,
    /// Those that make durable.
    pub flush: OperationActivity,
    /// Those that trim or zero.
    pub discard: OperationActivity,
}

/// Requests of one sort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OperationActivity {
    /// How many have ended.
    pub requests: u64,
    /// How long all of those took, in microseconds.
    pub took_micros: u64,
    /// How many are under way.
    pub under_way: u64,
}

impl Client {
    /// What volumes and tasks do at this moment.
    pub async fn activity(&self) -> Result<Activity, ClientError> {
        self.get(paths::ACTIVITY, CALL_TIMEOUT).await
    }
}
