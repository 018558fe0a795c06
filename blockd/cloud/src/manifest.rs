//! Manifest: the commit record of a snapshot, with all that is needed to read it.

use crate::{
    CloudError, CloudSnapshotId, FORMAT_VERSION, ManifestKey, cipher::Domain,
    compression_report::CompressionReport, index::MAX_SOURCES, keys::DataKey, names::DeltaId,
    plan::PACK_FRAMES, sealed_json::SealedJson, synthetic::MAX_PLANNED_SOURCES,
};
use blockd_extent::{MAX_VOLUME_BYTES, SnapshotId, VolumeId};
use blockd_store::RequestCounts;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

pub(crate) const MANIFEST: SealedJson = SealedJson {
    noun: "manifest",
    magic: b"BLKDMNFT",
    domain: Domain::Manifest,
    info: b"blockd manifest v1",
    max_len_bytes: 16 << 20,
    too_long_hint: "make a full backup",
};
/// Maximum length of a chain.
pub(crate) const MAX_CHAIN: usize = 4096;

/// Type of a backup.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupType {
    /// No delta is below its own, which holds the whole volume or references the rest of it.
    Full,
    /// The delta holds the changes since the base.
    Incremental,
}

/// Location of a delta's index, and the expected root.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IndexRef {
    /// Length of the object, in bytes.
    pub len_bytes: u64,
    /// Offset of the root, in bytes.
    pub root_offset_bytes: u64,
    /// Length of the root as stored.
    pub root_len_bytes: u64,
    /// SHA-256 of the root as stored.
    #[serde(with = "hex32")]
    pub root_sha256: [u8; 32],
}

/// Location, key and size of one delta.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Delta {
    /// Cluster id of the host that made it.
    pub cluster: Uuid,
    /// Volume.
    pub volume: VolumeId,
    /// Snapshot that owns it.
    pub snapshot: SnapshotId,
    /// Id of the data key.
    pub key_id: Uuid,
    /// Salt of the key derivation.
    #[serde(with = "hex32")]
    pub salt: [u8; 32],
    /// Index.
    pub index: IndexRef,
    /// Number of packs; empty packs are not stored.
    pub pack_count: u32,
    /// Number of frames.
    pub frames: u64,
    /// Number of blocks with data.
    pub data_blocks: u64,
    /// Number of blocks that became zero.
    pub zero_blocks: u64,
    /// Number of blocks whose content is in other deltas, or in other blocks of this one.
    pub reference_blocks: u64,
    /// Total bytes of its packs and index.
    pub stored_bytes: u64,
}

impl Delta {
    /// Returns the full cloud snapshot that it would be the delta of; it may be an incremental one instead.
    pub fn cloud_snapshot(&self) -> CloudSnapshotId {
        let Self { cluster, volume, snapshot, .. } = *self;
        CloudSnapshotId { cluster, volume, snapshot, incremental: false }
    }

    /// Returns true for the delta of this snapshot.
    pub fn is_of(&self, id: &CloudSnapshotId) -> bool {
        (self.cluster, self.volume, self.snapshot) == (id.cluster, id.volume, id.snapshot)
    }

    pub(crate) fn id(&self) -> DeltaId {
        DeltaId { cluster: self.cluster, volume: self.volume, snapshot: self.snapshot }
    }

    fn check(&self) -> Result<(), &'static str> {
        let index = &self.index;
        let max_blocks = MAX_VOLUME_BYTES / blockd_extent::BLOCK_SIZE_BYTES;
        if u64::from(self.pack_count) != self.frames.div_ceil(PACK_FRAMES) || self.frames > self.data_blocks {
            return Err("the packs and frames of a delta do not add up");
        }
        if self.data_blocks.max(self.zero_blocks).max(self.reference_blocks) > max_blocks {
            return Err("a delta has more blocks than the largest volume");
        }
        if index.root_offset_bytes.checked_add(index.root_len_bytes) != Some(index.len_bytes) {
            return Err("the root of an index is not at its end");
        }
        Ok(())
    }
}

/// Description of a cloud snapshot for its users. No rule of the format depends on it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SnapshotDescription {
    /// Name of the volume at the time of the snapshot.
    pub volume_name: String,
    /// Name of the snapshot; may be empty.
    pub snapshot_name: String,
    /// Labels of the volume at the time of the snapshot.
    pub labels: BTreeMap<String, String>,
    /// Labels of the backup itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub backup_labels: BTreeMap<String, String>,
    /// Point in time of the snapshot.
    pub created: Timestamp,
    /// Trigger of the backup, such as `Manual`.
    pub trigger: String,
    /// Stall time of the freeze.
    pub freeze_stall_micros: u64,
}

/// Manifest of a cloud snapshot.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format.
    pub format_version: u16,
    /// Cluster id of the host that made it.
    pub cluster: Uuid,
    /// Volume.
    pub volume: VolumeId,
    /// Snapshot.
    pub snapshot: SnapshotId,
    /// Description from the backup request.
    #[serde(flatten)]
    pub description: SnapshotDescription,
    /// Size of the volume at the time of the snapshot.
    pub size_bytes: u64,
    /// Type of the backup.
    pub backup_type: BackupType,
    /// Start of the backup.
    pub started: Timestamp,
    /// End of the backup, before the manifest was stored.
    pub finished: Timestamp,
    /// Bytes of data, zero and deduplicated blocks of its own delta.
    pub dirty_bytes: u64,
    /// Bytes of the stored packs and index.
    pub stored_bytes: u64,
    /// Packs of its own delta.
    pub pack_count: u32,
    /// Requests of the backup's last run before the manifest was stored.
    pub requests: RequestCounts,
    /// `none` or `aes-256-gcm-siv`.
    pub encryption: String,
    /// Compression of its own delta.
    #[serde(default)]
    pub compression: CompressionReport,
    /// Base of an incremental.
    #[serde(default)]
    pub base: Option<CloudSnapshotId>,
    /// Damaged snapshot of the same point in time that this one replaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repairs: Option<CloudSnapshotId>,
    /// Its own delta.
    pub delta: Delta,
    /// The deltas below it, newest first.
    pub chain: Vec<Delta>,
    /// Other deltas that references of these deltas name.
    pub sources: Vec<Delta>,
}

impl Manifest {
    /// Id.
    pub fn id(&self) -> CloudSnapshotId {
        CloudSnapshotId {
            cluster: self.cluster,
            volume: self.volume,
            snapshot: self.snapshot,
            incremental: self.backup_type == BackupType::Incremental,
        }
    }

    /// Returns its own delta and those below it, newest first.
    pub fn layers(&self) -> impl Iterator<Item = &Delta> {
        std::iter::once(&self.delta).chain(&self.chain)
    }

    /// Returns the keys of the indexes of its layers, which every reader opens. A reader opens those of
    /// sources for their blocks only.
    pub fn layer_indexes(&self) -> impl Iterator<Item = String> {
        self.layers().map(|delta| delta.id().index_key())
    }

    /// Returns all deltas that the snapshot needs: its [`layers`](Self::layers), then their sources.
    pub fn deltas(&self) -> impl Iterator<Item = &Delta> {
        self.layers().chain(&self.sources)
    }

    /// Returns true if an incremental backup on this one stays within the maximum numbers of deltas.
    pub fn may_have_incremental(&self) -> bool {
        self.chain.len() < MAX_CHAIN && self.sources.len() + MAX_PLANNED_SOURCES <= MAX_SOURCES
    }

    fn check(&self, id: &CloudSnapshotId) -> Result<(), &'static str> {
        if self.id() != *id || self.delta.snapshot != self.snapshot {
            return Err("it belongs to another snapshot than its name");
        }
        if self.size_bytes == 0 || self.size_bytes > MAX_VOLUME_BYTES {
            return Err("the size of the volume is out of bounds");
        }
        if self.chain.len() > MAX_CHAIN {
            return Err("its chain exceeds the maximum length");
        }
        if self.sources.len() > MAX_SOURCES {
            return Err("it has too many sources");
        }
        let mut named: BTreeSet<DeltaId> = self.layers().map(Delta::id).collect();
        if !self.sources.iter().all(|source| named.insert(source.id())) {
            return Err("it names a source twice");
        }
        if (self.delta.cluster, self.delta.volume) != (self.cluster, self.volume) {
            return Err("its own delta is of another volume");
        }
        let is_replaceable = |id: &CloudSnapshotId| {
            (id.cluster, id.volume) == (self.cluster, self.volume) && id.snapshot != self.snapshot
        };
        if self.repairs.as_ref().is_some_and(|id| !is_replaceable(id)) {
            return Err("it repairs no other snapshot of its volume");
        }
        if self.format_version != FORMAT_VERSION {
            return Err("its body has another version than its header");
        }
        self.deltas().try_for_each(Delta::check)
    }

    /// Encodes the object of a manifest, sealed for its key with a fresh salt.
    pub(crate) fn encode(&self, key: &DataKey, salt: &[u8; 32]) -> Result<Vec<u8>, CloudError> {
        MANIFEST.encode(self, &self.id().manifest_key(), key, salt)
    }

    /// Decodes the object at a manifest's key.
    ///
    /// # Errors
    /// [`CloudError::Damaged`], [`CloudError::UnsupportedVersion`], [`CloudError::UnknownKey`].
    pub(crate) fn decode(
        object: &[u8],
        id: &CloudSnapshotId,
        find_key: impl Fn(Uuid) -> Option<DataKey>,
    ) -> Result<Self, CloudError> {
        let path = id.manifest_key();
        let manifest: Self = MANIFEST.decode(object, &path, find_key)?;
        manifest.check(id).map_err(|what| SealedJson::invalid(&path, what))?;
        Ok(manifest)
    }
}

/// Serialization of 32 bytes as 64 hexadecimal digits.
mod hex32 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::fmt::Write;

    pub fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(64);
        for byte in bytes {
            write!(text, "{byte:02x}").map_err(serde::ser::Error::custom)?;
        }
        serializer.serialize_str(&text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.as_bytes();
        let wrong = || D::Error::custom("expected 64 hexadecimal digits");
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(wrong());
        }
        let mut out = [0; 32];
        for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(out)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{Compression, CompressionLevel, EncryptionMode, LevelUse};

    #[test]
    fn incremental_has_room_for_its_sources() {
        let with = |count| Manifest { sources: vec![sample().delta; count], ..sample() };
        assert!(with(MAX_SOURCES - MAX_PLANNED_SOURCES).may_have_incremental());
        assert!(!with(MAX_SOURCES - MAX_PLANNED_SOURCES + 1).may_have_incremental());
        let chained = |count| Manifest { chain: vec![sample().delta; count], ..sample() };
        assert!(chained(MAX_CHAIN - 1).may_have_incremental());
        assert!(!chained(MAX_CHAIN).may_have_incremental());
    }

    pub fn sample() -> Manifest {
        let delta = Delta {
            cluster: Uuid::from_u128(1),
            volume: VolumeId::from_u64(2),
            snapshot: SnapshotId::from_u64(3),
            key_id: Uuid::from_u128(4),
            salt: [5; 32],
            index: IndexRef {
                len_bytes: 300,
                root_offset_bytes: 100,
                root_len_bytes: 200,
                root_sha256: [6; 32],
            },
            pack_count: 1,
            frames: 7,
            data_blocks: 200,
            zero_blocks: 8,
            reference_blocks: 0,
            stored_bytes: 1000,
        };
        Manifest {
            format_version: FORMAT_VERSION,
            cluster: delta.cluster,
            volume: delta.volume,
            snapshot: delta.snapshot,
            description: SnapshotDescription {
                volume_name: "db".into(),
                labels: BTreeMap::from([("tier".into(), "gold".into())]),
                ..SnapshotDescription::default()
            },
            size_bytes: 1 << 30,
            backup_type: BackupType::Full,
            started: Timestamp::UNIX_EPOCH,
            finished: Timestamp::UNIX_EPOCH,
            dirty_bytes: 10,
            stored_bytes: 11,
            pack_count: 1,
            requests: RequestCounts::default(),
            encryption: "none".into(),
            compression: CompressionReport {
                mode: Some(Compression::Auto),
                levels: vec![LevelUse {
                    level: CompressionLevel::Zstd(3),
                    packs: 1,
                    data_bytes: 10,
                    stored_bytes: 11,
                }],
            },
            base: None,
            repairs: None,
            delta,
            chain: Vec::new(),
            sources: Vec::new(),
        }
    }

    fn numbered(delta: &Delta, count: usize) -> Vec<Delta> {
        let numbers = 100..100 + count as u64;
        numbers.map(|n| Delta { snapshot: SnapshotId::from_u64(n), ..delta.clone() }).collect()
    }

    #[test]
    fn manifests_round_trip_and_flipped_bits_are_errors() {
        for mode in [EncryptionMode::Checksummed, EncryptionMode::Aes256GcmSiv] {
            let key = DataKey::fixed(Uuid::from_u128(4), mode, [1; 32]);
            let find = |id| (id == key.key_id()).then(|| key.clone());
            let manifest = sample();
            let id = manifest.id();
            let bytes = manifest.encode(&key, &[2; 32]).unwrap();
            assert_eq!(Manifest::decode(&bytes, &id, find).unwrap(), manifest);
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let error = Manifest::decode(&flipped, &id, find).unwrap_err();
                assert!(error.to_string().contains(&id.manifest_key()), "{error}");
            }
            for len in 0..bytes.len() {
                assert!(Manifest::decode(&bytes[..len], &id, find).is_err());
            }
            let moved = CloudSnapshotId { snapshot: SnapshotId::from_u64(99), ..id };
            assert!(Manifest::decode(&bytes, &moved, find).is_err());
            let moved = CloudSnapshotId { incremental: true, ..id };
            assert!(Manifest::decode(&bytes, &moved, find).is_err());
        }
    }

    #[test]
    fn unknown_version_is_refused() {
        let key = DataKey::fixed(Uuid::from_u128(4), EncryptionMode::Aes256GcmSiv, [1; 32]);
        let find = |id| (id == key.key_id()).then(|| key.clone());
        let manifest = sample();
        let mut bytes = manifest.encode(&key, &[2; 32]).unwrap();
        bytes[8..10].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
        let refused = Manifest::decode(&bytes, &manifest.id(), find);
        assert!(matches!(refused, Err(CloudError::UnsupportedVersion { found: 2, .. })), "{refused:?}");
    }

    #[test]
    fn unknown_fields_are_ignored_and_wrong_sums_are_not() {
        let mut json = serde_json::to_value(sample()).unwrap();
        json["something_new"] = 1.into();
        json["compression"]["mode"] = "brotli".into();
        let manifest: Manifest = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(manifest.check(&manifest.id()), Ok(()));
        json.as_object_mut().unwrap().remove("compression");
        let manifest: Manifest = serde_json::from_value(json).unwrap();
        assert_eq!(manifest.check(&manifest.id()), Ok(()));
        for spoil in [
            |m: &mut Manifest| m.delta.frames = 7_000,
            |m: &mut Manifest| m.size_bytes = 0,
            |m: &mut Manifest| m.delta.volume = VolumeId::from_u64(77),
            |m: &mut Manifest| m.format_version = FORMAT_VERSION + 1,
            |m: &mut Manifest| m.chain = vec![m.delta.clone(); MAX_CHAIN + 1],
            |m: &mut Manifest| m.sources = vec![m.delta.clone()],
            |m: &mut Manifest| m.sources = numbered(&m.delta, MAX_SOURCES + 1),
            |m: &mut Manifest| m.delta.reference_blocks = u64::MAX,
            |m: &mut Manifest| m.delta.index.root_offset_bytes = u64::MAX,
        ] {
            let mut manifest = sample();
            spoil(&mut manifest);
            assert!(manifest.check(&manifest.id()).is_err());
        }
    }
}
