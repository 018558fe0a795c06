//! Id of a cloud snapshot.

use crate::{SnapshotId, VolumeId};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// Maximum length of a given text in an error, in characters.
const MAX_GIVEN_CHARS: usize = 200;

/// Id of a cloud snapshot: `<cluster>/<volume>-<snapshot>`, and `-incr` if its own delta is incremental.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CloudSnapshotId {
    /// Cluster that created it.
    pub cluster: Uuid,
    /// Source volume.
    pub volume: VolumeId,
    /// Source snapshot.
    pub snapshot: SnapshotId,
    /// True if its own delta is incremental.
    pub incremental: bool,
}

/// Text that is not the id of a cloud snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given:?} is not the id of a cloud snapshot: expected <cluster uuid>/<volume id>-<snapshot id>[-incr], as `cloudsnap list` shows it"
)]
pub struct BadCloudSnapshotId {
    /// Given text, shortened to 200 characters.
    pub given: String,
}

impl fmt::Display for CloudSnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = if self.incremental { "-incr" } else { "" };
        write!(f, "{}/{}-{}{suffix}", self.cluster, self.volume, self.snapshot)
    }
}

impl FromStr for CloudSnapshotId {
    type Err = BadCloudSnapshotId;

    fn from_str(text: &str) -> Result<Self, BadCloudSnapshotId> {
        let parse = || {
            let (cluster, rest) = text.split_once('/')?;
            let (ids, incremental) = match rest.strip_suffix("-incr") {
                Some(ids) => (ids, true),
                None => (rest, false),
            };
            let (volume, snapshot) = ids.split_once('-')?;
            let id = Self {
                cluster: Uuid::try_parse(cluster).ok()?,
                volume: volume.parse().ok()?,
                snapshot: snapshot.parse().ok()?,
                incremental,
            };
            // Each id has one text form: other forms of a UUID are refused.
            (id.to_string() == text).then_some(id)
        };
        parse().ok_or_else(|| BadCloudSnapshotId { given: text.chars().take(MAX_GIVEN_CHARS).collect() })
    }
}

impl TryFrom<String> for CloudSnapshotId {
    type Error = BadCloudSnapshotId;
    fn try_from(text: String) -> Result<Self, BadCloudSnapshotId> {
        text.parse()
    }
}

impl From<CloudSnapshotId> for String {
    fn from(id: CloudSnapshotId) -> Self {
        id.to_string()
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for CloudSnapshotId {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "CloudSnapshotId".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "<cluster>/<volume>-<snapshot>, and -incr if it is incremental",
            "type": "string",
            "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/[1-9][0-9]{0,19}-[1-9][0-9]{0,19}(-incr)?$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cloud_snapshot_id_has_one_text_form() {
        for text in [
            "3a1ab4d5-9bc2-4c70-9b4e-0a2b2d3d8f10/590114184663672482-951325819047337066",
            "3a1ab4d5-9bc2-4c70-9b4e-0a2b2d3d8f10/1-2-incr",
        ] {
            let id: CloudSnapshotId = text.parse().unwrap();
            assert_eq!(id.to_string(), text);
        }
        for text in [
            "",
            "x/1-2",
            "3A1AB4D5-9bc2-4c70-9b4e-0a2b2d3d8f10/1-2",
            "3a1ab4d59bc24c709b4e0a2b2d3d8f10/1-2",
            "3a1ab4d5-9bc2-4c70-9b4e-0a2b2d3d8f10/1",
            "3a1ab4d5-9bc2-4c70-9b4e-0a2b2d3d8f10/0-1",
            "3a1ab4d5-9bc2-4c70-9b4e-0a2b2d3d8f10/1-2-incr-incr",
            "3a1ab4d5-9bc2-4c70-9b4e-0a2b2d3d8f10/1-2/../3",
        ] {
            assert!(text.parse::<CloudSnapshotId>().is_err(), "{text}");
        }
    }
}
