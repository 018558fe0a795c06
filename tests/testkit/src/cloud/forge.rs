//! Objects of an unencrypted repository with arbitrary content, built from `FORMAT.md` of `blockd-cloud` and
//! not with its code.

use blockd_cloud::{
    CloudSnapshotId, DataKey, EncryptionMode, FORMAT_VERSION, LeaseId, Manifest, ManifestKey, ProofId,
};
use uuid::Uuid;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// Length of the header of packs and indexes, in bytes.
pub(super) const OBJECT_HEADER_LEN: usize = 64;
/// Salt of forged manifests and deltas.
pub(super) const SALT: [u8; 32] = [5; 32];

/// Returns the data key with this secret; an unencrypted repository uses zeroes.
///
/// # Panics
/// Never: the bytes encode a key.
#[allow(clippy::expect_used, reason = "a failed test panics")]
pub fn data_key(id: u128, mode: EncryptionMode, secret: [u8; 32]) -> DataKey {
    let mode = u8::from(mode == EncryptionMode::Aes256GcmSiv);
    let bytes = [&[1, mode][..], &id.to_be_bytes(), &secret].concat();
    DataKey::from_bytes(&bytes).expect("encoded key")
}

/// Gives bytes the magic and the checksums of a fingerprint file with the numbers of entries and hooks that
/// they have; does nothing if they are too short.
pub(super) fn fingerprint_file(file: &mut [u8]) {
    const HEADER: usize = 104;
    if file.len() < HEADER + 8 {
        return;
    }
    file[..16].copy_from_slice(b"BLKDFPRT\x01\0\0\0\0\0\0\0");
    let entries = u32::from_le_bytes([file[96], file[97], file[98], file[99]]) as usize;
    let content = HEADER + entries * 24;
    for (nth, first) in (0..entries).step_by(1024).enumerate() {
        let place = content + nth * 16;
        if place + 24 > file.len() {
            return;
        }
        let chunk = HEADER + first * 24..HEADER + entries.min(first + 1024) * 24;
        let sum = xxh3_64(&file[chunk]).to_le_bytes();
        file[place + 8..place + 16].copy_from_slice(&sum);
    }
    if content + 8 <= file.len() {
        let end = file.len() - 8;
        let sum = xxh3_64(&[&file[..HEADER], &file[content..end]].concat()).to_le_bytes();
        file[end..].copy_from_slice(&sum);
    }
}

/// Returns the content with its tag.
pub(super) fn sealed(associated: &[u8], content: &[u8]) -> Vec<u8> {
    let tag = xxh3_128(&[associated, content].concat());
    [content, &tag.to_le_bytes()].concat()
}

/// Returns the JSON object with these first bytes, key and body.
fn sealed_json(magic: &[u8; 8], key: &str, key_id: Uuid, body: &[u8]) -> Vec<u8> {
    let (version, len) = (FORMAT_VERSION.to_le_bytes(), (body.len() as u32).to_le_bytes());
    let header = [&magic[..], &version, &[0, 0], &len, key_id.as_bytes(), &SALT].concat();
    let associated = [&header, key.as_bytes()].concat();
    [header, sealed(&associated, body)].concat()
}

/// Returns the object of a manifest with this body.
pub(super) fn manifest(id: &CloudSnapshotId, key_id: Uuid, body: &[u8]) -> Vec<u8> {
    sealed_json(b"BLKDMNFT", &id.manifest_key(), key_id, body)
}

/// Returns the object of a proof with this body.
pub(super) fn proof(id: &ProofId, key_id: Uuid, body: &[u8]) -> Vec<u8> {
    sealed_json(b"BLKDPROF", &id.key(), key_id, body)
}

/// Returns the object of a lease with this body.
pub(super) fn lease(id: &LeaseId, key_id: Uuid, body: &[u8]) -> Vec<u8> {
    sealed_json(b"BLKDLEAS", &id.key(), key_id, body)
}

/// Returns the object of a manifest.
pub(super) fn object_of(manifest: &Manifest, key_id: Uuid) -> serde_json::Result<Vec<u8>> {
    Ok(self::manifest(&manifest.id(), key_id, &serde_json::to_vec(manifest)?))
}

/// Kind of a sealed part of a delta.
#[derive(Clone, Copy)]
pub(super) enum Domain {
    Frame = 1,
    IndexPage = 2,
    IndexRoot = 3,
}

/// Packs and indexes of the delta of a snapshot.
pub(super) struct ForgedDelta {
    pub id: CloudSnapshotId,
    pub key_id: Uuid,
}

impl ForgedDelta {
    fn position(&self) -> Vec<u8> {
        let CloudSnapshotId { cluster, volume, snapshot, .. } = self.id;
        [cluster.as_bytes(), &volume.as_u64().to_le_bytes()[..], &snapshot.as_u64().to_le_bytes()].concat()
    }

    /// Returns the header of the index or of the first pack.
    pub fn header(&self, magic: &[u8; 8]) -> Vec<u8> {
        let version = FORMAT_VERSION.to_le_bytes();
        let header =
            [magic, &version[..], &[0; 2], &[0; 4], self.key_id.as_bytes(), &self.position()].concat();
        assert_eq!(header.len(), OBJECT_HEADER_LEN);
        header
    }

    /// Returns a sealed part: its content and its tag.
    pub fn sealed(&self, domain: Domain, ordinal: u64, plain_len_bytes: u64, content: &[u8]) -> Vec<u8> {
        let associated = [
            &FORMAT_VERSION.to_le_bytes()[..],
            &[0],
            self.key_id.as_bytes(),
            &self.position(),
            &SALT,
            &(domain as u32).to_le_bytes(),
            &ordinal.to_le_bytes(),
            &plain_len_bytes.to_le_bytes(),
        ];
        sealed(&associated.concat(), content)
    }

    /// Returns the key of one of its objects.
    pub fn object(&self, name: &str) -> String {
        let CloudSnapshotId { cluster, volume, snapshot, .. } = self.id;
        format!("blockd/data/{cluster}/{volume}/{snapshot}/{name}")
    }
}
