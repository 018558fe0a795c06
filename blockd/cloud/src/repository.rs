//! Repository: a store and its data keys.

use crate::{
    CloudError, CloudSnapshotId, ManifestKey,
    cipher::EncryptionMode,
    keys::{DataKey, KdfParams, KeySlot, SLOT_LEN_BYTES},
    manifest::{MANIFEST, Manifest},
    names::MANIFESTS_PREFIX,
    slots::{self, SlotCheck, SlotFinding, StoredSlot},
    write_key::{WriteKey, Writing},
};
use blockd_store::{BlobStore, PutMode, StoreErrorKind, Work};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    future::Future,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::task::JoinSet;
use tracing::Instrument;
use uuid::Uuid;

/// Maximum number of pending findings about key slots.
const MAX_SLOT_FINDINGS: usize = 64;
/// Maximum number of manifests that are read to prove that a store is the right one.
const MAX_MANIFESTS_FOR_PROOF: usize = 16;
/// Options to open a repository.
#[derive(Clone, Copy, Default, Debug)]
pub struct OpenOptions {
    /// Cost parameters of a new key slot.
    pub kdf: KdfParams,
}

/// Store with its data keys. Clones share the remembered key slots.
#[derive(Clone)]
pub struct Repository {
    store: Arc<dyn BlobStore>,
    keys: Arc<Vec<DataKey>>,
    writing: Writing,
    slots: Arc<Mutex<SlotMemory>>,
    work: Work,
}

/// Last intact key slots of a repository. Shared by all views of the repository.
#[derive(Default)]
pub(crate) struct SlotMemory {
    pub remembered: Vec<KeySlot>,
    pub findings: Vec<SlotFinding>,
}

impl SlotMemory {
    pub fn remember(&mut self, slot: KeySlot) {
        match self.remembered.iter_mut().find(|known| known.key_id == slot.key_id) {
            Some(known) => *known = slot,
            None => self.remembered.push(slot),
        }
    }

    /// Keeps findings until they are taken, up to [`MAX_SLOT_FINDINGS`].
    pub fn note(&mut self, findings: &[SlotFinding]) {
        let room = MAX_SLOT_FINDINGS.saturating_sub(self.findings.len());
        self.findings.extend(findings.iter().take(room).cloned());
        debug_assert!(self.findings.len() <= MAX_SLOT_FINDINGS);
    }
}

/// Keys and slots of a repository that a host remembers; none of it is secret.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct KnownKeys {
    /// Key of new backups; `None` selects the newest key that opens.
    pub write_key: Option<WriteKey>,
    /// Last intact key slots.
    pub slots: Vec<KeySlot>,
}

impl KnownKeys {
    /// Returns the ids of the keys. They are random: two repositories share none, unless one is a copy of the
    /// other.
    pub fn key_ids(&self) -> impl Iterator<Item = Uuid> {
        self.write_key.map(|key| key.key_id).into_iter().chain(self.slots.iter().map(|slot| slot.key_id))
    }

    /// Adds a slot, unless there is one of the same key.
    pub fn remember_missing(&mut self, slot: KeySlot) {
        if self.slots.iter().all(|known| known.key_id != slot.key_id) {
            self.slots.push(slot);
        }
    }

    /// Returns the slots, concatenated.
    pub fn encode_slots(&self) -> Vec<u8> {
        let bytes: Vec<u8> = self.slots.iter().flat_map(|slot| *slot.bytes()).collect();
        debug_assert!(Self::decode_slots(&bytes) == self.slots, "the saved slots do not decode");
        bytes
    }

    /// Decodes the result of [`encode_slots`](Self::encode_slots). A damaged slot is skipped, since the store
    /// has it too.
    pub fn decode_slots(bytes: &[u8]) -> Vec<KeySlot> {
        let slots = bytes.chunks(SLOT_LEN_BYTES).filter_map(|slot| match KeySlot::from_saved(slot) {
            Ok(slot) => Some(slot),
            Err(error) => {
                tracing::warn!(%error, "remembered key slot is damaged");
                None
            }
        });
        slots.collect()
    }
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository").field("store", &self.store.describe()).field("keys", &self.keys).finish()
    }
}

impl Repository {
    /// Checks that the slot of the key of new backups exists: then the store is the one that was opened, and
    /// other hosts can open the repository. One GET if the slot is intact; otherwise it is repaired if
    /// possible.
    ///
    /// # Errors
    /// [`CloudError::KeySlotMissing`] if neither copy exists; [`CloudError::Damaged`]; errors of the store.
    pub async fn prove_key_slot(&self) -> Result<(), CloudError> {
        let key = self.key();
        let first = slots::read_copy(&*self.store, 0, key.key_id()).await?;
        let remembered = self.slots.lock().remembered.iter().find(|slot| slot.is_of(key)).cloned();
        if first
            .slot()
            .is_some_and(|slot| remembered.as_ref().is_none_or(|known| known == slot) && slot.is_of(key))
        {
            return Ok(());
        }
        let second = slots::read_copy(&*self.store, 1, key.key_id()).await?;
        let stored = StoredSlot { key_id: key.key_id(), copies: [first, second] };
        let check = SlotCheck::of(&stored, key, remembered.as_ref());
        if self.repair(&check).await?.0 {
            return Ok(());
        }
        Err(stored.error().unwrap_or_else(|| CloudError::KeySlotMissing {
            store: self.store.describe().to_owned(),
            key: slots::object_of(0, key.key_id()),
        }))
    }

    /// Checks both copies of all key slots, and repairs them if possible.
    ///
    /// # Errors
    /// Errors of the store that are not about a slot.
    pub async fn check_key_slots(&self) -> Result<Vec<SlotFinding>, CloudError> {
        let ids = self.keys.iter().map(DataKey::key_id).collect();
        let all = slots::read_all(&*self.store, ids).await?;
        assert_eq!(all.len(), self.keys.len(), "a slot was read for each key");
        let remembered = self.slots.lock().remembered.clone();
        let mut findings = Vec::new();
        for (stored, key) in all.iter().zip(self.keys.iter()) {
            let known = remembered.iter().find(|slot| slot.key_id == key.key_id());
            findings.extend(self.repair(&SlotCheck::of(stored, key, known)).await?.1);
        }
        Ok(findings)
    }

    /// Repairs a slot. Returns true if the store then has a genuine copy, and the findings, which are also
    /// kept for [`take_slot_findings`](Self::take_slot_findings).
    pub(crate) async fn repair(&self, check: &SlotCheck) -> Result<(bool, Vec<SlotFinding>), CloudError> {
        let is_place_proven = check.needs_place() && self.is_own_place().await?;
        let findings = check.repair(&*self.store, is_place_proven).await;
        let is_there = check.is_in_store || findings.iter().any(SlotFinding::is_repaired);
        let mut memory = self.slots.lock();
        if let Some(slot) = check.source.clone().filter(|_| is_there) {
            memory.remember(slot);
        }
        // Slots that are missing from another store, such as an unmounted disk, are not damaged.
        if !check.needs_place() || is_place_proven {
            memory.note(&findings);
        }
        Ok((is_there, findings))
    }

    /// Returns true if the store has an object that only a holder of a data key can have written: a key slot
    /// or a manifest. The empty directory of an unmounted disk has none.
    pub(crate) async fn is_own_place(&self) -> Result<bool, CloudError> {
        let ids = self.keys.iter().map(DataKey::key_id).collect();
        let all = slots::read_all(&*self.store, ids).await?;
        if all.iter().zip(self.keys.iter()).any(|(stored, key)| stored.genuine(key).is_some()) {
            return Ok(true);
        }
        let listed = self.store.list(MANIFESTS_PREFIX).await?;
        let ids = listed.iter().filter_map(|object| CloudSnapshotId::from_manifest_key(&object.key));
        for id in ids.take(MAX_MANIFESTS_FOR_PROOF) {
            match self.manifest(&id).await {
                Ok(_) => return Ok(true),
                Err(error @ CloudError::Store(_)) => return Err(error),
                Err(_) => {}
            }
        }
        Ok(false)
    }

    /// Returns the findings about key slots since the last call, on this repository or a view of it.
    pub fn take_slot_findings(&self) -> Vec<SlotFinding> {
        std::mem::take(&mut self.slots.lock().findings)
    }

    /// Returns the keys and slots that a host remembers; none of it is secret.
    pub fn known_keys(&self) -> KnownKeys {
        let slots = self.slots.lock().remembered.clone();
        KnownKeys { write_key: Some(self.writing.pinned), slots }
    }

    /// Fails if the key of new backups is missing or is not the newest that opened.
    ///
    /// # Errors
    /// [`CloudError::WriteKeyMissing`], [`CloudError::WriteKeyNotNewest`].
    pub fn check_writable(&self) -> Result<(), CloudError> {
        self.writing.check(self.store.describe())
    }

    /// Creates a repository from opened keys; without a pinned one, the first is used for new backups.
    pub(crate) fn opened(
        store: Arc<dyn BlobStore>,
        mut keys: Vec<DataKey>,
        memory: SlotMemory,
        pinned: Option<WriteKey>,
    ) -> Self {
        assert!(!keys.is_empty(), "a repository without a key");
        debug_assert!(keys.iter().all(|key| key.mode() == keys[0].mode()), "keys of two modes");
        let writing = Writing::order(&mut keys, &memory.remembered, pinned);
        let slots = Arc::new(Mutex::new(memory));
        Self { store, keys: Arc::new(keys), writing, slots, work: Work::default() }
    }

    /// Creates a repository from saved keys, without a request.
    ///
    /// # Errors
    /// [`CloudError::InvalidRequest`] without a key, or with keys of both modes.
    pub fn from_saved_keys(
        store: Arc<dyn BlobStore>,
        keys: Vec<DataKey>,
        known: &KnownKeys,
    ) -> Result<Self, CloudError> {
        let invalid = |what: &str| Err(CloudError::InvalidRequest { what: what.to_owned() });
        let Some(first) = keys.first() else {
            return invalid("no data key was saved: open the repository with its passphrase");
        };
        if keys.iter().any(|key| key.mode() != first.mode()) {
            return invalid("the saved keys have different encryption modes: open the repository again");
        }
        let is_of_key = |slot: &&KeySlot| keys.iter().any(|key| slot.is_of(key));
        let remembered = known.slots.iter().filter(is_of_key).cloned().collect();
        Ok(Self::opened(store, keys, SlotMemory { remembered, findings: Vec::new() }, known.write_key))
    }

    /// Returns the repository with another view of its store, such as one that counts a task's requests.
    #[must_use]
    pub fn with_store(&self, store: Arc<dyn BlobStore>) -> Self {
        Self { store, ..self.clone() }
    }

    /// Returns the repository with other worker settings for backups, restores and verifications.
    #[must_use]
    pub fn with_work(self, work: Work) -> Self {
        Self { work, ..self }
    }

    /// Returns the worker settings.
    pub(crate) fn work(&self) -> &Work {
        &self.work
    }

    /// Returns the store.
    pub fn store(&self) -> &Arc<dyn BlobStore> {
        &self.store
    }

    /// Returns the data keys, which callers must store encrypted. The first one is used for new backups, if
    /// [`check_writable`](Self::check_writable) permits.
    pub fn keys(&self) -> &[DataKey] {
        &self.keys
    }

    /// Returns true for an encrypted repository.
    pub fn is_encrypted(&self) -> bool {
        self.key().mode() == EncryptionMode::Aes256GcmSiv
    }

    pub(crate) fn key(&self) -> &DataKey {
        // Both constructors refuse an empty list.
        &self.keys[0]
    }

    pub(crate) fn find_key(&self, key_id: Uuid) -> Option<DataKey> {
        self.keys.iter().find(|key| key.key_id() == key_id).cloned()
    }

    /// Reads the manifest of a snapshot.
    ///
    /// # Errors
    /// [`CloudError::SnapshotNotFound`]; [`CloudError::Damaged`]; errors of the store.
    pub async fn manifest(&self, id: &CloudSnapshotId) -> Result<Manifest, CloudError> {
        match MANIFEST.get(&*self.store, &id.manifest_key()).await? {
            Some(object) => Manifest::decode(&object, id, |key_id| self.find_key(key_id)),
            None => Err(CloudError::SnapshotNotFound { id: *id, store: self.store.describe().to_owned() }),
        }
    }

    /// Puts a manifest, which commits the snapshot. Returns the stored one, and true if a single request
    /// stored it, according to the request counter `puts`. After several requests the snapshot may have been
    /// committed and deleted before.
    pub(crate) async fn put_manifest(
        &self,
        manifest: Manifest,
        object: Bytes,
        puts: impl Fn() -> u64 + Send,
    ) -> Result<(Manifest, bool), CloudError> {
        let id = manifest.id();
        let path = id.manifest_key();
        let mut puts_before = puts();
        let mut put = self.store.put(&path, object.clone(), PutMode::CreateIfAbsent).await;
        if matches!(&put, Err(error) if error.kind == StoreErrorKind::Unsupported) {
            // A refused request stored nothing.
            puts_before = puts();
            put = self.store.put(&path, object, PutMode::Overwrite).await;
        }
        let at_once = put.is_ok() && puts() == puts_before + 1;
        let stored = match put {
            Ok(()) => Ok(manifest),
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => {
                // An earlier attempt or run may have succeeded although its response was lost.
                let found = self.manifest(&id).await?;
                if found.delta == manifest.delta {
                    Ok(found)
                } else {
                    Err(CloudError::Conflict { key: path })
                }
            }
            // An attempt may have succeeded although its response was lost.
            Err(error) => match self.manifest(&id).await {
                Ok(found) if found.delta == manifest.delta => Ok(found),
                _ => Err(error.into()),
            },
        };
        let stored = stored?;
        assert_eq!(stored.id(), id, "the stored manifest belongs to another snapshot");
        Ok((stored, at_once))
    }
}

/// Returns the current time in seconds since 1970.
pub(crate) fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Runs blocking work outside of the async threads.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CloudError> + Send + 'static,
) -> Result<T, CloudError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| CloudError::worker(&error))?
}

/// Runs a request on any thread of the runtime: its checksums and copies take time. Dropped, it is cancelled.
pub(crate) async fn run_request<T: Send + 'static>(
    request: impl Future<Output = Result<T, CloudError>> + Send + 'static,
) -> Result<T, CloudError> {
    let mut alone = JoinSet::new();
    alone.spawn(request.in_current_span());
    match alone.join_next().await {
        Some(done) => done.map_err(|error| CloudError::worker(&error))?,
        None => Err(CloudError::Cancelled),
    }
}

/// Deletes objects. Returns the number of those that existed, as far as the store reports.
pub(crate) async fn delete_objects(
    repo: &Repository,
    objects: impl Iterator<Item = String> + Send,
) -> Result<u64, CloudError> {
    Ok(blockd_store::delete_objects(repo.store().as_ref(), objects).await?)
}
