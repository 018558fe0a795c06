//! Requests and replies of the control API, and its client.
//!
//! The API is HTTP/1.1 with JSON bodies over a Unix socket, or over TCP with TLS: the daemon serves these
//! types as [`operations`] has it, and [`Client`] sends them. Names, sizes, labels and ids are checked here,
//! so that both sides refuse the same values with the same messages.

pub mod activity;
pub mod anomalies;
pub mod attachments;
pub mod browse;
pub mod client;
pub mod cloudsnaps;
pub mod costs;
pub mod credential_update;
pub mod credentials;
pub mod drills;
mod endpoint;
mod error;
pub mod events;
mod fd_passing;
mod labels;
pub mod lazy;
mod limits;
mod list;
mod names;
pub mod openapi;
pub mod operations;
pub mod quiesce;
pub mod roles;
pub mod rules;
pub mod schedules;
mod schema;
mod size;
pub mod snapshots;
pub mod status;
pub mod tasks;
mod text;
mod tls_diagnosis;
mod uri;
pub mod volumes;

pub use blockd_extent::{Epoch, SnapshotId, VolumeId};
pub use blockd_store_config::{
    Compression, CompressionLevel, Deduplication, MAX_SECRET_REF_BYTES, Secret, SecretInput, SecretRef,
    SecretRefError,
};
pub use client::{Client, ClientError};
pub use endpoint::{Endpoint, EndpointError, TlsFiles};
pub use error::{ApiError, ErrorBody, ErrorCode};
pub use labels::{
    CLONED_BEFORE, CLONED_BY, CLONED_FROM, EXCLUDED, LabelSelector, Labels, ORIGIN_LABELS, PairsError,
    RESTORED_BEFORE, RESTORED_BY, RESTORED_FROM,
};
pub use limits::{DailyLimit, LimitError, LimitWindow, MAX_LIMIT_WINDOWS, NO_LIMIT};
pub use list::{Document, List, SCHEMA_VERSION};
pub use names::{
    CredentialName, CredentialRef, GroupName, GroupRef, GroupSnapshotRef, NameError, ObjectName, ProbeName,
    RuleName, SnapshotName, SnapshotRef, VolumeName, VolumeRef,
};
pub use size::{ByteSize, SizeError, check_volume_size};
pub use text::{first_names, format_duration, format_time, matches_wildcard, with_sources};
pub use uri::{nbd_tcp_uri, nbd_unix_uri};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

/// Maximum length of a request or reply body, in bytes.
pub const MAX_BODY_BYTES: usize = 64 << 20;

/// Maximum wait of a long poll, in milliseconds; the daemon lowers larger values.
pub const MAX_WAIT_MILLIS: u64 = 60_000;

/// Reply to a delete.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Deleted {
    /// Id of a deleted volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_id: Option<VolumeId>,
    /// Id of a deleted local snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<SnapshotId>,
    /// Id of a deleted credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential_id: Option<Uuid>,
    /// Id of a deleted schedule; it may be invalid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule_id: Option<String>,
    /// Name of the deleted object, if any.
    pub name: Option<String>,
    /// Warnings, such as schedules that no longer protect a volume.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Distinguishes a given `null` from an omitted field.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(value: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(value).map(Some)
}
