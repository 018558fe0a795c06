//! Anomalies: unusual changes of volumes, found by their backups.

use crate::{ApiError, ByteSize, ErrorCode, Labels, VolumeName, VolumeRef, cloudsnaps::CloudSnapshotId};
pub use blockd_anomaly::{Anomaly, AnomalyKind};
use blockd_extent::VolumeId;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// Label of a volume that replaces the daemon's anomaly policy.
pub const ANOMALY_POLICY: &str = "anomaly-policy";

/// Days of observed backups before changes are compared with usual ones.
pub const LEARNING_DAYS: u64 = blockd_anomaly::WARM_UP.as_hours().unsigned_abs() / 24;

/// Treatment of anomalies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AnomalyPolicy {
    /// Backups are not observed.
    Off,
    /// An anomaly is reported.
    Observe,
    /// An anomaly is reported, the last backup before it is pinned, and no backup of the volume expires until
    /// it is acknowledged.
    #[default]
    Protect,
}

impl AnomalyPolicy {
    /// All policies.
    pub const ALL: [Self; 3] = [Self::Off, Self::Observe, Self::Protect];

    /// Returns the policy of a volume: that of its label, if this is a policy, or `default`.
    #[must_use]
    pub fn of(labels: &Labels, default: Self) -> Self {
        labels.as_map().get(ANOMALY_POLICY).and_then(|text| text.parse().ok()).unwrap_or(default)
    }

    /// Checks new labels of a volume.
    ///
    /// # Errors
    /// The label of the policy has an unknown value.
    pub fn check(labels: &Labels) -> Result<(), ApiError> {
        let Some(text) = labels.as_map().get(ANOMALY_POLICY) else { return Ok(()) };
        let invalid =
            |error| ApiError::new(ErrorCode::InvalidRequest, format!("label {ANOMALY_POLICY}: {error}"));
        text.parse::<Self>().map(drop).map_err(invalid)
    }
}

impl fmt::Display for AnomalyPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Off => "off",
            Self::Observe => "observe",
            Self::Protect => "protect",
        })
    }
}

impl FromStr for AnomalyPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|policy| policy.to_string() == text);
        known.ok_or_else(|| format!("{text:?} is no anomaly policy: use off, observe or protect"))
    }
}

/// Query of `GET /v1/anomalies`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListAnomalies {
    /// Only those of this volume; a deleted one by the id or the name that it had.
    pub volume: Option<VolumeRef>,
    /// Include acknowledged ones.
    #[serde(default)]
    pub all: bool,
}

/// Body of `POST /v1/anomalies/{anomaly}/acknowledge`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AcknowledgeAnomaly {
    /// Such changes are usual for the volume: later ones of this size raise no anomaly.
    #[serde(default)]
    pub usual: bool,
}

/// Anomaly of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupAnomaly {
    /// Its id.
    pub anomaly_id: Uuid,
    /// The volume.
    pub volume_id: VolumeId,
    /// Name of the volume at that time.
    pub volume_name: VolumeName,
    /// Credential of the backup.
    pub credential_id: Uuid,
    /// Name of the credential at that time.
    pub credential_name: String,
    /// The backup with the unusual changes.
    pub cloud_snapshot_id: CloudSnapshotId,
    /// The backup before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_normal_cloud_snapshot_id: Option<CloudSnapshotId>,
    /// Time of detection.
    pub detected_at: Timestamp,
    /// Figures.
    pub findings: Vec<Anomaly>,
    /// The last backup before it is pinned, and no backup of the volume expires, until it is acknowledged.
    pub protecting: bool,
    /// Time of the acknowledgement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acknowledged_at: Option<Timestamp>,
}

/// Returns a finding in words.
#[must_use]
pub fn describe(finding: &Anomaly) -> String {
    let Anomaly { kind, observed, usual, .. } = *finding;
    let size = |bytes: u64| ByteSize::from_bytes(bytes).to_string();
    match kind {
        AnomalyKind::TurnedIncompressible => format!(
            "about {} of data turned incompressible, as by encryption (usual: {})",
            size(observed),
            size(usual)
        ),
        AnomalyKind::ChangeRate => format!("{} of data changed (usual: {})", size(observed), size(usual)),
        AnomalyKind::MassDeletion => format!("{observed} files were deleted (usual: {usual})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_replaces_the_policy_of_the_daemon() {
        let of = |label: &str| AnomalyPolicy::of(&label.parse().unwrap(), AnomalyPolicy::Protect);
        assert_eq!(of("anomaly-policy=off"), AnomalyPolicy::Off);
        assert_eq!(of("anomaly-policy=perhaps"), AnomalyPolicy::Protect);
        let check = |label: &str| AnomalyPolicy::check(&label.parse().unwrap());
        assert!(check("anomaly-policy=observe").is_ok() && check("app=db").is_ok());
        let error = check("anomaly-policy=perhaps").unwrap_err();
        assert!(error.message.contains("off, observe or protect"), "{error}");
        assert_eq!(of("app=db"), AnomalyPolicy::Protect);
    }
}
