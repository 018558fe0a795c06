//! Names of the objects of a repository.

use blockd_extent::{CloudSnapshotId, SnapshotId, VolumeId};
use uuid::Uuid;

/// Prefix of all objects.
pub(crate) const ROOT_PREFIX: &str = "blockd/";
/// Prefix of the key slots.
pub(crate) const KEYS_PREFIX: &str = "blockd/keys/";
/// Prefix of the second copy of each key slot.
pub(crate) const KEY_COPIES_PREFIX: &str = "blockd/keys-copy/";
/// Prefix of the manifests.
pub(crate) const MANIFESTS_PREFIX: &str = "blockd/manifests/";
/// Prefix of the proofs.
pub(crate) const PROOFS_PREFIX: &str = "blockd/proofs/";
/// Prefix of the leases.
pub(crate) const LEASES_PREFIX: &str = "blockd/leases/";
/// Prefix of packs and indexes.
pub(crate) const DATA_PREFIX: &str = "blockd/data/";
/// Prefix of probe objects.
pub(crate) const PROBE_PREFIX: &str = "blockd/probe/";

/// Key of the manifest of a cloud snapshot.
pub trait ManifestKey: Sized {
    /// Returns the key of the manifest.
    fn manifest_key(&self) -> String;

    /// Returns the cloud snapshot of a manifest's key.
    fn from_manifest_key(key: &str) -> Option<Self>;
}

impl ManifestKey for CloudSnapshotId {
    fn manifest_key(&self) -> String {
        let key = format!("{MANIFESTS_PREFIX}{self}");
        debug_assert_eq!(Self::from_manifest_key(&key), Some(*self));
        key
    }

    fn from_manifest_key(key: &str) -> Option<Self> {
        key.strip_prefix(MANIFESTS_PREFIX)?.parse().ok()
    }
}

/// Parses a UUID in lower case with hyphens, the only accepted form.
pub(crate) fn parse_uuid(text: &str) -> Option<Uuid> {
    let uuid: Uuid = text.parse().ok()?;
    (uuid.to_string() == text).then_some(uuid)
}

/// Kind of an object of a delta.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ObjectKind {
    Pack(u32),
    Index,
}

impl ObjectKind {
    /// Returns all objects of a delta with this number of packs.
    pub fn all(pack_count: u32) -> impl Iterator<Item = Self> {
        (0..pack_count).map(Self::Pack).chain([Self::Index])
    }
}

/// Identity of a delta, which determines the keys of its objects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct DeltaId {
    pub cluster: Uuid,
    pub volume: VolumeId,
    pub snapshot: SnapshotId,
}

impl DeltaId {
    /// Returns the prefix of all deltas of its volume.
    pub fn volume_prefix(&self) -> String {
        format!("{DATA_PREFIX}{}/{}/", self.cluster, self.volume)
    }

    pub fn prefix(&self) -> String {
        format!("{DATA_PREFIX}{}/{}/{}/", self.cluster, self.volume, self.snapshot)
    }

    pub fn key(&self, object: ObjectKind) -> String {
        match object {
            ObjectKind::Pack(pack_no) => self.pack_key(pack_no),
            ObjectKind::Index => self.index_key(),
        }
    }

    pub fn pack_key(&self, pack_no: u32) -> String {
        format!("{}pack-{pack_no:08x}", self.prefix())
    }

    pub fn index_key(&self) -> String {
        format!("{}index", self.prefix())
    }

    /// Returns the keys of all objects of a delta with this number of packs.
    pub fn keys(self, pack_count: u32) -> impl Iterator<Item = String> {
        ObjectKind::all(pack_count).map(move |object| self.key(object))
    }

    /// Returns the delta of an object; `None` for other keys.
    pub fn of_object(key: &str) -> Option<Self> {
        let mut parts = key.strip_prefix(DATA_PREFIX)?.split('/');
        let cluster = parse_uuid(parts.next()?)?;
        let (volume, snapshot) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let delta = Self { cluster, volume, snapshot };
        let object = match parts.next()?.strip_prefix("pack-") {
            Some(digits) => ObjectKind::Pack(u32::from_str_radix(digits, 16).ok()?),
            None => ObjectKind::Index,
        };
        (key == delta.key(object)).then_some(delta)
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
        for key in delta.keys(2).chain([delta.pack_key(u32::MAX)]) {
            assert_eq!(DeltaId::of_object(&key), Some(delta));
        }
        let prefix = delta.prefix();
        for name in ["", "pack-1", "pack-0000000G", "pack-+0000001", "index/x", "indexes", "pack-000000001"] {
            assert_eq!(DeltaId::of_object(&format!("{prefix}{name}")), None, "{name}");
        }
        assert_eq!(DeltaId::of_object("blockd/data/x"), None);
    }

    #[test]
    fn manifest_key_contains_the_id() {
        let id: CloudSnapshotId = "3a1ab4d5-9bc2-4c70-9b4e-0a2b2d3d8f10/1-2-incr".parse().unwrap();
        assert_eq!(CloudSnapshotId::from_manifest_key(&id.manifest_key()), Some(id));
    }
}
