//! Names: of cloud snapshots, and of the objects that they are made of.

use crate::CloudError;
use blockd_extent::{SnapshotId, VolumeId};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// Prefix of all objects.
pub(crate) const ROOT_PREFIX: &str = "blockd/";
/// Prefix of the key slots.
pub(crate) const KEYS_PREFIX: &str = "blockd/keys/";
/// Prefix of the second copy of each key slot.
pub(crate) const KEY_COPIES_PREFIX: &str = "blockd/keys-copy/";
/// Prefix of the manifests.
pub(crate) const MANIFESTS_PREFIX: &str = "blockd/manifests/";

/// Prefix of packs and indexes.
pub(crate) const DATA_PREFIX: &str = "blockd/data/";
/// Prefix of what is made to try a store out.
pub(crate) const PROBE_PREFIX: &str = "blockd/probe/";

/// Names a cloud snapshot: `<cluster>/<volume>-<snapshot>`, and `-incr` after it for an incremental.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CloudsnapId {
    /// The installation that made it.
    pub cluster: Uuid,
    /// The volume that it is of.
    pub volume: VolumeId,
    /// The snapshot that it was made from.
    pub snapshot: SnapshotId,
    /// Its own delta is incremental.
    pub incremental: bool,
}

impl CloudsnapId {
    /// The key of its manifest.
    pub fn manifest_key(&self) -> String {
        format!("{MANIFESTS_PREFIX}{self}")
    }

    /// The snapshot that a manifest's key names.
    pub(crate) fn from_manifest_key(key: &str) -> Option<Self> {
        key.strip_prefix(MANIFESTS_PREFIX)?.parse().ok()
    }
}

impl fmt::Display for CloudsnapId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = if self.incremental { "-incr" } else { "" };
        write!(f, "{}/{}-{}{suffix}", self.cluster, self.volume, self.snapshot)
    }
}

impl FromStr for CloudsnapId {
    type Err = CloudError;

    fn from_str(text: &str) -> Result<Self, CloudError> {
        let parse = || {
            let (cluster, rest) = text.split_once('/')?;
            let (rest, incremental) = match rest.strip_suffix("-incr") {
                Some(rest) => (rest, true),
                None => (rest, false),
            };
            let (volume, snapshot) = rest.split_once('-')?;
            let cluster = parse_uuid(cluster)?;
            Some(Self {
                cluster,
                volume: volume.parse().ok()?,
                snapshot: snapshot.parse().ok()?,
                incremental,
            })
        };
        parse().ok_or_else(|| CloudError::BadId { given: text.chars().take(200).collect() })
    }
}

impl TryFrom<String> for CloudsnapId {
    type Error = CloudError;
    fn try_from(text: String) -> Result<Self, CloudError> {
        text.parse()
    }
}

impl From<CloudsnapId> for String {
    fn from(id: CloudsnapId) -> Self {
        id.to_string()
    }
}

/// A uuid in its one form: lower case with hyphens.
pub(crate) fn parse_uuid(text: &str) -> Option<Uuid> {
    let uuid: Uuid = text.parse().ok()?;
    (uuid.to_string() == text).then_some(uuid)
}

/// Identity of a delta, which determines the keys of its objects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct DeltaId {
    pub cluster: Uuid,
    pub volume: VolumeId,
    pub snapshot: SnapshotId,
}

impl DeltaId {
    pub fn prefix(&self) -> String {
        format!("{DATA_PREFIX}{}/{}/{}/", self.cluster, self.volume, self.snapshot)
    }

    pub fn pack_key(&self, pack_no: u32) -> String {
        format!("{}pack-{pack_no:08x}", self.prefix())
    }

    /// The delta that an object of this key belongs to, if it is the key of a pack or an index.
    pub fn of_object(key: &str) -> Option<Self> {
        let mut parts = key.strip_prefix(DATA_PREFIX)?.split('/');
        let cluster = parse_uuid(parts.next()?)?;
        let (volume, snapshot) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let delta = Self { cluster, volume, snapshot };
        let name = parts.next()?;
        let is_pack = || {
            let digits = name.strip_prefix("pack-")?;
            let number = u32::from_str_radix(digits, 16).ok()?;
            (key == delta.pack_key(number)).then_some(())
        };
        (parts.next().is_none() && (name == "index" || is_pack().is_some())).then_some(delta)
    }

    pub fn index_key(&self) -> String {
        format!("{}index", self.prefix())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_name_contains_its_delta() {
        let delta = DeltaId {
            cluster: Uuid::from_u128(7),
            volume: VolumeId::from_u64(5),
            snapshot: SnapshotId::from_u64(6),
        };
        for key in [delta.index_key(), delta.pack_key(0), delta.pack_key(u32::MAX)] {
            assert_eq!(DeltaId::of_object(&key), Some(delta));
        }
        let prefix = delta.prefix();
        for name in ["", "pack-1", "pack-0000000G", "pack-+0000001", "index/x", "indexes", "pack-000000001"] {
            assert_eq!(DeltaId::of_object(&format!("{prefix}{name}")), None, "{name}");
        }
        assert_eq!(DeltaId::of_object("blockd/data/x"), None);
    }

    #[test]
    fn ids_have_one_text() {
        for text in [
            "3a1ab4d5-9bc2-4c70-9b4e-0a2b2d3d8f10/590114184663672482-951325819047337066",
            "3a1ab4d5-9bc2-4c70-9b4e-0a2b2d3d8f10/1-2-incr",
        ] {
            let id: CloudsnapId = text.parse().unwrap();
            assert_eq!(id.to_string(), text);
            assert_eq!(CloudsnapId::from_manifest_key(&id.manifest_key()), Some(id));
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
            assert!(text.parse::<CloudsnapId>().is_err(), "{text}");
        }
    }
}
