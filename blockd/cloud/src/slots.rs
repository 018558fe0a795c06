//! Stored key slots: two copies of each, checked against the data key and repaired from each other.
//!
//! Without a key slot the data of a repository is unreadable, so each slot has a second copy. A host with the
//! data key distinguishes a genuine slot from a forged one without the passphrase. It remembers the slots
//! that it has read, so that it can restore both copies.

use crate::{
    CloudError,
    keys::{DataKey, KeySlot, SLOT_LEN_BYTES},
    names::{KEY_COPIES_PREFIX, KEYS_PREFIX, parse_uuid},
};
use blockd_store::{BlobStore, PutMode, StoreError, StoreErrorKind};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Concurrent reads of key slots.
const SLOT_CONCURRENCY: usize = 8;
/// Prefixes of the two copies of each slot.
const PREFIXES: [&str; 2] = [KEYS_PREFIX, KEY_COPIES_PREFIX];
/// Order of writes (`FORMAT.md`, "Copies").
pub(crate) const WRITE_ORDER: [usize; 2] = [1, 0];

/// Returns the object of one copy of a slot.
pub(crate) fn object_of(copy: usize, key_id: Uuid) -> String {
    format!("{}{key_id}", PREFIXES[copy])
}

/// A copy of a key slot that was missing, damaged, forged or outdated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotFinding {
    /// Key of the object.
    pub object: String,
    /// Offset of the damage.
    pub offset_bytes: u64,
    /// Description of the damage.
    pub what: String,
    /// Outcome of the repair.
    pub repair: SlotRepair,
}

/// Outcome of the repair of a key slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SlotRepair {
    /// The object was written again.
    Done,
    /// The object could not be written; the reason.
    Failed(String),
    /// No genuine slot of the key is known, or the store may be another one; the reason.
    NotTried(&'static str),
}

impl std::fmt::Display for SlotFinding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "object {} is damaged at byte {}: {}", self.object, self.offset_bytes, self.outcome())
    }
}

impl SlotFinding {
    /// Returns a description of the damage and the outcome of its repair.
    pub fn outcome(&self) -> String {
        match &self.repair {
            SlotRepair::Done => format!("{}; repaired", self.what),
            SlotRepair::Failed(why) => format!("{}; repair failed: {why}", self.what),
            SlotRepair::NotTried(why) => format!("{}; not repaired: {why}", self.what),
        }
    }

    /// Returns true if the object is intact now.
    pub fn is_repaired(&self) -> bool {
        self.repair == SlotRepair::Done
    }
}

/// Content of one copy.
#[derive(Debug)]
pub(crate) enum Copy {
    Missing,
    Slot(KeySlot),
    Bad(CloudError),
}

impl Copy {
    pub fn slot(&self) -> Option<&KeySlot> {
        match self {
            Self::Slot(slot) => Some(slot),
            _ => None,
        }
    }
}

/// Both copies of one slot.
#[derive(Debug)]
pub(crate) struct StoredSlot {
    pub key_id: Uuid,
    pub copies: [Copy; 2],
}

impl StoredSlot {
    /// Returns the distinct slots with a valid checksum.
    pub fn variants(&self) -> impl Iterator<Item = &KeySlot> {
        let [first, second] = [self.copies[0].slot(), self.copies[1].slot()];
        first.into_iter().chain(second.filter(|second| first != Some(*second)))
    }

    /// Returns the genuine stored slot of the lowest generation.
    pub fn genuine(&self, key: &DataKey) -> Option<&KeySlot> {
        self.variants().filter(|slot| slot.is_of(key)).min_by_key(|slot| slot.generation)
    }

    /// Returns the first error among the copies.
    pub fn error(self) -> Option<CloudError> {
        self.copies.into_iter().find_map(|copy| match copy {
            Copy::Bad(error) => Some(error),
            _ => None,
        })
    }
}

/// Returns the ids of all slots with a copy in the store, and the time of the older copy (seconds since 1970,
/// the maximum if unknown). Two listings.
///
/// # Errors
/// Those of the store.
pub(crate) async fn list_ids(store: &dyn BlobStore) -> Result<BTreeMap<Uuid, i64>, CloudError> {
    let mut ids = BTreeMap::new();
    for prefix in PREFIXES {
        for object in store.list(prefix).await? {
            let Some(id) = object.key.strip_prefix(prefix).and_then(parse_uuid) else { continue };
            let stored_unix_s = object.modified_unix_s.unwrap_or(i64::MAX);
            let found = ids.entry(id).or_insert(stored_unix_s);
            *found = stored_unix_s.min(*found);
        }
    }
    Ok(ids)
}

/// Reads one copy of a slot. A copy that the store cannot return completely counts as damaged: the other one
/// may be intact.
///
/// # Errors
/// Errors of the store that do not concern the object.
pub(crate) async fn read_copy(store: &dyn BlobStore, copy: usize, key_id: Uuid) -> Result<Copy, CloudError> {
    let object = object_of(copy, key_id);
    match store.get(&object, SLOT_LEN_BYTES as u64).await {
        Ok(bytes) => Ok(KeySlot::parse(&object, &bytes).map_or_else(Copy::Bad, Copy::Slot)),
        Err(error) => match error.kind {
            StoreErrorKind::NotFound => Ok(Copy::Missing),
            StoreErrorKind::TooLarge => Ok(Copy::Bad(CloudError::damaged(
                &object,
                0,
                format!("a key slot has {SLOT_LEN_BYTES} bytes, this has more"),
            ))),
            // Errors of this object, not of the store.
            StoreErrorKind::Altered | StoreErrorKind::ShortBody | StoreErrorKind::Other => {
                Ok(Copy::Bad(error.into()))
            }
            _ => Err(error.into()),
        },
    }
}

/// Reads both copies of each slot, in the order of the ids.
///
/// # Errors
/// Those of [`read_copy`].
pub(crate) async fn read_all(store: &dyn BlobStore, ids: Vec<Uuid>) -> Result<Vec<StoredSlot>, CloudError> {
    let read = ids.into_iter().map(|key_id| async move {
        let copies = [read_copy(store, 0, key_id).await?, read_copy(store, 1, key_id).await?];
        Ok::<_, CloudError>(StoredSlot { key_id, copies })
    });
    futures::stream::iter(read).buffered(SLOT_CONCURRENCY).try_collect().await
}

/// Copy that must be rewritten.
#[derive(Debug)]
pub(crate) struct Fault {
    copy: usize,
    offset_bytes: u64,
    what: String,
    is_missing: bool,
}

/// Result of the comparison of a slot's copies with the data key and the remembered slot.
#[derive(Debug)]
pub(crate) struct SlotCheck {
    key_id: Uuid,
    faults: Vec<Fault>,
    /// The genuine slot to repair with.
    pub source: Option<KeySlot>,
    /// `source` was read from the store, which proves that the store is the right one.
    pub is_in_store: bool,
    /// Both copies are genuine and differ: a passphrase change was interrupted.
    differs: bool,
}

impl SlotCheck {
    /// Compares copies. `remembered` is the slot that this host read last.
    pub fn of(stored: &StoredSlot, key: &DataKey, remembered: Option<&KeySlot>) -> Self {
        debug_assert_eq!(stored.key_id, key.key_id(), "copies of another key's slot");
        let remembered = remembered.filter(|slot| slot.is_of(key));
        let least = remembered.map_or(0, |slot| slot.generation);
        let mut faults = Vec::new();
        let mut good: Vec<&KeySlot> = Vec::new();
        for (copy, found) in stored.copies.iter().enumerate() {
            let (offset_bytes, what) = match found {
                Copy::Slot(slot) if !slot.is_of(key) => {
                    (0, "it was not written by a holder of the data key".to_owned())
                }
                Copy::Slot(slot) if slot.generation < least => {
                    (64, "it is outdated: it predates a passphrase change".to_owned())
                }
                Copy::Slot(slot) => {
                    good.push(slot);
                    continue;
                }
                Copy::Missing => (0, "the object is missing".to_owned()),
                Copy::Bad(CloudError::Damaged { offset_bytes, what, .. }) => (*offset_bytes, what.clone()),
                Copy::Bad(error) => (0, error.to_string()),
            };
            faults.push(Fault { copy, offset_bytes, what, is_missing: matches!(found, Copy::Missing) });
        }
        let differs = matches!(good[..], [first, second] if first != second);
        // If two genuine copies differ, the older one counts: the passphrase change is incomplete.
        let in_store = good.into_iter().min_by_key(|slot| slot.generation);
        debug_assert!(in_store.is_none_or(|slot| slot.is_of(key) && slot.generation >= least));
        Self {
            key_id: stored.key_id,
            faults,
            is_in_store: in_store.is_some(),
            source: in_store.or(remembered).cloned(),
            differs,
        }
    }

    /// Returns true if a repair needs proof that the store is the right one.
    pub fn needs_place(&self) -> bool {
        !self.is_in_store && self.source.is_some() && !self.faults.is_empty()
    }

    /// Rewrites faulty copies from the genuine slot. `is_place_proven` is true if the store is known to be
    /// the right one without a copy of this slot.
    pub async fn repair(&self, store: &dyn BlobStore, is_place_proven: bool) -> Vec<SlotFinding> {
        let mut findings = Vec::new();
        for fault in &self.faults {
            let object = object_of(fault.copy, self.key_id);
            assert!(self.source.as_ref().is_none_or(|slot| slot.key_id == self.key_id));
            let repair = match &self.source {
                None => SlotRepair::NotTried("no genuine copy of the slot is known"),
                Some(_) if !self.is_in_store && !is_place_proven => {
                    SlotRepair::NotTried("the store may not be the one of this repository")
                }
                Some(slot) => match rewrite(store, &object, slot, fault.is_missing).await {
                    Ok(()) => SlotRepair::Done,
                    Err(error) => SlotRepair::Failed(error.to_string()),
                },
            };
            let (offset_bytes, what) = (fault.offset_bytes, fault.what.clone());
            findings.push(SlotFinding { object, offset_bytes, what, repair });
        }
        if self.differs {
            findings.push(SlotFinding {
                object: object_of(0, self.key_id),
                offset_bytes: 64,
                what: "the two copies have different passphrases: a passphrase change was interrupted"
                    .to_owned(),
                repair: SlotRepair::NotTried("change the passphrase again"),
            });
        }
        for finding in &findings {
            tracing::warn!(repaired = finding.is_repaired(), "key slot: {finding}");
        }
        findings
    }
}

async fn rewrite(
    store: &dyn BlobStore,
    object: &str,
    slot: &KeySlot,
    is_missing: bool,
) -> Result<(), StoreError> {
    let body = Bytes::copy_from_slice(slot.bytes());
    if !is_missing {
        return store.put(object, body, PutMode::Overwrite).await;
    }
    // Another host may have restored the slot or changed the passphrase concurrently.
    match create(store, object, body).await {
        Err(error) if error.kind == StoreErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Creates an object; overwrites an existing one only if the store does not support create-if-absent.
pub(crate) async fn create(store: &dyn BlobStore, key: &str, body: Bytes) -> Result<(), StoreError> {
    match store.put(key, body.clone(), PutMode::CreateIfAbsent).await {
        Err(error) if error.kind == StoreErrorKind::Unsupported => {
            store.put(key, body, PutMode::Overwrite).await
        }
        result => result,
    }
}

/// Writes both copies of the slot of a new key.
///
/// # Errors
/// Those of the store.
pub(crate) async fn put_new(store: &dyn BlobStore, slot: &KeySlot) -> Result<(), CloudError> {
    let body = Bytes::copy_from_slice(slot.bytes());
    for copy in WRITE_ORDER {
        let object = object_of(copy, slot.key_id);
        assert!(KeySlot::parse(&object, &body).is_ok(), "a slot that is stored as {object} is not read");
        match create(store, &object, body.clone()).await {
            Ok(()) => {}
            // The key is random: an earlier attempt of this request created the object, perhaps incompletely.
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => {
                if !matches!(store.get(&object, SLOT_LEN_BYTES as u64).await, Ok(there) if there == body) {
                    store.put(&object, body.clone(), PutMode::Overwrite).await?;
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Overwrites the copies of a slot that differ from `slot`.
///
/// # Errors
/// Those of the store. Copies that were not reached are unchanged.
pub(crate) async fn replace(
    store: &dyn BlobStore,
    stored: &StoredSlot,
    slot: &KeySlot,
) -> Result<bool, CloudError> {
    assert_eq!(stored.key_id, slot.key_id, "a slot replaces that of another key");
    let mut replaced = false;
    for copy in WRITE_ORDER {
        if stored.copies[copy].slot() == Some(slot) {
            continue;
        }
        let body = Bytes::copy_from_slice(slot.bytes());
        store.put(&object_of(copy, slot.key_id), body, PutMode::Overwrite).await?;
        replaced = true;
    }
    Ok(replaced)
}
