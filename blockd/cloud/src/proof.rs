//! Proofs: results of verifications and restore drills, stored beside the manifests for all hosts.
//!
//! A proof is immutable and bound to its key, which names the cloud snapshot, the time, the kind and the
//! host. Its absence means nothing: without a valid proof the cloud snapshot counts as unproven. A host
//! deletes only its own proofs, so that none can hide the result of another.

use crate::{
    CloudError, CloudSnapshotId, DrillReport, ListedManifest, ManifestFilter, Repository, VerifyDepth,
    cipher::Domain, error::random, keys::DataKey, listing::stored, names::PROOFS_PREFIX,
    repository::delete_objects, sealed_json::SealedJson,
};
use blockd_store::{ObjectInfo, PutMode, StoreErrorKind};
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use uuid::Uuid;

const PROOF: SealedJson = SealedJson {
    noun: "proof",
    magic: b"BLKDPROF",
    domain: Domain::Proof,
    info: b"blockd proof v1",
    max_len_bytes: 1 << 16,
    too_long_hint: "shorten its texts",
};
/// Maximum length of a text in a proof, in bytes.
const MAX_TEXT_LEN_BYTES: usize = 255;
/// Tolerance for a clock that is ahead: a result that is dated later shows nothing.
pub const MAX_PROOF_AHEAD: SignedDuration = SignedDuration::from_hours(1);
/// Concurrent reads of proofs.
const READ_CONCURRENCY: usize = 16;

/// Kind of a proof: the part of the recovery that was tested.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProofKind {
    /// The manifests open, and their objects exist with the right lengths.
    Quick,
    /// Every frame of every delta was read.
    Full,
    /// Every block was restored and discarded.
    Deep,
    /// The filesystems were used. Reads only a part of the content.
    Drill,
}

impl ProofKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Quick, Self::Full, Self::Deep, Self::Drill];
}

impl fmt::Display for ProofKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quick => "quick",
            Self::Full => "full",
            Self::Deep => "deep",
            Self::Drill => "drill",
        })
    }
}

impl From<VerifyDepth> for ProofKind {
    fn from(depth: VerifyDepth) -> Self {
        match depth {
            VerifyDepth::Quick => Self::Quick,
            VerifyDepth::Full => Self::Full,
            VerifyDepth::Deep => Self::Deep,
        }
    }
}

/// Identity of a proof, which determines its key. It is a hint until the proof is read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ProofId {
    /// The cloud snapshot.
    pub cloudsnap: CloudSnapshotId,
    /// Time of the result by the host's clock, in milliseconds since 1970.
    pub proven_unix_ms: u64,
    /// Kind.
    pub kind: ProofKind,
    /// Installation that made it.
    pub host: Uuid,
}

impl ProofId {
    /// Returns the key of the proof.
    pub fn key(&self) -> String {
        let Self { cloudsnap, proven_unix_ms, kind, host } = self;
        format!("{}{proven_unix_ms:016x}-{kind}-{host}", Self::prefix(cloudsnap))
    }

    /// Returns the proof of a key; `None` for other keys.
    pub fn from_key(key: &str) -> Option<Self> {
        let (cloudsnap, name) = key.strip_prefix(PROOFS_PREFIX)?.rsplit_once('/')?;
        let (ms, rest) = name.split_once('-')?;
        let (kind, host) = rest.split_once('-')?;
        let id = Self {
            cloudsnap: cloudsnap.parse().ok()?,
            proven_unix_ms: u64::from_str_radix(ms, 16).ok()?,
            kind: ProofKind::ALL.into_iter().find(|known| known.to_string() == kind)?,
            host: host.parse().ok()?,
        };
        (id.key() == key).then_some(id)
    }

    /// Returns the prefix of the proofs of a cloud snapshot.
    pub(crate) fn prefix(cloudsnap: &CloudSnapshotId) -> String {
        format!("{PROOFS_PREFIX}{cloudsnap}/")
    }

    /// Returns the time of the result by the host's clock.
    pub fn proven(&self) -> Timestamp {
        let ms = i64::try_from(self.proven_unix_ms).unwrap_or(i64::MAX);
        Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX)
    }

    /// Returns true if the clock of the host was ahead: such a proof shows nothing.
    pub fn is_from_the_future(&self, now: Timestamp) -> bool {
        self.proven() > now.saturating_add(MAX_PROOF_AHEAD).unwrap_or(Timestamp::MAX)
    }

    /// Returns true if a proof replaces this one: one of the same kind from the same host, which is later, or
    /// this one is from a clock that was ahead.
    fn is_superseded_by(&self, later: &Self, now: Timestamp) -> bool {
        let of = |id: &Self| (id.cloudsnap, id.kind, id.host);
        let is_earlier = self.proven_unix_ms < later.proven_unix_ms || self.is_from_the_future(now);
        self != later && of(self) == of(later) && is_earlier
    }
}

/// Result of a verification or restore drill of one cloud snapshot.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Proof {
    /// The cloud snapshot.
    pub cloudsnap: CloudSnapshotId,
    /// Kind.
    pub kind: ProofKind,
    /// Time of the result by the host's clock; all reads were before it.
    pub proven: Timestamp,
    /// Installation that made it.
    pub host: Uuid,
    /// Name of its host; may be empty.
    pub host_name: String,
    /// Version of its program.
    pub version: String,
    /// Identity of the location that was read. A copy of the bucket contains the proof as well, unread.
    pub location: Uuid,
    /// No damage was found.
    pub sound: bool,
    /// Report of a drill; `None` for other kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill: Option<DrillReport>,
}

impl Proof {
    /// Returns the id.
    pub fn id(&self) -> ProofId {
        let proven_unix_ms = u64::try_from(self.proven.as_millisecond()).unwrap_or(0);
        ProofId { cloudsnap: self.cloudsnap, proven_unix_ms, kind: self.kind, host: self.host }
    }

    fn check(&self, id: &ProofId) -> Result<(), &'static str> {
        if self.id() != *id {
            return Err("it belongs to another proof than its name");
        }
        let is_text = |text: &String| text.len() <= MAX_TEXT_LEN_BYTES && !text.chars().any(char::is_control);
        if ![&self.host_name, &self.version].into_iter().all(is_text) {
            return Err("a text is too long or has control characters");
        }
        match (&self.drill, self.kind == ProofKind::Drill) {
            (None, false) => Ok(()),
            (Some(report), true) if report.is_passed() != self.sound => {
                Err("the result of its drill contradicts its steps")
            }
            (Some(report), true) => report.check(),
            (None, true) | (Some(_), false) => Err("only a drill has a report of a drill"),
        }
    }

    pub(crate) fn encode(&self, key: &DataKey, salt: &[u8; 32]) -> Result<Vec<u8>, CloudError> {
        PROOF.encode(self, &self.id().key(), key, salt)
    }

    fn decode(
        object: &[u8],
        id: &ProofId,
        find_key: impl Fn(Uuid) -> Option<DataKey>,
    ) -> Result<Self, CloudError> {
        let path = id.key();
        let proof: Self = PROOF.decode(object, &path, find_key)?;
        proof.check(id).map_err(|what| SealedJson::invalid(&path, what))?;
        Ok(proof)
    }
}

/// Returns the identity of a location in proofs, from the texts that describe it.
pub fn location_id(parts: &[&str]) -> Uuid {
    let mut hash = Sha256::new_with_prefix(b"blockd location v1");
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut id = [0; 16];
    id.copy_from_slice(&hash.finalize()[..16]);
    Uuid::from_bytes(id)
}

/// Listed proof, which was not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListedProof {
    /// Id.
    pub id: ProofId,
    /// Time of the object by the store's clock; `None` if the store does not report it.
    pub stored: Option<Timestamp>,
}

impl ListedProof {
    fn of(object: &ObjectInfo) -> Option<Self> {
        Some(Self { id: ProofId::from_key(&object.key)?, stored: stored(object) })
    }

    /// Returns the time of the result: of a sound one the earlier of the host's and the store's time, of
    /// damage the later one. So no wrong clock makes a proof younger or hides damage.
    pub fn counts_from(&self, sound: bool) -> Timestamp {
        let proven = self.id.proven();
        let Some(stored) = self.stored else { return proven };
        match sound {
            // Stores report whole seconds.
            true => stored.saturating_add(SignedDuration::from_secs(1)).map_or(proven, |end| proven.min(end)),
            false => proven.max(stored),
        }
    }

    /// Returns true if the manifest was stored after the proof: the bucket is a copy, whose objects were not
    /// read.
    pub fn is_older_than(&self, manifest: &ListedManifest) -> bool {
        manifest.stored.is_some_and(|stored| {
            stored > self.id.proven().saturating_add(MAX_PROOF_AHEAD).unwrap_or(Timestamp::MAX)
        })
    }
}

impl Repository {
    /// Stores a proof, then deletes this host's earlier ones of the same kind and cloud snapshot. A repeated
    /// call stores it once: the key names one result of one host.
    ///
    /// The deletion is best effort: a bucket with an object lock keeps all proofs.
    ///
    /// # Errors
    /// [`CloudError::WriteKeyMissing`]; [`CloudError::WriteKeyNotNewest`]; [`CloudError::InvalidRequest`] for
    /// a too long text; errors of the store.
    pub async fn publish_proof(&self, proof: &Proof) -> Result<ProofId, CloudError> {
        self.check_writable()?;
        let id = proof.id();
        proof
            .check(&id)
            .map_err(|what| CloudError::InvalidRequest { what: format!("{}: {what}", id.key()) })?;
        self.put_proof(&id, proof).await?;
        match self.delete_superseded(&id).await {
            Ok(0) => {}
            Ok(deleted) => tracing::debug!(proof = id.key(), deleted, "superseded proofs deleted"),
            Err(error) => tracing::debug!(proof = id.key(), %error, "deleting superseded proofs failed"),
        }
        Ok(id)
    }

    async fn put_proof(&self, id: &ProofId, proof: &Proof) -> Result<(), CloudError> {
        let path = id.key();
        let object = bytes::Bytes::from(proof.encode(self.key(), &random()?)?);
        let mut put = self.store().put(&path, object.clone(), PutMode::CreateIfAbsent).await;
        if matches!(&put, Err(error) if error.kind == StoreErrorKind::Unsupported) {
            put = self.store().put(&path, object, PutMode::Overwrite).await;
        }
        match put {
            // An earlier call may have stored it although its response was lost.
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => Ok(()),
            put => Ok(put?),
        }
    }

    async fn delete_superseded(&self, id: &ProofId) -> Result<u64, CloudError> {
        let listed = self.store().list(&ProofId::prefix(&id.cloudsnap)).await?;
        let now = Timestamp::now();
        let is_earlier =
            |key: &String| ProofId::from_key(key).is_some_and(|old| old.is_superseded_by(id, now));
        let earlier = listed.into_iter().map(|object| object.key).filter(is_earlier);
        delete_objects(self, earlier).await
    }

    /// Lists the proofs, sorted by key; one listing and no reads. Includes those of deleted cloud snapshots,
    /// which the next garbage collections delete.
    ///
    /// # Errors
    /// Errors of the listing.
    pub async fn list_proofs(&self, filter: &ManifestFilter) -> Result<Vec<ListedProof>, CloudError> {
        let listed = self.store().list(&filter.prefix(PROOFS_PREFIX)).await?;
        // Skips foreign objects.
        let proofs = listed.iter().filter_map(ListedProof::of);
        Ok(proofs.filter(|proof| filter.includes(&proof.id.cloudsnap)).collect())
    }

    /// Reads a proof; `None` if there is none.
    ///
    /// # Errors
    /// [`CloudError::Damaged`]; [`CloudError::UnsupportedVersion`]; [`CloudError::UnknownKey`]; errors of the
    /// store.
    pub async fn proof(&self, id: &ProofId) -> Result<Option<Proof>, CloudError> {
        let Some(object) = PROOF.get(&**self.store(), &id.key()).await? else { return Ok(None) };
        Proof::decode(&object, id, |key_id| self.find_key(key_id)).map(Some)
    }

    /// Reads listed proofs, each with the reason if it cannot be used. A proof that was deleted since the
    /// listing is omitted.
    pub async fn read_proofs(
        &self,
        listed: Vec<ListedProof>,
    ) -> Vec<(ListedProof, Result<Proof, CloudError>)> {
        let read = listed.into_iter().map(|one| async move {
            let proof = self.proof(&one.id).await.transpose()?;
            Some((one, proof.map_err(|error| CloudError::ProofIgnored(Box::new(error)))))
        });
        let read = futures::stream::iter(read).buffered(READ_CONCURRENCY);
        read.filter_map(std::future::ready).collect().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EncryptionMode;
    use blockd_extent::{SnapshotId, VolumeId};
    use proptest::prelude::*;

    fn key(mode: EncryptionMode) -> DataKey {
        DataKey::fixed(Uuid::from_u128(4), mode, [1; 32])
    }

    prop_compose! {
        fn id()(
            cluster in any::<u128>(), volume in 1..=u64::MAX, snapshot in 1..=u64::MAX, incremental: bool,
            ms in 0..200_000_000_000_000u64, kind in 0..4usize, host in any::<u128>(),
        ) -> ProofId {
            let (volume, snapshot) = (VolumeId::from_u64(volume), SnapshotId::from_u64(snapshot));
            ProofId {
                cloudsnap: CloudSnapshotId { cluster: Uuid::from_u128(cluster), volume, snapshot, incremental },
                proven_unix_ms: ms,
                kind: ProofKind::ALL[kind],
                host: Uuid::from_u128(host),
            }
        }
    }

    prop_compose! {
        fn proof()(
            id in id(), host_name in r"\PC{0,63}", version in r"\PC{0,63}", location: u128, sound: bool,
        ) -> Proof {
            let proven = Timestamp::from_millisecond(id.proven_unix_ms as i64).unwrap();
            Proof {
                cloudsnap: id.cloudsnap,
                kind: id.kind,
                proven,
                host: id.host,
                host_name,
                version,
                location: Uuid::from_u128(location),
                sound,
                drill: (id.kind == ProofKind::Drill).then(|| DrillReport::sample(proven, sound)),
            }
        }
    }

    proptest! {
        #[test]
        fn keys_name_one_proof(id in id(), text in "[0-9a-z/-]{0,60}", at: prop::sample::Index) {
            let key = id.key();
            prop_assert_eq!(ProofId::from_key(&key), Some(id));
            prop_assert!(blockd_store::check_key(&key));
            let mut other = key.clone();
            other.replace_range(at.index(key.len()).., &text);
            if let Some(found) = ProofId::from_key(&other) {
                prop_assert_eq!(found.key(), other, "a proof has one key");
            }
        }

        #[test]
        fn proofs_round_trip_and_altered_ones_are_errors(
            proof in proof(), salt: [u8; 32], at: prop::sample::Index, bit in 0..8u8,
        ) {
            for mode in [EncryptionMode::Checksummed, EncryptionMode::Aes256GcmSiv] {
                let find = |_| Some(key(mode));
                let mut object = proof.encode(&key(mode), &salt).unwrap();
                prop_assert_eq!(&Proof::decode(&object, &proof.id(), find).unwrap(), &proof);
                let at = at.index(object.len());
                // The key id is checked by its lookup.
                prop_assume!(!(16..32).contains(&at));
                object[at] ^= 1 << bit;
                prop_assert!(Proof::decode(&object, &proof.id(), find).is_err());
            }
        }
    }

    #[test]
    fn foreign_names_are_no_proofs() {
        let snapshot = "3a1ab4d5-9bc2-4c70-9b4e-0a2b2d3d8f10/1-2-incr";
        let name = "0000000000000001-full-9d0e5b7a-33c1-4e52-8f60-41d27ab3c5e9";
        assert!(ProofId::from_key(&format!("blockd/proofs/{snapshot}/{name}")).is_some());
        for key in [
            format!("blockd/manifests/{snapshot}/{name}"),
            format!("blockd/proofs/{snapshot}-incr/{name}"),
            format!("blockd/proofs/{snapshot}/{}", name.to_uppercase()),
            format!("blockd/proofs/{snapshot}/0{name}"),
            format!("blockd/proofs/{snapshot}/{}", name.replace("full", "half")),
            format!("blockd/proofs/{snapshot}/{}", name.replace("-full", "")),
            format!("blockd/proofs/{snapshot}/{name}/x"),
            format!("blockd/proofs/{name}"),
            "blockd/proofs/".to_owned(),
        ] {
            assert_eq!(ProofId::from_key(&key), None, "{key}");
        }
    }

    #[test]
    fn bodies_that_violate_the_format_are_damage() {
        let cloudsnap = "3a1ab4d5-9bc2-4c70-9b4e-0a2b2d3d8f10/1-2".parse().unwrap();
        let time = Timestamp::from_second(7).unwrap();
        let sound = Proof {
            cloudsnap,
            kind: ProofKind::Full,
            proven: time,
            host: Uuid::nil(),
            host_name: String::new(),
            version: String::new(),
            location: Uuid::nil(),
            sound: true,
            drill: None,
        };
        let (id, key) = (sound.id(), key(EncryptionMode::Checksummed));
        let read = |body: &serde_json::Value| {
            let object = PROOF.encode(body, &id.key(), &key, &[2; 32]).unwrap();
            Proof::decode(&object, &id, |_| Some(key.clone()))
        };
        let valid = serde_json::to_value(&sound).unwrap();
        let with = |member: &str, value: serde_json::Value| {
            let mut body = valid.clone();
            body[member] = value;
            read(&body)
        };
        assert_eq!(with("something_new", 1.into()).unwrap(), sound, "unknown members are ignored");
        let longest = "x".repeat(255);
        assert_eq!(with("host_name", longest.clone().into()).unwrap().host_name, longest);
        for (member, value) in [
            ("sound", serde_json::json!("yes")),
            ("kind", "quick".into()),
            ("kind", "thorough".into()),
            ("host", "9d0e5b7a-33c1-4e52-8f60-41d27ab3c5e9".into()),
            ("cloudsnap", "3a1ab4d5-9bc2-4c70-9b4e-0a2b2d3d8f10/1-2-incr".into()),
            ("proven", "1970-01-01T00:00:08Z".into()),
            ("host_name", "x".repeat(256).into()),
            ("host_name", "db1\u{1b}[2J".into()),
            ("version", "1\n2".into()),
        ] {
            let error = with(member, value).unwrap_err();
            assert!(matches!(&error, CloudError::Damaged { key, .. } if *key == id.key()), "{error}");
        }
    }

    #[test]
    fn wrong_clocks_make_no_proof_younger_and_hide_no_damage() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let cloudsnap = "3a1ab4d5-9bc2-4c70-9b4e-0a2b2d3d8f10/1-2".parse().unwrap();
        let listed = |proven_s: u64, stored| {
            let (proven_unix_ms, host) = (proven_s * 1000, Uuid::nil());
            let id = ProofId { cloudsnap, proven_unix_ms, kind: ProofKind::Full, host };
            ListedProof { id, stored }
        };
        let early = listed(50, Some(at(70)));
        assert_eq!((early.counts_from(true), early.counts_from(false)), (at(50), at(70)));
        let late = listed(70, Some(at(50)));
        assert_eq!((late.counts_from(true), late.counts_from(false)), (at(51), at(70)));
        assert_eq!(listed(50, None).counts_from(false), at(50));
        assert!(!listed(3650, None).id.is_from_the_future(at(50)));
        assert!(listed(3651, None).id.is_from_the_future(at(50)));
        assert!(listed(u64::MAX / 1000, None).id.is_from_the_future(at(50)));

        let error = || CloudError::damaged("x", 0, "x");
        let manifest =
            |stored| ListedManifest { key: String::new(), id: None, manifest: Err(error()), stored };
        assert!(!early.is_older_than(&manifest(Some(at(3650)))));
        assert!(early.is_older_than(&manifest(Some(at(3651)))), "the bucket was copied");
        assert!(!early.is_older_than(&manifest(None)));
    }
}
