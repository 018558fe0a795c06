//! What happened that people should know of.

use crate::VolumeName;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// The most events that one reply has.
pub const MAX_EVENTS: u32 = 1_000;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// All is well.
    Info,
    /// Somebody should look at it some time.
    Warning,
    /// Something that was to be protected is not.
    Error,
}

impl Severity {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Info, Self::Warning, Self::Error];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Its number; later ones have greater ones.
    pub id: u64,
    /// When.
    pub at: Timestamp,
    /// How bad it is.
    pub severity: Severity,
    /// What it is, in a word that programs can go by: `backup-done`, `backup-failed`, `backup-stopped`, the same of `restore`, `delete`
    /// and `verify`, `store-unreachable`, `damage-found`, `schedule-missed`, `run-skipped`, `run-failed`, `volume-degraded`.
    pub kind: String,
    /// The volume, by the name that it had.
    pub volume: Option<VolumeName>,
    /// The credential, by the name that it had.
    pub credential: Option<String>,
    /// The task.
    pub task: Option<Uuid>,
    /// It in words.
    pub message: String,
}

/// Query of `GET /v1/events`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListEvents {
    /// Only later ones than this, oldest first; without it, the newest.
    #[serde(default)]
    pub since: Option<u64>,
    /// At most so many, up to [`MAX_EVENTS`]; 100 without it.
    #[serde(default)]
    pub max: Option<u32>,
    /// If there is none, wait for one so long, at most [`crate::MAX_WAIT_MS`].
    #[serde(default)]
    pub wait_ms: Option<u64>,
}

/// Reply to `GET /v1/events`, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventList {
    /// The events.
    pub events: Vec<Event>,
}

impl crate::Client {
    /// What happened.
    pub async fn list_events(&self, query: &ListEvents) -> Result<EventList, crate::ClientError> {
        let wait = std::time::Duration::from_millis(query.wait_ms.unwrap_or(0).min(crate::MAX_WAIT_MS));
        self.query(crate::paths::EVENTS, query, crate::client::CALL_TIMEOUT + wait).await
    }
}
