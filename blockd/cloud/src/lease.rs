//! Leases: objects by which the lazy volumes of a host hold their backing snapshots.
//!
//! A host stores a lease before it uses a cloud snapshot, then checks that the manifest exists, and stores
//! the lease again each day. Deletions by other hosts respect it until the store's clock is
//! [`LEASE_LIFETIME`] later. A lease keeps and never deletes, so it counts even if it does not open.

use crate::{
    CloudError, CloudSnapshotId, ManifestFilter, Repository, cipher::Domain, clock::store_time,
    error::random, keys::DataKey, listing::stored, names::LEASES_PREFIX, names::parse_uuid,
    sealed_json::SealedJson,
};
use blockd_extent::VolumeId;
use blockd_store::{ObjectInfo, PutMode};
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

const LEASE: SealedJson = SealedJson {
    noun: "lease",
    magic: b"BLKDLEAS",
    domain: Domain::Lease,
    info: b"blockd lease v1",
    max_len_bytes: 1 << 12,
    too_long_hint: "shorten its texts",
};
/// Time since the last renewal, by the store's clock, after which a lease holds nothing.
pub const LEASE_LIFETIME: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Maximum length of a host name in a lease, in bytes.
const MAX_NAME_LEN_BYTES: usize = 255;
/// Concurrent reads of leases.
const READ_CONCURRENCY: usize = 16;

/// Identity of a lease, which determines its key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LeaseId {
    /// The cloud snapshot.
    pub cloudsnap: CloudSnapshotId,
    /// Installation of the lazy volume.
    pub host: Uuid,
    /// The lazy volume.
    pub volume: VolumeId,
}

impl LeaseId {
    /// Returns the key of the lease.
    pub fn key(&self) -> String {
        format!("{}{}-{}", Self::prefix(&self.cloudsnap), self.host, self.volume)
    }

    /// Returns the lease of a key; `None` for other keys.
    pub fn from_key(key: &str) -> Option<Self> {
        const UUID_LEN: usize = 36;
        let (cloudsnap, name) = key.strip_prefix(LEASES_PREFIX)?.rsplit_once('/')?;
        let (host, volume) = name.split_at_checked(UUID_LEN)?;
        let id = Self {
            cloudsnap: cloudsnap.parse().ok()?,
            host: parse_uuid(host)?,
            volume: volume.strip_prefix('-')?.parse().ok()?,
        };
        (id.key() == key).then_some(id)
    }

    /// Returns the prefix of the leases of a cloud snapshot.
    fn prefix(cloudsnap: &CloudSnapshotId) -> String {
        format!("{LEASES_PREFIX}{cloudsnap}/")
    }
}

/// Lease of a lazy volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lease {
    /// The cloud snapshot.
    pub cloudsnap: CloudSnapshotId,
    /// Installation of the lazy volume.
    pub host: Uuid,
    /// The lazy volume.
    pub volume: VolumeId,
    /// Name of the host; may be empty.
    pub host_name: String,
    /// Time of the last renewal by the host's clock, for display: only the store's time counts.
    pub renewed: Timestamp,
}

impl Lease {
    /// Returns the id.
    pub fn id(&self) -> LeaseId {
        LeaseId { cloudsnap: self.cloudsnap, host: self.host, volume: self.volume }
    }

    fn check(&self, id: &LeaseId) -> Result<(), &'static str> {
        if self.id() != *id {
            return Err("it belongs to another lease than its name");
        }
        if self.host_name.len() > MAX_NAME_LEN_BYTES || self.host_name.chars().any(char::is_control) {
            return Err("the name of the host is too long or has control characters");
        }
        Ok(())
    }

    pub(crate) fn encode(&self, key: &DataKey, salt: &[u8; 32]) -> Result<Vec<u8>, CloudError> {
        LEASE.encode(self, &self.id().key(), key, salt)
    }

    fn decode(
        object: &[u8],
        id: &LeaseId,
        find_key: impl Fn(Uuid) -> Option<DataKey>,
    ) -> Result<Self, CloudError> {
        let path = id.key();
        let lease: Self = LEASE.decode(object, &path, find_key)?;
        lease.check(id).map_err(|what| SealedJson::invalid(&path, what))?;
        Ok(lease)
    }
}

/// Listed lease, which was not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListedLease {
    /// Id.
    pub id: LeaseId,
    /// Time of the last renewal by the store's clock; `None` if the store does not report it.
    pub stored: Option<Timestamp>,
}

impl ListedLease {
    fn of(object: &ObjectInfo) -> Option<Self> {
        Some(Self { id: LeaseId::from_key(&object.key)?, stored: stored(object) })
    }

    /// Returns true if the lease holds nothing at this time of the store.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.stored
            .is_some_and(|stored| stored.saturating_add(LEASE_LIFETIME).is_ok_and(|expiry| expiry < now))
    }
}

/// Lazy volume of another host that holds a cloud snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseHolder {
    /// The lease.
    pub lease: ListedLease,
    /// Name of the host; empty if the lease has none or does not open.
    pub host_name: String,
}

impl fmt::Display for LeaseHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LeaseId { host, volume, .. } = &self.lease.id;
        match self.host_name.as_str() {
            "" => write!(f, "lazy volume {volume} of host {host}"),
            name => write!(f, "lazy volume {volume} of host {name}"),
        }
    }
}

impl Repository {
    /// Stores a lease or renews it. Without a condition, which a renewal would violate.
    ///
    /// # Errors
    /// [`CloudError::WriteKeyMissing`]; [`CloudError::WriteKeyNotNewest`]; [`CloudError::InvalidRequest`] for
    /// a too long name; errors of the store.
    pub async fn put_lease(&self, lease: &Lease) -> Result<(), CloudError> {
        self.check_writable()?;
        let key = lease.id().key();
        lease
            .check(&lease.id())
            .map_err(|what| CloudError::InvalidRequest { what: format!("{key}: {what}") })?;
        let object = bytes::Bytes::from(lease.encode(self.key(), &random()?)?);
        Ok(self.store().put(&key, object, PutMode::Overwrite).await?)
    }

    /// Removes a lease.
    ///
    /// # Errors
    /// Errors of the store; the lease then expires.
    pub async fn remove_lease(&self, id: &LeaseId) -> Result<(), CloudError> {
        self.store().delete(&id.key()).await?;
        Ok(())
    }

    /// Reads a lease; `None` if there is none.
    ///
    /// # Errors
    /// [`CloudError::Damaged`]; [`CloudError::UnsupportedVersion`]; [`CloudError::UnknownKey`]; errors of the
    /// store.
    pub async fn lease(&self, id: &LeaseId) -> Result<Option<Lease>, CloudError> {
        let Some(object) = LEASE.get(&**self.store(), &id.key()).await? else { return Ok(None) };
        Lease::decode(&object, id, |key_id| self.find_key(key_id)).map(Some)
    }

    /// Lists the leases, sorted by key; one listing and no reads. Includes expired ones.
    ///
    /// # Errors
    /// Errors of the listing.
    pub async fn list_leases(&self, filter: &ManifestFilter) -> Result<Vec<ListedLease>, CloudError> {
        let listed = self.store().list(&filter.prefix(LEASES_PREFIX)).await?;
        // Skips foreign objects.
        let leases = listed.iter().filter_map(ListedLease::of);
        Ok(leases.filter(|lease| filter.includes(&lease.id.cloudsnap)).collect())
    }

    /// Reads the names of the hosts of listed leases.
    pub async fn lease_holders(&self, listed: Vec<ListedLease>) -> Vec<LeaseHolder> {
        let read = listed.into_iter().map(|lease| async move {
            let host_name = match self.lease(&lease.id).await {
                Ok(read) => read.map(|read| read.host_name).unwrap_or_default(),
                Err(error) => {
                    tracing::warn!(lease = lease.id.key(), %error, "lease does not open: it counts nevertheless");
                    String::new()
                }
            };
            LeaseHolder { lease, host_name }
        });
        futures::stream::iter(read).buffered(READ_CONCURRENCY).collect().await
    }

    /// Returns the lazy volumes of other hosts that hold a cloud snapshot at the store's time. One listing;
    /// the time is requested only if there are leases. While it is unknown, no lease is expired.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn holders_of(
        &self,
        cloudsnap: &CloudSnapshotId,
        own_host: Uuid,
    ) -> Result<Vec<LeaseHolder>, CloudError> {
        let listed = self.store().list(&LeaseId::prefix(cloudsnap)).await?;
        let leases = listed.iter().filter_map(ListedLease::of);
        let mut others: Vec<_> = leases.filter(|lease| lease.id.host != own_host).collect();
        if others.is_empty() {
            return Ok(Vec::new());
        }
        match store_time(&**self.store()).await {
            Ok(now) => others.retain(|lease| !lease.is_expired(now)),
            Err(CloudError::ClockUnknown { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(self.lease_holders(others).await)
    }

    /// Refuses to delete a cloud snapshot that another host holds.
    ///
    /// # Errors
    /// [`CloudError::Leased`]; errors of the store.
    pub async fn refuse_if_leased(
        &self,
        cloudsnap: &CloudSnapshotId,
        own_host: Uuid,
    ) -> Result<(), CloudError> {
        let holders = self.holders_of(cloudsnap, own_host).await?;
        if holders.is_empty() {
            return Ok(());
        }
        let holders: Vec<String> = holders.iter().map(ToString::to_string).collect();
        Err(CloudError::Leased { id: *cloudsnap, holders: holders.join(", ") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EncryptionMode;
    use blockd_extent::SnapshotId;
    use proptest::prelude::*;

    fn key(mode: EncryptionMode) -> DataKey {
        DataKey::fixed(Uuid::from_u128(4), mode, [1; 32])
    }

    prop_compose! {
        fn lease()(
            cluster in any::<u128>(), source in 1..=u64::MAX, snapshot in 1..=u64::MAX, incremental: bool,
            host in any::<u128>(), volume in 1..=u64::MAX, host_name in r"\PC{0,63}", second in 0..1i64 << 35,
        ) -> Lease {
            let (source, snapshot) = (VolumeId::from_u64(source), SnapshotId::from_u64(snapshot));
            let cluster = Uuid::from_u128(cluster);
            Lease {
                cloudsnap: CloudSnapshotId { cluster, volume: source, snapshot, incremental },
                host: Uuid::from_u128(host),
                volume: VolumeId::from_u64(volume),
                host_name,
                renewed: Timestamp::from_second(second).unwrap(),
            }
        }
    }

    proptest! {
        #[test]
        fn keys_name_one_lease(lease in lease(), text in "[0-9a-z/-]{0,60}", at: prop::sample::Index) {
            let key = lease.id().key();
            prop_assert_eq!(LeaseId::from_key(&key), Some(lease.id()));
            prop_assert!(blockd_store::check_key(&key));
            let mut other = key.clone();
            other.replace_range(at.index(key.len()).., &text);
            if let Some(found) = LeaseId::from_key(&other) {
                prop_assert_eq!(found.key(), other, "a lease has one key");
            }
        }

        #[test]
        fn leases_round_trip_and_altered_ones_are_errors(
            lease in lease(), salt: [u8; 32], at: prop::sample::Index, bit in 0..8u8,
        ) {
            for mode in [EncryptionMode::Checksummed, EncryptionMode::Aes256GcmSiv] {
                let find = |_| Some(key(mode));
                let mut object = lease.encode(&key(mode), &salt).unwrap();
                prop_assert_eq!(&Lease::decode(&object, &lease.id(), find).unwrap(), &lease);
                let at = at.index(object.len());
                // The key id is checked by its lookup.
                prop_assume!(!(16..32).contains(&at));
                object[at] ^= 1 << bit;
                prop_assert!(Lease::decode(&object, &lease.id(), find).is_err());
            }
        }
    }

    #[test]
    fn bodies_that_violate_the_format_are_damage() {
        let valid = Lease {
            cloudsnap: "3a1ab4d5-9bc2-4c70-9b4e-0a2b2d3d8f10/1-2".parse().unwrap(),
            host: Uuid::nil(),
            volume: VolumeId::from_u64(7),
            host_name: String::new(),
            renewed: Timestamp::UNIX_EPOCH,
        };
        let (id, key) = (valid.id(), key(EncryptionMode::Checksummed));
        let with = |member: &str, value: serde_json::Value| {
            let mut body = serde_json::to_value(&valid).unwrap();
            body[member] = value;
            let object = LEASE.encode(&body, &id.key(), &key, &[2; 32]).unwrap();
            Lease::decode(&object, &id, |_| Some(key.clone()))
        };
        assert_eq!(with("something_new", 1.into()).unwrap(), valid, "unknown members are ignored");
        for (member, value) in [
            ("volume", serde_json::json!("8")),
            ("host", "9d0e5b7a-33c1-4e52-8f60-41d27ab3c5e9".into()),
            ("cloudsnap", "3a1ab4d5-9bc2-4c70-9b4e-0a2b2d3d8f10/1-2-incr".into()),
            ("host_name", "x".repeat(256).into()),
            ("host_name", "db1\u{1b}[2J".into()),
        ] {
            let error = with(member, value).unwrap_err();
            assert!(matches!(&error, CloudError::Damaged { key, .. } if *key == id.key()), "{error}");
        }
    }

    #[test]
    fn lease_expires_after_seven_days_of_the_store() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let id = LeaseId {
            cloudsnap: "3a1ab4d5-9bc2-4c70-9b4e-0a2b2d3d8f10/1-2".parse().unwrap(),
            host: Uuid::nil(),
            volume: VolumeId::from_u64(7),
        };
        let lease = ListedLease { id, stored: Some(at(1000)) };
        assert!(!lease.is_expired(at(1000 + 7 * 86_400)) && lease.is_expired(at(1001 + 7 * 86_400)));
        assert!(!lease.is_expired(at(0)), "the store's clock was set back");
        assert!(!ListedLease { id, stored: None }.is_expired(at(1 << 35)), "its age is unknown");
    }
}
