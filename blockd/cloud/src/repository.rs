//! A repository: a store, and the keys to what is in it.

use crate::{
    CloudError, CloudSnapshotId, ManifestKey,
    keys::{DataKey, KdfParams, KeySlot, SLOT_LEN_BYTES},
    manifest::{MAX_MANIFEST_LEN, Manifest},
    names::MANIFESTS_PREFIX,
    seal::EncryptionMode,
    slots::{self, SlotCheck, SlotFinding, StoredSlot},
    unlock,
    write_key::{WriteKey, Writing},
};
use blockd_store::{BlobStore, PutMode, StoreErrorKind, Work};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use uuid::Uuid;

/// Findings about key slots that are kept until they are taken.
const MAX_SLOT_FINDINGS: usize = 64;
/// Manifests that are read to prove that a store is the right one.
const MAX_MANIFESTS_FOR_PROOF: usize = 16;
/// Options to open a repository.
#[derive(Clone, Copy, Default, Debug)]
pub struct OpenOptions {
    /// The work that goes into a key slot, should one have to be made.
    pub kdf: KdfParams,
}

/// A store whose keys are known.
#[derive(Clone)]
pub struct Repository {
    store: Arc<dyn BlobStore>,
    keys: Arc<Vec<DataKey>>,
    writing: Writing,
    slots: Arc<Mutex<SlotMemory>>,
    work: Work,
}

/// The key slots of a repository as they were last seen whole. Shared by all views of the repository.
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

/// The facts about the keys of a repository that a host keeps: no secret is among them.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct KnownKeys {
    /// The key of new backups. Without one, the newest that opens becomes it.
    pub write_key: Option<WriteKey>,
    /// Key slots as they were last seen whole.
    pub slots: Vec<KeySlot>,
}

impl KnownKeys {
    /// The ids of the keys. They are random: two repositories share none, unless one is a copy of the other.
    pub fn key_ids(&self) -> impl Iterator<Item = Uuid> {
        self.write_key.map(|key| key.key_id).into_iter().chain(self.slots.iter().map(|slot| slot.key_id))
    }

    /// Adds a slot, unless there is one of the same key.
    pub fn remember_missing(&mut self, slot: KeySlot) {
        if self.slots.iter().all(|known| known.key_id != slot.key_id) {
            self.slots.push(slot);
        }
    }

    /// The slots one after the other.
    pub fn encode_slots(&self) -> Vec<u8> {
        let bytes: Vec<u8> = self.slots.iter().flat_map(|slot| *slot.bytes()).collect();
        debug_assert!(Self::decode_slots(&bytes) == self.slots, "the saved slots do not decode");
        bytes
    }

    /// Reads [`encode_slots`](Self::encode_slots) back. A slot that is damaged is left out, since the store
    /// has it too.
    pub fn decode_slots(bytes: &[u8]) -> Vec<KeySlot> {
        let slots = bytes.chunks(SLOT_LEN_BYTES).filter_map(|slot| match KeySlot::from_saved(slot) {
            Ok(slot) => Some(slot),
            Err(error) => {
                tracing::warn!(%error, "a remembered key slot is damaged");
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
    /// Opens the repository of a store, or creates one.
    ///
    /// The passphrase is used as UTF-8 bytes, not normalised. Missing or damaged copies of key slots are
    /// rewritten, see [`take_slot_findings`](Self::take_slot_findings).
    ///
    /// # Errors
    /// [`CloudError::WrongPassphrase`], [`CloudError::EncryptedRepository`] and
    /// [`CloudError::PlainRepository`] if the passphrase does not fit the repository; [`CloudError::Damaged`]
    /// if both copies of a key slot are damaged and no other slot opens; errors of the store.
    pub async fn open(
        store: Arc<dyn BlobStore>,
        passphrase: Option<&str>,
        options: &OpenOptions,
    ) -> Result<Self, CloudError> {
        unlock::open(store, passphrase, &KnownKeys::default(), Some(options)).await
    }

    /// Opens what is in a store, and makes nothing: for a store that is known to hold a repository. A disk
    /// that is not mounted is an empty directory. `known` are the slots that this host remembers: they open
    /// the repository, and are put back, if both copies in the store are gone.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); [`CloudError::KeySlotMissing`] if there is no repository.
    pub async fn open_existing(
        store: Arc<dyn BlobStore>,
        passphrase: Option<&str>,
        known: &KnownKeys,
    ) -> Result<Self, CloudError> {
        unlock::open(store, passphrase, known, None).await
    }

    /// Proves that the store is the one that was opened and that other hosts can open the repository: a slot
    /// of the key of new backups is in its place. One GET if the slot is intact; otherwise it is repaired if
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

    /// Repairs a slot. Returns whether a genuine copy is in the store then, and the findings, which are kept
    /// as well.
    pub(crate) async fn repair(&self, check: &SlotCheck) -> Result<(bool, Vec<SlotFinding>), CloudError> {
        let is_place_proven = check.needs_place() && self.is_own_place().await?;
        let findings = check.repair(&*self.store, is_place_proven).await;
        let is_there = check.is_in_store || findings.iter().any(SlotFinding::is_repaired);
        let mut memory = self.slots.lock();
        if let Some(slot) = check.source.clone().filter(|_| is_there) {
            memory.remember(slot);
        }
        memory.note(&findings);
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

    /// Findings about key slots since the last call, on this repository or a view of it.
    pub fn take_slot_findings(&self) -> Vec<SlotFinding> {
        std::mem::take(&mut self.slots.lock().findings)
    }

    /// The facts about the keys that a host keeps for the next time; none is secret.
    pub fn known_keys(&self) -> KnownKeys {
        let slots = self.slots.lock().remembered.clone();
        KnownKeys { write_key: Some(self.writing.pinned), slots }
    }

    /// Refuses to write where the key of new backups is missing, or is not the newest that opened.
    ///
    /// # Errors
    /// [`CloudError::WriteKeyMissing`], [`CloudError::WriteKeyNotNewest`].
    pub fn check_writable(&self) -> Result<(), CloudError> {
        self.writing.check(self.store.describe())
    }

    /// A repository whose keys opened; without a pinned one, the first is used for new backups.
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

    /// A repository whose keys were opened before. Makes no request.
    ///
    /// # Errors
    /// [`CloudError::InvalidRequest`] if there is no key, or some encrypt and some do not.
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
            return invalid("some of the saved keys encrypt and some do not: open the repository again");
        }
        let is_of_key = |slot: &&KeySlot| keys.iter().any(|key| slot.is_of(key));
        let remembered = known.slots.iter().filter(is_of_key).cloned().collect();
        Ok(Self::opened(store, keys, SlotMemory { remembered, findings: Vec::new() }, known.write_key))
    }

    /// The same repository through another view of its store, such as one that counts a task's requests.
    #[must_use]
    pub fn with_store(&self, store: Arc<dyn BlobStore>) -> Self {
        Self { store, ..self.clone() }
    }

    /// The same repository, whose backups, restores and verifications have their work done that way.
    #[must_use]
    pub fn with_work(self, work: Work) -> Self {
        Self { work, ..self }
    }

    /// Returns the worker settings.
    pub(crate) fn work(&self) -> &Work {
        &self.work
    }

    /// Store.
    pub fn store(&self) -> &Arc<dyn BlobStore> {
        &self.store
    }

    /// The data keys, to be kept sealed. The first one is used for new backups, if
    /// [`check_writable`](Self::check_writable) has no objection.
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
        let path = id.manifest_key();
        match self.store.get(&path, MAX_MANIFEST_LEN).await {
            Ok(object) => Manifest::decode(&object, id, |key_id| self.find_key(key_id)),
            Err(error) => match error.kind {
                StoreErrorKind::NotFound => {
                    Err(CloudError::SnapshotNotFound { id: *id, store: self.store.describe().to_owned() })
                }
                StoreErrorKind::TooLarge => Err(CloudError::damaged(
                    &path,
                    0,
                    format!("it is longer than the {MAX_MANIFEST_LEN} bytes that a manifest may have"),
                )),
                _ => Err(error.into()),
            },
        }
    }

    /// Puts a manifest, which is the commit; returns the one that is there then, and whether a single request
    /// put it, as far as `puts` counts them. Otherwise it may have been there before and been deleted since.
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
            // What the store refused made nothing.
            puts_before = puts();
            put = self.store.put(&path, object, PutMode::Overwrite).await;
        }
        let at_once = put.is_ok() && puts() == puts_before + 1;
        let there = match put {
            Ok(()) => Ok(manifest),
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => {
                // An earlier attempt, or an earlier run, may have been carried out without its answer
                // arriving.
                let found = self.manifest(&id).await?;
                if found.delta == manifest.delta {
                    Ok(found)
                } else {
                    Err(CloudError::Conflict { key: path })
                }
            }
            // All attempts may have been carried out without an answer arriving: then it is a snapshot.
            Err(error) => match self.manifest(&id).await {
                Ok(found) if found.delta == manifest.delta => Ok(found),
                _ => Err(error.into()),
            },
        };
        let there = there?;
        assert_eq!(there.id(), id, "the manifest that is there is of another snapshot");
        Ok((there, at_once))
    }
}

/// The time.
pub(crate) fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Runs what takes long away from the async threads.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CloudError> + Send + 'static,
) -> Result<T, CloudError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| CloudError::worker(&error))?
}
